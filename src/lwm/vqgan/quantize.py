"""Vectors to codes and back: a learned codebook (van den Oord et al. 2017) or fixed levels (Mentzer et al. 2023)."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32

from lwm.core.errors import UserError
from lwm.core.params import Parameter, normal

#: how far beyond the outermost levels a vector may reach, so that its gradient there is not zero
REACH = 1e-3


@dataclass(frozen=True)
class Codebook:
    """A vector becomes the nearest of so many learned ones. The defaults are LWM's."""

    num_codes: int = 8192
    width: int = 64

    def __post_init__(self) -> None:
        if self.num_codes < 1 or self.width < 1:
            raise UserError(f"a codebook of {self.num_codes} vectors of width {self.width}: both must be positive")


@dataclass(frozen=True)
class Levels:
    """Each number of a vector is rounded to one of so many levels (FSQ); nothing is learned, no code lies idle."""

    levels: tuple[int, ...] = (8, 8, 8, 8)

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 3:  # of two, the usual bound leaves one without a gradient
            raise UserError(f"levels {self.levels}: give 3 or more for each number of a vector")
        if math.prod(self.levels) >= 2**31:
            raise UserError(f"levels {self.levels} make {math.prod(self.levels):,} codes, more than an id can count")

    @property
    def width(self) -> int:
        return len(self.levels)

    @property
    def num_codes(self) -> int:
        return math.prod(self.levels)


Quantizer = Codebook | Levels


def declare_codebook(quantizer: Quantizer) -> Parameter | None:
    """The one tensor of a quantizer, if it has any."""
    if isinstance(quantizer, Levels):
        return None
    return Parameter((quantizer.num_codes, quantizer.width), (None, None), normal(quantizer.width**-0.5))


def codes_of(
    vectors: Float[Array, "N rows columns width"], codebook: Any, quantizer: Quantizer
) -> Int[Array, "N rows columns"]:
    """The code of each vector."""
    if isinstance(quantizer, Levels):
        steps = jnp.round(_bounded(vectors, quantizer)).astype(jnp.int32) + _middles(quantizer)
        return (steps * _place_values(quantizer)).sum(-1)
    products = jnp.einsum("NRCw,kw->NRCk", vectors, codebook, precision="highest")
    return (jnp.square(codebook).sum(-1) - 2 * products).argmin(-1).astype(jnp.int32)


def vectors_of(
    codes: Int[Array, "N rows columns"], codebook: Any, quantizer: Quantizer
) -> Float[Array, "N rows columns width"]:
    """The vector that a code stands for."""
    if isinstance(quantizer, Levels):
        steps = codes[..., None] // _place_values(quantizer) % np.array(quantizer.levels, np.int32)
        return (steps - _middles(quantizer)).astype(jnp.float32) / _middles(quantizer).astype(np.float32)
    return jnp.take(codebook, codes, axis=0)


def quantize(
    vectors: Float[Array, "N rows columns width"], codebook: Any, quantizer: Quantizer, share: float | Array = 1.0
) -> tuple[Float[Array, "N rows columns width"], Int[Array, "N rows columns"], Float[Array, ""], Float[Array, ""]]:
    """For training: quantized vectors that pass gradients straight through, codes, codebook and commitment errors.

    `share` is how far towards the quantized value a vector is moved: a warm start begins with 0. The two errors
    (van den Oord et al. 2017, equation 3) are 0 where there is no codebook.
    """
    codes = codes_of(vectors, codebook, quantizer)
    exact = vectors_of(codes, codebook, quantizer)
    if isinstance(quantizer, Levels):
        vectors = _bounded(vectors, quantizer) / _middles(quantizer).astype(np.float32)
        codebook_error = commitment_error = jnp.float32(0)
    else:
        codebook_error = jnp.square(exact - jax.lax.stop_gradient(vectors)).mean()
        commitment_error = jnp.square(jax.lax.stop_gradient(exact) - vectors).mean()
    moved = vectors + share * jax.lax.stop_gradient(exact - vectors)
    return moved, codes, codebook_error, commitment_error


def _bounded(vectors: Float[Array, "N rows columns width"], quantizer: Levels) -> Array:
    """Between the outermost levels; an even number of them has one more below 0 than above."""
    levels = np.array(quantizer.levels, np.float32)
    half = (levels - 1) * (1 + REACH) / 2
    offset = np.where(levels % 2 == 0, 0.5, 0.0).astype(np.float32)
    return jnp.tanh(vectors + np.arctanh(offset / half)) * half - offset


def _middles(quantizer: Levels) -> Int32[np.ndarray, "width"]:
    """How many levels lie below 0."""
    return np.array(quantizer.levels, np.int32) // 2


def _place_values(quantizer: Levels) -> Int32[np.ndarray, "width"]:
    """What one level more of each number adds to the code."""
    return np.cumprod([1, *quantizer.levels[:-1]], dtype=np.int32)
