"""LWM's VQGAN: a convolutional encoder and a convolutional decoder, with codes between them.

Pixels are [-1, 1], channels last; a network that was trained on another range has them stretched to it. The
architecture is that of aMUSEd (Patil et al. 2024) without attention: GroupNorm, SiLU, residual blocks, sides halved by
strided convolutions and doubled by repeating pixels.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lwm.core.pytree import pytree
from lwm.vqgan.config import VQGANConfig
from lwm.vqgan.layers import Convolution, GroupNorm, convolve, declare_convolution, declare_norm, group_norm
from lwm.vqgan.quantize import declare_codebook


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
    codebook: Any  # codes, width; None where the quantizer learns nothing
    from_code: Convolution
    decoder: Coder


def declare(config: VQGANConfig) -> VQGAN:
    """Shape, logical axes (none is split) and initializer of every tensor."""
    z, widths = config.z_channels, config.widths()
    inwards = _levels(widths, config.num_res_blocks)
    outwards = _levels(widths[::-1], config.num_res_blocks + 1)
    deepest = widths[-1]
    middle = (_res_block(deepest, deepest),) * 2
    return VQGAN(
        encoder=Coder(
            declare_convolution(3, 3, widths[0]),
            inwards,
            middle,
            declare_norm(deepest),
            declare_convolution(3, deepest, z),
        ),
        to_code=declare_convolution(1, z, config.quantizer.width),
        codebook=declare_codebook(config.quantizer),
        from_code=declare_convolution(1, config.quantizer.width, z),
        decoder=Coder(
            declare_convolution(3, z, deepest),
            outwards,
            middle,
            declare_norm(widths[0]),
            declare_convolution(3, widths[0], 3),
        ),
    )


def _res_block(channels_in: int, channels_out: int) -> ResBlock:
    shortcut = None if channels_in == channels_out else declare_convolution(1, channels_in, channels_out)
    first, second = (
        declare_convolution(3, channels_in, channels_out),
        declare_convolution(3, channels_out, channels_out),
    )
    return ResBlock(declare_norm(channels_in), first, declare_norm(channels_out), second, shortcut)


def _levels(widths: tuple[int, ...], num_blocks: int) -> tuple[Level, ...]:
    """The last one leaves the sides as they are."""
    levels = []
    for place, width in enumerate(widths):
        before = widths[max(place - 1, 0)]
        blocks = (_res_block(before, width), *[_res_block(width, width)] * (num_blocks - 1))
        levels.append(Level(blocks, None if place == len(widths) - 1 else declare_convolution(3, width, width)))
    return tuple(levels)


def encode(
    params: VQGAN, pixels: Float[Array, "N height width 3"], config: VQGANConfig
) -> Float[Array, "N rows columns code"]:
    """What the codebook is searched for, for each square of `pixels_per_code` pixels a side."""
    encoder, (scale, shift) = params.encoder, _scale_and_shift(config)
    x = convolve(pixels * scale + shift, encoder.conv_in)
    for level in encoder.levels:
        x = _blocks(x, level.blocks, config)
        if level.resample is not None:
            x = convolve(jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))), level.resample, stride=2, padding="VALID")
    x = _blocks(x, encoder.middle, config)
    x = convolve(jax.nn.silu(_norm(x, encoder.norm_out, config)), encoder.conv_out)
    return convolve(x, params.to_code)


def decode(
    params: VQGAN, vectors: Float[Array, "N rows columns code"], config: VQGANConfig
) -> Float[Array, "N height width 3"]:
    """Pixels of vectors of the codebook; training may leave [-1, 1], pictures are clipped to it."""
    decoder = params.decoder
    x = convolve(convolve(vectors, params.from_code), decoder.conv_in)
    x = _blocks(x, decoder.middle, config)
    for level in decoder.levels:
        x = _blocks(x, level.blocks, config)
        if level.resample is not None:
            x = convolve(x.repeat(2, axis=1).repeat(2, axis=2), level.resample)
    x = convolve(jax.nn.silu(_norm(x, decoder.norm_out, config)), decoder.conv_out)
    scale, shift = _scale_and_shift(config)
    return (x - shift) / scale


def _scale_and_shift(config: VQGANConfig) -> tuple[float, float]:
    """From [-1, 1] to the network's range; 1 and 0 of LWM's, which change no bit."""
    black, white = config.pixel_range
    return (white - black) / 2, (white + black) / 2


def _blocks(x: Array, blocks: tuple[ResBlock, ...], config: VQGANConfig) -> Array:
    for block in blocks:
        added = convolve(jax.nn.silu(_norm(x, block.norm_in, config)), block.conv_in)
        added = convolve(jax.nn.silu(_norm(added, block.norm_out, config)), block.conv_out)
        x = added + (x if block.shortcut is None else convolve(x, block.shortcut))
    return x


def _norm(x: Array, norm: GroupNorm, config: VQGANConfig) -> Array:
    return group_norm(x, norm, config.norm_groups, config.norm_eps)
