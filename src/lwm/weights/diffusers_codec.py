"""LWM's VQGAN as `diffusers` keeps it, a `VQModel`: `config.json` and `diffusion_pytorch_model.safetensors`.

It is the same network under other names. Its kernels are (out, in, rows, columns), ours (rows, columns, in, out).

What black and white are to the network, `diffusers` leaves to whoever feeds it: its pipeline of aMUSEd takes [0, 1].
Our own exports say it in the field `_pixel_range`, which `diffusers` keeps and does not read; so may any other.
"""

import math
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lwm.core.config import from_json
from lwm.core.errors import UserError
from lwm.core.files import read_json, write_json
from lwm.core.params import abstract, named_leaves, require_same_shapes, shapes_by_name, tensor_name
from lwm.vqgan.config import CodecConfig, VQGANConfig
from lwm.vqgan.model import VQGAN, declare
from lwm.vqgan.quantize import Codebook
from lwm.weights.codec_store import require_as_many_tensors

CONFIG = "config.json"
TENSOR_FILES = "diffusion_pytorch_model.safetensors", "model.safetensors"
CLASS = "VQModel"
PIXEL_RANGE = "_pixel_range"
DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
#: what `diffusers` computes with, whatever its config says
NORM_EPS = 1e-6
FLOATS = ("F16", "BF16", "F32", "F64")
#: pixels a side of aMUSEd's squares and pictures; the sample size that it states is the default of `diffusers`
AMUSED_SQUARE, AMUSED_RESOLUTION, UNTOLD_SAMPLE_SIZE = 16, 256, 32

#: fields that have one value in this architecture: what `diffusers` takes where one is missing, and what is read
_FIXED: dict[str, tuple[object, tuple[object, ...]]] = {
    "in_channels": (3, (3,)),
    "out_channels": (3, (3,)),
    "act_fn": ("silu", ("silu", "swish")),
    "norm_type": ("group", ("group",)),
    "mid_block_add_attention": (True, (False,)),
}
#: fields that change neither codes nor pictures
_IGNORED = ("scaling_factor", "lookup_from_codebook", "force_upcast")
#: our names of the parts of a residual block, and those of `diffusers`
_BLOCK = {"norm_in": "norm1", "conv_in": "conv1", "norm_out": "norm2", "conv_out": "conv2", "shortcut": "conv_shortcut"}
_TENSOR = {"kernel": "weight", "scale": "weight", "bias": "bias"}


@dataclass(frozen=True)
class _VQModelConfig:
    """What differs from one `VQModel` of this architecture to the next, with the defaults of `diffusers`."""

    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 3
    sample_size: int = UNTOLD_SAMPLE_SIZE
    num_vq_embeddings: int = 256
    norm_num_groups: int = 32
    vq_embed_dim: int = 3
    pixel_range: tuple[int, ...] = (0, 1)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int) and value < 1:
                raise UserError(f"its {name} is {value}: it must be positive")
        widths, groups = self.block_out_channels, self.norm_num_groups
        if not widths or min(widths) < 1 or any(width % groups for width in widths):
            raise UserError(f"its block_out_channels {widths} must be multiples of norm_num_groups, {groups}")


def is_diffusers_codec(directory: Path) -> bool:
    """Whether a directory has a `config.json` like those of `diffusers`, of whatever class.

    Raises:
        UserError: it has one that cannot be read.
    """
    return os.path.isfile(directory / CONFIG) and "_class_name" in _read_json(directory / CONFIG)


def assumptions(directory: Path) -> list[str]:
    """What is taken for granted of a codec because its `config.json` does not say it, for who converts it to know.

    Raises:
        UserError: its `config.json` cannot be read.
    """
    if PIXEL_RANGE in _read_json(directory / CONFIG):
        return []
    return [
        f"pixels are taken to be in [0, 1], as aMUSEd's are: {directory / CONFIG} does not say; for a network that was "
        f'trained on others, LWM\'s for one, put "{PIXEL_RANGE}": [-1, 1] there and convert it again'
    ]


