"""Checkpoint streams as LWM's code writes and reads them, by the msgpack library: what ours are held against."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import msgpack
import numpy as np


def leaf(value: Any, chunk_bytes: int = 2**30) -> bytes:
    """flax's `to_bytes` of one array or plain number; larger arrays are cut into chunks."""
    if not isinstance(value, np.ndarray) or value.nbytes <= chunk_bytes:
        return msgpack.packb(value, default=_pack_array, strict_types=True)
    flat, step = value.reshape(-1), max(1, chunk_bytes // value.itemsize)
    chunks = [flat[start : start + step] for start in range(0, flat.size, step)]
    described = {"__msgpack_chunked_array__": True, "shape": _numbered(value.shape), "chunks": _numbered(chunks)}
    return msgpack.packb(described, default=_pack_array, strict_types=True)


def _pack_array(value: Any) -> msgpack.ExtType:
    array = np.asarray(value)
    code = 1 if isinstance(value, np.ndarray) else 3
    return msgpack.ExtType(code, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))


def _numbered(values: Any) -> dict[str, Any]:
    return {str(place): value for place, value in enumerate(values)}


def pair(name: str, value: Any, chunk_bytes: int = 2**30) -> bytes:
    return msgpack.packb((name.split("/"), leaf(value, chunk_bytes)))


def write(file: Path, values: Mapping[str, Any], chunk_bytes: int = 2**30) -> Path:
    file.write_bytes(b"".join(pair(name, value, chunk_bytes) for name, value in values.items()))
    return file


def read(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a stream in its order, under their names with slashes."""
    with open(file, "rb") as stream:
        return {"/".join(key): _restore(content) for key, content in msgpack.Unpacker(stream, max_buffer_size=0)}


def _restore(content: bytes) -> np.ndarray:
    value = msgpack.unpackb(content, ext_hook=_unpack_array)
    if not isinstance(value, dict):
        return value
    assert value["__msgpack_chunked_array__"] is True
    shape, chunks = ([value[name][str(i)] for i in range(len(value[name]))] for name in ("shape", "chunks"))
    return np.concatenate(chunks).reshape(shape)


def _unpack_array(code: int, content: bytes) -> np.ndarray:
    assert code in (1, 3)
    shape, name, numbers = msgpack.unpackb(content)
    return np.frombuffer(numbers, jnp.dtype(name)).reshape(shape)
