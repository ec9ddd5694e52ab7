"""Attention over two sets of keys from attention over each: softmax is a sum, and log-sum-exp its size."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lwm.core.mesh import SEQUENCE_AXIS, axis_size

#: log-sum-exp of a query that sees no key. Finite, so that the difference of two of them is 0 and never NaN.
NOTHING = -1e30


def merge(
    out: Float[Array, "B T H h"],
    log_sum_exp: Float[Array, "B T H"],
    other_out: Float[Array, "B T H h"],
    other_log_sum_exp: Float[Array, "B T H"],
) -> tuple[Float[Array, "B T H h"], Float[Array, "B T H"]]:
    """The output and log-sum-exp over the union, in float32; nothing and nothing make nothing."""
    highest = jnp.maximum(log_sum_exp, other_log_sum_exp)
    weight, other_weight = jnp.exp(log_sum_exp - highest), jnp.exp(other_log_sum_exp - highest)
    total = weight + other_weight
    out = out.astype(jnp.float32) * (weight / total)[..., None]
    other_out = other_out.astype(jnp.float32) * (other_weight / total)[..., None]
    return out + other_out, highest + jnp.log(total)


def merge_devices(
    out: Float[Array, "B T H h"], log_sum_exp: Float[Array, "B T H"], *, split: bool
) -> Float[Array, "B T_local H h"]:
    """Attention over the keys of all devices along sp from each device's own; `split`: each keeps its own queries."""
    if axis_size("tokens") == 1:
        return out
    share = jnp.exp(log_sum_exp - jax.lax.pmax(log_sum_exp, SEQUENCE_AXIS))[..., None]
    parts = (out.astype(jnp.float32) * share, share)
    if split:
        total, weight = (jax.lax.psum_scatter(x, SEQUENCE_AXIS, scatter_dimension=1, tiled=True) for x in parts)
    else:
        total, weight = jax.lax.psum(parts, SEQUENCE_AXIS)
    return total / weight
