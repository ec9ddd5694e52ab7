"""What was learned outlives what fails beside it."""

from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import pytest

from lwm.core.errors import UserError
from lwm.train.checkpoint import Checkpoints
from lwm.train.run import Run
from lwm.train.state import TrainState
from lwm.train.steps import Moment, call_hooks

LOADER = {"identity": {}, "sequences": {}}


@pytest.fixture
def moment() -> Moment:
    params = {"w": jnp.arange(8.0)}
    return Moment(2, TrainState(params, params, jnp.int32(2)), {}, LOADER)


def test_a_hook_that_fails_loses_no_step(make_run: Callable[..., Run], moment: Moment, tmp_path: Path):
    def evaluate(moment: Moment) -> None:
        raise UserError("held-out records cannot be used")

    run = make_run()
    with pytest.raises(UserError, match="held-out records"), Checkpoints(tmp_path) as checkpoints:
        call_hooks(run, moment, [(3, evaluate)], checkpoints)
        call_hooks(run, moment, [(2, evaluate)], checkpoints)
    assert [path.name for path in tmp_path.iterdir()] == ["2"]
