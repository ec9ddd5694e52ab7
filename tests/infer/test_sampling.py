import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.core.errors import UserError
from lwm.infer.sampling import Sampling, restrict, sample

PROBABILITIES = np.array([[0.1, 0.4, 0.3, 0.2]], np.float32)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1.0), [0.1, 0.4, 0.3, 0.2]),
        (Sampling(0.5), [1 / 30, 16 / 30, 9 / 30, 4 / 30]),
        (Sampling(1.0, top_k=2), [0, 4 / 7, 3 / 7, 0]),
        (Sampling(1.0, top_k=9), [0.1, 0.4, 0.3, 0.2]),
        (Sampling(1.0, top_p=0.35), [0, 1, 0, 0]),
        (Sampling(1.0, top_p=0.41), [0, 4 / 7, 3 / 7, 0]),
        (Sampling(1.0, top_p=0.85), [0, 4 / 9, 3 / 9, 2 / 9]),
        (Sampling(1.0, top_k=3, top_p=0.5), [0, 4 / 7, 3 / 7, 0]),
        (Sampling(0.5, top_k=2, top_p=0.6), [0, 1, 0, 0]),
        (Sampling(1e-40), [0, 1, 0, 0]),
    ],
)
def test_the_distribution_is_the_one_asked_for(sampling: Sampling, expected: list[float]) -> None:
    got = jax.nn.softmax(restrict(jnp.log(PROBABILITIES), sampling), axis=-1)
    np.testing.assert_allclose(np.asarray(got)[0], expected, atol=1e-6)


def test_draws_follow_the_distribution() -> None:
    draws = 20_000
    keys = jax.random.split(jax.random.key(1), draws)
    logits = jnp.broadcast_to(jnp.log(PROBABILITIES), (draws, 4))
    counts = np.bincount(np.asarray(sample(logits, keys, Sampling(1.0, top_k=3))), minlength=4)
    np.testing.assert_allclose(counts / draws, [0, 4 / 9, 3 / 9, 2 / 9], atol=0.015)
    assert counts[0] == 0


def test_greedy_takes_the_likeliest_whatever_the_key() -> None:
    keys = jax.random.split(jax.random.key(2), 2)
    logits = jnp.array([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    assert sample(logits, keys, Sampling()).tolist() == [1, 0]


@pytest.mark.parametrize(
    "values", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}]
)
def test_values_out_of_range_are_refused(values: dict) -> None:
    with pytest.raises(UserError, match=next(iter(values))):
        Sampling(**values)
