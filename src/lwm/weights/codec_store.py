"""The codec of a model directory: `codec.json`, what it is, and `codec.safetensors`, its tensors."""

import dataclasses
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
from lwm.core.files import copy_file, read_json, whole, write_json
from lwm.core.params import abstract, named_leaves, require_same_shapes, shapes_by_name, tensor_name
from lwm.core.vocab import Vocab
from lwm.vqgan.codec import FrameCodec, declare
from lwm.vqgan.config import CodecConfig, PatchCodecConfig, VQGANConfig
from lwm.vqgan.quantize import Codebook, Levels

CODEC_FILES = CONFIG, TENSORS = "codec.json", "codec.safetensors"
ARCHITECTURES: dict[str, type] = {"vqgan": VQGANConfig, "patch": PatchCodecConfig}
QUANTIZERS: dict[str, type] = {"codebook": Codebook, "levels": Levels}
#: tensors of two residual blocks, one of each coder, and of a layer of squares
_TWO_BLOCKS, _LAYER = 16, 4


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
    values = read_json(path, f"{directory} has no codec of pictures")
    try:
        return _parse(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _parse(values: dict[str, Any]) -> CodecConfig:
    fields = dict(values)
    architecture = _kind(fields, "architecture", ARCHITECTURES)
    quantizer = dict(fields["quantizer"]) if isinstance(fields.get("quantizer"), dict) else {}
    fields["quantizer"] = from_json(_kind(quantizer, "kind", QUANTIZERS), quantizer, "its quantizer")
    return from_json(architecture, fields, "it")


def _kind(fields: dict[str, Any], name: str, known: dict[str, type]) -> type:
    """Take out the field that names a class."""
    if not isinstance(found := fields.pop(name, None), str) or found not in known:
        raise UserError(f"its {name} is {found!r}: known are {', '.join(known)}")
    return known[found]


def require_as_many_tensors(config: CodecConfig, num_tensors: int, blocks: str = "num_res_blocks") -> None:
    """Refuse a config of more blocks than there are tensors for, before it is declared: a file that says a billion is
    no longer than one that says two. `blocks` is what the file calls their number.

    Raises:
        UserError: says how many it asks for.
    """
    if isinstance(config, VQGANConfig):
        fields, num_blocks = blocks, config.num_res_blocks * len(config.channel_multipliers)
        least = num_blocks * _TWO_BLOCKS
    else:
        fields, least = "encoder_layers or decoder_layers", (config.encoder_layers + config.decoder_layers) * _LAYER
    if least > num_tensors:
        raise UserError(f"its {fields} asks for {least} tensors or more, and there are {num_tensors}: correct it")


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
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the tensors in {path}: {error}") from None
    try:
        require_as_many_tensors(config, len(stored))
    except UserError as error:
        raise UserError(f"{Path(directory) / CONFIG}: {error}") from None
    wanted = abstract(declare(config), jnp.float32)
    require_same_shapes(str(path), shapes_by_name(stored), f"its {CONFIG}", shapes_by_name(wanted))
    return config, jax.tree.map_with_path(lambda at, _: stored[tensor_name(at)], wanted)
