"""Attention over keys that come a part at a time (Milakov & Gimelshein 2018; Rabe & Staats 2021).

Rows are queries grouped by key-value head: [B, K, rows, h].
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from lwm.attention.merge import NOTHING


class Running(NamedTuple):
    """What is known after some of the keys, in float32."""

    #: sum over keys of exp(score - highest) * value
    total: Float[Array, "B K rows h"]
    #: sum over keys of exp(score - highest)
    weight: Float[Array, "B K rows 1"]
    highest: Float[Array, "B K rows 1"]


def begin(rows: Float[Array, "B K rows h"]) -> Running:
    """Before the first key."""
    column = jnp.zeros_like(rows[..., :1], jnp.float32)
    return Running(jnp.zeros_like(rows, jnp.float32), column, column + NOTHING)


def add_keys(state: Running, scores: Float[Array, "B K rows S"], values: Float[Array, "B K S h"]) -> Running:
    """After S more keys. The score of a key that is not seen is -inf; weights multiply values in the values' dtype."""
    highest = jnp.maximum(state.highest, scores.max(-1, keepdims=True))
    weights, shrink = jnp.exp(scores - highest), jnp.exp(state.highest - highest)
    more = jnp.einsum("BKTS,BKSh->BKTh", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return Running(state.total * shrink + more, state.weight * shrink + weights.sum(-1, keepdims=True), highest)


def finish(state: Running) -> tuple[Float[Array, "B K rows h"], Float[Array, "B K rows 1"]]:
    """The output and the log-sum-exp of the scores; zeros and `NOTHING` where no key was seen."""
    seen = state.weight > 0
    weight = jnp.where(seen, state.weight, 1.0)
    return state.total / weight, jnp.where(seen, state.highest + jnp.log(weight), NOTHING)
