"""The bytes of LWM's checkpoint streams: pairs of a key and a leaf, one after another, in MessagePack.

    pair     an array of two: the key, an array of names; the leaf, a bin that holds MessagePack again
    leaf     extension 1: an array of three, which are the shape, the dtype's name, a bin of the numbers in C order
    chunked  a leaf of more than 2^30 bytes: a map of "__msgpack_chunked_array__": true, "shape": {"0": 32, ..} and
             "chunks": {"0": extension 1, ..}, each chunk a piece of the flattened array

A leaf is what flax's `to_bytes` makes of an array. Leaves are gigabytes and the msgpack library holds each of them
whole, so the few types that occur are parsed and written here: heads are read, numbers are passed over until somebody
asks for rows of them.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, TypeVar

import jax.numpy as jnp
import numpy as np

from lwm.core.errors import UserError

T = TypeVar("T")
Key = tuple[str, ...]

#: what a stream begins with: an array of two, however MessagePack writes its length
STREAM_BEGINS = (b"\x92", b"\xdc", b"\xdd")
CHUNKED = "__msgpack_chunked_array__"
#: flax cuts larger leaves
MAX_CHUNK_BYTES = 2**30
#: MessagePack has no longer bin
MAX_BIN_BYTES = 2**32 - 1
#: flax's numbers of extension: an array, and a scalar in the form of an array
ARRAYS = (1, 3)
DTYPES = {name: np.dtype(name) for name in ("float16", "float32", "float64", "bool")}
DTYPES |= {f"{sign}int{bits}": np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)}
DTYPES["bfloat16"] = jnp.dtype("bfloat16")

#: what no checkpoint exceeds: a file that does would only fill the memory
MOST_AXES, MOST_NAMES, MOST_NAME_BYTES, MOST_ARRAYS = 8, 32, 256, 1_000_000

#: heads by their first byte: what follows, and how many bytes say how long or how large it is
_HEADS = {
    **{0xC0: ("nothing", 0), 0xC2: ("false", 0), 0xC3: ("true", 0), 0xCA: ("a float", 4), 0xCB: ("a float", 8)},
    **{0xC4: ("bytes", 1), 0xC5: ("bytes", 2), 0xC6: ("bytes", 4)},
    **{0xC7: ("an extension", 1), 0xC8: ("an extension", 2), 0xC9: ("an extension", 4)},
    **{0xCC + power: ("an integer", 2**power) for power in range(4)},
    **{0xD0 + power: ("a signed integer", 2**power) for power in range(4)},
    **{0xD4 + power: ("an extension", 0) for power in range(5)},  # of 2^power bytes
    **{0xD9: ("text", 1), 0xDA: ("text", 2), 0xDB: ("text", 4)},
    **{0xDC: ("an array", 2), 0xDD: ("an array", 4), 0xDE: ("a map", 2), 0xDF: ("a map", 4)},
}
#: what a train state may keep beside its arrays
_PLAIN = ("nothing", "false", "true", "a float", "an integer", "a signed integer")


@dataclass(frozen=True)
class StreamLeaf:
    """An array of a stream: what it is and where its numbers lie."""

    file: Path
    key: Key
    shape: tuple[int, ...]
    dtype: np.dtype
    #: (offset in the file, size), both in bytes, in order: one, or one a chunk
    extents: tuple[tuple[int, int], ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def row(self, place: int) -> "StreamLeaf":
        """One row of the first axis as a leaf of its own: of a stack of layers, one layer."""
        size = self.num_bytes // self.shape[0]
        return replace(self, shape=self.shape[1:], extents=tuple(self._between(place * size, (place + 1) * size)))

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        """These rows of the first axis (the slice has no step), and no others, from the file; of a scalar, all of it.

        Raises:
            UserError: the file cannot be read, or was cut since it was scanned.
        """
        if not self.shape:
            return self._numbers(0, self.num_bytes).reshape(())
        start, stop, step = rows.indices(self.shape[0])
        if step != 1:
            raise ValueError(f"rows are read one after another, not with a step of {step}")
        stop, size = max(start, stop), self.num_bytes // self.shape[0]
        return self._numbers(start * size, stop * size).reshape(stop - start, *self.shape[1:])

    def _numbers(self, start: int, stop: int) -> np.ndarray:
        content, filled = np.empty(stop - start, np.uint8), 0
        try:
            with open(self.file, "rb") as stream:
                for offset, size in self._between(start, stop):
                    stream.seek(offset)
                    if stream.readinto(content[filled : filled + size].data) != size:
                        raise UserError(f"{self.file} ends within {'/'.join(self.key)}: it was cut since it was opened")
                    filled += size
        except OSError as error:
            raise UserError(f"cannot read {self.file}: {error.strerror}") from None
        return content.view(self.dtype)

    def _between(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Where the bytes [start, stop) of the numbers lie."""
        passed = 0
        for offset, size in self.extents:
            begin, end = max(start - passed, 0), min(stop - passed, size)
            if begin < end:
                yield offset + begin, end - begin
            passed += size