def diffusers_name(name: str) -> str:
    """What `diffusers` calls one of our tensors: `encoder.levels.0.resample.kernel`, say."""
    coder, *parts = name.split(".")
    way = "down" if coder == "encoder" else "up"
    match parts:
        case ["levels", level, "blocks", block, layer, tensor]:
            return f"{coder}.{way}_blocks.{level}.resnets.{block}.{_BLOCK[layer]}.{_TENSOR[tensor]}"
        case ["levels", level, "resample", tensor]:
            return f"{coder}.{way}_blocks.{level}.{way}samplers.0.conv.{_TENSOR[tensor]}"
        case ["middle", block, layer, tensor]:
            return f"{coder}.mid_block.resnets.{block}.{_BLOCK[layer]}.{_TENSOR[tensor]}"
        case [layer, tensor]:
            return f"{coder}.{'conv_norm_out' if layer == 'norm_out' else layer}.{_TENSOR[tensor]}"
        case [tensor]:
            return f"{'quant_conv' if coder == 'to_code' else 'post_quant_conv'}.{_TENSOR[tensor]}"
        case _:
            return "quantize.embedding.weight"


def diffusers_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a tensor of ours has there."""
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape


def read_diffusers(directory: Path | str, resolution: int | None = None) -> tuple[VQGANConfig, VQGAN]:
    """A `VQModel` as our configuration and parameters, these on the host in the dtype they are stored in.

    `resolution` is the side of the pictures. If it is not given it is the config's sample size; but aMUSEd's, whose
    config leaves that at the default, is 256. Pixels are [0, 1] to the network, as they are to aMUSEd's, unless the
    field `_pixel_range` says something else.

    Raises:
        UserError: a file that is missing or broken; a field or a tensor that is missing, unknown or of another form
            than this architecture has, attention for one.
    """
    directory = Path(directory)
    file = next((directory / name for name in TENSOR_FILES if (directory / name).exists()), None)
    if file is None:
        raise UserError(f"{directory} has no {TENSOR_FILES[0]}: save the model as safetensors first")
    try:
        with safe_open(file, framework="numpy") as stored:
            names = stored.keys()
            slices = {name: stored.get_slice(name) for name in names}
            config = _read_config(directory / CONFIG, resolution, len(slices))
            wanted = abstract(declare(config), jnp.float32)
            theirs = {diffusers_name(name): diffusers_shape(shape) for name, shape in shapes_by_name(wanted).items()}
            shapes = {name: tuple(tensor.get_shape()) for name, tensor in slices.items()}
            require_same_shapes(str(file), shapes, f"its {CONFIG}", theirs)
            for name, tensor in slices.items():
                if tensor.get_dtype() not in FLOATS:
                    raise UserError(f"{file}: {name} is of {tensor.get_dtype()}: known are {', '.join(FLOATS)}")

            def read(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
                array = stored.get_tensor(diffusers_name(tensor_name(path)))
                return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array

            return config, jax.tree.map_with_path(read, wanted)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the tensors in {file}: {error}") from None


def _read_config(path: Path, resolution: int | None, num_tensors: int) -> VQGANConfig:
    """`num_tensors` is how many there are: a config that asks for many more is refused before it is followed."""
    values = _read_json(path)
    try:
        stated = _parse(values)
        widths, sample_size = stated.block_out_channels, stated.sample_size
        is_untold = PIXEL_RANGE not in values and sample_size == UNTOLD_SAMPLE_SIZE
        if is_untold and 2 ** (len(widths) - 1) == AMUSED_SQUARE:
            sample_size = AMUSED_RESOLUTION
        unit = math.gcd(*widths)
        config = VQGANConfig(
            resolution=sample_size if resolution is None else resolution,
            hidden_channels=unit,
            channel_multipliers=tuple(width // unit for width in widths),
            num_res_blocks=stated.layers_per_block,
            z_channels=stated.latent_channels,
            quantizer=Codebook(stated.num_vq_embeddings, stated.vq_embed_dim),
            norm_groups=stated.norm_num_groups,
            norm_eps=NORM_EPS,
            pixel_range=stated.pixel_range,
        )
        require_as_many_tensors(config, num_tensors, "layers_per_block")
        return config
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _parse(values: dict[str, Any]) -> _VQModelConfig:
    """Refuse what this architecture does not have."""
    if values.get("_class_name") != CLASS:
        raise UserError(f"its _class_name is {values.get('_class_name')!r:.80}, not {CLASS!r}")
    fields = {name: value for name, value in values.items() if not name.startswith("_") and name not in _IGNORED}
    for name, (default, known) in _FIXED.items():
        if (found := fields.pop(name, default)) not in known:
            raise UserError(f"its {name} is {found!r:.80}, and only {known[0]!r} can be read")
    if PIXEL_RANGE in values:
        fields["pixel_range"] = values[PIXEL_RANGE]
    if fields.get("vq_embed_dim") is None:
        fields["vq_embed_dim"] = fields.get("latent_channels", _VQModelConfig.latent_channels)
    kinds = {"down_block_types": DOWN, "up_block_types": UP}
    blocks = {name: fields.pop(name, [kind]) for name, kind in kinds.items()}
    stated: _VQModelConfig = from_json(_VQModelConfig, fields, "it")
    for name, kind in kinds.items():
        if blocks[name] != [kind] * len(stated.block_out_channels):
            raise UserError(f"its {name} is {blocks[name]!r:.80}, and only {kind!r}, one for each level, can be read")
    return stated


def _read_json(path: Path) -> dict[str, Any]:
    return read_json(path, f"{path.parent} is no codec of diffusers")


def write_diffusers(directory: Path | str, config: CodecConfig, params: Any) -> Path:
    """Write a VQGAN so that `VQModel.from_pretrained` reads it, in float32; return its path.

    A directory that appears is whole. Codes are decoded by `decode(codes, force_not_quantize=True, shape=(N, rows,
    columns, width))`.

    Raises:
        UserError: a codec that is no `VQModel`, a directory that is not empty or cannot be written.
    """
    directory, described = Path(directory).absolute(), _describe(config)
    try:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise UserError(f"{directory} already exists and is not an empty directory: choose another")
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as scratch:
            written = Path(scratch) / directory.name
            written.mkdir()
            tensors = {diffusers_name(name): _theirs(leaf) for name, leaf in named_leaves(params).items()}
            save_file(tensors, written / TENSOR_FILES[0], metadata={"format": "pt"})
            write_json(written / CONFIG, described)
            shutil.copymode(written / CONFIG, written / TENSOR_FILES[0])
            written.rename(directory)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write the codec to {directory}: {error}") from None
    return directory


def _theirs(leaf: Any) -> np.ndarray:
    array = np.asarray(leaf).astype(np.float32)
    return np.ascontiguousarray(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array)


def _describe(config: CodecConfig) -> dict[str, Any]:
    """Its `config.json`."""
    if not isinstance(config, VQGANConfig):
        raise UserError("the codec is one of separate squares, which diffusers does not have: only a VQGAN is written")
    if not isinstance(config.quantizer, Codebook):
        raise UserError("the codec's quantizer is one of fixed levels: diffusers' VQModel has a learned codebook only")
    if config.norm_eps != NORM_EPS:
        raise UserError(f"the codec's norm_eps is {config.norm_eps}: that of diffusers' VQModel is always {NORM_EPS}")
    widths = config.widths()
    return {
        "_class_name": CLASS,
        PIXEL_RANGE: config.pixel_range,
        **{name: known[0] for name, (_, known) in _FIXED.items()},
        "block_out_channels": widths,
        "down_block_types": [DOWN] * len(widths),
        "up_block_types": [UP] * len(widths),
        "layers_per_block": config.num_res_blocks,
        "latent_channels": config.z_channels,
        "sample_size": config.resolution,
        "num_vq_embeddings": config.quantizer.num_codes,
        "vq_embed_dim": config.quantizer.width,
        "norm_num_groups": config.norm_groups,
        "lookup_from_codebook": True,
    }
