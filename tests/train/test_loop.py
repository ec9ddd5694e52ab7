import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from lwm.core.errors import UserError
from lwm.core.mesh import MeshShape, make_mesh
from lwm.data.examples import RecordData
from lwm.model.config import SIZES
from lwm.model.transformer import declare
from lwm.train.base import require_same_run
from lwm.train.checkpoint import Checkpoints
from lwm.train.loop import train
from lwm.train.run import Run
from lwm.train.state import TrainState, abstract_state
from lwm.weights.load import load_model

TIMES = ("tokens_per_second",)


def logged(run: Run) -> list[dict]:
    lines = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def saved_state(run: Run, mesh_shape: MeshShape) -> tuple[TrainState, dict]:
    with Checkpoints(run.checkpoints) as checkpoints:
        state, loader = checkpoints.restore(abstract_state(declare(run.model), run.optimizer, make_mesh(mesh_shape)))
    return jax.device_get(state), loader


def assert_same_bits(one: TrainState, other: TrainState) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def straight(shared_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of six steps. Not to be changed."""
    run = replace(shared_run, out=tmp_path_factory.mktemp("straight") / "run")
    train(run)
    return run


def test_a_run_leaves_all_a_run_directory_holds(straight: Run):
    names = {path.name for path in straight.out.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "tensorboard", "checkpoints", "model"}
    assert json.loads((straight.out / "config.json").read_text())["optimizer"]["b2"] == 0.95
    assert [line["step"] for line in logged(straight)] == [1, 2, 3, 4, 5, 6]
    assert logged(straight)[-1]["loss"] < logged(straight)[0]["loss"]
    loaded = load_model(straight.out / "model", make_mesh(MeshShape(1, 8)))
    assert loaded.config == straight.model and loaded.tokenizer is not None


def test_resuming_is_exact_to_the_bit(straight: Run, make_run: Callable[..., Run]):
    run = make_run(steps=3)
    train(run)
    run = replace(run, steps=6)
    result = train(run, resume=True)
    assert result.step == 6 and result.stopped_by is None
    assert logged(run) == logged(straight)
    (state, loader), (expected, expected_loader) = (saved_state(each, run.mesh) for each in (run, straight))
    assert_same_bits(state, expected)
    assert loader == expected_loader


@pytest.mark.slow
def test_resuming_on_another_mesh_starts_from_the_same_bits_and_goes_on_alike(
    straight: Run, make_run: Callable[..., Run]
):
    run = make_run(steps=3)
    train(run)
    elsewhere = MeshShape(1, 2, 2, 2)
    assert_same_bits(saved_state(run, run.mesh)[0], saved_state(run, elsewhere)[0])
    run = replace(run, steps=6, mesh=elsewhere)
    train(run, resume=True)
    losses, expected = ([line["loss"] for line in logged(each)] for each in (run, straight))
    np.testing.assert_allclose(losses, expected, atol=1e-4)


def test_a_stage_starts_from_the_parameters_of_another_run(straight: Run, make_run: Callable[..., Run]):
    longer = replace(straight.model, rope_theta=1e6)
    run = make_run(model=longer, init_from=str(straight.out), steps=1)
    train(run)
    assert logged(run)[0]["loss"] < 0.97 * logged(straight)[0]["loss"]
    first, last = saved_state(straight, run.mesh)[0], saved_state(run, run.mesh)[0]
    # warm-up starts at a learning rate of 0: one step leaves the parameters where they were
    assert_same_bits(first.params, last.params)


def test_held_out_loss_is_of_the_same_batches_each_time(make_run: Callable[..., Run]):
    data = make_run().data
    still = replace(make_run().optimizer, learning_rate=1e-30)
    run = make_run(held_out=data, held_out_batches=2, optimizer=still, eval_every=2, steps=4)
    train(run)
    measured = [line for line in logged(run) if "held_out_loss" in line]
    assert [line["step"] for line in measured] == [2, 4]
    assert measured[0]["held_out_loss"] == measured[1]["held_out_loss"] > 0


def test_nan_stops_before_it_spoils_the_state(make_run: Callable[..., Run]):
    run = make_run(optimizer=replace(make_run().optimizer, learning_rate=1e25, warmup_steps=1), checkpoint_every=100)
    with pytest.raises(UserError, match=r"bad_batch\.json") as stopped:
        train(run)
    report = json.loads((run.out / "bad_batch.json").read_text())
    assert f"step {report['step']}:" in str(stopped.value)
    rows = report["record_ids"]
    assert sorted(map(int, rows)) == list(range(run.batch_size))
    assert all("records.jsonl:" in record_id for ids in rows.values() for record_id in ids)
    state, _ = saved_state(run, run.mesh)
    assert int(state.step) == report["step"] - 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert not (run.out / "model").exists()


SCRIPT = """
import sys
from pathlib import Path
import jax
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", sys.argv[3])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
from lwm.core.vocab import Vocab
from lwm.data.examples import RecordData
from lwm.model.config import ModelConfig
from lwm.train.loop import train
from lwm.train.optimizer import OptimizerConfig
from lwm.train.run import Run
world, out = Path(sys.argv[1]), Path(sys.argv[2])
model = ModelConfig(Vocab(264, bos_id=256, eos_id=257), 32, 64, 2, 8, 8, 8, max_context=64)
data = RecordData(str(world / "records.jsonl"))
run = Run(name="test", model=model, data=data, tokenizer=str(world / "tokenizer.json"), steps=100_000,
          batch_size=8, seq_len=64, optimizer=OptimizerConfig(1e-2, warmup_steps=2), log_every=1,
          checkpoint_every=100_000, out=out)
result = train(run)
sys.exit(128 + result.stopped_by)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_finishes_the_step_and_saves(world: Path, make_run: Callable[..., Run], number: signal.Signals):
    run = make_run()
    cache = jax.config.jax_compilation_cache_dir
    arguments = [sys.executable, "-c", SCRIPT, str(world), str(run.out), cache]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stderr:
            if "step 3/" in line:
                process.send_signal(number)
                break
        rest = process.stderr.read()
    assert process.returncode == 128 + number, rest
    with Checkpoints(run.checkpoints) as checkpoints:
        last = checkpoints.latest
    assert last >= 3 and logged(run)[-1]["step"] == last
    assert train(replace(run, steps=last + 1), resume=True).step == last + 1
    assert [line["step"] for line in logged(run)] == list(range(1, last + 2))


def test_a_directory_with_checkpoints_is_not_started_over(straight: Run):
    with pytest.raises(UserError, match="--resume"):
        train(straight)


def test_resuming_another_model_is_refused(straight: Run):
    changed = replace(straight, model=replace(straight.model, rope_theta=5e7))
    with pytest.raises(UserError, match="another model"):
        train(changed, resume=True)


def test_a_tokenizer_is_known_by_what_it_holds_not_by_where_it_lies(straight: Run, tmp_path: Path):
    held = Path(straight.tokenizer).read_text()
    (tmp_path / "same.json").write_text(held)
    (tmp_path / "other.json").write_text(held + "\n")
    stored = json.loads((straight.out / "config.json").read_text())
    require_same_run(replace(straight, tokenizer=str(tmp_path / "same.json")), stored)
    with pytest.raises(UserError, match="another tokenizer"):
        require_same_run(replace(straight, tokenizer=str(tmp_path / "other.json")), stored)


def test_records_may_move_and_more_of_them_may_be_bad_when_a_run_resumes(straight: Run):
    stored = json.loads((straight.out / "config.json").read_text())
    require_same_run(
        replace(straight, data=replace(straight.data, path="moved/records.jsonl", max_bad_records=7)), stored
    )
    with pytest.raises(UserError, match=r"another data\.fields \(text; now body\)"):
        require_same_run(replace(straight, data=replace(straight.data, fields="body")), stored)


def test_a_run_resumes_without_what_it_began_from(straight: Run, make_run: Callable[..., Run]):
    run = make_run(init_from=str(straight.out), steps=3)
    train(run)
    assert train(replace(run, init_from="gone", steps=4), resume=True).step == 4


def test_held_out_records_are_read_before_the_first_step(make_run: Callable[..., Run], tmp_path: Path):
    (tmp_path / "held_out.jsonl").write_text('{"text": null}\n')
    run = make_run(held_out=RecordData(str(tmp_path / "held_out.jsonl")))
    with pytest.raises(UserError, match=r"held_out\.jsonl:1: field 'text' is null"):
        train(run)
    assert not run.out.exists()


def test_resuming_with_another_batch_size_is_refused_and_changes_nothing(straight: Run):
    before = (straight.out / "config.json").read_text()
    with pytest.raises(UserError, match="batch_size"):
        train(replace(straight, batch_size=16), resume=True)
    assert (straight.out / "config.json").read_text() == before


@pytest.mark.parametrize("part", ["", "model"])
def test_starting_from_another_model_is_refused_and_leaves_nothing(straight: Run, make_run: Callable[..., Run], part):
    wider = replace(straight.model, intermediate_size=72)
    run = make_run(model=wider, init_from=str(straight.out / part))
    with pytest.raises(UserError, match="are not those of this run"):
        train(run)
    assert not run.out.exists()


def test_records_that_end_a_run_before_its_first_step_leave_nothing(make_run: Callable[..., Run], tmp_path: Path):
    records = tmp_path / "records.jsonl"
    records.write_text("{broken\n" * 3)
    run = make_run(data=RecordData(str(records)), steps=1)
    with pytest.raises(UserError, match=r"all records cannot be used, first records\.jsonl:\d: not JSON"):
        train(run)
    assert not run.out.exists()
    records.write_text(json.dumps({"text": "mended " * 3}) + "\n")
    assert train(run).step == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mesh": MeshShape(3)}, "8 devices"),
        ({"mesh": MeshShape(1, 1, 8, 1), "model": SIZES["nano"]}, "num_heads 4"),
        ({"batch_size": 12}, "batch_size 12"),
        ({"gradient_accumulation": 2}, "gradient_accumulation"),
        ({"mesh": MeshShape(1, 1, 1, 8), "seq_len": 40}, "sequence length 40"),
        ({"seq_len": 128}, "max_context 64"),
        ({"model": replace(SIZES["nano"], vocab=replace(SIZES["nano"].vocab, text_size=200))}, "does not match"),
        ({"tokenizer": "nowhere/tokenizer.json"}, "nowhere"),
        ({"data": RecordData("nowhere.jsonl")}, "nowhere.jsonl"),
        ({"init_from": "nowhere"}, "nowhere"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_work_is_refused_and_leaves_nothing(make_run: Callable[..., Run], changes: dict, says: str):
    run = make_run(**changes)
    with pytest.raises(UserError) as refusal:
        train(run)
    assert says in str(refusal.value)
    assert not run.out.exists()


def test_records_of_which_nothing_is_learned_are_refused(make_run: Callable[..., Run]):
    run = make_run()
    run = replace(run, data=replace(run.data, fields="[text]", add_eos=False))
    with pytest.raises(UserError, match="has a target of weight"):
        train(run)
    assert not run.out.exists()


def test_an_output_that_is_a_file_is_refused(make_run: Callable[..., Run], tmp_path: Path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken"):
        train(make_run(out=tmp_path / "taken"))


def test_resuming_nothing_is_refused(make_run: Callable[..., Run]):
    with pytest.raises(UserError, match="no checkpoint"):
        train(make_run(), resume=True)


def test_a_description_that_cannot_be_read_is_named(make_run: Callable[..., Run]):
    run = make_run(steps=1)
    train(run)
    (run.out / "config.json").write_text("{broken")
    with pytest.raises(UserError, match=r"config\.json does not tell which run this is"):
        train(run, resume=True)
