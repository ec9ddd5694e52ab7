"""The training loss: weighted next-token cross-entropy, each target against the ids of its own modality only.

With one id space, restricting the softmax to the target's modality is what LWM's two heads computed. The loss of a
batch is

    sum over modalities m of  share_m * sum(weights * nll over targets in m) / sum(weights over targets in m)

The denominators are sums of data, so they are known before any forward pass: gradient accumulation passes those of
the whole batch and stays exact.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lwm.core.batch import Batch
from lwm.core.mesh import axis_size, constrain
from lwm.core.pytree import pytree
from lwm.core.vocab import Vocab
from lwm.model.config import Compute, ModelConfig
from lwm.model.layers import over_token_chunks
from lwm.model.transformer import Transformer, head_weights, hidden_states, logits

_EXCLUDED = -1e30

PerModality = Float[Array, "2"]


@pytree
@dataclass(frozen=True)
class LossSums:
    """Sums over a batch, per modality: index 0 text, index 1 vision."""

    weighted_nll: PerModality
    weighted_correct: PerModality
    weight: PerModality


def target_weight(batch: Batch, vocab: Vocab) -> PerModality:
    """Sum of loss weights per modality: the loss's denominators, from data alone."""
    return _by_modality(batch.loss_weights, vocab.is_vision(batch.targets))


@pytree
@dataclass(frozen=True)
class TokenLosses:
    """Of each target of a batch, in an order of its own within each device's share of a row."""

    #: negative log-likelihood among the ids of the target's modality, of targets without weight too, unless all of a
    #: chunk are: those are 0
    nll: Float[Array, "B T"]
    #: 1 where the target scored highest
    correct: Float[Array, "B T"]
    weights: Float[Array, "B T"]
    vision: Bool[Array, "B T"]


def token_losses(params: Transformer, batch: Batch, config: ModelConfig, compute: Compute) -> TokenLosses:
    """Forward pass and the loss of each target.

    Logits exist for one chunk of tokens at a time, and for none in which no row has a token of weight. Tokens of weight
    come first, so that prompts and padding cost what the row with the fewest of them has.
    """
    hidden = hidden_states(params, batch.tokens, batch.segment_ids, batch.positions, config, compute)
    head = head_weights(params, config, compute)
    hidden, targets, weights = _weighted_first(batch.loss_weights, (hidden, batch.targets, batch.loss_weights))

    def chunk(inputs: tuple[Array, Array, Array]) -> Array:
        hidden, targets, weights = inputs
        return jax.lax.cond(
            jnp.any(weights > 0),
            lambda hidden: _token_losses(hidden, targets, head, config.vocab),
            lambda hidden: jnp.zeros((*targets.shape, 2), jnp.float32),
            hidden,
        )

    losses = over_token_chunks(chunk, (hidden, targets, weights), compute.loss_chunk)
    nll, correct = jnp.moveaxis(losses, -1, 0)
    return TokenLosses(nll, correct, weights, config.vocab.is_vision(targets))


def loss_sums(params: Transformer, batch: Batch, config: ModelConfig, compute: Compute) -> LossSums:
    """Forward pass and summed losses of a batch."""
    each = token_losses(params, batch, config, compute)
    return LossSums(
        weighted_nll=_by_modality(each.weights * each.nll, each.vision),
        weighted_correct=_by_modality(each.weights * each.correct, each.vision),
        weight=_by_modality(each.weights, each.vision),
    )


def combine(sums: LossSums, weight: PerModality, shares: PerModality) -> Float[Array, ""]:
    """The scalar loss: `shares` of each modality's mean over `weight`; a modality without targets adds nothing."""
    return jnp.sum(shares * sums.weighted_nll / jnp.where(weight > 0, weight, 1.0))


def _weighted_first(weights: Float[Array, "B T"], arrays: tuple[Array, ...]) -> tuple[Array, ...]:
    """The tokens of each device's share of a row in another order: those that have weight come first."""
    shards = axis_size("tokens")
    if weights.shape[1] % shards:
        return arrays

    def per_device(x: Array) -> Array:
        cut = x.reshape(x.shape[0], shards, -1, *x.shape[2:])
        return constrain(cut, "batch", "tokens", *[None] * (x.ndim - 1))

    order = jnp.argsort(per_device(weights) == 0, axis=-1, stable=True)

    def reorder(x: Array) -> Array:
        moved = jnp.take_along_axis(per_device(x), order.reshape(*order.shape, *[1] * (x.ndim - 2)), axis=2)
        return constrain(moved.reshape(x.shape), "batch", "tokens", *[None] * (x.ndim - 2))

    return tuple(map(reorder, arrays))


def _by_modality(values: Float[Array, "B T"], vision: Bool[Array, "B T"]) -> PerModality:
    return jnp.stack([jnp.sum(jnp.where(vision, 0.0, values)), jnp.sum(jnp.where(vision, values, 0.0))])


def _token_losses(
    hidden: Float[Array, "B T D"], targets: Int[Array, "B T"], head: Float[Array, "D V"], vocab: Vocab
) -> Float[Array, "B T 2"]:
    """Negative log-likelihood and whether the target scored highest, per token."""
    scores = constrain(logits(hidden, head), "batch", "tokens", "vocab")
    ids = jnp.arange(vocab.size, dtype=targets.dtype)
    if vocab.vision_size:
        same = vocab.is_vision(ids) == vocab.is_vision(targets)[..., None]
        scores = jnp.where(same, scores, _EXCLUDED)
    # A masked sum, not a gather: under tp each device holds a part of V and adds what it has.
    target_score = jnp.sum(jnp.where(ids == targets[..., None], scores, 0.0), axis=-1)
    nll = jax.nn.logsumexp(scores, axis=-1) - target_score
    correct = target_score >= jax.lax.stop_gradient(scores.max(axis=-1))
    return jnp.stack([nll, correct.astype(nll.dtype)], axis=-1)
