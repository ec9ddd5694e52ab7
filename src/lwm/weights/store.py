"""The model directory: what a model is, its tensors and its tokenizer. `weights.load` opens it and others.

    config.json          the fields of `ModelConfig`, the vocabulary as a block of its own
    model.safetensors    the tensors, named by their path in the parameter tree: `layers.query`, `final_norm`, ...
    tokenizer.json       or tokenizer.model, with the files beside it that name its special tokens or how it is asked
    codec.json           of models that see, with codec.safetensors: the codec of their frames (`weights.codec_store`)
    drawing.json         of models that draw, if they say so: how they draw best (`infer.draw_sampling`)

Beyond 5 GB the tensors are split into `model-00001-of-00003.safetensors`, ... with `model.safetensors.index.json` as
Hugging Face has it.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax.numpy as jnp

from lwm.core.errors import UserError
from lwm.core.files import copy_file, read_json, write_json
from lwm.core.params import abstract, named_leaves, require_same_shapes, shapes_by_name
from lwm.data.tokenizer import COMPANION_FILES, TOKENIZER_FILES
from lwm.model.config import ModelConfig
from lwm.model.transformer import Transformer, declare
from lwm.weights.codec_store import CODEC_FILES, copy_codec
from lwm.weights.tensor_files import INDEX, Outgoing, TensorFiles, write_tensors
from lwm.weights.tensors import InMemory, Tensors, pieces

CONFIG, DRAWING = "config.json", "drawing.json"
MODEL_TYPE = "lwm"


def save_model(
    directory: Path | str,
    config: ModelConfig,
    params: Transformer,
    tokenizer_file: Path | None,
    dtype: str = "bfloat16",
    codec: Path | None = None,
) -> Path:
    """Write a model directory; return its path. A directory that appears is whole.

    `codec` is a directory whose codec goes with the model, and how that one draws best.

    Raises:
        UserError: as `new_directory`.
    """
    tensors = InMemory(named_leaves(params))
    with new_directory(directory) as written:
        write_model(written, config, tensors, tokenizer_file, dtype)
        if codec is not None:
            copy_codec(codec, written)
            copy_drawing(codec, written)
    return Path(directory).absolute()


@contextmanager
def new_directory(directory: Path | str) -> Iterator[Path]:
    """A directory to write a model to, which takes its place when it is whole: at the end of the block.

    It appears by one rename. Where an older model of ours is, its files are replaced with `config.json` going first
    and coming last, so that a crash leaves something that is visibly not a model.

    Raises:
        UserError: the directory cannot be written, or holds something that is not one of our models.
    """
    directory = Path(directory).absolute()
    try:
        require_replaceable(directory)
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as scratch:
            written = Path(scratch) / directory.name
            written.mkdir()
            yield written
            if directory.exists():
                _replace(directory, written)
            else:
                written.rename(directory)
    except OSError as error:
        raise UserError(f"cannot write the model to {directory}: {error}") from None


def require_replaceable(directory: Path) -> None:
    """Refuse a place where `new_directory` could not put a model.

    Raises:
        UserError: it is a file, or holds something that is not one of our models.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"cannot write the model to {directory}: it is a file, and a model is a directory")
    if not directory.exists() or not (taken := sorted(_model_files(directory))):
        return
    if not is_own_model(directory):
        raise UserError(
            f"{directory} already holds {taken[0].name}, which is not part of a model of ours: choose another directory"
        )


def is_own_model(directory: Path) -> bool:
    """Whether it has a `config.json` of this project."""
    try:
        read_own_config(directory)
    except UserError:
        return False
    return True


def _model_files(directory: Path) -> list[Path]:
    return [
        path
        for path in directory.iterdir()
        if path.name in (CONFIG, DRAWING, INDEX, *TOKENIZER_FILES, *COMPANION_FILES, *CODEC_FILES)
        or path.match("model*.safetensors")
    ]


def write_model(
    directory: Path,
    config: ModelConfig,
    tensors: Tensors,
    tokenizer_file: Path | None,
    dtype: str,
) -> None:
    """Write a model's files into an empty directory, layer by layer (see `new_directory`)."""
    order = shapes_by_name(abstract(declare(config), jnp.float32))
    outgoing = {name: Outgoing(shape, partial(pieces, tensors, name)) for name, shape in order.items()}
    write_tensors(directory, outgoing, jnp.dtype(dtype))
    if tokenizer_file is not None:
        copy_tokenizer(tokenizer_file, directory)
    write_json(directory / CONFIG, {"model_type": MODEL_TYPE, **config.to_json()})


def copy_tokenizer(file: Path, directory: Path) -> None:
    """Put a tokenizer, and the files that name its special tokens and how it is asked, into a directory.

    Raises:
        UserError: one of them cannot be read.
    """
    hugging_face, sentencepiece = TOKENIZER_FILES
    copy_file(file, directory / (sentencepiece if file.suffix == ".model" else hugging_face))
    for name in COMPANION_FILES:
        if (file.parent / name).is_file():
            copy_file(file.parent / name, directory / name)


def copy_drawing(source: Path, directory: Path) -> None:
    """Put what one model's directory says of how it draws best into another, if it says so."""
    if (source / DRAWING).is_file():
        copy_file(source / DRAWING, directory / DRAWING)


def _replace(directory: Path, written: Path) -> None:
    for path in sorted(_model_files(directory), key=lambda path: path.name != CONFIG):
        path.unlink()
    for path in sorted(written.iterdir(), key=lambda path: path.name == CONFIG):
        os.replace(path, directory / path.name)


def read_own_config(directory: Path) -> ModelConfig:
    """What a model of ours computes, from its `config.json` alone.

    Raises:
        UserError: not a model directory of ours, or a field missing or wrong.
    """
    values = read_json(directory / CONFIG, f"{directory} is not a model directory")
    if values.pop("model_type", None) != MODEL_TYPE:
        raise UserError(f"{directory / CONFIG} is not that of a model of ours: its model_type is not {MODEL_TYPE!r}")
    try:
        return ModelConfig.from_json(values)
    except UserError as error:
        raise UserError(f"{directory / CONFIG}: {error}") from None


def open_own_tensors(directory: Path, config: ModelConfig) -> Tensors:
    """The tensors of a model directory of ours.

    Raises:
        UserError: a broken or incomplete file, a tensor that is missing, unknown or of another shape.
    """
    stored = TensorFiles(directory)
    wanted = shapes_by_name(abstract(declare(config), jnp.float32))
    found = {name: spec.shape for name, spec in stored.specs.items()}
    require_same_shapes(str(directory), found, f"its {CONFIG}", wanted)
    return stored
