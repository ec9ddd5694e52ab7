"""The decoder: embedding, scanned layers, final norm, head. One forward pass for training, one with a cache.

Parameters are plain pytrees; everything here is a function of (params, arrays, config, compute).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lwm.attention import attention
from lwm.attention.config import KEPT
from lwm.attention.decode import attend_cache
from lwm.attention.mask import AttentionMask
from lwm.core import params as parameters
from lwm.core.mesh import constrain
from lwm.core.params import Parameter, normal, ones
from lwm.core.pytree import pytree
from lwm.model.cache import KVCache
from lwm.model.config import Compute, ModelConfig
from lwm.model.layers import Layer, after_attention, declare_layers, project_heads, rms_norm
from lwm.model.rope import rotary_angles


@pytree
@dataclass(frozen=True)
class Transformer:
    """All tensors of a model, or their declarations. `head` is None when the embedding serves as head."""

    embedding: Any  # V D
    layers: Layer  # each with a leading L
    final_norm: Any  # D
    head: Any | None  # D V


def declare(config: ModelConfig) -> Transformer:
    """Shape, logical axes and initializer of every tensor; see `core.params` for what to do with them."""
    V, D = config.vocab.size, config.hidden_size
    return Transformer(
        embedding=Parameter((V, D), ("vocab", "embed"), normal(D**-0.5)),
        layers=declare_layers(config),
        final_norm=Parameter((D,), (None,), ones),
        head=None if config.tie_word_embeddings else Parameter((D, V), ("embed", "vocab"), normal(D**-0.5)),
    )


def embed(
    params: Transformer, tokens: Int[Array, "B T"], config: ModelConfig, compute: Compute
) -> Float[Array, "B T D"]:
    """Rows of the embedding, in the compute dtype; the gradients of an id that repeats add up in fp32."""
    table = parameters.gather(declare(config).embedding, params.embedding, compute.jax_dtype)
    return constrain(jnp.take(table, tokens, axis=0).astype(compute.jax_dtype), "batch", "tokens", None)


def head_weights(params: Transformer, config: ModelConfig, compute: Compute) -> Float[Array, "D V"]:
    """The output matrix, whichever tensor holds it, rounded to the compute dtype."""
    declaration = declare(config)
    if params.head is None:
        return parameters.gather(declaration.embedding, params.embedding, compute.jax_dtype).T
    return parameters.gather(declaration.head, params.head, compute.jax_dtype)


def logits(hidden: Float[Array, "... D"], head: Float[Array, "D V"]) -> Float[Array, "... V"]:
    """Scores of every id, in fp32. Never call it on a whole long sequence: [T, V] does not fit (see `model.loss`)."""
    narrow = head.astype(hidden.dtype)
    return jnp.einsum("...D,DV->...V", hidden, narrow, preferred_element_type=jnp.float32)


def hidden_states(
    params: Transformer,
    tokens: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    config: ModelConfig,
    compute: Compute,
) -> Float[Array, "B T D"]:
    """The decoder's output before the head, for packed rows in any token order."""
    mask = AttentionMask.self_attention(segment_ids, positions)
    angles = rotary_angles(mask, config.head_width, config.rope_theta, config.rope_scaling)
    declared = declare_layers(config)

    def layer_step(x: Float[Array, "B T D"], stored: Layer) -> tuple[Float[Array, "B T D"], None]:
        layer = parameters.gather(declared, stored, compute.jax_dtype)
        query, key, value = project_heads(layer, x, angles, config)
        attended = attention(query, key, value, mask, compute.attention)
        return after_attention(layer, x, attended, config, compute), None

    x = embed(params, tokens, config, compute)
    x, _ = jax.lax.scan(_rematerialized(layer_step, compute), x, params.layers)
    return rms_norm(x, params.final_norm, config.rms_norm_eps)


def _rematerialized(layer_step: Any, compute: Compute) -> Any:
    if compute.remat == "none":
        return layer_step
    policies = jax.checkpoint_policies
    saved = policies.save_only_these_names(KEPT) if compute.remat == "attention" else policies.nothing_saveable
    # A scan body is never merged with its recomputation, so the barrier that prevents it would only cost.
    return jax.checkpoint(layer_step, policy=saved, prevent_cse=False)


def extend(
    params: Transformer,
    tokens: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    cache: KVCache,
    config: ModelConfig,
    compute: Compute,
) -> tuple[Float[Array, "B T D"], KVCache]:
    """Read T more tokens: a chunk of prompt or one generated token. Returns their hidden states and the longer cache.

    T is 1 or a multiple of the sp axis. Tokens of segment 0 are padding: they fill slots and are never seen.
    """
    start, cache = cache.append(segment_ids, positions)
    mask = AttentionMask(segment_ids, positions, cache.segment_ids, cache.positions)
    angles = rotary_angles(mask, config.head_width, config.rope_theta, config.rope_scaling)
    declared = declare_layers(config)

    def layer_step(carry: tuple, indexed: tuple) -> tuple[tuple, None]:
        x, keys, values = carry
        index, stored = indexed
        layer = parameters.gather(declared, stored, compute.jax_dtype)
        query, key, value = project_heads(layer, x, angles, config)
        attended, keys, values = attend_cache(query, key, value, keys, values, index, start, mask, compute.attention)
        return (after_attention(layer, x, attended, config, compute), keys, values), None

    x = embed(params, tokens, config, compute)
    layers = (jnp.arange(config.num_layers), params.layers)
    (x, keys, values), _ = jax.lax.scan(layer_step, (x, cache.keys, cache.values), layers)
    return rms_norm(x, params.final_norm, config.rms_norm_eps), cache.with_entries(keys, values)
