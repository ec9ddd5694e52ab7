"""The decoder's layers as functions of their parameters: RMSNorm, projections around attention, SwiGLU."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lwm.core.mesh import axis_size, constrain
from lwm.core.params import Parameter, normal, ones
from lwm.core.pytree import pytree
from lwm.model.config import Compute, ModelConfig
from lwm.model.rope import attention_factor, rotate


@pytree
@dataclass(frozen=True)
class Layer:
    """One decoder layer's tensors; in a model every one has a leading axis of L layers. Kernels are (in, out)."""

    attention_norm: Any  # D
    query: Any  # D H h
    key: Any  # D K h
    value: Any  # D K h
    output: Any  # H h D
    ffn_norm: Any  # D
    gate: Any  # D F
    up: Any  # D F
    down: Any  # F D


def declare_layers(config: ModelConfig) -> Layer:
    """All L layers, stacked. Matrices start at 1/sqrt(fan in): at LWM's 0.02 a small model does not learn to copy."""
    layers, D, F = config.num_layers, config.hidden_size, config.intermediate_size
    H, K, h = config.num_heads, config.num_kv_heads, config.head_width

    def matrix(fan_in: int, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> Parameter:
        return Parameter((layers, *shape), ("layers", *axes), normal(fan_in**-0.5))

    norm = Parameter((layers, D), ("layers", None), ones)
    return Layer(
        attention_norm=norm,
        query=matrix(D, (D, H, h), ("embed", "heads", None)),
        key=matrix(D, (D, K, h), ("embed", "kv_heads", None)),
        value=matrix(D, (D, K, h), ("embed", "kv_heads", None)),
        output=matrix(H * h, (H, h, D), ("heads", None, "embed")),
        ffn_norm=norm,
        gate=matrix(D, (D, F), ("embed", "ffn")),
        up=matrix(D, (D, F), ("embed", "ffn")),
        down=matrix(F, (F, D), ("ffn", "embed")),
    )


def rms_norm(x: Float[Array, "*rows D"], scale: Float[Array, "D"], eps: float) -> Float[Array, "*rows D"]:
    """Root mean square norm (Zhang & Sennrich 2019), computed in fp32, returned in x's dtype."""
    wide = x.astype(jnp.float32)
    inverse_rms = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (wide * inverse_rms * scale.astype(jnp.float32)).astype(x.dtype)


def over_token_chunks(
    function: Callable[[Any], Float[Array, "B chunk ..."]], inputs: Any, chunk: int
) -> Float[Array, "B T ..."]:
    """Apply a per-token `function` to chunks of T, so that its inner width times T never exists.

    Each device cuts its own share of the tokens; the inner values are recomputed in the backward pass.
    """
    batch, num_tokens = jax.tree.leaves(inputs)[0].shape[:2]
    shards = axis_size("tokens")
    share = num_tokens // shards
    if num_tokens % shards or share <= chunk:
        return function(inputs)
    pieces = -(-share // chunk)
    padding = pieces * chunk - share

    def cut(x: Array) -> Array:
        x = x.reshape(batch, shards, share, *x.shape[2:])
        x = jnp.pad(x, [(0, 0), (0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 3))
        x = jnp.moveaxis(x.reshape(batch, shards, pieces, chunk, *x.shape[3:]), 2, 0)
        x = x.reshape(pieces, batch, shards * chunk, *x.shape[4:])
        return constrain(x, None, "batch", "tokens", *[None] * (x.ndim - 3))

    out = jax.lax.map(jax.checkpoint(function), jax.tree.map(cut, inputs))
    out = jnp.moveaxis(out.reshape(pieces, batch, shards, chunk, *out.shape[3:]), 0, 2)
    out = out.reshape(batch, shards, pieces * chunk, *out.shape[4:])[:, :, :share]
    out = out.reshape(batch, num_tokens, *out.shape[3:])
    return constrain(out, "batch", "tokens", *[None] * (out.ndim - 2))


def project(equation: str, x: Float[Array, "..."], weight: Float[Array, "..."]) -> Float[Array, "..."]:
    """A linear map in x's dtype. The weight is narrowed here, so that its gradients from many uses add up wide."""
    return jnp.einsum(equation, x, weight.astype(x.dtype))


def project_heads(
    layer: Layer, x: Float[Array, "B T D"], angles: Float[Array, "B T h_half"], config: ModelConfig
) -> tuple[Float[Array, "B T H h"], Float[Array, "B T K h"], Float[Array, "B T K h"]]:
    """Queries, keys (both rotated) and values of the normed input."""
    normed = rms_norm(x, layer.attention_norm, config.rms_norm_eps)
    query = project("BTD,DHh->BTHh", normed, layer.query)
    key = project("BTD,DKh->BTKh", normed, layer.key)
    value = project("BTD,DKh->BTKh", normed, layer.value)
    scale = attention_factor(config.rope_scaling)
    return rotate(query, angles, scale), rotate(key, angles, scale), value


def after_attention(
    layer: Layer, x: Float[Array, "B T D"], attended: Float[Array, "B T H h"], config: ModelConfig, compute: Compute
) -> Float[Array, "B T D"]:
    """The rest of the layer after attention: output projection, residual, feed-forward, residual."""
    x = x + project("BTHh,HhD->BTD", attended, layer.output)
    x = constrain(x, "batch", "tokens", None)
    return x + over_token_chunks(lambda chunk: _feed_forward(layer, chunk, config), x, compute.ffn_chunk)


def _feed_forward(layer: Layer, x: Float[Array, "B T D"], config: ModelConfig) -> Float[Array, "B T D"]:
    """SwiGLU (Shazeer 2020) of the normed input."""
    normed = rms_norm(x, layer.ffn_norm, config.rms_norm_eps)
    inner = jax.nn.silu(project("BTD,DF->BTF", normed, layer.gate)) * project("BTD,DF->BTF", normed, layer.up)
    return constrain(project("BTF,FD->BTD", inner, layer.down), "batch", "tokens", None)
