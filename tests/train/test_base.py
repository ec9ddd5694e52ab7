"""The directory a run leaves behind: what is there already is not overwritten, and what cannot be written is said."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lwm.core.errors import UserError
from lwm.train.base import open_directory, require_directory
from lwm.train.loop import train
from lwm.train.run import Run


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_a_model_is_not_made_a_run(base: Path, make_run: Callable[..., Run]):
    before = contents(base)
    with pytest.raises(UserError, match=r"holds a model, of which model\.safetensors is a part: choose another --out"):
        train(make_run(init_from=str(base), out=base))
    assert contents(base) == before


@pytest.mark.parametrize(
    ("resume", "remedy"), [(False, "choose another --out"), (True, "restore it or delete it")], ids=["start", "resume"]
)
@pytest.mark.parametrize(
    ("held", "says"), [({"model_type": "llama"}, "it has no 'name'"), ([], "it is not a JSON object")]
)
def test_a_config_that_is_no_runs_stays(make_run: Callable[..., Run], held: object, says: str, resume: bool, remedy):
    run = make_run()
    (run.checkpoints / "3" if resume else run.out).mkdir(parents=True)
    (run.out / "config.json").write_text(json.dumps(held))
    with pytest.raises(UserError, match=r"config\.json does not tell which run this is") as refusal:
        require_directory(run, resume)
    assert says in str(refusal.value) and remedy in str(refusal.value)


def test_a_run_that_took_no_step_may_be_started_again(make_run: Callable[..., Run]):
    run = make_run()
    open_directory(run)
    require_directory(run, resume=False)


@pytest.mark.parametrize("name", ["config.json", ""])
def test_a_place_that_cannot_take_the_model_is_refused_before_the_first_step(make_run: Callable[..., Run], name: str):
    run = make_run()
    taken = run.out / "model" / name
    taken.parent.mkdir(parents=True)
    taken.write_text("{}")
    with pytest.raises(UserError, match="choose another directory" if name else "it is a file"):
        train(run)
    assert list(run.out.iterdir()) == [run.out / "model"]


def test_a_place_that_cannot_take_checkpoints_is_refused_before_the_first_step(make_run: Callable[..., Run]):
    run = make_run()
    run.out.mkdir()
    run.checkpoints.write_text("")
    with pytest.raises(UserError, match=r"cannot write checkpoints to .*checkpoints: File exists"):
        open_directory(run)
    assert list(run.out.iterdir()) == [run.checkpoints]
