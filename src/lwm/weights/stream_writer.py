"""Writing what `stream_format` reads, byte for byte as flax does, but from pieces: a leaf is never held whole."""

import math
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np

from lwm.core.errors import UserError
from lwm.weights.stream_format import ARRAYS, CHUNKED, MAX_BIN_BYTES, MAX_CHUNK_BYTES, Key

#: first bytes of the longer heads, by how many bytes of length follow
_BYTES, _EXTENSION = {1: 0xC4, 2: 0xC5, 4: 0xC6}, {1: 0xC7, 2: 0xC8, 4: 0xC9}
_TEXT, _ARRAY, _MAP = {1: 0xD9, 2: 0xDA, 4: 0xDB}, {2: 0xDC, 4: 0xDD}, {2: 0xDE, 4: 0xDF}
_INTEGER = {1: 0xCC, 2: 0xCD, 4: 0xCE, 8: 0xCF}


def write_leaf(
    stream: BinaryIO, key: Key, shape: tuple[int, ...], dtype: np.dtype, pieces: Iterable[np.ndarray]
) -> None:
    """Write a pair of key and leaf. The pieces are the array from its first row to its last, in that dtype.

    Raises:
        UserError: the leaf is too large for the format.
    """
    frame, room = iter(leaf_frame(key, shape, dtype)), 0
    for piece in pieces:
        if piece.dtype != dtype:
            raise ValueError(f"{'/'.join(key)} is of {dtype}, and a piece of {piece.dtype}")
        content = np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
        while content:
            if not room:
                head, room = next(frame, (b"", 0))
                if not room:
                    raise ValueError(f"the pieces of {'/'.join(key)} are more than its shape {shape}")
                stream.write(head)
            stream.write(content[:room])
            content, room = content[room:], room - min(room, len(content))
    if room or next(frame, None):
        raise ValueError(f"the pieces of {'/'.join(key)} are less than its shape {shape}")


def leaf_frame(key: Key, shape: tuple[int, ...], dtype: np.dtype) -> list[tuple[bytes, int]]:
    """What stands around a leaf's numbers: heads, and how many bytes of numbers follow each.

    Raises:
        UserError: the leaf is too large for the format.
    """
    count = math.prod(shape)
    num_bytes = count * dtype.itemsize
    if num_bytes <= MAX_CHUNK_BYTES:
        frame = [(_array_head(shape, dtype), num_bytes)]
    else:
        most = max(1, MAX_CHUNK_BYTES // dtype.itemsize)
        sizes = [min(most, count - start) for start in range(0, count, most)]
        frame = [
            (_text(str(place)) + _array_head((size,), dtype), size * dtype.itemsize) for place, size in enumerate(sizes)
        ]
        axes = b"".join(_text(str(axis)) + _integer(size) for axis, size in enumerate(shape))
        opening = _head(3, 0x80, 16, _MAP) + _text(CHUNKED) + b"\xc3" + _text("shape")
        opening += _head(len(shape), 0x80, 16, _MAP) + axes + _text("chunks") + _head(len(sizes), 0x80, 16, _MAP)
        frame[0] = (opening + frame[0][0], frame[0][1])
    size = sum(len(head) + numbers for head, numbers in frame)
    if size > MAX_BIN_BYTES:
        raise UserError(
            f"{'/'.join(key)} of shape {list(shape)} takes {size:,} bytes as {dtype}, and a leaf of a stream holds "
            f"at most {MAX_BIN_BYTES:,}: write the model in a dtype of fewer bytes, such as bfloat16"
        )
    names = _head(2, 0x90, 16, _ARRAY) + _head(len(key), 0x90, 16, _ARRAY) + b"".join(map(_text, key))
    frame[0] = (names + _head(size, 0, 0, _BYTES) + frame[0][0], frame[0][1])
    return frame


def _array_head(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    num_bytes = math.prod(shape) * dtype.itemsize
    inner = _head(3, 0x90, 16, _ARRAY) + _head(len(shape), 0x90, 16, _ARRAY) + b"".join(map(_integer, shape))
    inner += _text(dtype.name) + _head(num_bytes, 0, 0, _BYTES)
    size = len(inner) + num_bytes
    head = bytes([0xD8]) if size == 16 else _head(size, 0, 0, _EXTENSION)
    return head + bytes([ARRAYS[0]]) + inner


def _text(text: str) -> bytes:
    content = text.encode()
    return _head(len(content), 0xA0, 32, _TEXT) + content


def _integer(value: int) -> bytes:
    return _head(value, 0, 0x80, _INTEGER)


def _head(size: int, short: int, most: int, long: dict[int, int]) -> bytes:
    """The shortest head: one byte from `short` for sizes below `most`, else a first byte and the size."""
    if size < most:
        return bytes([short + size])
    width = next(width for width in long if size < 256**width)
    return bytes([long[width]]) + size.to_bytes(width, "big")
