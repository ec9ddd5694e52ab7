"""`lwm convert`: a model in one form becomes the same model in another, layer by layer.

What the source is, it says itself or its name does. Nothing is held but a layer of a tensor, whatever the size of the
model, and a directory that appears is whole.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tyro.conf import Positional

from lwm.core.errors import UserError
from lwm.core.files import write_json
from lwm.data.tokenizer import tokenizer_file
from lwm.weights import hugging_face, lwm_stream
from lwm.weights.codec_convert import convert_codec, is_codec, read_codec
from lwm.weights.codec_store import has_codec, require_same_codes, save_codec
from lwm.weights.diffusers_codec import is_diffusers_codec, write_diffusers
from lwm.weights.hub import fetch
from lwm.weights.hugging_face_export import write_hugging_face
from lwm.weights.load import Source, StreamFacts, open_source
from lwm.weights.lwm_stream_config import config_to_json
from lwm.weights.parity import compare_logits
from lwm.weights.released import CODEC_FILE, STREAM_FILE, released
from lwm.weights.store import CONFIG, copy_tokenizer, new_directory, write_model
from lwm.weights.tensors import Tensors

Target = Literal["lwm", "hf", "stream"]
#: bytes that are written, of how many, and what they are of
Progress = Callable[[int, int, str], None]
#: where a Hugging Face export keeps its codec, and LWM its own
VQGAN = CODEC_FILE


@dataclass(frozen=True)
class ConvertConfig:
    """What becomes what."""

    #: a model directory of ours or of Hugging Face's, a GGUF file, an LWM stream or the directory it was published
    #: in, a name (nano, smollm2); or a codec alone: LWM's pickle, a directory of diffusers' or of ours
    source: Positional[str]
    #: the directory to write
    destination: Positional[Path]
    #: a model directory of ours, a Hugging Face directory, or a stream that LWM's own code reads
    to: Target = "lwm"
    #: of the tensors that are written; stored: that of the source, float32 where it is quantized
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored"
    #: of a stream: a JSON file with LWM's names of what the model is
    config: Path | None = None
    #: of a stream that says nothing: the base of its rotary positions
    theta: float | None = None
    #: of a stream that says nothing: the tokens it was trained to read
    max_context: int | None = None
    #: a tokenizer to put in, where the source has none
    tokenizer: Path | None = None
    #: a codec of pictures to put in, where the source has none
    codec: Path | None = None
    #: of a codec's pickle: height and width of its frames, in pixels
    resolution: int | None = None
    #: run both models on the same tokens and tell the greatest difference of their logits; needs room for one of them
    #: in float32
    verify: bool = False
    #: fetch the source from the Hugging Face hub
    download: bool = False


@dataclass(frozen=True)
class Row:
    """What became of a tensor."""

    origin: str
    name: str
    shape: tuple[int, ...]
    stored: str
    written: str
    change: str


class Counted:
    """Tensors that tell how much of them was read."""

    def __init__(self, tensors: Tensors, count: Callable[[int, str], None]) -> None:
        self._tensors, self._count = tensors, count
        self.specs = tensors.specs

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        piece = self._tensors.read(name, index)
        self._count(piece.nbytes, name)
        return piece


@dataclass(frozen=True)
class Conversion:
    """What was done."""

    rows: list[Row]
    directory: Path
    notes: list[str]
    #: greatest difference of two logits, and the greatest logit
    difference: tuple[float, float] | None = None

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(row.shape) for row in self.rows)


def convert(config: ConvertConfig, progress: Progress = lambda done, total, what: None) -> Conversion:
    """Write the source in another form.

    Raises:
        UserError: a source that is not known or not whole, a target that cannot be written or cannot hold the model.
    """
    if not config.download and released(config.source) is not None and not os.path.exists(config.source):
        raise UserError(f"there is no {config.source} here: name the directory that holds it, or add --download")
    path = fetch(config.source) if config.download else config.source
    if is_codec(path):
        return _convert_codec(config, Path(path))
    source = open_source(path, StreamFacts(config.config, config.theta, config.max_context), known_as=config.source)
    tensors = source.tensors()
    dtype = _widest(tensors) if config.dtype == "stored" else config.dtype
    total, done = sum(spec.num_bytes for spec in tensors.specs.values()), 0

    def count(num_bytes: int, what: str) -> None:
        nonlocal done
        done += num_bytes
        progress(min(done, total), total, what)

    with new_directory(config.destination) as written:
        _write(written, config, source, Counted(tensors, count), dtype)
        notes = _write_codec(written, config, source)
    difference = None
    if config.verify:
        difference = compare_logits(source, open_source(config.destination))
    return Conversion(_rows(tensors, source, config.to, dtype), config.destination, notes, difference)


def _write(written: Path, config: ConvertConfig, source: Source, tensors: Tensors, dtype: str) -> None:
    """The model without its codec."""
    given = config.tokenizer or source.tokenizer
    tokenizer = None if given is None else tokenizer_file(given)
    if config.to == "hf":
        write_hugging_face(written, source.config, tensors, tokenizer, dtype)
    elif config.to == "lwm":
        write_model(written, source.config, tensors, tokenizer, dtype)
    else:
        lwm_stream.write_stream(written / STREAM_FILE, source.config, tensors, dtype)
        write_json(written / CONFIG, config_to_json(source.config))
        if tokenizer is not None:
            copy_tokenizer(tokenizer, written)


def _write_codec(written: Path, config: ConvertConfig, source: Source) -> list[str]:
    """Put the codec beside the model; what there is to say of it."""
    directory = source.path if source.path.is_dir() else source.path.parent
    found = config.codec
    if found is None and has_codec(directory):
        found = directory
    if found is None and ((directory / VQGAN).is_file() or is_diffusers_codec(directory / VQGAN)):
        found = directory / VQGAN
    if found is None:
        return []
    codec, params = read_codec(found, config.resolution)
    require_same_codes(source.config.vocab, codec)
    if config.to == "lwm":
        save_codec(written, codec, params)
        return [f"with the codec of {found}"]
    if config.to == "hf":
        try:
            write_diffusers(written / VQGAN, codec, params)
        except UserError as error:
            return [f"without its codec: {error}"]
        return [f"with the codec of {found}, in {VQGAN}/"]
    return ["without its codec: LWM's code reads it from a pickle, and none is written here"]


def _convert_codec(config: ConvertConfig, path: Path) -> Conversion:
    if config.to == "stream":
        raise UserError("a codec is written for this project (--to lwm) or for diffusers (--to hf), not as a stream")
    written = convert_codec(path, config.destination, config.to, config.resolution)
    rows = [Row(row.origin, row.name, row.shape, row.stored, row.dtype, row.change) for row in written]
    return Conversion(rows, config.destination, [])


def _rows(tensors: Tensors, source: Source, to: Target, dtype: str) -> list[Row]:
    there = {
        "lwm": lambda config: {name: (name, "") for name in tensors.specs},
        "hf": hugging_face.names_there,
        "stream": lwm_stream.names_there,
    }[to](source.config)
    rows = []
    for name, spec in tensors.specs.items():
        target, change = there[name]
        changes = [] if target == spec.origin else [part for part in (spec.change, change) if part]
        rows.append(Row(spec.origin, target, spec.shape, str(spec.dtype), dtype, ", then ".join(changes)))
    return rows


def _widest(tensors: Tensors) -> str:
    """The dtype that holds every tensor as it is."""
    dtypes = {str(spec.dtype) for spec in tensors.specs.values()}
    return dtypes.pop() if len(dtypes) == 1 else "float32"
