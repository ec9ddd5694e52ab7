"""Exact attention in tiles with an online softmax: memory linear in T and S, and a backward that keeps no tile.

Dao et al. 2022 and 2023 (FlashAttention 1 and 2, the backward from log-sum-exp). Matrices stay in the model's dtype,
sums and statistics are float32. The query heads of one key-value head are folded into the rows of a tile, so that
grouped queries cost no copy of keys. Tiles that `lwm.attention.tiles` finds empty are never visited, and the mask is
read only where a tile is partly seen.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from lwm.attention import tiles
from lwm.attention.config import KEPT, AttentionConfig
from lwm.attention.mask import AttentionMask, visible
from lwm.attention.merge import NOTHING
from lwm.attention.online_softmax import Running, add_keys, begin, finish

Output = tuple[Float[Array, "B T H h"], Float[Array, "B T H"]]
State = TypeVar("State", bound=tuple)
Gradients = tuple[Float[Array, "B T H h"], Float[Array, "B S K h"], Float[Array, "B S K h"]]


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(
    q: Float[Array, "B T H h"],
    k: Float[Array, "B S K h"],
    v: Float[Array, "B S K h"],
    mask: AttentionMask,
    config: AttentionConfig,
) -> Output:
    """Softmax attention with scale 1/sqrt(h), query head i reading key-value head i // (H / K); any T and S.

    Returns:
        The output in the dtype of `q`, and the float32 log-sum-exp of each query's scores. A query that sees no key
        gets zeros and `NOTHING`.
    """
    out, log_sum_exp = forward(q, k, v, mask, config)
    return out.astype(q.dtype), log_sum_exp


def _attend_forward(q: Array, k: Array, v: Array, mask: AttentionMask, config: AttentionConfig) -> tuple[Output, tuple]:
    out, log_sum_exp = checkpoint_name(attend(q, k, v, mask, config), KEPT)
    return (out, log_sum_exp), (q, k, v, mask, out, log_sum_exp)


def _attend_backward(config: AttentionConfig, saved: tuple, cotangents: Output) -> tuple:
    q, k, v, mask, out, log_sum_exp = saved
    dq, dk, dv = backward(q, k, v, mask, out, log_sum_exp, *cotangents, config)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


attend.defvjp(_attend_forward, _attend_backward)


def forward(
    q: Float[Array, "B T H h"],
    k: Float[Array, "B S K h"],
    v: Float[Array, "B S K h"],
    mask: AttentionMask,
    config: AttentionConfig,
) -> Output:
    """`Kernel.forward`: one block of queries at a time over all the key blocks it needs. The output is float32."""
    # A scan over layers would compute everything that depends on the mask alone for all tiles at once, and keep it.
    q, mask = lax.optimization_barrier((q, mask))
    queries, keys = _cut(mask, config)
    num_kv_heads = k.shape[2]

    def query_block(block: Array, result: tuple[Array, Array]) -> tuple[Array, Array]:
        start = _start(block, queries.size, q.shape[1])
        rows, mine = _read(q, start, queries.size, num_kv_heads), queries.one(block)
        visits = tiles.visits(mine, keys)

        def tile(visit: Array, state: Running, *, whole: bool) -> Running:
            other, start = visits.order[visit], _start(visits.order[visit], keys.size, k.shape[1])
            scores = _scores(rows, _read(k, start, keys.size, num_kv_heads), None if whole else (mine, keys.one(other)))
            return add_keys(state, scores, _read(v, start, keys.size, num_kv_heads))

        done, sums = finish(_visit(visits, tile, begin(rows)))
        out, log_sum_exp = result
        return _update(out, done, start, jnp.add), _update(log_sum_exp, sums, start, jnp.maximum)

    result = jnp.zeros_like(q, jnp.float32), jnp.full((*q.shape[:3], 1), NOTHING)
    out, log_sum_exp = lax.fori_loop(0, queries.num_blocks, query_block, result)
    return out, log_sum_exp[..., 0]


def backward(
    q: Float[Array, "B T H h"],
    k: Float[Array, "B S K h"],
    v: Float[Array, "B S K h"],
    mask: AttentionMask,
    out: Float[Array, "B T H h"],
    log_sum_exp: Float[Array, "B T H"],
    d_out: Float[Array, "B T H h"],
    d_log_sum_exp: Float[Array, "B T H"],
    config: AttentionConfig,
) -> Gradients:
    """`Kernel.backward`: one block of keys at a time; each tile is computed again, once, with five matmuls."""
    d_out, mask = lax.optimization_barrier((d_out, mask))
    queries, keys = _cut(mask, config)
    num_kv_heads, scale = k.shape[2], q.shape[-1] ** -0.5
    # How far the softmax pulls each row of score gradients back: FlashAttention 2, algorithm 2, line 4.
    pull = (out.astype(jnp.float32) * d_out.astype(jnp.float32)).sum(-1) - d_log_sum_exp
    d_out = d_out.astype(q.dtype)

    def key_block(block: Array, gradients: Gradients) -> Gradients:
        start, mine = _start(block, keys.size, k.shape[1]), keys.one(block)
        my_keys, my_values = (_read(array, start, keys.size, num_kv_heads) for array in (k, v))
        visits = tiles.visits(queries, mine)

        def tile(visit: Array, state: tuple, *, whole: bool) -> tuple:
            dq, dk, dv = state
            other, start = visits.order[visit], _start(visits.order[visit], queries.size, q.shape[1])
            rows, d_rows, row_sums, row_pulls = (
                _read(array, start, queries.size, num_kv_heads)
                for array in (q, d_out, log_sum_exp[..., None], pull[..., None])
            )
            scores = _scores(rows, my_keys, None if whole else (queries.one(other), mine))
            weights = jnp.exp(scores - row_sums)
            dv = dv + _matmul("BKTh,BKTS->BKhS", d_rows, weights.astype(q.dtype))
            d_weights = _matmul("BKTh,BKSh->BKTS", d_rows, my_values)
            d_scores = (weights * (d_weights - row_pulls) * scale).astype(q.dtype)
            dk = dk + _matmul("BKTh,BKTS->BKhS", rows, d_scores)
            return _update(dq, _matmul("BKTS,BKSh->BKTh", d_scores, my_keys), start, jnp.add), dk, dv

        dq, dk, dv = gradients
        # Gathered with tokens last: a matmul whose small side is the transposed one is nearly twice as fast on a CPU.
        zeros = jnp.zeros_like(my_keys.mT, jnp.float32)
        dq, my_dk, my_dv = _visit(visits, tile, (dq, zeros, zeros))
        return dq, _update(dk, my_dk.mT, start, jnp.add), _update(dv, my_dv.mT, start, jnp.add)

    gradients = tuple(jnp.zeros_like(array, jnp.float32) for array in (q, k, v))
    return lax.fori_loop(0, keys.num_blocks, key_block, gradients)


def _cut(mask: AttentionMask, config: AttentionConfig) -> tuple[tiles.Blocks, tiles.Blocks]:
    queries = tiles.cut(mask.query_segment_ids, mask.query_positions, config.query_block)
    return queries, tiles.cut(mask.key_segment_ids, mask.key_positions, config.key_block)


def _visit(visits: tiles.Visits, tile: Callable, state: State) -> State:
    """Run `tile` over the tiles that hold something; those wholly seen need no mask."""
    state = lax.fori_loop(0, visits.num_full, partial(tile, whole=True), state)
    return lax.fori_loop(visits.num_full, visits.num_needed, partial(tile, whole=False), state)


def _start(block: Array, size: int, length: int) -> Array:
    """Where a block begins: the last one lies against the end, over its neighbour if need be (see `tiles.cut`)."""
    return jnp.minimum(block * size, length - size)


def _read(array: Float[Array, "B T H h"], start: Array, size: int, num_kv_heads: int) -> Float[Array, "B K rows h"]:
    """A block of tokens as rows by key-value head: the G query heads of each lie one after another."""
    block = lax.dynamic_slice_in_dim(array, start, size, axis=1)
    batch, _, num_heads, width = block.shape
    grouped = block.reshape(batch, size, num_kv_heads, num_heads // num_kv_heads, width)
    return jnp.moveaxis(grouped, 1, 3).reshape(batch, num_kv_heads, -1, width)


def _update(
    array: Float[Array, "B T H h"], rows: Float[Array, "B K rows h"], start: Array, combine: Callable
) -> Float[Array, "B T H h"]:
    """Combine rows, laid out as `_read` does, with what the array already has in their place."""
    batch, _, num_heads, width = array.shape
    grouped = rows.reshape(batch, rows.shape[1], num_heads // rows.shape[1], -1, width)
    block = jnp.moveaxis(grouped, 3, 1).reshape(batch, -1, num_heads, width)
    there = lax.dynamic_slice_in_dim(array, start, block.shape[1], axis=1)
    return lax.dynamic_update_slice_in_dim(array, combine(there, block), start, axis=1)


def _scores(
    rows: Float[Array, "B K rows h"], keys: Float[Array, "B K S h"], sides: tuple[tiles.Blocks, tiles.Blocks] | None
) -> Float[Array, "B K rows S"]:
    """Scaled scores; with the two `sides` of a tile, pairs that are not visible are -inf."""
    scores = _matmul("BKTh,BKSh->BKTS", rows, keys) * rows.shape[-1] ** -0.5
    if sides is None:
        return scores
    queries, others = sides
    seen = visible(queries.segment_ids, queries.positions, others.segment_ids, others.positions)[:, :, None]
    grouped = scores.reshape(*scores.shape[:2], -1, *seen.shape[-2:])
    return jnp.where(seen, grouped, -jnp.inf).reshape(scores.shape)


def _matmul(equation: str, left: Array, right: Array) -> Float[Array, "..."]:
    return jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)
