import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.core.errors import UserError
from lwm.core.params import Parameter, ones
from lwm.train.optimizer import OptimizerConfig, make_optimizer, make_schedule


@pytest.fixture(autouse=True)
def optax_promotes():
    with jax.numpy_dtype_promotion("standard"):
        yield


def rates(config: OptimizerConfig, steps: list[int]) -> list[float]:
    return [float(make_schedule(config)(jnp.int32(step))) for step in steps]


def test_constant_schedule_warms_up_from_zero():
    config = OptimizerConfig(learning_rate=4e-5, warmup_steps=100)
    np.testing.assert_allclose(rates(config, [0, 50, 100, 10_000]), [0, 2e-5, 4e-5, 4e-5], rtol=1e-6)


def test_cosine_schedule_counts_its_end_from_the_first_step():
    config = OptimizerConfig(6e-4, end_learning_rate=6e-5, schedule="cosine", warmup_steps=10, decay_steps=110)
    np.testing.assert_allclose(rates(config, [5, 10, 60, 110, 500]), [3e-4, 6e-4, 3.3e-4, 6e-5, 6e-5], rtol=1e-5)


def test_a_cosine_without_an_end_ends_with_the_run():
    config = OptimizerConfig(1e-3, schedule="cosine", warmup_steps=10)
    assert [config.ending_at(steps).decay_steps for steps in (11, 400)] == [11, 400]
    assert OptimizerConfig(1e-3, schedule="cosine", decay_steps=50).ending_at(400).decay_steps == 50
    np.testing.assert_allclose(rates(config.ending_at(5), [0, 5, 10]), [0, 5e-4, 1e-3], rtol=1e-6)


def test_no_warmup_starts_at_the_peak():
    assert rates(OptimizerConfig(1e-3), [0]) == pytest.approx([1e-3])
    assert rates(OptimizerConfig(1e-3, schedule="cosine", decay_steps=10), [0]) == pytest.approx([1e-3])


def test_matrices_decay_and_norm_scales_do_not():
    declaration = {
        "matrix": Parameter((2, 3, 4), ("layers", "embed", "ffn"), ones),
        "stacked_norm": Parameter((2, 3), ("layers", None), ones),
        "norm": Parameter((3,), (None,), ones),
    }
    params = jax.tree.map(lambda p: jnp.ones(p.shape), declaration, is_leaf=lambda p: isinstance(p, Parameter))
    chain = make_optimizer(OptimizerConfig(learning_rate=0.5, weight_decay=0.1), declaration)
    updates, _ = chain.update(jax.tree.map(jnp.zeros_like, params), chain.init(params), params)
    np.testing.assert_allclose(updates["matrix"], -0.05)
    assert not updates["norm"].any() and not updates["stacked_norm"].any()


def test_gradients_beyond_the_clip_norm_count_as_that_long():
    declaration = {"a": Parameter((2,), (None,), ones)}
    chain = make_optimizer(OptimizerConfig(learning_rate=1.0, clip_norm=1.0, eps=1.0, b1=0.0, b2=0.0), declaration)
    params = {"a": jnp.zeros(2)}
    updates, _ = chain.update({"a": jnp.array([30.0, 40.0])}, chain.init(params), params)
    np.testing.assert_allclose(updates["a"], [-0.6 / 1.6, -0.8 / 1.8], rtol=1e-6)


@pytest.mark.parametrize(
    "fields",
    [
        {"schedule": "cosine", "warmup_steps": 5, "decay_steps": 5},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"learning_rate": math.inf},
        {"end_learning_rate": math.nan},
        {"clip_norm": math.nan},
        {"eps": math.nan},
        {"weight_decay": math.inf},
        {"b1": 1.0},
        {"b2": math.nan},
    ],
)
def test_refuses_settings_that_cannot_train(fields: dict):
    with pytest.raises(UserError):
        OptimizerConfig(**fields)
