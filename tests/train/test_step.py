import functools
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.core import params as declared
from lwm.core.batch import Batch
from lwm.core.layout import order
from lwm.core.mesh import MeshShape, make_mesh, sharding
from lwm.data.loader import Loader
from lwm.data.tokenizer import load_tokenizer
from lwm.model.config import Compute
from lwm.model.loss import loss_sums
from lwm.model.transformer import declare, head_weights, hidden_states, logits
from lwm.train.run import Run
from lwm.train.state import abstract_state, init_state
from lwm.train.step import accumulate, make_eval_step, make_train_step, summarize

COPIES = (8, 1, 1, 1)
OTHER_MESHES = [
    (1, 1, 1, 8),
    (1, 2, 2, 2),
    pytest.param((1, 8, 1, 1), marks=pytest.mark.slow),
    pytest.param((1, 4, 2, 1), marks=pytest.mark.slow),
]


def batches(run: Run, sp: int) -> Iterator[Batch]:
    source = run.data.open(load_tokenizer(run.tokenizer), run.model.vocab)
    layout = order("zigzag", run.seq_len, sp)
    with_ids = Loader(source, batch_size=run.batch_size, seq_len=run.seq_len, order=layout, prefetch=0)
    return (batch for batch, _ in with_ids)


@functools.cache
def drawn_params(run: Run):
    return jax.device_get(jax.jit(lambda key: declared.init(declare(run.model), key, jnp.float32))(jax.random.key(0)))


def fresh_params(run: Run, mesh: jax.sharding.Mesh):
    return jax.device_put(drawn_params(run), declared.shardings(declare(run.model), mesh))


def place(batch: Batch, mesh: jax.sharding.Mesh) -> Batch:
    return jax.device_put(batch, sharding(mesh, "batch", "tokens"))


def losses(run: Run, mesh_shape: tuple[int, ...], steps: int) -> list[float]:
    mesh = make_mesh(MeshShape(*mesh_shape))
    with jax.set_mesh(mesh):
        state = init_state(declare(run.model), run.optimizer, mesh, fresh_params(run, mesh))
        step = make_train_step(run.model, run.compute, run.optimizer, mesh)
        seen = []
        for batch in islice(batches(run, mesh_shape[3]), steps):
            state, metrics = step(state, place(batch, mesh))
            seen.append(float(metrics["loss"]))
    return seen


@functools.cache
def reference_losses(run: Run) -> list[float]:
    return losses(run, COPIES, 50)


@pytest.mark.parametrize("mesh_shape", OTHER_MESHES, ids=str)
def test_fifty_steps_give_the_same_losses_on_every_mesh(shared_run: Run, mesh_shape: tuple[int, ...]):
    expected = reference_losses(shared_run)
    seen = losses(shared_run, mesh_shape, 50)
    assert expected[-1] < 0.7 * expected[0]
    assert seen[0] == pytest.approx(expected[0], rel=1e-6)
    np.testing.assert_allclose(seen, expected, atol=1e-3)


def padded(batch: Batch, num_rows: int) -> Batch:
    """Each packed example in a row of its own; the remaining rows are empty."""

    def unpack(values: np.ndarray) -> np.ndarray:
        rows = np.zeros((num_rows, values.shape[1]), values.dtype)
        place = 0
        for row, segments in enumerate(batch.segment_ids):
            for segment in range(1, segments.max() + 1):
                taken = values[row][segments == segment]
                rows[place, : len(taken)] = taken
                place += 1
        return rows

    examples = sum(int(row.max()) for row in batch.segment_ids)
    assert batch.segment_ids.shape[0] < examples <= num_rows
    plain = jax.tree.map(unpack, batch)
    return replace(plain, segment_ids=np.minimum(plain.segment_ids, 1))


@pytest.fixture(params=["text", "mixed"])
def run(request: pytest.FixtureRequest, shared_run: Run, mixed_run: Run) -> Run:
    return {"text": shared_run, "mixed": mixed_run}[request.param]


@pytest.mark.parametrize("mesh_shape", [COPIES, *OTHER_MESHES], ids=str)
def test_packed_loss_is_the_padded_mean_over_examples(run: Run, mesh_shape: tuple[int, ...]):
    mesh = make_mesh(MeshShape(*mesh_shape))
    layout = order("zigzag", run.seq_len, mesh_shape[3])
    packed = next(batches(run, 1))
    apart = padded(packed, 64)
    parts = [jax.tree.map(lambda array, n=n: array[n : n + 8], apart) for n in range(0, 64, 8)]
    with jax.set_mesh(mesh):
        params = fresh_params(run, mesh)
        step = make_eval_step(run.model, run.compute, mesh)
        sums, *sums_apart = (step(params, place(each.permute(layout), mesh)) for each in (packed, *parts))
        assert float(sums.weight.sum()) == pytest.approx(sum(row.max() for row in packed.segment_ids), rel=1e-6)
        assert (sums.weight > 0).sum() == (2 if run.model.vocab.vision_size else 1)
        total = jax.tree.map(lambda *each: jnp.sum(jnp.stack(each), axis=0), *sums_apart)
        first, second = (summarize(each, run.model.vocab)["loss"] for each in (sums, total))
    assert float(first) == pytest.approx(float(second), rel=1e-6)