def scan(file: Path) -> dict[Key, StreamLeaf]:
    """The arrays of a stream by key, in the file's order; none of their numbers are read.

    Raises:
        UserError: no such file, or not a whole and well-formed stream (says at which byte).
    """
    try:
        if not file.is_file():
            raise UserError(f"there is no file {file}")
        with open(file, "rb") as stream:
            return _Cursor(file, stream, os.fstat(stream.fileno()).st_size).pairs()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None


@dataclass(frozen=True)
class _Head:
    """The beginning of a value: what it is; its value, or how many bytes or values are in it."""

    at: int
    kind: str
    size: int
    extension: int = 0


@dataclass(frozen=True)
class _Array:
    shape: tuple[int, ...]
    dtype: np.dtype
    extent: tuple[int, int]


class _Cursor:
    """A place in the file. Nothing here calls itself: what lies deeper than a stream goes is refused as it is met."""

    def __init__(self, file: Path, stream: BinaryIO, size: int) -> None:
        self._file, self._stream = file, stream
        self._at, self._end = 0, size
        self._num_arrays = 0

    def pairs(self) -> dict[Key, StreamLeaf]:
        leaves: dict[Key, StreamLeaf] = {}
        met: set[Key] = set()
        if not self._end:
            raise self._refusal(0, "the file ends: it is empty")
        while self._at < self._end:
            at = self._at
            self._expect("an array", "a pair of key and leaf", 2)
            key = self._key()
            if key in met:
                raise self._refusal(at, f"{'/'.join(key)} stands there for the second time")
            met.add(key)
            if leaf := self._leaf(key):
                leaves[key] = leaf
        return leaves

    def _refusal(self, at: int, what: str) -> UserError:
        return UserError(f"{self._file} is not a whole checkpoint stream of LWM's JAX models: at byte {at}, {what}")

    def _take(self, count: int) -> bytes:
        if count > self._end - self._at:
            raise self._refusal(self._at, f"{count} bytes more should follow, and {self._end - self._at} do")
        content = self._stream.read(count)
        if len(content) < count:
            raise self._refusal(self._at, "the file ends: it was cut while it was read")
        self._at += count
        return content

    @contextmanager
    def _within(self, head: _Head) -> Iterator[None]:
        outer, self._end = self._end, self._at + head.size
        yield
        if self._at != self._end:
            raise self._refusal(self._at, f"there are {self._end - self._at} bytes more than what is told of them")
        self._end = outer

    def _head(self) -> _Head:
        at, first = self._at, self._take(1)[0]
        for limit, kind, base in ((0x80, "an integer", 0), (0x90, "a map", 0x80), (0xA0, "an array", 0x90)):
            if first < limit:
                return _Head(at, kind, first - base)
        if first < 0xC0:
            head = _Head(at, "text", first - 0xA0)
        elif first >= 0xE0:
            return _Head(at, "a signed integer", first - 0x100)
        elif first in _HEADS:
            kind, count = _HEADS[first]
            size = int.from_bytes(self._take(count), "big", signed=kind == "a signed integer")
            if kind == "an extension":
                head = _Head(at, kind, size if count else 2 ** (first - 0xD4), self._take(1)[0])
            else:
                head = _Head(at, kind, size)
        else:
            raise self._refusal(at, f"there is {first:#x}, which begins nothing in MessagePack")
        if head.kind in ("text", "bytes", "an extension") and head.size > self._end - self._at:
            raise self._refusal(at, f"{head.kind} of {head.size} bytes should be, and {self._end - self._at} are left")
        return head

    def _expect(self, kind: str, what: str, size: int | None = None) -> _Head:
        head = self._head()
        if head.kind != kind or (size is not None and head.size != size):
            found = head.kind if head.kind != kind else f"{kind} of {head.size}"
            raise self._refusal(head.at, f"there is {found} where {what} should be")
        return head

    def _text(self, what: str) -> str:
        head = self._expect("text", what)
        if head.size > MOST_NAME_BYTES:
            raise self._refusal(head.at, f"{what} has {head.size} bytes, more than {MOST_NAME_BYTES}")
        try:
            return self._take(head.size).decode()
        except UnicodeDecodeError:
            raise self._refusal(head.at, f"{what} is not UTF-8") from None

    def _key(self) -> Key:
        head = self._expect("an array", "a key, an array of names,")
        if not 0 < head.size <= MOST_NAMES:
            raise self._refusal(head.at, f"there is a key of {head.size} names: it should have 1 to {MOST_NAMES}")
        names = tuple(self._text("a name of the key") for _ in range(head.size))
        if not all(name and name.isprintable() and "/" not in name for name in names):
            raise self._refusal(head.at, f"there is a key of names {names!r:.80}, and a name is text without slashes")
        return names

    def _leaf(self, key: Key) -> StreamLeaf | None:
        """None for a plain number, as the state of an optimizer may hold."""
        with self._within(self._expect("bytes", f"the leaf {'/'.join(key)}, as bytes,")):
            head = self._head()
            if head.kind in _PLAIN:
                return None
            if head.kind == "an extension":
                array = self._array(head)
                return StreamLeaf(self._file, key, array.shape, array.dtype, (array.extent,))
            if head.kind == "a map":
                return self._chunked(key, head)
            raise self._refusal(head.at, f"there is {head.kind} where {'/'.join(key)} should be, an array")

    def _array(self, head: _Head) -> _Array:
        self._num_arrays += 1
        if head.kind != "an extension" or head.extension not in ARRAYS:
            found = f"extension {head.extension}" if head.kind == "an extension" else head.kind
            raise self._refusal(head.at, f"there is {found} where an array, extension {ARRAYS[0]}, should be")
        if self._num_arrays > MOST_ARRAYS:
            raise self._refusal(head.at, f"more than {MOST_ARRAYS} arrays")
        with self._within(head):
            self._expect("an array", "shape, dtype and numbers", 3)
            axes = self._expect("an array", "a shape, an array of sizes,")
            self._require_few_axes(axes)
            shape = tuple(self._size() for _ in range(axes.size))
            at, name = self._at, self._text("a dtype's name")
            if name not in DTYPES:
                raise self._refusal(at, f"there are numbers of dtype {name!r:.40}, which is not one of {list(DTYPES)}")
            numbers = self._expect("bytes", "an array's numbers, as bytes,")
            self._require_bytes(numbers.at, shape, DTYPES[name], numbers.size)
            extent = (self._at, numbers.size)
            self._at += numbers.size
            self._stream.seek(self._at)
        return _Array(shape, DTYPES[name], extent)

    def _require_few_axes(self, head: _Head) -> None:
        if head.size > MOST_AXES:
            raise self._refusal(head.at, f"there is a shape of {head.size} axes, more than {MOST_AXES}")

    def _require_bytes(self, at: int, shape: tuple[int, ...], dtype: np.dtype, num_bytes: int) -> None:
        if (wanted := math.prod(shape) * dtype.itemsize) != num_bytes:
            raise self._refusal(at, f"shape {list(shape)} of {dtype} takes {wanted} bytes, and there are {num_bytes}")

    def _size(self) -> int:
        head = self._head()
        if head.kind not in ("an integer", "a signed integer"):
            raise self._refusal(head.at, f"there is {head.kind} where a size of a shape should be")
        if not 0 < head.size < 2**48:
            raise self._refusal(head.at, f"there is a size of {head.size} in a shape: it should be from 1 to 2^48")
        return head.size

    def _chunked(self, key: Key, head: _Head) -> StreamLeaf:
        shape: tuple[int, ...] = ()
        chunks: list[_Array] = []
        missing = {CHUNKED, "shape", "chunks"}
        for _ in range(head.size):
            at, name = self._at, self._text("a name of a chunked leaf")
            if name not in missing:
                raise self._refusal(at, f"there is {name!r:.40} in a chunked leaf: it is unknown or there twice")
            missing.remove(name)
            if name == CHUNKED:
                self._expect("true", "true")
            elif name == "shape":
                shape = tuple(self._numbered(self._size, "the shape of a chunked leaf", MOST_AXES))
            else:
                chunks = self._numbered(lambda: self._array(self._head()), "the chunks of a leaf", MOST_ARRAYS)
        if missing or not chunks:
            raise self._refusal(head.at, f"there is a map with no {' or '.join(sorted(missing)) or 'chunks'}")
        if any(len(chunk.shape) != 1 or chunk.dtype != chunks[0].dtype for chunk in chunks):
            raise self._refusal(head.at, "there are chunks that are not flat arrays of one dtype")
        self._require_bytes(head.at, shape, chunks[0].dtype, sum(chunk.extent[1] for chunk in chunks))
        return StreamLeaf(self._file, key, shape, chunks[0].dtype, tuple(chunk.extent for chunk in chunks))

    def _numbered(self, read: Callable[[], T], what: str, most: int) -> list[T]:
        """The values of a map from "0", "1", ..: what flax makes of a tuple."""
        head = self._expect("a map", what)
        if head.size > most:
            raise self._refusal(head.at, f"there are {head.size} values for {what}, more than {most}")
        values: dict[str, T] = {}
        for _ in range(head.size):
            at, name = self._at, self._text("the number of a value")
            if name in values:
                raise self._refusal(at, f"there is {name!r:.40} for the second time in {what}")
            values[name] = read()
        if values.keys() != {str(place) for place in range(head.size)}:
            raise self._refusal(head.at, f"{what} are not numbered from 0 to {head.size - 1}")
        return [values[str(place)] for place in range(head.size)]
