"""Adapters change nothing at first, learn as the matrix they stand for would, and end in a model like any other."""

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from lwm.core import params as declared
from lwm.core.batch import Batch
from lwm.core.errors import UserError
from lwm.core.layout import order
from lwm.core.mesh import MeshShape, make_mesh, sharding
from lwm.data.loader import Loader
from lwm.data.tokenizer import load_tokenizer
from lwm.model.config import Compute
from lwm.model.lora import LoraConfig, adapt, declare_adapters, declare_trained, merge_adapters
from lwm.model.loss import loss_sums
from lwm.model.transformer import declare, head_weights, hidden_states, logits
from lwm.train.checkpoint import Checkpoints
from lwm.train.loop import train
from lwm.train.lora import fingerprint
from lwm.train.optimizer import OptimizerConfig
from lwm.train.run import Run
from lwm.train.state import abstract_state, init_state
from lwm.train.step import abstract_batch, make_train_step
from lwm.weights.load import load_model
from lwm.weights.store import save_model

LORA = LoraConfig(rank=4, alpha=8.0)
ONE = MeshShape(fsdp=1)


def one_device() -> jax.sharding.Mesh:
    return make_mesh(ONE, jax.devices()[:1])


def drawn(declaration, seed: int, mesh: jax.sharding.Mesh):
    """Random numbers for every tensor, B included, so that the adapters change something."""
    params = declared.init_sharded(declaration, jax.random.key(seed), jnp.float32, mesh)
    return jax.tree.map(lambda leaf: jnp.where(leaf == 0, 0.05, leaf), params)


def batches(run: Run, sp: int = 1) -> Iterator[Batch]:
    source = run.data.open(load_tokenizer(run.tokenizer), run.model.vocab)
    layout = order("zigzag", run.seq_len, sp)
    loader = Loader(source, batch_size=run.batch_size, seq_len=run.seq_len, order=layout, prefetch=0)
    return (batch for batch, _ in loader)


def place(batch: Batch, mesh: jax.sharding.Mesh) -> Batch:
    return jax.device_put(batch, sharding(mesh, "batch", "tokens"))


def scores(params, run: Run, batch: Batch):
    places = (batch.tokens, batch.segment_ids, batch.positions)
    hidden = hidden_states(params, *places, run.model, run.compute)
    return logits(hidden, head_weights(params, run.model, run.compute))


