"""All-to-all attention over the sp axis: devices trade tokens for heads, so that each sees whole sequences.

Jacobs et al. 2023 (DeepSpeed Ulysses); with groups smaller than the axis and a ring across them, Fang & Zhao 2024
(USP). Neighbours along sp form the groups, so the heavier all-to-all stays on the nearest wires. The ring alone is a
group of one, the all-to-all alone a group of all.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lwm.attention import ring
from lwm.attention.blockwise import Output
from lwm.attention.config import AttentionConfig
from lwm.attention.mask import AttentionMask
from lwm.core.mesh import SEQUENCE_AXIS

TOKENS, HEADS = 1, 2


def attend(
    q: Float[Array, "B T H h"],
    k: Float[Array, "B S K h"],
    v: Float[Array, "B S K h"],
    mask: AttentionMask,
    config: AttentionConfig,
    degree: int,
) -> Output:
    """Attention of this device's queries over the keys of all devices; call it inside `jax.shard_map`.

    Args:
        degree: devices in a group. It divides the sp axis and H, and divides K or is a multiple of it.
    """
    if degree == 1:
        return ring.attend(q, k, v, mask, config)
    repeats = max(1, degree // k.shape[2])
    groups = _groups(degree)

    def trade(array: Array, split: int, join: int) -> Array:
        return lax.all_to_all(array, SEQUENCE_AXIS, split, join, axis_index_groups=groups, tiled=True)

    def gather(array: Array) -> Array:
        return lax.all_gather(array, SEQUENCE_AXIS, axis_index_groups=groups, axis=1, tiled=True)

    q, k, v = (trade(array, HEADS, TOKENS) for array in (q, *(jnp.repeat(array, repeats, HEADS) for array in (k, v))))
    out, log_sum_exp = ring.attend(q, k, v, jax.tree.map(gather, mask), config, degree)
    return trade(out, TOKENS, HEADS), trade(log_sum_exp, TOKENS, HEADS)


def _groups(degree: int) -> list[list[int]]:
    """Neighbouring ranks, `degree` at a time."""
    size = lax.axis_size(SEQUENCE_AXIS)
    return [list(range(first, first + degree)) for first in range(0, size, degree)]
