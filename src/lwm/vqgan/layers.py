"""What codecs are made of: convolutions, norms, and blocks of pixels folded into channels and back."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lwm.core.params import Parameter, normal, ones, zeros
from lwm.core.pytree import pytree


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


def declare_convolution(side: int, channels_in: int, channels_out: int) -> Convolution:
    """A square kernel that keeps the variance of its input."""
    kernel = Parameter(
        (side, side, channels_in, channels_out), (None,) * 4, normal((side * side * channels_in) ** -0.5)
    )
    return Convolution(kernel, Parameter((channels_out,), (None,), zeros))


def declare_norm(channels: int) -> GroupNorm:
    """One that changes nothing at first."""
    return GroupNorm(Parameter((channels,), (None,), ones), Parameter((channels,), (None,), zeros))


def convolve(
    x: Float[Array, "N rows columns channels"], layer: Convolution, stride: int = 1, padding: str = "SAME"
) -> Float[Array, "N rows_out columns_out channels_out"]:
    """Cross-correlation, plus the bias."""
    layout = ("NHWC", "HWIO", "NHWC")
    return (
        jax.lax.conv_general_dilated(x, layer.kernel, (stride, stride), padding, dimension_numbers=layout) + layer.bias
    )


def group_norm(
    x: Float[Array, "N rows columns channels"], norm: GroupNorm, num_groups: int, eps: float
) -> Float[Array, "N rows columns channels"]:
    """Mean 0 and variance 1 over the pixels and channels of a group, in float32."""
    grouped = x.astype(jnp.float32).reshape(*x.shape[:-1], num_groups, -1)
    mean = grouped.mean(axis=(1, 2, 4), keepdims=True)
    variance = jnp.square(grouped - mean).mean(axis=(1, 2, 4), keepdims=True)
    normal = ((grouped - mean) * jax.lax.rsqrt(variance + eps)).reshape(x.shape)
    return (normal * norm.scale + norm.bias).astype(x.dtype)
