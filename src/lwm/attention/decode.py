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

from lwm.attention import reference
from lwm.attention.config import AttentionConfig
from lwm.attention.kernels import KERNELS
from lwm.attention.mask import AttentionMask
from lwm.attention.merge import merge_devices
from lwm.attention.online_softmax import Running, add_keys, begin, finish
from lwm.core.mesh import SEQUENCE_AXIS, axis_size, spec, splittable

#: slots that one generated token attends to at a time
_BLOCK = 4096

#: head-major: one token reads its blocks as they lie
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

    def write(buffer: Array, new: Array, start: Array) -> Array:
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
    config: AttentionConfig,
) -> tuple[Float[Array, "B T H h"], CacheArray, CacheArray]:
    """Append one layer's new keys and values at `start`, attend to all that is cached, return the longer cache.

    `mask` holds the marks of the queries and those of the slots, the new ones included. Scale is 1/sqrt(h).
    """
    batch, tokens = splittable(query.shape[:2], ("batch", "tokens"))
    heads, kv_heads = (batch, tokens, "heads", None), (batch, tokens, "kv_heads", None)
    cached = (None, batch, "kv_heads", "tokens", None)
    marks = ((batch, tokens), (batch, tokens), (batch, "tokens"), (batch, "tokens"))
    mapped = _over_mesh(
        partial(_append_and_attend, config=config, single=tokens is None),
        (heads, kv_heads, kv_heads, cached, cached, (), (), marks),
        (heads, cached, cached),
    )
    return mapped(query, key, value, keys, values, layer, start, tuple(mask))


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
    query: Array,
    key: Array,
    value: Array,
    keys: Array,
    values: Array,
    layer: Array,
    start: Array,
    marks: tuple[Array, Array, Array, Array],
    config: AttentionConfig,
    single: bool,
) -> tuple[Array, Array, Array]:
    shards = axis_size("tokens")
    row = start // shards
    keys, values = (
        _write(cached, jnp.swapaxes(new, 1, 2)[None].astype(cached.dtype), (layer, 0, 0, row, 0), start, single)
        for cached, new in ((keys, key), (values, value))
    )
    if single:
        result = _attend_one(query, keys, values, layer, row + 1, AttentionMask(*marks))
        return merge_devices(*result, split=False).astype(query.dtype), keys, values
    queries = (query, *marks[:2])
    if shards > 1:
        queries = tuple(jax.lax.all_gather(x, SEQUENCE_AXIS, axis=1, tiled=True) for x in queries)
    own_keys, own_values = (
        jnp.swapaxes(jax.lax.dynamic_index_in_dim(x, layer, keepdims=False), 1, 2).astype(query.dtype)
        for x in (keys, values)
    )
    attend = (
        reference.attend if config.kernel == "reference" else partial(KERNELS[config.kernel].forward, config=config)
    )
    mask = AttentionMask(*queries[1:], *marks[2:])
    out, log_sum_exp = attend(queries[0], own_keys, own_values, mask)
    return merge_devices(out, log_sum_exp, split=True).astype(query.dtype), keys, values


def _write(buffer: Array, new: Array, corner: tuple, start: Array, single: bool) -> Array:
    """Put this device's share of `new` into its rows of `buffer`; a single token goes to one device only."""
    shards = axis_size("tokens")
    corner = tuple(jnp.asarray(index, jnp.int32) for index in corner)
    if single and shards > 1:
        mine = jax.lax.axis_index(SEQUENCE_AXIS) == start % shards
        new = jnp.where(mine, new, jax.lax.dynamic_slice(buffer, corner, new.shape))
    return jax.lax.dynamic_update_slice(buffer, new, corner)


def _attend_one(
    query: Float[Array, "B 1 H h"],
    keys: CacheArray,
    values: CacheArray,
    layer: Int[Array, ""],
    rows_used: Int[Array, ""],
    mask: AttentionMask,
) -> tuple[Float[Array, "B 1 H h"], Float[Array, "B 1 H"]]:
    """One token's attention to this device's used slots, read in blocks from the whole cache where they lie.

    A kernel would want the layer's slots as an array of their own: a copy of all of them for each token.
    """
    batch, _, num_heads, width = query.shape
    num_kv_heads, rows = keys.shape[2:4]
    # Two at least: a single one XLA reads ahead of the loop, and so copies the values of all layers in each layer.
    block = rows // 2 if rows <= _BLOCK and rows % 2 == 0 else math.gcd(rows, _BLOCK)
    grouped = query.reshape(batch, num_kv_heads, num_heads // num_kv_heads, width)

    def step(index: Array, state: Running) -> Running:
        corner, shape = (layer, 0, 0, index * block, 0), (1, batch, num_kv_heads, block, width)
        key, value = (jax.lax.dynamic_slice(cache, corner, shape)[0].astype(query.dtype) for cache in (keys, values))
        slots = (jax.lax.dynamic_slice_in_dim(marks, index * block, block, axis=1) for marks in mask[2:])
        seen = AttentionMask(*mask[:2], *slots).dense()[:, :, None]
        scores = jnp.einsum("BKGh,BKSh->BKGS", grouped, key, preferred_element_type=jnp.float32) * width**-0.5
        scores = jnp.where(seen, scores, -jnp.inf)
        return add_keys(state, scores, value)

    out, log_sum_exp = finish(jax.lax.fori_loop(0, (rows_used + block - 1) // block, step, begin(grouped)))
    return out.reshape(query.shape), log_sum_exp.reshape(batch, 1, num_heads)
