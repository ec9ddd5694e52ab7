"""All-to-all attention over the sp axis: devices trade tokens for heads, so that each sees whole sequences.

Jacobs et al. 2023 (DeepSpeed Ulysses); with groups smaller than the axis and a ring across them, Fang & Zhao 2024
(USP). Neighbours along sp form the groups, so the heavier all-to-all stays on the nearest wires. The ring alone is a
group of one, the all-to-all alone a group of all.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lwm.attention import ring
from lwm.attention.blockwise import Output
from lwm.attention.config import AttentionConfig
from lwm.attention.mask import AttentionMask
from lwm.core.mesh import SEQUENCE_AXIS


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
    group: dict[str, Any] = {"axis_name": SEQUENCE_AXIS, "axis_index_groups": _groups(degree), "tiled": True}
    to_heads = partial(lax.all_to_all, split_axis=2, concat_axis=1, **group)
    to_tokens = partial(lax.all_to_all, split_axis=1, concat_axis=2, **group)
    gather = partial(lax.all_gather, axis=1, **group)
    k, v = (jnp.repeat(array, repeats, axis=2) for array in (k, v))
    results = ring.attend(to_heads(q), to_heads(k), to_heads(v), jax.tree.map(gather, mask), config, degree)
    out, log_sum_exp = (to_tokens(result) for result in results)
    return out, log_sum_exp


def _groups(degree: int) -> list[list[int]]:
    """Neighbouring ranks, `degree` at a time."""
    size = lax.axis_size(SEQUENCE_AXIS)
    return [list(range(first, first + degree)) for first in range(0, size, degree)]