@pytest.mark.parametrize("mesh_shape", [COPIES, *OTHER_MESHES], ids=str)
def test_records_of_a_pack_never_see_each_other(mixed_run: Run, mesh_shape: tuple[int, ...]):
    """The perturbation probe: change a code of one picture; no other record's score or gradient moves by a bit."""
    run, mesh = mixed_run, make_mesh(MeshShape(*mesh_shape))
    config = run.model
    batch = next(batches(run, mesh_shape[3]))
    is_code = (batch.tokens >= 264) & (batch.tokens < 280)
    row, place_in_row = next(at for at in np.argwhere(is_code) if batch.segment_ids[at[0]].max() > 1)
    other = batch.segment_ids != batch.segment_ids[row, place_in_row]
    other[np.arange(len(other)) != row] = True
    changed = batch.tokens.copy()
    changed[row, place_in_row] = 264 + (changed[row, place_in_row] - 263) % 16
    silent = replace(batch, loss_weights=np.where(other, batch.loss_weights, 0).astype(np.float32))

    def outcome(params, batch: Batch):
        hidden = hidden_states(params, batch.tokens, batch.segment_ids, batch.positions, config, run.compute)
        gradient = jax.grad(lambda p: loss_sums(p, batch, config, run.compute).weighted_nll.sum())(params)
        return logits(hidden, head_weights(params, config, run.compute)), gradient

    with jax.set_mesh(mesh):
        params, probe = fresh_params(run, mesh), jax.jit(outcome)
        before, gradient = jax.device_get(probe(params, place(silent, mesh)))
        after, gradient_after = jax.device_get(probe(params, place(replace(silent, tokens=changed), mesh)))
    assert (before[~other] != after[~other]).any()
    np.testing.assert_array_equal(before[other], after[other])
    jax.tree.map(np.testing.assert_array_equal, gradient, gradient_after)


def test_accumulated_gradients_are_those_of_the_whole_batch(shared_run: Run):
    run, mesh = shared_run, make_mesh(MeshShape(1, 2, 2, 2))
    with jax.set_mesh(mesh):
        params, batch = fresh_params(run, mesh), place(next(batches(run, 2)), mesh)
        whole, parts = (
            jax.jit(lambda p, b, n=n: accumulate(p, b, run.model, run.compute, n))(params, batch) for n in (1, 4)
        )
    # a row's weights differ from the next one's: the mean over parts would be another gradient
    assert np.ptp(np.asarray(batch.loss_weights).sum(axis=1)) > 1
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-7)


def test_a_step_that_is_not_finite_changes_nothing(shared_run: Run):
    run, mesh = shared_run, make_mesh(MeshShape(8))
    with jax.set_mesh(mesh):
        state = init_state(declare(run.model), run.optimizer, mesh, fresh_params(run, mesh))
        step = make_train_step(run.model, run.compute, run.optimizer, mesh)
        state, metrics = step(state, place(next(batches(run, 1)), mesh))
        assert metrics["finite"] and int(state.step) == 1
        before = jax.device_get(state)
        bad = next(batches(run, 1))
        bad.loss_weights[3, 2] = np.inf
        state, metrics = step(state, place(bad, mesh))
    assert not metrics["finite"]
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state))


def test_master_weights_and_moments_are_fp32_and_lie_alike(shared_run: Run):
    mesh = make_mesh(MeshShape(1, 2, 2, 2))
    state = abstract_state(declare(shared_run.model), shared_run.optimizer, mesh)
    parameters = len(jax.tree.leaves(state.params))
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape]
    assert len(moments) == 2 * parameters
    assert {leaf.dtype for leaf in moments} == {jnp.dtype("float32")}
    assert [leaf.sharding for leaf in moments] == [leaf.sharding for leaf in jax.tree.leaves(state.params)] * 2


def test_bf16_compute_keeps_fp32_weights(shared_run: Run):
    run, mesh = shared_run, make_mesh(MeshShape(8))
    compute: Compute = replace(run.compute, dtype="bfloat16")
    with jax.set_mesh(mesh):
        state = abstract_state(declare(run.model), run.optimizer, mesh)
        batch = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, next(batches(run, 1))))
        after, _ = jax.eval_shape(make_train_step(run.model, compute, run.optimizer, mesh), state, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(after.params)} == {jnp.dtype("float32")}
