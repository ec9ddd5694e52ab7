"""Attention, on one device or many: one contract, one way in. See `attention`."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lwm.attention import all_to_all, reference
from lwm.attention.config import AttentionConfig
from lwm.attention.kernels import KERNELS
from lwm.attention.mask import AttentionMask
from lwm.core.errors import UserError
from lwm.core.mesh import axis_size, require_divisible, spec

__all__ = ["AttentionConfig", "AttentionMask", "attention"]


def attention(
    q: Float[Array, "B T H h"],
    k: Float[Array, "B S K h"],
    v: Float[Array, "B S K h"],
    mask: AttentionMask,
    config: AttentionConfig,
) -> Float[Array, "B T H h"]:
    """Softmax attention with scale 1/sqrt(h); query head i reads key-value head i // (H / K); any T and S.

    A query that sees no key gives zeros. With a mesh in force (`jax.set_mesh`) batch, tokens and heads are split over
    it as `core.mesh` says. The `reference` kernel is left to the compiler to spread, whatever the mesh.

    Raises:
        UserError: sizes that the mesh or the chosen context cannot split, by name and number.
    """
    if config.kernel == "reference":
        return reference.attend(q, k, v, mask)[0]
    if jax.sharding.get_abstract_mesh().empty:
        return KERNELS[config.kernel].attend(q, k, v, mask, config)[0]
    _refuse_uneven(q, k)
    num_devices = axis_size("tokens")
    degree = _all_to_all_degree(config, num_devices, q.shape[2], k.shape[2])

    def local(q: Array, k: Array, v: Array, mask: AttentionMask) -> Array:
        if num_devices == 1:
            return KERNELS[config.kernel].attend(q, k, v, mask, config)[0]
        return all_to_all.attend(q, k, v, mask, config, degree)[0]

    queries, keys = spec("batch", "tokens", "heads", None), spec("batch", "tokens", "kv_heads", None)
    specs = (queries, keys, keys, spec("batch", "tokens"))
    mapped = jax.shard_map(local, in_specs=specs, out_specs=queries, check_vma=False)
    num_tokens = q.shape[1]
    q, k, v, mask = jax.tree.map(lambda array: _pad_tokens(array, num_devices), (q, k, v, mask))
    return mapped(q, k, v, mask)[:, :num_tokens]


def _pad_tokens(array: Array, multiple: int) -> Array:
    """Zeros to a multiple of the devices: as marks they are segment 0, which nothing sees."""
    padding = -array.shape[1] % multiple
    return jnp.pad(array, [(0, 0), (0, padding)] + [(0, 0)] * (array.ndim - 2)) if padding else array


def _refuse_uneven(q: Array, k: Array) -> None:
    require_divisible("batch size", q.shape[0], "batch")
    require_divisible("number of attention heads", q.shape[2], "heads")
    require_divisible("number of key-value heads", k.shape[2], "kv_heads")


def _all_to_all_degree(config: AttentionConfig, num_devices: int, num_heads: int, num_kv_heads: int) -> int:
    """How many neighbours trade heads for tokens: 1 is a ring.

    Raises:
        UserError: the degree does not divide the sp axis, or the heads a device has do not divide over it.
    """
    alone = num_devices == 1
    degree = {"ring": 1, "all_to_all": num_devices, "hybrid": 1 if alone else config.all_to_all_degree}[config.context]
    if num_devices % degree:
        raise UserError(
            f"hybrid attention: all_to_all_degree {degree} does not divide sp={num_devices}: choose one that does"
        )
    ways = axis_size("heads")
    heads, kv_heads = num_heads // ways, num_kv_heads // ways
    if heads % degree or (kv_heads % degree and degree % kv_heads):
        raise UserError(
            f"{config.context} attention cannot share {heads} heads and {kv_heads} key-value heads (per tp device) "
            f"among {degree} devices evenly: use context 'ring', or another degree or mesh"
        )
    return degree
