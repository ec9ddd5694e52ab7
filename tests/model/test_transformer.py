"""The whole model: meshes agree, nothing leaks between documents, the cache equals the plain forward pass."""

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.attention import AttentionConfig
from lwm.core import params as parameters
from lwm.core.batch import Batch
from lwm.core.layout import order
from lwm.core.mesh import MeshShape, make_mesh, sharding
from lwm.model.cache import allocate
from lwm.model.config import SIZES, Compute, ModelConfig
from lwm.model.loss import loss_sums
from lwm.model.transformer import Transformer, declare, extend, head_weights, hidden_states, logits

MESHES = ["8,1,1,1", "1,8,1,1", "1,4,2,1", "1,1,1,8", "1,2,2,2"]


def place(params: Transformer, config: ModelConfig, mesh: jax.sharding.Mesh) -> Transformer:
    return jax.device_put(params, parameters.shardings(declare(config), mesh))


def make(text: str) -> jax.sharding.Mesh:
    shape = MeshShape.parse(text)
    return make_mesh(shape, jax.devices()[: int(np.prod(shape.sizes))])


def doubled(batch: Batch) -> Batch:
    return jax.tree.map(lambda x: jnp.concatenate([x, x[::-1]]), batch)


@pytest.mark.parametrize("text, layout", [*((text, "zigzag") for text in MESHES), ("1,1,1,8", "contiguous")])
def test_every_mesh_gives_the_same_loss_and_gradients(
    params: Transformer, batch: Batch, config: ModelConfig, compute: Compute, text: str, layout: str
) -> None:
    batch = doubled(batch)

    def loss(params: Transformer, batch: Batch) -> jax.Array:
        return loss_sums(params, batch, config, compute).weighted_nll.sum() / jnp.float32(100)

    expected, expected_gradient = jax.jit(jax.value_and_grad(loss))(params, batch)
    mesh = make(text)
    permuted = batch.permute(order(layout, 64, mesh.shape["sp"]))
    with jax.set_mesh(mesh):
        placed = jax.device_put(permuted, sharding(mesh, "batch", "tokens"))
        value, gradient = jax.jit(jax.value_and_grad(loss))(place(params, config, mesh), placed)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()), gradient, expected_gradient
    )


def test_a_vocabulary_that_the_mesh_does_not_divide_stays_whole(
    batch: Batch, config: ModelConfig, compute: Compute
) -> None:
    """65 ids over two ways of tp."""
    odd = dataclasses.replace(config, vocab=dataclasses.replace(config.vocab, text_size=49))
    params = parameters.init(declare(odd), jax.random.key(0), jnp.float32)

    def loss(params: Transformer, batch: Batch) -> jax.Array:
        return loss_sums(params, batch, odd, compute).weighted_nll.sum() / jnp.float32(100)

    expected, expected_gradient = jax.jit(jax.value_and_grad(loss))(params, doubled(batch))
    mesh = make("1,2,2,2")
    odd_on_mesh = place(params, odd, mesh)
    assert odd_on_mesh.embedding.sharding.spec[0] is None and odd_on_mesh.layers.up.sharding.spec[2] == "tp"
    with jax.set_mesh(mesh):
        odd.require_fits()
        placed = jax.device_put(doubled(batch).permute(order("zigzag", 64, 2)), sharding(mesh, "batch", "tokens"))
        value, gradient = jax.jit(jax.value_and_grad(loss))(odd_on_mesh, placed)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()), gradient, expected_gradient
    )


@pytest.mark.parametrize("remat", ["attention", "full"])
def test_recomputing_changes_nothing(
    params: Transformer, batch: Batch, config: ModelConfig, compute: Compute, remat: str
) -> None:
    def gradient(how: Compute) -> Transformer:
        return jax.jit(jax.grad(lambda p: loss_sums(p, batch, config, how).weighted_nll.sum()))(params)

    again = gradient(dataclasses.replace(compute, remat=remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()), again, gradient(compute))


PROBED = [
    ("ring", "1,1,1,1", "contiguous"),
    ("ring", "1,1,1,8", "zigzag"),
    ("ring", "1,2,2,2", "contiguous"),
    ("all_to_all", "1,1,1,4", "zigzag"),
    ("hybrid", "1,1,1,8", "zigzag"),
    ("reference", "2,1,2,2", "zigzag"),
]
ALL_PROBED = [
    *itertools.product(["ring", "hybrid", "reference"], ["1,1,1,8", "1,2,2,2", "2,1,2,2"], ["contiguous", "zigzag"]),
    *itertools.product(["all_to_all"], ["1,1,1,4", "1,2,2,2"], ["contiguous", "zigzag"]),
]


