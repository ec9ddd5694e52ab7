"""Codecs of every form, read and written anew: LWM's pickle, the `VQModel` of `diffusers`, a directory of ours."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lwm.core.errors import UserError
from lwm.core.files import first_bytes
from lwm.core.params import named_leaves
from lwm.vqgan.config import CodecConfig
from lwm.weights.codec_store import CODEC_FILES, read_stored_codec, save_codec
from lwm.weights.diffusers_codec import (
    assumptions,
    diffusers_name,
    diffusers_shape,
    is_diffusers_codec,
    read_diffusers,
    write_diffusers,
)
from lwm.weights.vqgan_pickle import config_from_shapes, from_pickle, read_arrays

Form = Literal["pickle", "hf", "lwm"]
#: what a pickle begins with, from protocol 2 on
_PICKLE = b"\x80"


@dataclass(frozen=True)
class ConvertedTensor:
    """A tensor as it was written."""

    #: its name in the source; empty: a pickle, whose arrays are found by their place in it
    origin: str
    name: str
    shape: tuple[int, ...]
    #: as it was stored
    stored: str
    #: as it was written
    dtype: str
    #: what was done to it: "transposed"; empty: nothing
    change: str


def read_codec(path: Path | str, resolution: int | None = None) -> tuple[CodecConfig, Any]:
    """A codec of any form, on the host, in float32; which form it is, the path tells.

    A file is LWM's pickle, a directory is one of ours or of `diffusers`. `resolution` is the side of the pictures, for
    files that do not say it; given, it counts.

    Raises:
        UserError: no codec, or one that is broken or of another architecture; LWM's pickle with other squares than
            LWM's and no resolution.
    """
    _, config, params = _read(Path(path), resolution)
    return config, jax.tree.map(lambda leaf: leaf.astype(np.float32), params)


def convert_codec(
    source: Path | str, destination: Path | str, to: Literal["lwm", "hf"], resolution: int | None = None
) -> list[ConvertedTensor]:
    """Write a codec of any form as one of ours ("lwm") or for `diffusers` ("hf"), in float32; return what was written.

    One of ours may be written into the directory of a model that has none, one for `diffusers` into a new directory.

    Raises:
        UserError: as `read_codec`; a codec that the other form does not have; a destination that holds one already or
            cannot be written.
    """
    destination = Path(destination)
    taken = [name for name in CODEC_FILES if os.path.exists(destination / name)]
    if to == "lwm" and taken:
        raise UserError(f"{destination} already holds {taken[0]}: choose another directory")
    origin, config, params = _read(Path(source), resolution)
    if to == "lwm":
        save_codec(destination, config, params)
    else:
        write_diffusers(destination, config, params)
    return [_row(name, leaf, origin, to) for name, leaf in named_leaves(params).items()]


def notes_on(path: Path) -> list[str]:
    """What there is to say of a codec that can be read: what its files leave open, and is taken for granted.

    Raises:
        UserError: its `config.json` cannot be read.
    """
    return assumptions(path) if not _is_own(path) and is_diffusers_codec(path) else []


def _is_own(path: Path) -> bool:
    return any(os.path.exists(path / name) for name in CODEC_FILES)


def _read(path: Path, resolution: int | None) -> tuple[Form, CodecConfig, Any]:
    """Also which form it had; the tensors in the dtype they are stored in."""
    origin: Form
    config: CodecConfig
    if os.path.isfile(path):
        arrays = read_arrays(path)
        try:
            config = config_from_shapes(arrays, resolution)
            origin, params = "pickle", from_pickle(arrays, config)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    elif _is_own(path):
        origin, (config, params) = "lwm", read_stored_codec(path)
        if resolution is not None:
            config = replace(config, resolution=resolution)
    elif is_diffusers_codec(path):
        origin, (config, params) = "hf", read_diffusers(path, resolution)
    else:
        raise UserError(
            f"no codec at {path}: give LWM's pickled VQGAN, a directory of diffusers or one that has a {CODEC_FILES[0]}"
        )
    for name, leaf in named_leaves(params).items():
        if not jnp.issubdtype(leaf.dtype, np.floating):
            raise UserError(f"{path}: the tensor {name} is of {leaf.dtype}, and a codec is of floating-point numbers")
    return origin, config, params


def _row(own: str, leaf: np.ndarray, origin: Form, to: Literal["lwm", "hf"]) -> ConvertedTensor:
    names: dict[str, str] = {"pickle": "", "lwm": own, "hf": diffusers_name(own)}
    shape = diffusers_shape(leaf.shape) if to == "hf" else tuple(leaf.shape)
    change = "transposed" if leaf.ndim == 4 and (origin == "hf") != (to == "hf") else ""
    return ConvertedTensor(names[origin], names[to], shape, leaf.dtype.name, "float32", change)


def is_codec(path: Path | str) -> bool:
    """Whether there is a codec by itself, and no model."""
    if not os.path.exists(path):
        return False
    path = Path(path)
    if path.is_file():
        return first_bytes(path, len(_PICKLE)) == _PICKLE
    return is_diffusers_codec(path) or (_is_own(path) and not os.path.exists(path / "config.json"))
