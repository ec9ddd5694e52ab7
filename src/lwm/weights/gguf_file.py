"""The GGUF container: metadata, and where each tensor lies, read with every length held against the file's own.

    "GGUF"  version  number of tensors  number of fields
    fields      name  type  value
    tensors     name  number of axes  axes, innermost first  type  offset
    data        from the next multiple of `general.alignment` on

The `gguf` package's own reader believes the lengths it finds, and a broken one makes it read for ever.
"""

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lwm.core.errors import UserError

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_NUMBERS = {0: "u1", 1: "i1", 2: "u2", 3: "i2", 4: "u4", 5: "i4", 6: "f4", 7: "?", 10: "u8", 11: "i8", 12: "f8"}
_FLOAT32, _TEXT, _ARRAY = 6, 8, 9
_MOST_AXES = 4
_DEFAULT_ALIGNMENT = 32

#: a number, a truth value, a text, a list of texts or an array of numbers
Value = int | float | bool | str | list[str] | np.ndarray


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it lies in the file."""

    #: outermost axis first: matrices are (out, in)
    shape: tuple[int, ...]
    #: the number of its type in ggml's list
    kind: int
    #: of its first byte, from the start of the file
    offset: int


class GgufFile:
    """An open GGUF file; its tensors are read as they are asked for.

    Raises:
        UserError: no such file, another format, version or byte order, one of several parts, or a file that is cut
            short or corrupt.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            with open(path, "rb") as file:
                self.content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        except ValueError:
            raise UserError(f"{path} is not a GGUF file: it is empty") from None
        header = _Header(self.path, self.content)
        num_tensors, num_fields = header.begin()
        self.metadata: Mapping[str, Value] = header.fields(num_fields)
        if self.metadata.get("split.count", 0) not in (0, 1):
            raise UserError(f"{path} is one part of several: join them with llama.cpp's gguf-split --merge")
        alignment = self.integer("general.alignment", _DEFAULT_ALIGNMENT)
        if alignment < 1:
            raise UserError(f"{path}: its general.alignment is {alignment} and should be positive")
        self.tensors = header.tensors(num_tensors, alignment)

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number of the metadata.

        Raises:
            UserError: it is missing and there is no default, or is something else.
        """
        return self._field(key, int, "a whole number", default)

    def number(self, key: str, default: float | None = None) -> float:
        """A number of the metadata; raises as `integer` does."""
        value = self._field(key, int | float, "a number", default)
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        """A text of the metadata; raises as `integer` does."""
        return self._field(key, str, "a text", default)

    def texts(self, key: str) -> list[str]:
        """A list of texts of the metadata; raises as `integer` does."""
        return self._field(key, list, "a list of texts", None)

    def numbers(self, key: str, default: np.ndarray | None = None) -> np.ndarray:
        """A list of numbers of the metadata; raises as `integer` does."""
        return self._field(key, np.ndarray, "a list of numbers", default)

    def _field(self, key: str, kind: Any, expected: str, default: Any) -> Any:
        value = self.metadata.get(key, default)
        if value is None:
            raise UserError(f"{self.path} has no {key}")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            shown = repr(value) if isinstance(value, int | float | str) else "a list"
            raise UserError(f"{self.path}: its {key} is {shown[:60]} and should be {expected}")
        return value


class _Header:
    """All of the file before its data, from the first byte on."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self._path, self._content, self._at = path, content, 0

    def begin(self) -> tuple[int, int]:
        """How many tensors and how many fields there are."""
        if self._content[:4] != _MAGIC:
            raise UserError(f"{self._path} is not a GGUF file: it does not begin with {_MAGIC.decode()}")
        self._at = 4
        version = self._number("I", "the version")
        if version not in _VERSIONS:
            swapped = struct.unpack(">I", struct.pack("<I", version))[0] in _VERSIONS
            what = "in big-endian byte order" if swapped else f"of GGUF version {version}"
            raise UserError(f"{self._path} is {what}: versions 2 and 3 in little-endian byte order are read")
        return self._number("Q", "the number of tensors"), self._number("Q", "the number of fields")

    def fields(self, count: int) -> dict[str, Value]:
        fields: dict[str, Value] = {}
        for _ in range(count):
            began, name = self._at, self._text("the name of a field")
            if name in fields:
                raise self._broken(f"the field {name} comes twice", began)
            fields[name] = self._value(name)
        return fields

    def tensors(self, count: int, alignment: int) -> dict[str, StoredTensor]:
        tensors: dict[str, StoredTensor] = {}
        for _ in range(count):
            began, name = self._at, self._text("the name of a tensor")
            axes = self._number("I", f"the axes of {name}")
            if not 1 <= axes <= _MOST_AXES:
                raise self._broken(f"the tensor {name} has {axes} axes", began)
            if name in tensors:
                raise self._broken(f"the tensor {name} comes twice", began)
            shape = tuple(self._number("Q", f"the shape of {name}") for _ in range(axes))[::-1]
            kind, offset = self._number("I", f"the type of {name}"), self._number("Q", f"the offset of {name}")
            tensors[name] = StoredTensor(shape, kind, offset)
        data = -(-self._at // alignment) * alignment
        return {name: StoredTensor(each.shape, each.kind, data + each.offset) for name, each in tensors.items()}

    def _value(self, name: str) -> Value:
        began, kind = self._at, self._number("I", f"the type of {name}")
        if kind == _TEXT:
            return self._text(name)
        if kind in _NUMBERS:
            (value,) = self._array(name, kind, 1)
            return float(str(value)) if kind == _FLOAT32 else value.item()  # 1e-05 and not 9.999999747378752e-06
        if kind != _ARRAY:
            raise self._broken(f"the field {name} is of the unknown type {kind}", began)
        kind, count = self._number("I", f"the type of {name}"), self._number("Q", f"the length of {name}")
        if kind == _TEXT:
            return [self._text(name) for _ in range(count)]
        if kind in _NUMBERS:
            return self._array(name, kind, count)
        raise self._broken(f"the field {name} is an array of the unknown type {kind}", began)

    def _array(self, name: str, kind: int, count: int) -> np.ndarray:
        dtype = np.dtype(_NUMBERS[kind]).newbyteorder("<")
        return np.frombuffer(self._take(count * dtype.itemsize, name), dtype)

    def _number(self, code: str, what: str) -> int:
        return struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}"), what))[0]

    def _text(self, what: str) -> str:
        size, began = self._number("Q", what), self._at
        try:
            return self._take(size, what).decode()
        except UnicodeDecodeError:
            raise self._broken(f"{what} is not UTF-8 text", began) from None

    def _take(self, size: int, what: str) -> bytes:
        began = self._at
        if size > len(self._content) - began:
            raise self._broken(f"{what} goes on beyond the file's end at byte {len(self._content)}", began)
        self._at += size
        return self._content[began : self._at]

    def _broken(self, what: str, place: int) -> UserError:
        return UserError(f"{self._path} is cut short or corrupt: {what} (byte {place})")
