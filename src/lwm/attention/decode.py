"""Attention over a key-value cache that is split over the sp axis, for chunks of prompt and for generated tokens.

Keys and values never travel. Each device appends its own share of a chunk to its own slots, attends from every
query of the chunk to the slots it holds, and the partial results are merged by their softmax statistics. What
goes over the wire is of the size of the chunk, whatever the length of the context.

Slots carry segment ids and positions, so their order is free:

    sp = 2, a chunk of 4 tokens, then tokens 4, 5, 6 one at a time
    device 0   0 1 4 6
    device 1   2 3 5
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lwm.attention.mask import AttentionMask
from lwm.core.mesh import SEQUENCE_AXIS, axis_size, spec, splittable

#: scores alive at a time, in elements, on one device: bounds the tile of queries x slots
_TILE_ELEMENTS = 1 << 22
_MASKED = -1e30

CacheArray = Float[Array, "L B K S h"]


def first_slot(used: Int[Array, ""], num_tokens: int) -> Int[Array, ""]:
    """Where the next `num_tokens` go: one token to the next free slot, a chunk to the next row free on all devices.

    Slots are counted across devices: slot s is row s // sp of device s % sp.
    """
    shards = axis_size("tokens")
    if num_tokens > 1 and num_tokens % shards:
        raise ValueError(f"{num_tokens} tokens cannot be split over sp={shards}: pad them")
    return used if num_tokens == 1 else (used + shards - 1) // shards * shards


def append_marks(buffer: Int[Array, "B S"], new: Int[Array, "B T"], start: Int[Array, ""]) -> Int[Array, "B S"]:
    """Write per-token marks (segment ids, positions) into their slots."""
    batch, tokens = splittable(new.shape, ("batch", "tokens"))

    def write(buffer: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
        return _write(buffer, new, (0, start // axis_size("tokens")), start, tokens is None)

    return _over_mesh(write, ((batch, "tokens"), (batch, tokens), ()), (batch, "tokens"))(buffer, new, start)


def attend_cache(
    query: Float[Array, "B T H h"],
    key: Float[Array, "B T K h"],
    value: Float[Array, "B T K h"],
    keys: CacheArray,
    values: CacheArray,
    layer: Int[Array, ""],
    start: Int[Array, ""],
    mask: AttentionMask,
) -> tuple[Float[Array, "B T H h"], CacheArray, CacheArray]:
    """Append one layer's new keys and values at `start`, attend to all that is cached, return the longer cache.

    `mask` holds the marks of the queries and those of the slots, the new ones included. Scale is 1/sqrt(h).
    """
    batch, tokens = splittable(query.shape[:2], ("batch", "tokens"))
    heads, kv_heads = (batch, tokens, "heads", None), (batch, tokens, "kv_heads", None)
    cached = (None, batch, "kv_heads", "tokens", None)
    marks = ((batch, tokens), (batch, tokens), (batch, "tokens"), (batch, "tokens"))
    parts = (mask.query_segment_ids, mask.query_positions, mask.key_segment_ids, mask.key_positions)
    mapped = _over_mesh(
        partial(_append_and_attend, single=tokens is None),
        (heads, kv_heads, kv_heads, cached, cached, (), (), marks),
        (heads, cached, cached),
    )
    return mapped(query, key, value, keys, values, layer, start, parts)


def _over_mesh(function: Callable, in_axes: Any, out_axes: Any) -> Callable:
    """`function` on each device's share, under the mesh in force; as it is outside any mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return function

    def specs(axes: Any) -> Any:
        return jax.tree.map(lambda names: spec(*names), axes, is_leaf=_is_axes)

    return jax.shard_map(function, in_specs=specs(in_axes), out_specs=specs(out_axes), check_vma=False)


def _is_axes(node: object) -> bool:
    return isinstance(node, tuple) and all(name is None or isinstance(name, str) for name in node)


def _append_and_attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    layer: jax.Array,
    start: jax.Array,
    marks: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
    single: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    shards = axis_size("tokens")
    row = start // shards
    corner = (layer, 0, 0, row, 0)
    keys = _write(keys, jnp.swapaxes(key, 1, 2)[None].astype(keys.dtype), corner, start, single)
    values = _write(values, jnp.swapaxes(value, 1, 2)[None].astype(values.dtype), corner, start, single)
    rows_used = row + key.shape[1]
    split = shards > 1 and not single
    queries = (query, *marks[:2])
    if split:
        queries = tuple(jax.lax.all_gather(x, SEQUENCE_AXIS, axis=1, tiled=True) for x in queries)
    mask = AttentionMask(*queries[1:], *marks[2:])
    partial_result = _attend_share(queries[0], keys, values, layer, rows_used, mask)
    attended = _merge(partial_result, shards, split).astype(query.dtype)
    return attended, keys, values


