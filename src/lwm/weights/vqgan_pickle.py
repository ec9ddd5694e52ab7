"""LWM's released VQGAN, a pickle of nested dictionaries of arrays, read without running anything that is in it.

A pickle is a program. This reader lets it build dictionaries, lists, strings, numbers and numeric arrays, and refuses
any other name before it is looked up. Even the arrays are made here, from their bytes.
"""

import math
import os
import pickle
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from lwm.core.errors import UserError
from lwm.core.params import require_same_shapes, shapes_by_name
from lwm.vqgan.config import VQGANConfig
from lwm.vqgan.layers import Convolution, GroupNorm
from lwm.vqgan.model import VQGAN, Coder, Level, ResBlock, declare
from lwm.vqgan.quantize import Codebook
from lwm.weights.codec_store import require_as_many_tensors

#: kinds and sizes of numbers that weights are made of: floats and integers, little-endian or of one byte
_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
_STATE_LENGTH = 5
MOST_AXES, MOST_BYTES = 8, 2**40
#: letters of an array's path; those of LWM's have 60
LONGEST_PATH = 1000
#: the one written in Python, whose opcodes can be overridden and whose memory grows only as it is filled
_PythonReader: Any = pickle._Unpickler


class _RefusedError(Exception):
    """What the file holds and must not."""


@dataclass
class _Numbers:
    """Stands for a `numpy.dtype`."""

    code: str
    byte_order: Literal["<", "|", "=", ">"] = "="

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", "|", "=", ">"):
            raise _RefusedError("an array of numbers of an unknown form")
        self.byte_order = state[1]

    def dtype(self) -> np.dtype:
        """As numpy has it."""
        return np.dtype(self.code).newbyteorder(self.byte_order)


class _Array:
    """Stands for an array until its bytes come."""

    value: np.ndarray

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != _STATE_LENGTH:
            raise _RefusedError("an array of an unknown form")
        _, shape, numbers, by_columns, content = state
        self.fill(content, numbers, shape, "F" if by_columns else "C")

    def fill(self, content: Any, numbers: Any, shape: Any, order: Any) -> None:
        """Give it its bytes."""
        plain = isinstance(shape, tuple) and len(shape) <= MOST_AXES
        plain = plain and all(isinstance(size, int) and 0 <= size < MOST_BYTES for size in shape)
        if not (
            plain and isinstance(numbers, _Numbers) and isinstance(content, bytes | bytearray) and order in ("C", "F")
        ):
            raise _RefusedError("an array of something other than numbers")
        dtype = numbers.dtype()
        if math.prod(shape) * dtype.itemsize != len(content):
            raise _RefusedError(f"an array of shape {shape} with {len(content)} bytes")
        self.value = np.frombuffer(content, dtype).reshape(shape, order=order)


