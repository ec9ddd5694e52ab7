"""The chunked loss over one id space against a dense one with two heads, as LWM computes it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.core.batch import Batch
from lwm.core.mesh import MeshShape, make_mesh
from lwm.model import loss
from lwm.model.config import Compute, ModelConfig
from lwm.model.loss import combine, loss_sums, target_weight
from lwm.model.transformer import Transformer, head_weights, hidden_states, logits

SHARES = jnp.array([0.5, 0.5], jnp.float32)


def two_head_loss(params: Transformer, batch: Batch, config: ModelConfig, compute: Compute) -> jax.Array:
    """Each modality's targets under a softmax over that modality's rows of the head alone."""
    hidden = hidden_states(params, batch.tokens, batch.segment_ids, batch.positions, config, compute)
    scores = logits(hidden, head_weights(params, config, compute))
    split = config.vocab.text_size
    total = jnp.float32(0)
    for mine, part, first in (
        (batch.targets < split, scores[..., :split], 0),
        (batch.targets >= split, scores[..., split:], split),
    ):
        local = jnp.where(mine, batch.targets - first, 0)
        nll = -jnp.take_along_axis(jax.nn.log_softmax(part, axis=-1), local[..., None], axis=-1)[..., 0]
        weights = jnp.where(mine, batch.loss_weights, 0.0)
        total += jnp.float32(0.5) * jnp.sum(weights * nll) / jnp.sum(weights)
    return total


@pytest.mark.parametrize("tie", [False, True])
def test_one_id_space_equals_two_heads(
    params: Transformer, batch: Batch, config: ModelConfig, compute: Compute, tie: bool
) -> None:
    if tie:
        config, params = dataclasses.replace(config, tie_word_embeddings=True), dataclasses.replace(params, head=None)

    def one(params: Transformer) -> jax.Array:
        return combine(loss_sums(params, batch, config, compute), target_weight(batch, config.vocab), SHARES)

    expected, expected_gradient = jax.jit(jax.value_and_grad(lambda p: two_head_loss(p, batch, config, compute)))(
        params
    )
    value, gradient = jax.jit(jax.value_and_grad(one))(params)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6 * np.abs(b).max()), gradient, expected_gradient
    )


@pytest.mark.parametrize("mesh", [MeshShape(1, 1, 1, 1), MeshShape(1, 2, 1, 2)])
def test_chunks_without_weight_are_left_out_and_nothing_else_changes(
    params: Transformer, batch: Batch, config: ModelConfig, compute: Compute, mesh: MeshShape, monkeypatch
) -> None:
    few = dataclasses.replace(batch, loss_weights=jnp.where(jnp.arange(64) % 4 == 0, batch.loss_weights, 0.0))
    none = dataclasses.replace(batch, loss_weights=jnp.zeros_like(batch.loss_weights))
    expected = jax.jit(jax.value_and_grad(lambda p: two_head_loss(p, few, config, compute)))(params)
    computed, inner = [], loss._token_losses

    def counted(hidden: jax.Array, *rest: object) -> jax.Array:
        jax.debug.callback(lambda: computed.append(hidden.shape[1]))
        return inner(hidden, *rest)

    monkeypatch.setattr(loss, "_token_losses", counted)
    num_devices = mesh.fsdp * mesh.sp
    with jax.set_mesh(make_mesh(mesh, jax.devices()[:num_devices])):
        function = jax.jit(jax.value_and_grad(lambda p, b, w: combine(loss_sums(p, b, config, compute), w, SHARES)))
        value, gradient = function(params, few, target_weight(few, config.vocab))
        jax.effects_barrier()
        # of 57 tokens in documents 15 have weight: two chunks of 8 of them, forward and backward, of eight in all
        assert 0 < sum(computed) <= (2 * 2 * 8) * num_devices
        computed.clear()
        no_value, no_gradient = function(params, none, target_weight(none, config.vocab))
        jax.effects_barrier()
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6 * np.abs(b).max()), gradient, expected[1])
    assert not computed and no_value == 0
    jax.tree.map(lambda a: np.testing.assert_array_equal(a, 0), no_gradient)


def test_a_modality_without_targets_adds_nothing(
    params: Transformer, batch: Batch, config: ModelConfig, compute: Compute
) -> None:
    text_only = dataclasses.replace(batch, targets=batch.targets % config.vocab.text_size)
    weight = target_weight(text_only, config.vocab)
    assert weight[1] == 0
    sums = loss_sums(params, text_only, config, compute)
    np.testing.assert_allclose(combine(sums, weight, SHARES), 0.5 * sums.weighted_nll[0] / weight[0], rtol=1e-6)


def test_logits_of_a_sequence_never_exist(params: Transformer, config: ModelConfig, compute: Compute) -> None:
    wide = dataclasses.replace(config, vocab=dataclasses.replace(config.vocab, text_size=4096 - 16))
    num_tokens = 512
    batch = Batch(
        *(jax.ShapeDtypeStruct((1, num_tokens), t) for t in (jnp.int32, jnp.int32, jnp.float32, jnp.int32, jnp.int32))
    )
    shapes = dataclasses.replace(
        jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params),
        embedding=jax.ShapeDtypeStruct((4096, 32), jnp.float32),
        head=jax.ShapeDtypeStruct((32, 4096), jnp.float32),
    )
    gradient = jax.jit(jax.grad(lambda p, b: loss_sums(p, b, wide, compute).weighted_nll.sum()))
    memory = gradient.lower(shapes, batch).compile().memory_analysis()
    assert memory.temp_size_in_bytes < num_tokens * 4096 * 4
