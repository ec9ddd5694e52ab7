"""LWM's VQGAN: a convolutional encoder, the nearest entries of a codebook, a convolutional decoder.

Pixels are [-1, 1], channels last. The architecture is that of aMUSEd (Patil et al. 2024) without attention: GroupNorm,
SiLU, residual blocks, sides halved by strided convolutions and doubled by repeating pixels.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lwm.core.params import Parameter, normal, ones, zeros
from lwm.core.pytree import pytree
from lwm.vqgan.config import VQGANConfig


@pytree
@dataclass(frozen=True)
class Convolution:
    """A kernel [rows, columns, in, out] and a bias [out]."""

    kernel: Any
    bias: Any


@pytree
@dataclass(frozen=True)
class GroupNorm:
    """Scale and bias, both [channels]."""

    scale: Any
    bias: Any


@pytree
@dataclass(frozen=True)
class ResBlock:
    """Norm, SiLU, convolution, twice; added to its input, which `shortcut` widens where it must."""

    norm_in: GroupNorm
    conv_in: Convolution
    norm_out: GroupNorm
    conv_out: Convolution
    shortcut: Convolution | None


@pytree
@dataclass(frozen=True)
class Level:
    """Blocks of one width, then the convolution that goes with halving or doubling the sides."""

    blocks: tuple[ResBlock, ...]
    resample: Convolution | None


@pytree
@dataclass(frozen=True)
class Coder:
    """One direction. The levels are in the order they are passed; the middle blocks lie at the codes' end."""

    conv_in: Convolution
    levels: tuple[Level, ...]
    middle: tuple[ResBlock, ...]
    norm_out: GroupNorm
    conv_out: Convolution


@pytree
@dataclass(frozen=True)
class VQGAN:
    """All tensors of a VQGAN, or their declarations."""

    encoder: Coder
    to_code: Convolution
    codebook: Any  # codes, width
    from_code: Convolution
    decoder: Coder


def declare(config: VQGANConfig) -> VQGAN:
    """Shape, logical axes (none is split) and initializer of every tensor."""
    z, widths = config.z_channels, config.widths()
    inwards = _levels(widths, config.num_res_blocks)
    outwards = _levels(widths[::-1], config.num_res_blocks + 1)
    deepest = widths[-1]
    middle = (_res_block(deepest, deepest),) * 2
    codebook = Parameter((config.num_codes, config.code_width), (None, None), normal(config.code_width**-0.5))
    return VQGAN(
        encoder=Coder(_conv(3, 3, widths[0]), inwards, middle, _norm(deepest), _conv(3, deepest, z)),
        to_code=_conv(1, z, config.code_width),
        codebook=codebook,
        from_code=_conv(1, config.code_width, z),
        decoder=Coder(_conv(3, z, deepest), outwards, middle, _norm(widths[0]), _conv(3, widths[0], 3)),
    )


def _conv(side: int, channels_in: int, channels_out: int) -> Convolution:
    kernel = Parameter(
        (side, side, channels_in, channels_out), (None,) * 4, normal((side * side * channels_in) ** -0.5)
    )
    return Convolution(kernel, Parameter((channels_out,), (None,), zeros))


def _norm(channels: int) -> GroupNorm:
    return GroupNorm(Parameter((channels,), (None,), ones), Parameter((channels,), (None,), zeros))


def _res_block(channels_in: int, channels_out: int) -> ResBlock:
    shortcut = None if channels_in == channels_out else _conv(1, channels_in, channels_out)
    first, second = _conv(3, channels_in, channels_out), _conv(3, channels_out, channels_out)
    return ResBlock(_norm(channels_in), first, _norm(channels_out), second, shortcut)


def _levels(widths: tuple[int, ...], num_blocks: int) -> tuple[Level, ...]:
    """The last one leaves the sides as they are."""
    levels = []
    for place, width in enumerate(widths):
        before = widths[max(place - 1, 0)]
        blocks = (_res_block(before, width), *[_res_block(width, width)] * (num_blocks - 1))
        levels.append(Level(blocks, None if place == len(widths) - 1 else _conv(3, width, width)))
    return tuple(levels)


def encode(
    params: VQGAN, pixels: Float[Array, "N height width 3"], config: VQGANConfig
) -> Float[Array, "N rows columns code"]:
    """What the codebook is searched for, for each square of `pixels_per_code` pixels a side."""
    encoder = params.encoder
    x = _convolve(pixels, encoder.conv_in)
    for level in encoder.levels:
        x = _blocks(x, level.blocks, config)
        if level.resample is not None:
            x = _convolve(jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))), level.resample, stride=2, padding="VALID")
    x = _blocks(x, encoder.middle, config)
    x = _convolve(jax.nn.silu(_normalize(x, encoder.norm_out, config)), encoder.conv_out)
    return _convolve(x, params.to_code)


def nearest(
    codebook: Float[Array, "codes code"], vectors: Float[Array, "N rows columns code"]
) -> Int[Array, "N rows columns"]:
    """The code whose entry is nearest to each vector, by squared distance."""
    products = jnp.einsum("NRCw,kw->NRCk", vectors, codebook, precision="highest")
    return (jnp.square(codebook).sum(-1) - 2 * products).argmin(-1).astype(jnp.int32)


def entries(
    codebook: Float[Array, "codes code"], codes: Int[Array, "N rows columns"]
) -> Float[Array, "N rows columns code"]:
    """The codebook's vectors of some codes."""
    return jnp.take(codebook, codes, axis=0)


def decode(
    params: VQGAN, vectors: Float[Array, "N rows columns code"], config: VQGANConfig
) -> Float[Array, "N height width 3"]:
    """Pixels of vectors of the codebook; training may leave [-1, 1], pictures are clipped to it."""
    decoder = params.decoder
    x = _convolve(_convolve(vectors, params.from_code), decoder.conv_in)
    x = _blocks(x, decoder.middle, config)
    for level in decoder.levels:
        x = _blocks(x, level.blocks, config)
        if level.resample is not None:
            x = _convolve(x.repeat(2, axis=1).repeat(2, axis=2), level.resample)
    return _convolve(jax.nn.silu(_normalize(x, decoder.norm_out, config)), decoder.conv_out)


def _blocks(x: Array, blocks: tuple[ResBlock, ...], config: VQGANConfig) -> Array:
    for block in blocks:
        added = _convolve(jax.nn.silu(_normalize(x, block.norm_in, config)), block.conv_in)
        added = _convolve(jax.nn.silu(_normalize(added, block.norm_out, config)), block.conv_out)
        x = added + (x if block.shortcut is None else _convolve(x, block.shortcut))
    return x


def _convolve(x: Array, layer: Convolution, stride: int = 1, padding: str = "SAME") -> Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return (
        jax.lax.conv_general_dilated(x, layer.kernel, (stride, stride), padding, dimension_numbers=layout) + layer.bias
    )


def _normalize(x: Float[Array, "N rows columns channels"], norm: GroupNorm, config: VQGANConfig) -> Array:
    """Mean 0 and variance 1 over the pixels and channels of a group, in float32."""
    grouped = x.astype(jnp.float32).reshape(*x.shape[:-1], config.norm_groups, -1)
    mean = grouped.mean(axis=(1, 2, 4), keepdims=True)
    variance = jnp.square(grouped - mean).mean(axis=(1, 2, 4), keepdims=True)
    normal = ((grouped - mean) * jax.lax.rsqrt(variance + config.norm_eps)).reshape(x.shape)
    return (normal * norm.scale + norm.bias).astype(x.dtype)
