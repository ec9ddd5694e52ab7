"""Frames to codes and back, many at once: what everything outside this room knows of a codec."""

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Int32, UInt8

from lwm.core.errors import UserError
from lwm.core.mesh import LOGICAL_AXES, sharding
from lwm.vqgan import model, patch
from lwm.vqgan.config import CodecConfig, VQGANConfig
from lwm.vqgan.quantize import codes_of, vectors_of

#: frames that are worked on at once; of few shapes, so that few programs are compiled
CHUNK_SIZES = (1, 8, 64)
#: pixels that are worked on at once on each device, so that large frames do not fill the memory
CHUNK_PIXELS = 8 * 256 * 256


def architecture(config: CodecConfig) -> ModuleType:
    """The module that computes a codec: it has `declare`, `encode` and `decode`."""
    return model if isinstance(config, VQGANConfig) else patch


def declare(config: CodecConfig) -> Any:
    """The declarations of a codec's tensors."""
    return architecture(config).declare(config)


def to_pixels(frames: UInt8[Array, "N height width 3"]) -> Float[Array, "N height width 3"]:
    """0..255 becomes [-1, 1]."""
    return frames.astype(jnp.float32) / 127.5 - 1


def to_frames(pixels: Float[Array, "N height width 3"]) -> UInt8[Array, "N height width 3"]:
    """Back, clipped and rounded."""
    return jnp.round((jnp.clip(pixels, -1, 1) + 1) * 127.5).astype(jnp.uint8)


class FrameCodec:
    """A codec on a mesh. Frames are shared out over the devices that share a batch."""

    def __init__(self, params: Any, config: CodecConfig, mesh: Mesh) -> None:
        self.config, self.mesh = config, mesh
        self.num_codes, self.tokens_per_frame = config.quantizer.num_codes, config.tokens_per_frame
        self.resolution = config.resolution
        self._side = round(config.tokens_per_frame**0.5)
        self._ways = int(np.prod([mesh.shape[axis] for axis in LOGICAL_AXES["batch"]]))
        most = max(1, CHUNK_PIXELS // config.resolution**2)
        self._sizes = [size * self._ways for size in CHUNK_SIZES if size <= most]
        self._params = jax.device_put(params, sharding(mesh))
        self._encode = jax.jit(partial(_encode, config=config))
        self._decode = jax.jit(partial(_decode, config=config))

    def digest(self) -> str:
        """Of what it is and of its tensors: codecs that differ in it write different codes."""
        digest = hashlib.sha256(repr(self.config).encode())
        for leaf in jax.tree.leaves(self._params):
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()

    def vectors(self) -> Float[np.ndarray, "codes width"]:
        """What each code stands for, as the decoder reads it."""
        every = jnp.arange(self.num_codes)[None, None]
        return np.asarray(vectors_of(every, self._params.codebook, self.config.quantizer))[0, 0]

    def encode(self, frames: UInt8[np.ndarray, "N side side 3"]) -> Int32[np.ndarray, "N P"]:
        """The codes of each frame, row by row.

        Raises:
            UserError: the frames have another size than the codec's.
        """
        side = self.resolution
        if frames.shape[1:] != (side, side, 3):
            raise UserError(f"the codec takes frames of {side} x {side} pixels, not of shape {frames.shape[1:]}")
        codes = self._apply(self._encode, frames)
        return codes.reshape(-1, self.tokens_per_frame)

    def decode(self, codes: Int[np.ndarray, "N P"]) -> UInt8[np.ndarray, "N side side 3"]:
        """The frames that codes stand for.

        Raises:
            UserError: a frame has another number of codes than the codec's, or a code is out of range.
        """
        if codes.ndim != 2 or codes.shape[1] != self.tokens_per_frame:
            raise UserError(f"the codec takes {self.tokens_per_frame} codes a frame, not an array of {codes.shape}")
        if codes.size and not 0 <= codes.min() <= codes.max() < self.num_codes:
            raise UserError(f"the codec has codes 0 to {self.num_codes - 1}, not {codes.min()}..{codes.max()}")
        grid = codes.astype(np.int32).reshape(-1, self._side, self._side)
        return self._apply(self._decode, grid)

    def _apply(self, function: Callable[[Any, jax.Array], jax.Array], rows: np.ndarray) -> np.ndarray:
        """The function of each chunk; what fills up the last is thrown away."""
        placed = sharding(self.mesh, "batch")
        results: list[np.ndarray] = []
        ahead: tuple[jax.Array, int] | None = None  # one chunk is computed while the one before is fetched
        for chunk, size in self._chunks(rows):
            filled = np.zeros((size, *rows.shape[1:]), rows.dtype)
            filled[: len(chunk)] = chunk
            following = function(self._params, jax.device_put(filled, placed)), len(chunk)
            results += [] if ahead is None else [np.asarray(ahead[0])[: ahead[1]]]
            ahead = following
        if ahead is None:
            empty = jax.eval_shape(function, self._params, jax.ShapeDtypeStruct((1, *rows.shape[1:]), rows.dtype))
            return np.zeros((0, *empty.shape[1:]), empty.dtype)
        return np.concatenate([*results, np.asarray(ahead[0])[: ahead[1]]])

    def _chunks(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """As few as there can be, the last one of the smallest size that holds it."""
        while len(rows):
            size = next((size for size in self._sizes if size >= len(rows)), self._sizes[-1])
            yield rows[:size], size
            rows = rows[size:]


def _encode(params: Any, frames: UInt8[Array, "N side side 3"], config: CodecConfig) -> Int[Array, "N rows columns"]:
    vectors = architecture(config).encode(params, to_pixels(frames), config)
    return codes_of(vectors, params.codebook, config.quantizer)


def _decode(params: Any, codes: Int[Array, "N rows columns"], config: CodecConfig) -> UInt8[Array, "N side side 3"]:
    vectors = vectors_of(codes, params.codebook, config.quantizer)
    return to_frames(architecture(config).decode(params, vectors, config))