class _Reader(_PythonReader):
    """Python's own reader of pickles, in which every name stands for something of ours.

    Only our stand-ins take a state, and only text is a key or ever hashed: so nothing of ours is changed, and no key
    that was built to be hashed for ever is. What is made of a file is no larger than the file.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(_PythonReader.dispatch)

    def __init__(self, stream: Any, num_bytes: int) -> None:
        """`num_bytes` is how long the file is."""
        super().__init__(stream)
        self._num_bytes, self._num_encoded = num_bytes, 0

    def _build(self) -> None:
        if not isinstance(self.stack[-2], _Array | _Numbers):
            raise _RefusedError("a state of something that is not an array")
        _PythonReader.load_build(self)

    def _set_item(self) -> None:
        self._require_text(self.stack[-2:-1])
        _PythonReader.load_setitem(self)

    def _set_items(self) -> None:
        self._require_text(self.stack[::2])  # what was put down since the mark: keys and values in turn
        _PythonReader.load_setitems(self)

    def _dictionary(self) -> None:
        self._require_text(self.stack[::2])
        _PythonReader.load_dict(self)

    def _byte_array(self) -> None:
        """Python's own fills all of its memory before it reads."""
        (length,) = struct.unpack("<Q", self.read(8))
        if length > self._num_bytes:
            raise _RefusedError(f"an array of {length} bytes, more than the file")
        self.append(bytearray(self.read(length)))

    def _refuse_set(self) -> None:
        raise _RefusedError("a set, which is not an array or a dictionary")

    def _refuse_object(self) -> None:
        raise _RefusedError("an object, which is not an array or a container")

    def _require_text(self, keys: list[Any]) -> None:
        if not all(isinstance(key, str) for key in keys):
            raise _RefusedError("a dictionary whose keys are not names")

    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.SETITEM[0]] = _set_item
    dispatch[pickle.SETITEMS[0]] = _set_items
    dispatch[pickle.DICT[0]] = _dictionary
    dispatch[pickle.BYTEARRAY8[0]] = _byte_array
    for _code in (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET):
        dispatch[_code[0]] = _refuse_set
    for _code in (pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4):
        dispatch[_code[0]] = _refuse_object

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): "ndarray",  # named by each array, never called
            ("numpy", "dtype"): self._numbers,
            ("numpy.core.multiarray", "_reconstruct"): self._array,
            ("numpy.core.numeric", "_frombuffer"): self._full_array,  # protocol 5
            ("_codecs", "encode"): self._bytes,  # protocol 2 has no bytes
            ("flax.core.frozen_dict", "FrozenDict"): self._frozen,
        }
        module = module.replace("numpy._core.", "numpy.core.")
        if (module, name) not in known:
            raise _RefusedError(f"{module}.{name}, which is not an array or a container")
        return known[module, name]

    def persistent_load(self, identity: Any) -> Any:
        raise _RefusedError("a reference to something outside the file")

    def _array(self, kind: Any, shape: Any, code: Any) -> _Array:
        return _Array()

    def _frozen(self, content: Any) -> dict[str, Any]:
        """The dictionary itself: its keys are known to be text, and a copy of it could be asked for again and again."""
        if not isinstance(content, dict):
            raise _RefusedError("a dictionary that is made of something else")
        return content

    def _full_array(self, content: Any, numbers: Any, shape: Any, order: Any) -> _Array:
        array = _Array()
        array.fill(content, numbers, shape, order)
        return array

    def _bytes(self, text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding != "latin1":
            raise _RefusedError("bytes in an unknown form")
        self._num_encoded += len(text)
        if self._num_encoded > self._num_bytes:
            raise _RefusedError("bytes that are in several places")
        return text.encode("latin1")

    def _numbers(self, code: Any, align: Any, copy: Any) -> _Numbers:
        if not isinstance(code, str) or code not in _NUMBERS:
            raise _RefusedError(f"an array of {code!r:.20}" if isinstance(code, str) else "an array of an unknown form")
        return _Numbers(code)


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a pickled tree under their path: `encoder/Conv_0/kernel`.

    Raises:
        UserError: no such file, not a pickle, or one that holds anything but arrays and containers (says what).
    """
    try:
        with open(file, "rb") as stream:
            num_bytes = os.fstat(stream.fileno()).st_size
            tree = _Reader(stream, num_bytes).load()
        arrays = dict(_flat(tree, "", set()))
        if sum(array.nbytes for array in arrays.values()) > num_bytes:
            raise _RefusedError(f"arrays that are in several places: they have more bytes than the file, {num_bytes}")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    except _RefusedError as error:
        raise UserError(f"{file} is refused: it holds {error}") from None
    except Exception as error:  # what a broken program makes of the pickle machine has no common type
        raise UserError(f"{file} is not a readable pickle: {str(error) or type(error).__name__}") from None
    if not arrays:
        raise UserError(f"{file} holds no arrays")
    return arrays


def _flat(node: Any, path: str, met: set[int]) -> Iterator[tuple[str, np.ndarray]]:
    if len(path) > LONGEST_PATH:
        raise _RefusedError(f"a name of more than {LONGEST_PATH} letters, or dictionaries too deep in each other")
    if isinstance(node, _Array) and hasattr(node, "value"):
        yield path, node.value
    elif isinstance(node, Mapping):
        if id(node) in met:
            raise _RefusedError("a dictionary that is in several places")
        met.add(id(node))
        for name, child in node.items():
            yield from _flat(child, f"{path}/{name}" if path else name, met)


def config_from_shapes(arrays: Mapping[str, np.ndarray], resolution: int | None = None) -> VQGANConfig:
    """What the VQGAN of LWM's file is, as far as the shapes of its arrays say.

    They say all but three things. The groups of its norms are 32, their epsilon is 1e-6 and its pixels are [-1, 1], as
    LWM's code has them. `resolution` is 256 if it is not given and a code stands for 16 pixels a side, as in LWM's.

    Raises:
        UserError: an array is missing or is no convolution; the resolution is needed; a width is not one of 32 groups.
    """
    first = "encoder/DownsamplingBlock_0/ResnetBlock"
    num_levels, num_blocks = _count(arrays, "encoder/DownsamplingBlock"), _count(arrays, first)
    widths = [
        _shape(arrays, f"encoder/DownsamplingBlock_{level}/ResnetBlock_0/Conv_0/kernel", 4)[3]
        for level in range(num_levels)
    ]
    if not widths or min(widths) < 1:
        raise UserError("the VQGAN has no levels: it has no array encoder/DownsamplingBlock_0/ResnetBlock_0/Conv_0")
    unit, default = math.gcd(*widths), VQGANConfig()
    if resolution is None and 2 ** (num_levels - 1) != default.pixels_per_code:
        raise UserError(
            f"the VQGAN has {num_levels} levels, which LWM's has not: give its resolution, in pixels a side"
        )
    return VQGANConfig(
        resolution=default.resolution if resolution is None else resolution,
        hidden_channels=unit,
        channel_multipliers=tuple(width // unit for width in widths),
        num_res_blocks=num_blocks,
        z_channels=_shape(arrays, "encoder/Conv_1/kernel", 4)[3],
        quantizer=Codebook(*_shape(arrays, "quantize/embeddings", 2)),
    )


def _count(arrays: Mapping[str, np.ndarray], prefix: str) -> int:
    """How many numbered parts there are: `encoder/DownsamplingBlock_0`, `encoder/DownsamplingBlock_1`."""
    depth = prefix.count("/")
    return len({name.split("/")[depth] for name in arrays if name.startswith(f"{prefix}_")})


def _shape(arrays: Mapping[str, np.ndarray], name: str, num_axes: int) -> tuple[int, ...]:
    if name not in arrays:
        raise UserError(f"the VQGAN has no array {name}")
    if arrays[name].ndim != num_axes:
        raise UserError(f"the VQGAN's array {name} has shape {arrays[name].shape} and should have {num_axes} axes")
    return arrays[name].shape


def from_pickle(arrays: Mapping[str, np.ndarray], config: VQGANConfig) -> VQGAN:
    """The arrays of LWM's file as our parameters, on the host.

    Raises:
        UserError: an array is missing, unknown or of another shape than `config` says.
    """
    require_as_many_tensors(config, len(arrays))
    shape, take = declare(config), _Taker(arrays)
    params = VQGAN(
        encoder=Coder(
            take.conv("encoder/Conv_0"),
            take.levels("encoder/DownsamplingBlock", "Downsample_0", shape.encoder.levels),
            take.blocks("encoder/MidBlock_0", shape.encoder.middle),
            take.norm("encoder/GroupNorm_0"),
            take.conv("encoder/Conv_1"),
        ),
        to_code=take.conv("quant_conv"),
        codebook=take.array("quantize/embeddings"),
        from_code=take.conv("post_quant_conv"),
        decoder=Coder(
            take.conv("decoder/Conv_0"),
            take.levels("decoder/UpsamplingBlock", "Upsample_0", shape.decoder.levels),
            take.blocks("decoder/MidBlock_0", shape.decoder.middle),
            take.norm("decoder/GroupNorm_0"),
            take.conv("decoder/Conv_1"),
        ),
    )
    if unknown := sorted(arrays.keys() - take.taken):
        raise UserError(f"the VQGAN has an array that its configuration does not have: {unknown[0]}")
    require_same_shapes("the VQGAN file", shapes_by_name(params), "its configuration", shapes_by_name(shape))
    return params


class _Taker:
    """Arrays under the names that flax gave them, put together as our layers."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = arrays
        self.taken: set[str] = set()

    def array(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            raise UserError(f"the VQGAN has no array {name}")
        self.taken.add(name)
        return self._arrays[name]

    def conv(self, name: str) -> Convolution:
        return Convolution(self.array(f"{name}/kernel"), self.array(f"{name}/bias"))

    def norm(self, name: str) -> GroupNorm:
        return GroupNorm(self.array(f"{name}/scale"), self.array(f"{name}/bias"))

    def block(self, name: str, like: ResBlock) -> ResBlock:
        norms = [self.norm(f"{name}/GroupNorm_{place}") for place in (0, 1)]
        convs = [self.conv(f"{name}/Conv_{place}") for place in (0, 1)]
        shortcut = None if like.shortcut is None else self.conv(f"{name}/Conv_2")
        return ResBlock(norms[0], convs[0], norms[1], convs[1], shortcut)

    def blocks(self, name: str, like: tuple[ResBlock, ...]) -> tuple[ResBlock, ...]:
        return tuple(self.block(f"{name}/ResnetBlock_{place}", each) for place, each in enumerate(like))

    def levels(self, name: str, resampling: str, like: tuple[Level, ...]) -> tuple[Level, ...]:
        return tuple(
            Level(
                self.blocks(f"{name}_{place}", each.blocks),
                None if each.resample is None else self.conv(f"{name}_{place}/{resampling}/Conv_0"),
            )
            for place, each in enumerate(like)
        )
