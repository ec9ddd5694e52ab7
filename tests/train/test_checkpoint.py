import os
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.core import params as declared
from lwm.core.errors import UserError
from lwm.core.mesh import MeshShape, make_mesh
from lwm.model.transformer import declare
from lwm.train.checkpoint import Checkpoints
from lwm.train.run import Run
from lwm.train.state import TrainState, abstract_state


def filled_state(run: Run, mesh: jax.sharding.Mesh, seed: int) -> TrainState:
    """A state of random numbers: every tensor different, moments too."""
    draw = np.random.default_rng(seed)

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        values = draw.normal(size=leaf.shape).astype(leaf.dtype) if leaf.shape else leaf.dtype.type(seed)
        return jax.device_put(values, leaf.sharding)

    return jax.tree.map(fill, abstract_state(declare(run.model), run.optimizer, mesh))


def test_state_comes_back_to_the_bit_on_another_mesh(shared_run: Run, tmp_path: Path):
    first, second = make_mesh(MeshShape(1, 2, 2, 2)), make_mesh(MeshShape(1, 1, 4, 2))
    state = filled_state(shared_run, first, 7)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {"rows": {"0": 3}}, shared_run.described())
    with Checkpoints(tmp_path) as checkpoints:
        target = abstract_state(declare(shared_run.model), shared_run.optimizer, second)
        restored, loader_state = checkpoints.restore(target)
    assert int(restored.step) == 7 and loader_state == {"rows": {"0": 3}}
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(restored))
    assert jax.tree.map(lambda leaf: leaf.sharding, restored) == jax.tree.map(lambda leaf: leaf.sharding, target)


def test_what_is_saved_is_the_state_of_that_moment(shared_run: Run, tmp_path: Path):
    mesh = make_mesh(MeshShape(8))
    state = filled_state(shared_run, mesh, 1)
    before = jax.device_get(jax.tree.map(jnp.copy, state.params))
    overwrite = jax.jit(lambda params: jax.tree.map(lambda leaf: leaf * 0 + 1, params), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {}, {})
        overwrite(state.params)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore_params(
            abstract_state(declare(shared_run.model), shared_run.optimizer, mesh).params
        )
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(restored))


def test_only_the_last_ones_stay(shared_run: Run, tmp_path: Path):
    mesh = make_mesh(MeshShape(8))
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(filled_state(shared_run, mesh, step), {}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]


def test_another_model_is_refused_by_its_first_tensor_and_both_shapes(shared_run: Run, tmp_path: Path):
    mesh = make_mesh(MeshShape(8))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(filled_state(shared_run, mesh, 1), {}, {})
    wider = replace(shared_run.model, intermediate_size=128)
    target = declared.abstract(declare(wider), jnp.float32, mesh)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError) as refusal:
        checkpoints.restore_params(target)
    for part in ("layers.down", "(2, 64, 32)", "(2, 128, 32)"):
        assert part in str(refusal.value)


def test_an_empty_directory_holds_no_checkpoint(shared_run: Run, tmp_path: Path):
    target = abstract_state(declare(shared_run.model), shared_run.optimizer, make_mesh(MeshShape(8)))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="holds no checkpoint"):
        checkpoints.restore(target)


def small_state(step: int) -> TrainState:
    values = {"w": jax.device_put(np.random.default_rng(step).normal(size=(200, 1000)).astype(np.float32))}
    return TrainState(values, values, jnp.int32(step))


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 1 and 2. Not to be changed."""
    directory = tmp_path_factory.mktemp("two_steps")
    with Checkpoints(directory) as checkpoints:
        for step in (1, 2):
            checkpoints.save(small_state(step), {}, {"name": "test"})
    return directory


def make_empty(step: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


def lose_the_optimizer(step: Path) -> None:
    shutil.rmtree(step / "optimizer")


def cut_an_array_short(step: Path) -> None:
    largest = max((step / "params").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    os.truncate(largest, largest.stat().st_size // 2)


def lose_what_the_parameters_are(step: Path) -> None:
    (step / "params" / "_METADATA").unlink()


def write_nothing_of_the_parameters(step: Path) -> None:
    (step / "params" / "_METADATA").write_text("[]")


def go_round_in_circles(step: Path) -> None:
    file = step / "params" / "manifest.ocdbt"
    file.unlink()
    file.symlink_to(file)


def test_files_that_cannot_be_reached_are_not_called_damaged(two_steps: Path, tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    shutil.copytree(two_steps, directory)
    go_round_in_circles(directory / "2")
    with (
        Checkpoints(directory) as checkpoints,
        pytest.raises(UserError, match=r"^cannot read the .*/2: "),
    ):
        checkpoints.restore(small_state(0))


DAMAGES = [
    make_empty,
    lose_the_optimizer,
    cut_an_array_short,
    lose_what_the_parameters_are,
    write_nothing_of_the_parameters,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_step_is_named_and_the_one_before_it(two_steps: Path, damage: Callable[[Path], None], tmp_path: Path):
    directory = tmp_path / "checkpoints"
    shutil.copytree(two_steps, directory)
    damage(directory / "2")
    with Checkpoints(directory) as checkpoints, pytest.raises(UserError) as refusal:
        checkpoints.restore(small_state(0))
    said = str(refusal.value)
    assert said.startswith(f"the checkpoint in {directory / '2'} is damaged (")
    assert said.endswith("delete that directory to go on from step 1")
    assert len(said) < len(str(directory)) + 400 and "\n" not in said
    shutil.rmtree(directory / "2")
    with Checkpoints(directory) as checkpoints:
        assert int(checkpoints.restore(small_state(0))[0].step) == 1


def test_a_damaged_step_that_is_the_only_one_says_so(tmp_path: Path):
    (tmp_path / "9").mkdir()
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="it is the only one, so start anew"):
        checkpoints.config()


def test_a_full_disk_is_one_sentence_and_leaves_whole_steps(two_steps: Path, tmp_path: Path):
    directory, usual = tmp_path / "checkpoints", resource.getrlimit(resource.RLIMIT_FSIZE)
    shutil.copytree(two_steps, directory)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, usual[1]))
    try:
        with (
            pytest.raises(UserError, match=r"cannot write a checkpoint to .*: File too large; make room"),
            Checkpoints(directory) as checkpoints,
        ):
            checkpoints.save(small_state(3), {}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    with Checkpoints(directory) as checkpoints:
        assert int(checkpoints.restore(small_state(0))[0].step) == 2


def test_a_directory_that_is_gone_is_said_and_nothing_waits_for_it(tmp_path: Path):
    directory = tmp_path / "checkpoints"
    with pytest.raises(UserError, match="cannot write checkpoints to"), Checkpoints(directory) as checkpoints:
        directory.rmdir()
        directory.write_text("")
        checkpoints.save(small_state(1), {}, {})
