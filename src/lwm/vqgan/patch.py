"""A small codec for small worlds: an encoder of one square of pixels at a time, a decoder that sees their neighbours.

Pixels are [-1, 1], channels last. All layers are convolutions, those of the encoder of one square each.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lwm.core.pytree import pytree
from lwm.vqgan.config import PatchCodecConfig
from lwm.vqgan.layers import Convolution, convolve, declare_convolution
from lwm.vqgan.quantize import declare_codebook

EPS = 1e-6


@pytree
@dataclass(frozen=True)
class Layer:
    """Widens, then narrows again; added to its input."""

    widen: Convolution
    narrow: Convolution


@pytree
@dataclass(frozen=True)
class PatchCodec:
    """All tensors, or their declarations."""

    squares: Convolution
    encoder: tuple[Layer, ...]
    to_code: Convolution
    codebook: Any  # codes, width; None where the quantizer learns nothing
    own_square: Convolution  # what a code shows by itself; the rest of the decoder adds what its neighbours change
    from_code: Convolution
    decoder: tuple[Layer, ...]
    to_half: Convolution
    half: Convolution
    to_full: Convolution
    full: Convolution
    to_pixels: Convolution


def declare(config: PatchCodecConfig) -> PatchCodec:
    """Shape, logical axes (none is split) and initializer of every tensor."""
    encoder, decoder, code = config.encoder_width, config.decoder_width, config.quantizer.width
    half, full = config.fine_widths
    one, near = declare_convolution(1, encoder, encoder), declare_convolution(3, decoder, 2 * decoder)
    return PatchCodec(
        squares=declare_convolution(config.pixels_per_code, 3, encoder),
        encoder=(Layer(one, one),) * config.encoder_layers,
        to_code=declare_convolution(1, encoder, code),
        codebook=declare_codebook(config.quantizer),
        own_square=declare_convolution(1, code, 3 * config.pixels_per_code**2),
        from_code=declare_convolution(1, code, decoder),
        decoder=(Layer(near, declare_convolution(1, 2 * decoder, decoder)),) * config.decoder_layers,
        to_half=declare_convolution(1, decoder, (config.pixels_per_code // 2) ** 2 * half),
        half=declare_convolution(3, half, half),
        to_full=declare_convolution(1, half, 4 * full),
        full=declare_convolution(3, full, full),
        to_pixels=declare_convolution(3, full, 3),
    )


def encode(
    params: PatchCodec, pixels: Float[Array, "N height width 3"], config: PatchCodecConfig
) -> Float[Array, "N rows columns code"]:
    """What is quantized, for each square of `pixels_per_code` pixels a side."""
    x = convolve(pixels, params.squares, stride=config.pixels_per_code, padding="VALID")
    if not config.encoder_layers:
        return convolve(x, params.to_code)
    return convolve(_normalize(_through(jax.nn.silu(x), params.encoder)), params.to_code)


def decode(
    params: PatchCodec, vectors: Float[Array, "N rows columns code"], config: PatchCodecConfig
) -> Float[Array, "N height width 3"]:
    """Pixels of quantized vectors; training may leave [-1, 1], pictures are clipped to it."""
    x = _through(convolve(vectors, params.from_code), params.decoder)
    x = _unfold(convolve(_normalize(x), params.to_half), config.pixels_per_code // 2)
    x = x + jax.nn.silu(convolve(_normalize(x), params.half))
    x = _unfold(convolve(_normalize(x), params.to_full), 2)
    x = convolve(x + jax.nn.silu(convolve(_normalize(x), params.full)), params.to_pixels)
    return x + _unfold(convolve(vectors, params.own_square), config.pixels_per_code)


def _through(x: Array, layers: tuple[Layer, ...]) -> Array:
    for layer in layers:
        x = x + convolve(jax.nn.silu(convolve(_normalize(x), layer.widen)), layer.narrow)
    return x


def _normalize(x: Array) -> Array:
    """Each place has length 1 over its channels: no place hears of another through a norm."""
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + EPS)


def _unfold(x: Array, side: int) -> Array:
    """Channels of one place become a square of `side` places a side."""
    N, rows, columns, _ = x.shape
    squares = x.reshape(N, rows, columns, side, side, -1)
    return squares.swapaxes(2, 3).reshape(N, rows * side, columns * side, -1)
