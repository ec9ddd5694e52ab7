"""Safetensors files of a directory: one, or several with an index, read and written piece by piece.

`safetensors` itself reads them. It writes a file only from tensors that are all in memory, so writing, which is a
header and then bytes, is done here.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from lwm.core.errors import UserError
from lwm.core.files import read_json, write_json
from lwm.weights.tensors import TensorSpec

TENSORS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 10**9

#: safetensors' names of the dtypes that weights come in
DTYPES = {"F32": np.dtype("float32"), "F16": np.dtype("float16"), "BF16": np.dtype(jnp.bfloat16)}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
#: the header's length is a multiple of it, so that tensors begin on words
_ALIGNMENT = 8


class TensorFiles:
    """The tensors of a directory, as they are named there. Nothing is read before it is asked for.

    Raises:
        UserError: no such file, a file that is not of safetensors, an index that leads elsewhere, tensors in a dtype
            that is not one of weights, a tensor that is in two files.
    """

    def __init__(self, directory: Path) -> None:
        self.specs: dict[str, TensorSpec] = {}
        self._files: dict[str, Any] = {}
        files: dict[str, Path] = {}
        for file in tensor_paths(directory):
            opened = _open(file)
            for name in opened.keys():  # noqa: SIM118 (the library's object is no dictionary)
                if (other := files.setdefault(name, file)) is not file:
                    raise UserError(f"the tensor {name} is in {other} and in {file}: take one of the two out")
                stored = opened.get_slice(name)
                if (dtype := DTYPES.get(stored.get_dtype())) is None:
                    raise UserError(
                        f"the tensor {name} in {file} is of {stored.get_dtype()}: weights are read in "
                        f"{', '.join(DTYPES)}, so convert it to one of these first"
                    )
                self.specs[name] = TensorSpec(tuple(stored.get_shape()), dtype, name)
                self._files[name] = opened

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        return self._files[name].get_slice(name)[index]


def tensor_paths(directory: Path) -> list[Path]:
    """The files that hold a directory's tensors.

    Raises:
        UserError: there are none, or an index names something that is not a file beside it.
    """
    if (directory / TENSORS).is_file():
        return [directory / TENSORS]
    index = directory / INDEX
    missing = f"there are no tensors in {directory}, in one file ({TENSORS}) or in several"
    weight_map = read_json(index, missing).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map")
    for name, file in weight_map.items():
        beside = isinstance(file, str) and Path(file).name == file and file.endswith(".safetensors")
        if not beside or not file.isprintable():  # half a surrogate is no name of a file
            raise UserError(
                f"{index} says that {name!r:.80} is in {file!r:.80}, which is not a .safetensors file beside it"
            )
    return [directory / file for file in sorted(set(weight_map.values()))]


def _open(file: Path) -> Any:
    try:
        if file.exists() and not file.is_file():  # a pipe would be waited for
            raise UserError(f"cannot read the tensors in {file}: it is not a file")
        return safe_open(file, framework="numpy")
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the tensors in {file}: {error}") from None


@dataclass(frozen=True)
class Outgoing:
    """A tensor to be written: what it is, and where its parts come from, first row to last."""

    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[np.ndarray]]


def write_tensors(
    directory: Path,
    tensors: Mapping[str, Outgoing],
    dtype: np.dtype,
) -> list[Path]:
    """Write tensors in their order, a new file where the next one would exceed `MAX_SHARD_BYTES`; return the files.

    No more than a piece is in memory.

    Raises:
        UserError: a number that `dtype` does not hold.
    """
    shards = _plan_shards(tensors, dtype)
    for file, own in shards.items():
        with open(directory / file, "wb") as stream:
            stream.write(_header(own, dtype))
            for name, tensor in own.items():
                for piece in tensor.pieces():
                    stream.write(np.ascontiguousarray(narrowed(piece, dtype, name)).view(np.uint8).data)
    if len(shards) > 1:
        weight_map = {name: file for file, own in shards.items() for name in own}
        total = sum(math.prod(tensor.shape) for tensor in tensors.values()) * dtype.itemsize
        write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return [directory / file for file in shards]


def narrowed(piece: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """Numbers in another dtype.

    Raises:
        UserError: a finite one would become infinite.
    """
    if piece.dtype == dtype:
        return piece
    with np.errstate(over="ignore"):
        out = piece.astype(dtype)
    infinite = np.isinf(out)
    if infinite.any() and np.isfinite(piece[infinite]).any():
        wider = {"float16": "write it in bfloat16 or float32", "bfloat16": "write it in float32"}
        remedy = wider.get(dtype.name, "nothing wider is written, so scale them down first")
        raise UserError(f"{name} has numbers that {dtype.name} does not hold: {remedy}")
    return out


def _plan_shards(tensors: Mapping[str, Outgoing], dtype: np.dtype) -> dict[str, dict[str, Outgoing]]:
    groups: list[dict[str, Outgoing]] = [{}]
    held = 0
    for name, tensor in tensors.items():
        size = math.prod(tensor.shape) * dtype.itemsize
        if groups[-1] and held + size > MAX_SHARD_BYTES:
            groups.append({})
            held = 0
        groups[-1][name] = tensor
        held += size
    if len(groups) == 1:
        return {TENSORS: groups[0]}
    return {f"model-{place:05}-of-{len(groups):05}.safetensors": group for place, group in enumerate(groups, 1)}


def _header(tensors: Mapping[str, Outgoing], dtype: np.dtype) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # without it `transformers` refuses the file
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + math.prod(tensor.shape) * dtype.itemsize
        entries[name] = {"dtype": _CODES[dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def is_written(directory: Path) -> bool:
    """Whether a directory holds tensors."""
    return os.path.isfile(directory / TENSORS) or os.path.isfile(directory / INDEX)
