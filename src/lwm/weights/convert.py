"""`lwm convert`: a model in one form becomes the same model in another, layer by layer.

What the source is, it says itself or its name does. Nothing is held but a layer of a tensor, whatever the size of the
model, and a directory that appears is whole.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tyro.conf import Positional

from lwm.core.errors import UserError
from lwm.core.files import write_json
from lwm.data.tokenizer import load_tokenizer, tokenizer_file
from lwm.model.config import ModelConfig
from lwm.vqgan.config import CodecConfig
from lwm.weights import hugging_face, lwm_stream
from lwm.weights.codec_convert import convert_codec, is_codec, notes_on, read_codec
from lwm.weights.codec_store import has_codec, require_same_codes, save_codec
from lwm.weights.diffusers_codec import is_diffusers_codec
from lwm.weights.hub import fetch
from lwm.weights.hugging_face_export import CODEC, write_hugging_face, write_hugging_face_codec
from lwm.weights.load import Source, StreamFacts, open_source
from lwm.weights.lwm_stream_config import config_to_json
from lwm.weights.parity import compare_logits
from lwm.weights.released import CODEC_FILE, STREAM_FILE, released
from lwm.weights.store import (
    CONFIG,
    DRAWING,
    copy_drawing,
    copy_tokenizer,
    is_own_model,
    new_directory,
    write_model,
)
from lwm.weights.tensors import Tensors

Target = Literal["lwm", "hf", "stream"]
#: bytes that are written, of how many, and what they are of
Progress = Callable[[int, int, str], None]


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


#: flags that a codec alone has no use for
_OF_MODELS = {
    f"--{name.replace('_', '-')}": name
    for name in ("dtype", "config", "theta", "max_context", "tokenizer", "codec", "verify")
}


@dataclass(frozen=True)
class Codec:
    """A codec that was read, and where."""

    path: Path
    config: CodecConfig
    params: Any


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
    """Tensors that tell how much of them was read, and where they could not be."""

    def __init__(self, tensors: Tensors, path: Path, count: Callable[[int, str], None]) -> None:
        self._tensors, self._path, self._count = tensors, path, count
        self.specs = tensors.specs

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        try:
            piece = self._tensors.read(name, index)
        except OSError as error:
            raise UserError(f"cannot read {name} of {self._path}: {error.strerror or error}") from None
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
    _require_new(config, Path(config.source))
    path = Path(fetch(config.source) if config.download else config.source)
    if is_codec(path):
        return _convert_codec(config, path)
    facts = StreamFacts(config.config, config.theta, config.max_context)
    source = open_source(path, facts, known_as=config.source if config.download else None)
    if source.form != "stream" and facts != StreamFacts():
        raise UserError("--config, --theta and --max-context are for LWM's streams: other models say these themselves")
    tensors, codec, tokenizer = source.tensors(), _find_codec(config, source), _find_tokenizer(config, source)
    dtype = _widest(tensors) if config.dtype == "stored" else config.dtype
    total, done = sum(spec.num_bytes for spec in tensors.specs.values()), 0

    def count(num_bytes: int, what: str) -> None:
        nonlocal done
        done += num_bytes
        progress(min(done, total), total, what)

    with new_directory(config.destination) as written:
        _write(written, config.to, source.config, Counted(tensors, source.path, count), tokenizer, dtype)
        _write_drawing(written, source)
        notes = _notes_on(source) + ([] if codec is None else _write_codec(written, config.to, codec))
    difference = _verify(source, config.destination) if config.verify else None
    return Conversion(_rows(tensors, source, config.to, dtype), config.destination, notes, difference)


def _require_new(config: ConvertConfig, source: Path) -> None:
    """Refuse a destination that holds anything; only a codec may join a model of ours."""
    if config.destination == Path():
        raise UserError("name a new directory to write to")
    try:
        held = sorted(config.destination.iterdir()) if os.path.isdir(config.destination) else []
        held = [path for path in held if path.name != ".DS_Store"]  # of a directory that macOS has shown
    except OSError as error:
        raise UserError(f"cannot look into {config.destination}: {error.strerror}") from None
    if held and os.path.exists(source) and source.samefile(config.destination):
        raise UserError(f"{config.destination} is the source itself: name another directory to write to")
    joins = config.to == "lwm" and is_codec(source) and is_own_model(config.destination)
    if held and not joins:
        raise UserError(f"{config.destination} already holds {held[0].name}: name a new directory")


def _find_tokenizer(config: ConvertConfig, source: Source) -> Path | None:
    """The tokenizer's file, which is known to be one of the model's size."""
    if (given := config.tokenizer or source.tokenizer) is None:
        return None
    size, text_size = load_tokenizer(given).size, source.config.vocab.text_size
    if size > text_size:
        raise UserError(
            f"the tokenizer in {given} has {size} ids, and the model {text_size} of text: give the model's own"
        )
    return tokenizer_file(given)


def _find_codec(config: ConvertConfig, source: Source) -> Codec | None:
    """The codec that goes with the model: the one given, or the one beside it."""
    found, directory = config.codec, source.path if source.path.is_dir() else source.path.parent
    if found is None and source.config.vocab.vision_size:
        if has_codec(directory):
            found = directory
        elif (directory / CODEC_FILE).is_file():
            found = directory / CODEC_FILE
        elif is_diffusers_codec(directory / CODEC):
            found = directory / CODEC
    if found is None:
        return None
    codec, params = read_codec(found, config.resolution)
    require_same_codes(source.config.vocab, codec)
    return Codec(found, codec, params)


def _write(
    written: Path, to: Target, config: ModelConfig, tensors: Tensors, tokenizer: Path | None, dtype: str
) -> None:
    """The model without its codec."""
    if to == "hf":
        write_hugging_face(written, config, tensors, tokenizer, dtype)
    elif to == "lwm":
        write_model(written, config, tensors, tokenizer, dtype)
    else:
        lwm_stream.write_stream(written / STREAM_FILE, config, tensors, dtype)
        write_json(written / CONFIG, config_to_json(config))
        if tokenizer is not None:
            copy_tokenizer(tokenizer, written)


def _verify(source: Source, destination: Path) -> tuple[float, float]:
    """`compare_logits` of what was read and what was written."""
    try:
        return compare_logits(source, open_source(destination))
    except UserError as error:
        raise UserError(f"{destination} is written, but it could not be verified: {error}") from None


def _write_drawing(written: Path, source: Source) -> None:
    """Say of a model that draws how it does so best, as it says itself, or as LWM drew with it."""
    if not source.config.vocab.vision_size:
        return
    if source.published is not None and source.published.sees:
        write_json(written / DRAWING, source.published.drawing)
    copy_drawing(source.path if source.path.is_dir() else source.path.parent, written)


def _notes_on(source: Source) -> list[str]:
    """What there is to know of a published model before it is asked anything."""
    model = source.published
    return [] if model is None or model.chats else [f"{model.name} continues text: it was not trained to answer"]


def _write_codec(written: Path, to: Target, codec: Codec) -> list[str]:
    """Put the codec beside the model; what there is to say of it."""
    if to == "lwm":
        save_codec(written, codec.config, codec.params)
        return [f"with the codec of {codec.path}", *notes_on(codec.path)]
    if to == "hf":
        try:
            write_hugging_face_codec(written, codec.config, codec.params)
        except UserError as error:
            return [f"without its codec: {error}"]
        return [f"with the codec of {codec.path}, in {CODEC}/", *notes_on(codec.path)]
    return ["without its codec: LWM's code reads it from a pickle, and none is written here"]


def _convert_codec(config: ConvertConfig, path: Path) -> Conversion:
    if useless := [flag for flag, name in _OF_MODELS.items() if getattr(config, name) != getattr(ConvertConfig, name)]:
        raise UserError(f"{path} is a codec alone: {', '.join(useless)} is for models")
    if config.to == "stream":
        raise UserError("a codec is written for this project (--to lwm) or for diffusers (--to hf), not as a stream")
    written = convert_codec(path, config.destination, config.to, config.resolution)
    rows = [Row(row.origin, row.name, row.shape, row.stored, row.dtype, row.change) for row in written]
    return Conversion(rows, config.destination, notes_on(path))


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
    """The dtype that holds every tensor as it is; float32 of float64, in which nothing is written."""
    dtypes = {str(spec.dtype) for spec in tensors.specs.values()}
    return dtypes.pop() if len(dtypes) == 1 and dtypes != {"float64"} else "float32"