@pytest.mark.parametrize(
    "context, text, layout",
    PROBED + [pytest.param(*case, marks=pytest.mark.slow) for case in ALL_PROBED if case not in PROBED],
)
def test_documents_never_see_each_other(
    params: Transformer, batch: Batch, config: ModelConfig, compute: Compute, context: str, text: str, layout: str
) -> None:
    """The perturbation probe: change one token of one document; nothing elsewhere may move by a single bit."""
    choice = {"kernel": "reference"} if context == "reference" else {"context": context}
    attending = dataclasses.replace(compute.attention, **choice)
    compute = dataclasses.replace(compute, attention=attending, remat="full")
    mesh = make(text)
    places = order(layout, 64, mesh.shape["sp"])
    permuted = batch.permute(places)
    changed_place = int(np.flatnonzero(places == 24)[0])
    assert permuted.segment_ids[0, changed_place] == 2
    other = np.asarray(permuted.segment_ids[0] != 2)

    def outcome(params: Transformer, tokens: jax.Array) -> tuple[jax.Array, Transformer]:
        def loss(params: Transformer) -> jax.Array:
            others = jnp.where(permuted.segment_ids == 2, 0.0, permuted.loss_weights)
            probed = dataclasses.replace(permuted, tokens=tokens, loss_weights=others)
            return loss_sums(params, probed, config, compute).weighted_nll.sum()

        hidden = hidden_states(params, tokens, permuted.segment_ids, permuted.positions, config, compute)
        return logits(hidden, head_weights(params, config, compute)), jax.grad(loss)(params)

    with jax.set_mesh(mesh):
        run, placed = jax.jit(outcome), place(params, config, mesh)
        scores, gradient = run(placed, permuted.tokens)
        changed = permuted.tokens.at[0, changed_place].set((permuted.tokens[0, changed_place] + 1) % 48)
        scores_after, gradient_after = run(placed, changed)
    assert not np.array_equal(scores[0][~other], scores_after[0][~other])
    np.testing.assert_array_equal(np.asarray(scores[0])[other], np.asarray(scores_after[0])[other])
    np.testing.assert_array_equal(scores[1:], scores_after[1:])
    jax.tree.map(np.testing.assert_array_equal, gradient, gradient_after)


@pytest.mark.parametrize("text", ["1,1,1,1", "1,1,1,8", "1,2,2,2"])
def test_the_cache_equals_the_forward_pass(
    params: Transformer, config: ModelConfig, compute: Compute, text: str
) -> None:
    """Chunks, single tokens and chunks again: slots are filled in three ways, and one row ends in padding."""
    num_tokens = 56
    tokens = jax.random.randint(jax.random.key(0), (2, num_tokens), 0, 48)
    positions = jnp.broadcast_to(jnp.arange(num_tokens, dtype=jnp.int32), tokens.shape)
    segments = jnp.ones_like(tokens)
    expected = hidden_states(params, tokens, segments, positions, config, compute)
    mesh = make(text)
    with jax.set_mesh(mesh):
        step = jax.jit(lambda p, t, s, i, c: extend(p, t, s, i, c, config, compute))
        placed, cache = place(params, config, mesh), allocate(config, 2, 80, jnp.float32)
        outputs = []
        for start, stop in [(0, 8), (8, 9), (9, 10), (10, 34), (34, 35), (35, 36), (36, 44), (44, 52)]:
            at = slice(start, stop)
            hidden, cache = step(placed, tokens[:, at], segments[:, at], positions[:, at], cache)
            outputs.append(np.asarray(hidden))
        hidden, cache = step(placed, tokens[:, 52:53], jnp.zeros((2, 1), jnp.int32), positions[:, 52:53], cache)
        for i in range(52, 56):
            at = slice(i, i + 1)
            hidden, cache = step(placed, tokens[:, at], segments[:, at], positions[:, at], cache)
            outputs.append(np.asarray(hidden))
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), expected, atol=2e-5)


def test_every_size_can_be_declared() -> None:
    counts = {name: parameters.count(declare(config)) for name, config in SIZES.items()}
    assert counts["7b"] == 6_738_415_616  # Llama-2 7B
    assert counts["13b"] == 13_015_864_320  # Llama 13B
    assert 1_000_000 < counts["nano"] < 1_100_000


def test_gradients_of_many_uses_add_up_wide(config: ModelConfig, compute: Compute, make_batch: Callable) -> None:
    """bf16 stops counting at 256: neither an id that fills the row nor many chunks of tokens may show it."""
    params = parameters.init(declare(config), jax.random.key(1), jnp.float32)
    batch = make_batch([1024], 1024, 1)
    batch = dataclasses.replace(batch, tokens=jnp.where(jnp.arange(1024) % 2, batch.tokens, 5))

    def gradient(**how: object) -> Transformer:
        chosen = dataclasses.replace(compute, attention=AttentionConfig(), **how)
        return jax.jit(jax.grad(lambda p: loss_sums(p, batch, config, chosen).weighted_nll.sum()))(params)

    wide = gradient(ffn_chunk=1024, loss_chunk=1024)
    narrow = gradient(dtype="bfloat16")  # 128 chunks of 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.03 * np.abs(b).max()), narrow, wide)


def test_master_weights_stay_wide(params: Transformer, batch: Batch, config: ModelConfig, compute: Compute) -> None:
    narrow = dataclasses.replace(compute, dtype="bfloat16")
    hidden = hidden_states(params, batch.tokens, batch.segment_ids, batch.positions, config, narrow)
    assert hidden.dtype == jnp.bfloat16
    gradient = jax.jit(jax.grad(lambda p: loss_sums(p, batch, config, narrow).weighted_nll.sum()))(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    exact = hidden_states(params, batch.tokens, batch.segment_ids, batch.positions, config, compute)
    real = np.asarray(batch.segment_ids) > 0
    difference = np.abs(np.asarray(hidden, np.float32) - np.asarray(exact))[real]
    assert difference.max() < 0.15
