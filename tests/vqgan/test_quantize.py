"""Codes and vectors are each other's inverse; gradients pass; the errors are the paper's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.core.errors import UserError
from lwm.vqgan.quantize import Codebook, Levels, codes_of, quantize, vectors_of

LEVELS = Levels((8, 5, 3, 4))
BOOK = Codebook(num_codes=24, width=3)


@pytest.fixture(scope="module")
def codebook() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(24, 3)), jnp.float32)


def test_every_code_of_levels_has_its_vector():
    codes = jnp.arange(LEVELS.num_codes, dtype=jnp.int32).reshape(1, 1, -1)
    vectors = vectors_of(codes, None, LEVELS)
    assert len(np.unique(np.asarray(vectors).reshape(-1, 4), axis=0)) == 8 * 5 * 3 * 4
    assert float(jnp.abs(vectors).max()) == 1.0


def test_levels_reach_every_code_and_take_the_nearest():
    vectors = jnp.asarray(np.random.default_rng(1).normal(scale=2, size=(1, 1, 200_000, 4)), jnp.float32)
    moved, codes, *errors = quantize(vectors, None, LEVELS)
    assert len(np.unique(codes)) == LEVELS.num_codes
    np.testing.assert_allclose(moved, vectors_of(codes, None, LEVELS), atol=1e-6)
    loose, *_ = quantize(vectors, None, LEVELS, share=0.0)
    half_a_step = 0.5 / (np.array(LEVELS.levels) // 2)
    assert (np.abs(loose - moved).max(axis=(0, 1, 2)) <= half_a_step * 1.01).all()
    assert [float(error) for error in errors] == [0, 0]


def test_a_codebook_takes_the_nearest_and_returns_it(codebook):
    vectors = jnp.asarray(np.random.default_rng(2).normal(size=(2, 3, 4, 3)), jnp.float32)
    codes = codes_of(vectors, codebook, BOOK)
    distances = np.square(np.asarray(vectors)[..., None, :] - np.asarray(codebook)).sum(-1)
    np.testing.assert_array_equal(codes, distances.argmin(-1))
    np.testing.assert_array_equal(codes_of(vectors_of(codes, codebook, BOOK), codebook, BOOK), codes)


def test_gradients_go_straight_through_and_each_error_moves_its_own_side(codebook):
    vectors = jnp.asarray(np.random.default_rng(3).normal(size=(1, 2, 2, 3)), jnp.float32)
    through = jax.grad(lambda x: quantize(x, codebook, BOOK)[0].sum())(vectors)
    np.testing.assert_array_equal(through, jnp.ones_like(vectors))
    for which, moves in ((2, "codebook"), (3, "vectors")):
        by_vectors, by_book = jax.grad(lambda x, book, which=which: quantize(x, book, BOOK)[which], (0, 1))(
            vectors, codebook
        )
        assert bool(jnp.any(by_vectors)) == (moves == "vectors")
        assert bool(jnp.any(by_book)) == (moves == "codebook")


def test_levels_pass_gradients_inside_their_reach():
    vectors = jnp.zeros((1, 1, 1, 4))
    through = jax.grad(lambda x: quantize(x, None, LEVELS)[0].sum())(vectors)
    assert float(through.min()) > 0.3


@pytest.mark.parametrize("bad", [lambda: Levels(()), lambda: Levels((8, 2)), lambda: Codebook(0, 4)])
def test_impossible_quantizers_are_refused(bad):
    with pytest.raises(UserError, match=r"levels|codebook"):
        bad()