def _write(buffer: jax.Array, new: jax.Array, corner: tuple, start: jax.Array, single: bool) -> jax.Array:
    """Put this device's share of `new` into its rows of `buffer`; a single token goes to one device only."""
    shards = axis_size("tokens")
    corner = tuple(jnp.asarray(index, jnp.int32) for index in corner)
    if single and shards > 1:
        mine = jax.lax.axis_index(SEQUENCE_AXIS) == start % shards
        new = jnp.where(mine, new, jax.lax.dynamic_slice(buffer, corner, new.shape))
    return jax.lax.dynamic_update_slice(buffer, new, corner)


def _attend_share(
    query: jax.Array, keys: jax.Array, values: jax.Array, layer: jax.Array, rows_used: jax.Array, mask: AttentionMask
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Online softmax over this device's used slots, a block at a time, taken from the whole cache in place.

    Returns (weighted values [B, T, H, h], sum of weights [B, T, H, 1], maximum [B, T, H, 1]), all fp32.
    """
    batch, num_tokens, num_heads, width = query.shape
    num_kv_heads, rows = keys.shape[2:4]
    groups = num_heads // num_kv_heads
    block = math.gcd(rows, max(16, 1 << (_TILE_ELEMENTS // (batch * num_heads * num_tokens)).bit_length() - 1))
    grouped = query.reshape(batch, num_tokens, num_kv_heads, groups, width).transpose(0, 2, 3, 1, 4)
    grouped = grouped.reshape(batch, num_kv_heads, groups * num_tokens, width)

    def step(index: jax.Array, state: tuple) -> tuple:
        accumulated, total, maximum = state
        corner = (layer, 0, 0, index * block, 0)
        shape = (1, batch, num_kv_heads, block, width)
        key, value = (jax.lax.dynamic_slice(cache, corner, shape)[0].astype(query.dtype) for cache in (keys, values))
        key_segment_ids, key_positions = (
            jax.lax.dynamic_slice(marks, (0, index * block), (batch, block))
            for marks in (mask.key_segment_ids, mask.key_positions)
        )
        visible = AttentionMask(mask.query_segment_ids, mask.query_positions, key_segment_ids, key_positions).dense()
        scores = jnp.einsum("BKRh,BKSh->BKRS", grouped, key, preferred_element_type=jnp.float32) * width**-0.5
        by_token = scores.reshape(batch, num_kv_heads, groups, num_tokens, block)
        scores = jnp.where(visible[:, None, None], by_token, _MASKED).reshape(scores.shape)
        new_maximum = jnp.maximum(maximum, scores.max(axis=-1, keepdims=True))
        weights = jnp.where(scores > _MASKED, jnp.exp(scores - new_maximum), 0.0)
        decay = jnp.exp(maximum - new_maximum)
        update = jnp.einsum("BKRS,BKSh->BKRh", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
        return accumulated * decay + update, total * decay + weights.sum(axis=-1, keepdims=True), new_maximum

    zeros = jnp.zeros(grouped.shape, jnp.float32)
    state = (zeros, zeros[..., :1], jnp.full_like(zeros[..., :1], _MASKED))
    state = jax.lax.fori_loop(0, (rows_used + block - 1) // block, step, state)

    def ungroup(x: jax.Array) -> jax.Array:
        x = x.reshape(batch, num_kv_heads, groups, num_tokens, -1).transpose(0, 3, 1, 2, 4)
        return x.reshape(batch, num_tokens, num_heads, -1)

    accumulated, total, maximum = state
    return ungroup(accumulated), ungroup(total), ungroup(maximum)


def _merge(partial_result: tuple[jax.Array, jax.Array, jax.Array], shards: int, split: bool) -> jax.Array:
    """Softmax over the slots of all devices from each device's share; a query that sees nothing gives zeros."""
    accumulated, total, maximum = partial_result
    if shards > 1:
        share = jnp.exp(maximum - jax.lax.pmax(maximum, SEQUENCE_AXIS))
        accumulated, total = accumulated * share, total * share
        if split:
            accumulated, total = (
                jax.lax.psum_scatter(x, SEQUENCE_AXIS, scatter_dimension=1, tiled=True) for x in (accumulated, total)
            )
        else:
            accumulated, total = jax.lax.psum((accumulated, total), SEQUENCE_AXIS)
    return accumulated / jnp.where(total > 0, total, 1.0)