@pytest.fixture(scope="module")
def straight(shared_run: Run, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of six steps. Not to be changed."""
    out = tmp_path_factory.mktemp("straight") / "run"
    measured = {"held_out": shared_run.data, "held_out_batches": 1}
    run = replace(shared_run, lora=LORA, init_from=str(base), out=out, save_dtype="float32", **measured)
    train(run)
    return run


def read(directory: Path) -> dict[str, np.ndarray]:
    return load_file(directory / "model.safetensors")


def adapters_of(run: Run):
    with Checkpoints(run.checkpoints) as checkpoints:
        target = abstract_state(declare_trained(run.model, run.lora), run.optimizer, one_device())
        return jax.device_get(checkpoints.restore(target)[0])


def test_before_the_first_step_nothing_is_changed(shared_run: Run):
    run = shared_run
    with jax.set_mesh(mesh := one_device()):
        base = declared.init_sharded(declare(run.model), jax.random.key(0), jnp.float32, mesh)
        adapters = declared.init_sharded(declare_adapters(run.model, LORA), jax.random.key(1), jnp.float32, mesh)
        batch, forward = place(next(batches(run)), mesh), jax.jit(lambda params, batch: scores(params, run, batch))
        np.testing.assert_array_equal(forward(adapt(base, adapters, LORA), batch), forward(base, batch))
    assert adapters.keys() == {"query", "key", "value", "output", "gate", "up", "down"}
    assert adapters["output"].A.shape == (2, 8, 8, 4) and adapters["output"].B.shape == (2, 4, 32)
    assert 0.8 < float(adapters["gate"].A.std()) * 32**0.5 < 1.2
    assert 0.8 < float(adapters["output"].A.std()) * 64**0.5 < 1.2


def test_gradients_are_those_through_the_whole_matrix(shared_run: Run):
    """dA = dW B', dB = A' dW, with dW that of the model in which the matrices are merged."""
    run = shared_run
    with jax.set_mesh(mesh := one_device()):
        base, adapters = (drawn(each, 1, mesh) for each in (declare(run.model), declare_adapters(run.model, LORA)))
        batch = place(next(batches(run)), mesh)

        def loss(params):
            return loss_sums(params, batch, run.model, run.compute).weighted_nll.sum() / 50

        found = jax.jit(jax.grad(lambda adapters: loss(adapt(base, adapters, LORA))))(adapters)
        merged = merge_adapters(jax.tree.map(jnp.copy, base), adapters, LORA)
        whole = jax.jit(jax.grad(loss))(merged).layers
    for name, adapter in jax.device_get(adapters).items():
        A = adapter.A.reshape(2, -1, 4)
        B = adapter.B.reshape(2, 4, -1)
        gradient = np.asarray(getattr(whole, name)).reshape(2, A.shape[1], B.shape[2])
        for factor, expected in (("A", gradient @ B.mT), ("B", A.mT @ gradient)):
            seen = np.asarray(getattr(found[name], factor)).reshape(expected.shape)
            np.testing.assert_allclose(seen, LORA.scale * expected, rtol=1e-3, atol=1e-5)
            assert abs(expected).max() > 1e-3


def losses(run: Run, shape: tuple[int, ...], remat: str, parts: int) -> list[float]:
    mesh = make_mesh(MeshShape(*shape))
    with jax.set_mesh(mesh):
        base = declared.init_sharded(declare(run.model), jax.random.key(0), jnp.float32, mesh)
        declaration = declare_adapters(run.model, LORA)
        params = declared.init_sharded(declaration, jax.random.key(1), jnp.float32, mesh)
        state = init_state(declaration, run.optimizer, mesh, params)
        step = make_train_step(run.model, Compute(remat=remat), run.optimizer, mesh, parts, lora=LORA)
        seen = []
        for batch in islice(batches(run, shape[3]), 4):
            state, metrics = step(state, place(batch, mesh), base)
            seen.append(float(metrics["loss"]))
    return seen


@functools.cache
def reference_losses(run: Run) -> list[float]:
    return losses(run, (8, 1, 1, 1), "full", 1)


@pytest.mark.parametrize(("shape", "remat", "parts"), [((1, 4, 2, 1), "attention", 2), ((1, 1, 1, 8), "none", 1)])
def test_losses_are_the_same_on_every_mesh_however_computed(
    shared_run: Run, shape: tuple[int, ...], remat: str, parts: int
):
    expected = reference_losses(shared_run)
    assert expected[-1] < expected[0] - 0.05
    np.testing.assert_allclose(losses(shared_run, shape, remat, parts), expected, atol=1e-5)


def test_the_finished_model_is_the_base_with_what_was_learned(straight: Run, base: Path):
    names = {path.name for path in straight.out.iterdir()}
    assert names >= {"adapters.json", "adapters.safetensors", "model"}
    said = json.loads((straight.out / "adapters.json").read_text())
    assert (said["rank"], said["alpha"], len(said["targets"])) == (4, 8.0, 7)
    before, after = read(base), read(straight.out / "model")
    factors = load_file(straight.out / "adapters.safetensors")
    assert len(factors) == 14 and before.keys() == after.keys()
    for name, tensor in before.items():
        if f"{name}.A" not in factors:
            np.testing.assert_array_equal(after[name], tensor)
            continue
        A, B = factors[f"{name}.A"], factors[f"{name}.B"]
        change = np.stack([np.tensordot(A[layer], B[layer], axes=1) for layer in range(len(A))])
        assert abs(change).max() > 0
        np.testing.assert_allclose(after[name], tensor + LORA.scale * change, atol=1e-6)


def test_the_merged_model_computes_what_the_adapters_do(straight: Run, base: Path):
    with jax.set_mesh(mesh := one_device()):
        batch, forward = place(next(batches(straight)), mesh), jax.jit(lambda p, batch: scores(p, straight, batch))
        frozen, merged = (load_model(place, mesh).params for place in (base, straight.out / "model"))
        seen = forward(adapt(frozen, adapters_of(straight).params, LORA), batch)
        np.testing.assert_allclose(seen, forward(merged, batch), atol=1e-5)
        assert abs(np.asarray(seen) - np.asarray(forward(frozen, batch))).max() > 0.1


def test_held_out_records_are_measured_with_the_adapters(straight: Run):
    lines = [json.loads(line) for line in (straight.out / "metrics.jsonl").read_text().splitlines()]
    measured = [line["held_out_loss"] for line in lines if "held_out_loss" in line]
    assert len(measured) == 2 and measured[1] < measured[0] < lines[0]["loss"]


def test_checkpoints_and_moments_are_of_adapters_alone(straight: Run):
    with Checkpoints(straight.checkpoints) as checkpoints:
        stored = checkpoints.shapes()
    assert len(stored) == 14 and all(4 in (shape[1], shape[-1]) for shape in stored.values())
    moments = [leaf for leaf in jax.tree.leaves(adapters_of(straight).opt_state) if leaf.ndim]
    assert len(moments) == 2 * len(stored)


def test_resuming_is_exact_to_the_bit(straight: Run, make_run: Callable[..., Run]):
    run = make_run(lora=LORA, init_from=straight.init_from, steps=3, save_dtype="float32")
    train(run)
    run = replace(run, steps=6)
    assert train(run, resume=True).step == 6
    jax.tree.map(np.testing.assert_array_equal, adapters_of(run), adapters_of(straight))
    jax.tree.map(np.testing.assert_array_equal, *(read(each.out / "model") for each in (run, straight)))


def test_a_run_resumes_on_the_model_that_it_began_with(make_run: Callable[..., Run], base: Path, tmp_path: Path):
    run = make_run(lora=LORA, init_from=str(tmp_path / "own"), steps=1)
    with jax.set_mesh(mesh := one_device()):
        params = load_model(base, mesh).params
        save_model(tmp_path / "own", run.model, params, Path(run.tokenizer), "float32")
        train(run)
        other = replace(params, final_norm=params.final_norm.at[5].add(1e-6))
        save_model(tmp_path / "own", run.model, other, Path(run.tokenizer), "float32")
    with pytest.raises(UserError, match=r"own is not the model that the adapters in .* were trained on"):
        train(replace(run, steps=2), resume=True)
    assert train(replace(run, steps=2, init_from=str(base)), resume=True).step == 2
    (run.out / "adapters.json").unlink()
    with pytest.raises(UserError, match=r"adapters\.json does not tell which model was adapted"):
        train(replace(run, steps=3, init_from=str(base)), resume=True)


def test_a_model_has_one_fingerprint_and_no_other_has_it(base: Path):
    params = {"norm": jnp.arange(8.0), "matrix": jnp.arange(64.0).reshape(2, 8, 4)}
    flipped = params["matrix"].at[0, 1, 2].multiply(-1).at[1, 0, 3].multiply(-1)
    swapped = params["matrix"][::-1]
    others = [params | {"matrix": other} for other in (flipped, swapped, params["matrix"].reshape(2, 4, 8))]
    seen = [fingerprint(each, one_device()) for each in (params, *others, {"matrix": params["matrix"]})]
    assert len(set(seen)) == 5
    meshes = make_mesh(MeshShape(1, 4, 2, 1)), make_mesh(MeshShape(1, 2, 2, 2)), one_device()
    assert len({fingerprint(load_model(base, mesh).params, mesh) for mesh in meshes}) == 1


def test_resuming_with_another_rank_is_refused(straight: Run):
    with pytest.raises(UserError, match=r"another lora\.rank \(4; now 8\)"):
        train(replace(straight, lora=replace(LORA, rank=8)), resume=True)
    with pytest.raises(UserError, match=r"another lora"):
        train(replace(straight, lora=LoraConfig()), resume=True)


def test_another_run_starts_from_the_merged_model_not_from_adapters(straight: Run, make_run: Callable[..., Run]):
    run = make_run(init_from=str(straight.out), steps=1, save_dtype="float32")
    train(run)  # warm-up starts at a learning rate of 0: one step leaves the parameters where they were
    jax.tree.map(np.testing.assert_array_equal, read(run.out / "model"), read(straight.out / "model"))


def test_adapters_alone_are_no_model_to_start_from(straight: Run, make_run: Callable[..., Run], tmp_path: Path):
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "checkpoints").symlink_to(straight.checkpoints.resolve())
    with pytest.raises(UserError, match="not finished, and its checkpoints hold adapters alone"):
        train(make_run(init_from=str(tmp_path / "stopped")))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"init_from": None}, r"lora\.rank 4 adapts a model that is there"),
        ({"init_from": ""}, "name the directory"),
        ({"init_from": "nowhere"}, "nowhere"),
        ({"code_features": "features.npy"}, "adapters leave alone"),
        ({"vision_size": 24}, "adapters leave the embedding alone"),
    ],
    ids=str,
)
def test_what_adapters_cannot_learn_is_refused(make_run: Callable[..., Run], base: Path, changes: dict, says: str):
    run = make_run(**{"lora": LORA, "init_from": str(base)} | {k: v for k, v in changes.items() if k != "vision_size"})
    if "vision_size" in changes:
        vocab = replace(run.model.vocab, vision_size=24, num_codes=16, tokens_per_frame=4)
        run = replace(run, model=replace(run.model, vocab=vocab))
    with pytest.raises(UserError, match=says):
        train(run)
    assert not run.out.exists()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"rank": -1}, "give 1 or more, or 0"),
        ({"rank": 4, "alpha": 0.0}, "must be positive"),
        ({"rank": 4, "alpha": float("inf")}, "and finite"),
        ({"rank": 4, "targets": ()}, "at least one matrix"),
        ({"rank": 4, "targets": ("key", "key")}, "each once"),
    ],
    ids=str,
)
def test_settings_without_meaning_are_refused(values: dict, says: str):
    with pytest.raises(UserError, match=says):
        LoraConfig(**values)


def test_no_second_copy_of_the_weights_is_needed(shared_run: Run):
    """Of a deep model on few tokens the weights are all the memory: neither merged ones nor their gradients add up."""
    model = replace(shared_run.model, hidden_size=128, intermediate_size=512, head_width=16, num_layers=24)
    mesh = one_device()
    with jax.set_mesh(mesh):
        base = declared.abstract(declare(model), jnp.float32, mesh)
        batch = abstract_batch(1, 16, mesh)

        def temporary(lora: LoraConfig, *more) -> int:
            state = abstract_state(declare_trained(model, lora), OptimizerConfig(), mesh)
            step = make_train_step(model, Compute(), OptimizerConfig(), mesh, lora=lora)
            return step.lower(state, batch, *more).compile().memory_analysis().temp_size_in_bytes

        adapted, full = temporary(LORA, base), temporary(LoraConfig())
    weights = 4 * declared.count(declare(model))
    assert full > 0.9 * weights
    assert adapted < 0.2 * weights
