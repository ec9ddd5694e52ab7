"""Ring attention over the sp axis: queries stay, keys and values go round, no device ever holds more than a share.

Liu, Zaharia & Abbeel 2023 (Ring Attention with Blockwise Transformers). Keys and values travel in the model's dtype
with their segment ids and positions, so any layout of tokens over devices is served; their gradients travel in
float32. What arrives for the next hop is sent for before this hop's arithmetic, so that one can hide the other. A hop
whose keys no query here can see does no arithmetic.
"""

from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from lwm.attention import tiles
from lwm.attention.blockwise import Output
from lwm.attention.config import KEPT, AttentionConfig
from lwm.attention.kernels import KERNELS
from lwm.attention.mask import AttentionMask
from lwm.attention.merge import NOTHING, merge
from lwm.core.mesh import SEQUENCE_AXIS

Tree = TypeVar("Tree")


class Travellers(NamedTuple):
    """What goes round."""

    k: Array
    v: Array
    segment_ids: Array
    positions: Array


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def attend(
    q: Float[Array, "B T H h"],
    k: Float[Array, "B S K h"],
    v: Float[Array, "B S K h"],
    mask: AttentionMask,
    config: AttentionConfig,
    stride: int = 1,
) -> Output:
    """Attention of this device's queries over the keys of all devices `stride` apart; call it inside `jax.shard_map`.

    Returns:
        The output in the dtype of `q` and the float32 log-sum-exp, as a kernel gives them over all those keys.
    """
    q, mask = lax.optimization_barrier((q, mask))

    def add(result: Output, keys: Travellers) -> Output:
        seen = _mask(mask, keys)
        more = partial(KERNELS[config.kernel].forward, q, keys.k, keys.v, seen, config)
        return lax.cond(_any_visible(seen), lambda: merge(*result, *more()), lambda: result)

    def hop(_: Array, carry: tuple[Travellers, Output]) -> tuple[Travellers, Output]:
        keys, result = carry
        arriving = _pass_on(keys, stride)
        return arriving, add(result, keys)

    keys = Travellers(k, v, mask.key_segment_ids, mask.key_positions)
    result = jnp.zeros_like(q, jnp.float32), jnp.full(q.shape[:3], NOTHING)
    keys, result = lax.fori_loop(0, _num_hops(stride) - 1, hop, (keys, result))
    out, log_sum_exp = add(result, keys)
    return out.astype(q.dtype), log_sum_exp


def _attend_forward(
    q: Array, k: Array, v: Array, mask: AttentionMask, config: AttentionConfig, stride: int
) -> tuple[Output, tuple]:
    out, log_sum_exp = checkpoint_name(attend(q, k, v, mask, config, stride), KEPT)
    return (out, log_sum_exp), (q, k, v, mask, out, log_sum_exp)


def _attend_backward(config: AttentionConfig, stride: int, saved: tuple, cotangents: Output) -> tuple:
    """Keys go round as before, each with its gradient, which is home one hop after the last."""
    q, k, v, mask, out, log_sum_exp = saved
    cotangents, mask = lax.optimization_barrier((cotangents, mask))

    def add(gradients: tuple, keys: Travellers) -> tuple:
        seen = _mask(mask, keys)
        more = partial(KERNELS[config.kernel].backward, q, keys.k, keys.v, seen, out, log_sum_exp, *cotangents, config)
        return lax.cond(_any_visible(seen), lambda: jax.tree.map(jnp.add, gradients, more()), lambda: gradients)

    def hop(_: Array, carry: tuple[Travellers, tuple]) -> tuple[Travellers, tuple]:
        keys, (dq, *d_keys) = carry
        arriving, d_keys = _pass_on((keys, d_keys), stride)
        return arriving, add((dq, *d_keys), keys)

    keys = Travellers(k, v, mask.key_segment_ids, mask.key_positions)
    arriving = _pass_on(keys, stride)
    gradients = add(tuple(jnp.zeros_like(array, jnp.float32) for array in (q, k, v)), keys)
    _, (dq, *d_keys) = lax.fori_loop(1, _num_hops(stride), hop, (arriving, gradients))
    dk, dv = _pass_on(d_keys, stride)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


attend.defvjp(_attend_forward, _attend_backward)


def _num_hops(stride: int) -> int:
    return lax.axis_size(SEQUENCE_AXIS) // stride


def _pass_on(tree: Tree, stride: int) -> Tree:
    """Give to the device `stride` further, receive from the one `stride` before."""
    size = lax.axis_size(SEQUENCE_AXIS)
    if stride == size:
        return tree
    pairs = [(rank, (rank + stride) % size) for rank in range(size)]
    return jax.tree.map(lambda array: lax.ppermute(array, SEQUENCE_AXIS, pairs), tree)


def _mask(mask: AttentionMask, keys: Travellers) -> AttentionMask:
    return AttentionMask(mask.query_segment_ids, mask.query_positions, keys.segment_ids, keys.positions)


def _any_visible(mask: AttentionMask) -> Array:
    """False only if no pair is visible: all queries against all keys, as one tile."""
    queries = tiles.cut(mask.query_segment_ids, mask.query_positions, mask.query_segment_ids.shape[1])
    keys = tiles.cut(mask.key_segment_ids, mask.key_positions, mask.key_segment_ids.shape[1])
    return (tiles.classify(queries, keys) != tiles.EMPTY).any()
