"""The model directory: what a model is, its tensors and its tokenizer, ready to load onto any mesh.

    config.json          the fields of `ModelConfig`, the vocabulary as a block of its own
    model.safetensors    the tensors, named by their path in the parameter tree: `layers.query`, `final_norm`, ...
    tokenizer.json       with the files beside it that name its special tokens, if there are any; or tokenizer.model

Beyond 5 GB the tensors are split into `model-00001-of-00003.safetensors`, ... with `model.safetensors.index.json` as
Hugging Face has it.
"""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lwm.core.errors import UserError
from lwm.core.files import write_json
from lwm.core.params import abstract, named_leaves, require_same_shapes, shapes_by_name, shardings, tensor_name
from lwm.data.tokenizer import SPECIAL_TOKEN_FILES, TOKENIZER_FILES, Tokenizer, has_tokenizer, load_tokenizer
from lwm.model.config import ModelConfig
from lwm.model.transformer import Transformer, declare
from lwm.weights.codec_store import copy_codec

CONFIG = "config.json"
TENSORS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MODEL_TYPE = "lwm"
MAX_SHARD_BYTES = 5 * 10**9

#: models that come with the package, by name, and the directories they are in
EMBEDDED = {"nano": Path(str(resources.files("lwm").joinpath("nano", "weights")))}


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory: its parameters lie on `mesh`."""

    config: ModelConfig
    params: Transformer
    #: None if the directory holds none: such a model reads and writes ids only
    tokenizer: Tokenizer | None
    directory: Path
    mesh: Mesh


def save_model(
    directory: Path | str,
    config: ModelConfig,
    params: Transformer,
    tokenizer_file: Path | None,
    dtype: str = "bfloat16",
    codec: Path | None = None,
) -> Path:
    """Write a model directory; return its path. A directory that appears is whole.

    `codec` is a directory whose codec goes with the model.

    Everything is written beside the target first. A new directory then appears by one rename; in a directory that
    holds an older model the files are replaced with `config.json` going first and coming last, so that a crash
    leaves something that is visibly not a model.

    Raises:
        UserError: the directory cannot be written, or holds something that is not one of our models.
    """
    directory = Path(directory).absolute()
    try:
        _require_ours(directory)
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as scratch:
            written = Path(scratch) / directory.name
            written.mkdir()
            _write(written, config, params, tokenizer_file, jnp.dtype(dtype))
            if codec is not None:
                copy_codec(codec, written)
            if directory.exists():
                _replace(directory, written)
            else:
                written.rename(directory)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write the model to {directory}: {error}") from None
    return directory


def _require_ours(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise UserError(f"cannot write the model to {directory}: it is a file, and a model is a directory")
    if not directory.exists() or not (taken := sorted(_model_files(directory))):
        return
    try:
        read_config(directory)
    except UserError:
        raise UserError(
            f"{directory} already holds {taken[0].name}, which is not part of a model of ours: choose another directory"
        ) from None


def _model_files(directory: Path) -> list[Path]:
    return [
        path
        for path in directory.iterdir()
        if path.name in (CONFIG, INDEX, *TOKENIZER_FILES, *SPECIAL_TOKEN_FILES) or path.match("model*.safetensors")
    ]


def _write(directory: Path, config: ModelConfig, params: Transformer, tokenizer: Path | None, dtype: np.dtype) -> None:
    shards = _plan_shards(named_leaves(params), dtype)
    for file, tensors in shards.items():
        save_file({name: np.asarray(leaf).astype(dtype, order="C") for name, leaf in tensors.items()}, directory / file)
    if len(shards) > 1:
        weight_map = {name: file for file, tensors in shards.items() for name in tensors}
        write_json(directory / INDEX, {"metadata": {}, "weight_map": weight_map})
    if tokenizer is not None:
        _copy_tokenizer(tokenizer, directory)
    write_json(directory / CONFIG, {"model_type": MODEL_TYPE, **config.to_json()})
    for file in shards:  # the library keeps them from everybody else, whatever the umask says
        shutil.copymode(directory / CONFIG, directory / file)


def _copy_tokenizer(file: Path, directory: Path) -> None:
    hugging_face, sentencepiece = TOKENIZER_FILES
    if file.suffix == ".model":
        shutil.copyfile(file, directory / sentencepiece)
        return
    shutil.copyfile(file, directory / hugging_face)
    for name in SPECIAL_TOKEN_FILES:
        if (file.parent / name).is_file():
            shutil.copyfile(file.parent / name, directory / name)


def _plan_shards(leaves: dict[str, jax.Array], dtype: np.dtype) -> dict[str, dict[str, jax.Array]]:
    """Which file holds which tensors: in order, a new file where the next tensor would exceed `MAX_SHARD_BYTES`."""
    groups: list[dict[str, jax.Array]] = [{}]
    held = 0
    for name, leaf in leaves.items():
        size = leaf.size * dtype.itemsize
        if groups[-1] and held + size > MAX_SHARD_BYTES:
            groups.append({})
            held = 0
        groups[-1][name] = leaf
        held += size
    if len(groups) == 1:
        return {TENSORS: groups[0]}
    return {f"model-{place:05}-of-{len(groups):05}.safetensors": group for place, group in enumerate(groups, 1)}


def _replace(directory: Path, written: Path) -> None:
    for path in sorted(_model_files(directory), key=lambda path: path.name != CONFIG):
        path.unlink()
    for path in sorted(written.iterdir(), key=lambda path: path.name == CONFIG):
        os.replace(path, directory / path.name)


def load_model(name_or_directory: str | Path, mesh: Mesh, dtype: str = "float32") -> LoadedModel:
    """Read a model directory, or a model of this package by name ("nano"), and place it on `mesh`.

    Each device's share of each tensor is read and converted by itself: the host never holds the model.

    Raises:
        UserError: no such directory or file, not a model directory, a config with a field missing or wrong, a broken
            or incomplete safetensors file, a tensor that is missing, unknown or of another shape, a tokenizer with
            more ids than the model, a mesh that does not divide the tensors.
    """
    directory, config = locate(name_or_directory), read_config(name_or_directory)
    tokenizer = _read_tokenizer(directory, config)
    files = _open_tensors(directory)
    wanted = abstract(declare(config), jnp.dtype(dtype))
    stored_shapes = {name: tuple(file.get_slice(name).get_shape()) for name, file in files.items()}
    require_same_shapes(str(directory), stored_shapes, f"its {CONFIG}", shapes_by_name(wanted))

    def read(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct, placed: NamedSharding) -> jax.Array:
        name = tensor_name(path)
        stored = files[name].get_slice(name)
        return jax.make_array_from_callback(leaf.shape, placed, lambda index: stored[index].astype(leaf.dtype))

    params = jax.tree.map_with_path(read, wanted, shardings(declare(config), mesh))
    return LoadedModel(config, params, tokenizer, directory, mesh)


def read_config(name_or_directory: str | Path) -> ModelConfig:
    """What a model computes, from its `config.json` alone.

    Raises:
        UserError: no such directory, not a model directory, or a field missing or wrong.
    """
    directory = locate(name_or_directory)
    values = _read_json(directory / CONFIG, f"{directory} is not a model directory")
    if values.pop("model_type", None) != MODEL_TYPE:
        raise UserError(f"{directory / CONFIG} is not that of a model of ours: its model_type is not {MODEL_TYPE!r}")
    try:
        return ModelConfig.from_json(values)
    except UserError as error:
        raise UserError(f"{directory / CONFIG}: {error}") from None


def locate(name_or_directory: str | Path) -> Path:
    """The directory of a model, or of an embedded one by name.

    Raises:
        UserError: there is none.
    """
    directory = EMBEDDED.get(str(name_or_directory), Path(name_or_directory))
    if not os.path.isdir(directory):
        known = ", ".join(EMBEDDED)
        raise UserError(f"no model at {directory}: give a model directory, or the name of an embedded model ({known})")
    return directory


def _read_json(path: Path, when_missing: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{when_missing}: it has no {path.name}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"cannot read {path}: it is not a JSON object")
    return values


def _read_tokenizer(directory: Path, config: ModelConfig) -> Tokenizer | None:
    if not has_tokenizer(directory):
        return None
    tokenizer = load_tokenizer(directory)
    if tokenizer.size > config.vocab.text_size:
        raise UserError(
            f"the tokenizer in {directory} does not match its model: "
            f"it has {tokenizer.size} ids, the model {config.vocab.text_size} text ids"
        )
    return tokenizer


def _open_tensors(directory: Path) -> dict[str, Any]:
    """The open safetensors file of each tensor name."""
    names = [TENSORS]
    if not (directory / TENSORS).exists():
        index = _read_json(directory / INDEX, f"{directory} has no {TENSORS}")
        if not isinstance(weight_map := index.get("weight_map"), dict):
            raise UserError(f"{directory / INDEX} has no weight_map")
        names = sorted(set(map(str, weight_map.values())))
    opened: dict[str, Any] = {}
    for name in names:
        try:
            file = safe_open(directory / name, framework="numpy")
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read the tensors in {directory / name}: {error}") from None
        opened |= dict.fromkeys(file.keys(), file)
    return opened
