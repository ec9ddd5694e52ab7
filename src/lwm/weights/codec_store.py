"""The codec of a model directory: `codec.json`, what it is, and `codec.safetensors`, its tensors."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lwm.core.config import from_json
from lwm.core.errors import UserError
from lwm.core.files import copy_file, whole, write_json
from lwm.core.params import abstract, named_leaves, require_same_shapes, shapes_by_name, tensor_name
from lwm.core.vocab import Vocab
from lwm.vqgan.codec import FrameCodec, declare
from lwm.vqgan.config import CodecConfig, PatchCodecConfig, VQGANConfig
from lwm.vqgan.quantize import Codebook, Levels

CODEC_FILES = CONFIG, TENSORS = "codec.json", "codec.safetensors"
ARCHITECTURES: dict[str, type] = {"vqgan": VQGANConfig, "patch": PatchCodecConfig}
QUANTIZERS: dict[str, type] = {"codebook": Codebook, "levels": Levels}


def save_codec(directory: Path | str, config: CodecConfig, params: Any, dtype: str = "float32") -> Path:
    """Write both files into a directory, which may be that of a model; the tensors are there before the config is.

    Raises:
        UserError: the directory cannot be written.
    """
    directory = Path(directory)
    architecture = next(name for name, kind in ARCHITECTURES.items() if isinstance(config, kind))
    quantizer = next(name for name, kind in QUANTIZERS.items() if isinstance(config.quantizer, kind))
    described = {"architecture": architecture, **dataclasses.asdict(config)}
    described["quantizer"] = {"kind": quantizer, **described["quantizer"]}
    tensors = {
        name: np.asarray(leaf).astype(jnp.dtype(dtype), order="C") for name, leaf in named_leaves(params).items()
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / CONFIG).unlink(missing_ok=True)
        with whole(directory / TENSORS) as scratch:
            save_file(tensors, scratch)
        write_json(directory / CONFIG, described)
        shutil.copymode(directory / CONFIG, directory / TENSORS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write the codec to {directory}: {error}") from None
    return directory


def has_codec(directory: Path | str) -> bool:
    """Whether a directory holds a codec, whole."""
    return all((Path(directory) / name).is_file() for name in CODEC_FILES)


def copy_codec(source: Path | str, directory: Path) -> None:
    """Put the codec of one directory into another."""
    for name in CODEC_FILES:
        copy_file(Path(source) / name, directory / name)


def require_same_codes(vocab: Vocab, codec: CodecConfig) -> None:
    """Refuse a codec whose codes are not those of a model's vocabulary.

    Raises:
        UserError: says how they differ.
    """
    if not vocab.vision_size:
        raise UserError("the model is one of text alone: it has no codes and does not draw")
    ours, theirs = (vocab.tokens_per_frame, vocab.num_codes), (codec.tokens_per_frame, codec.quantizer.num_codes)
    if ours != theirs:
        raise UserError(
            f"the codec is not the model's: it has {theirs[0]} codes a frame out of {theirs[1]}, the model {ours[0]} "
            f"out of {ours[1]}"
        )


def read_codec_config(directory: Path | str) -> CodecConfig:
    """What a directory's codec is, from its `codec.json` alone.

    Raises:
        UserError: no codec, or a field missing or wrong.
    """
    path = Path(directory) / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{directory} has no codec of pictures: it has no {CONFIG}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    try:
        return _parse(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _parse(values: Any) -> CodecConfig:
    fields = dict(values) if isinstance(values, dict) else {}
    architecture = _kind(fields, "architecture", ARCHITECTURES)
    quantizer = dict(fields["quantizer"]) if isinstance(fields.get("quantizer"), dict) else {}
    fields["quantizer"] = from_json(_kind(quantizer, "kind", QUANTIZERS), quantizer, "its quantizer")
    return from_json(architecture, fields, "it")


def _kind(fields: dict[str, Any], name: str, known: dict[str, type]) -> type:
    """Take out the field that names a class."""
    if not isinstance(found := fields.pop(name, None), str) or found not in known:
        raise UserError(f"its {name} is {found!r}: known are {', '.join(known)}")
    return known[found]


def load_codec(directory: Path | str, mesh: Mesh) -> FrameCodec:
    """A directory's codec, on a mesh, in float32.

    Raises:
        UserError: no codec, a config with a field missing or wrong, tensors that are missing, unknown or misshapen.
    """
    config, params = read_stored_codec(directory)
    return FrameCodec(jax.tree.map(lambda leaf: leaf.astype(np.float32), params), config, mesh)


def read_stored_codec(directory: Path | str) -> tuple[CodecConfig, Any]:
    """A directory's codec on the host, its tensors in the dtype they are stored in.

    Raises:
        UserError: as `load_codec`.
    """
    config, path = read_codec_config(directory), Path(directory) / TENSORS
    wanted = abstract(declare(config), jnp.float32)
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the tensors in {path}: {error}") from None
    require_same_shapes(str(path), shapes_by_name(stored), f"its {CONFIG}", shapes_by_name(wanted))
    return config, jax.tree.map_with_path(lambda at, _: stored[tensor_name(at)], wanted)
