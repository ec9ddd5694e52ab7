"""Norm, rotary positions and chunking against plain NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.core.mesh import MeshShape, make_mesh
from lwm.model.layers import over_token_chunks, rms_norm, rotary_angles, rotate


@pytest.mark.parametrize("theta", [1e4, 1e6, 5e7])
def test_angles_are_exact_at_a_million(theta: float) -> None:
    positions = np.array([[0, 1, 255, 514, 65_537, 999_999, 1_000_000, 1_048_575]])
    exact = positions[..., None] * theta ** (-np.arange(0, 64, 2) / 64)
    angles = np.asarray(rotary_angles(jnp.asarray(positions, jnp.int32), 64, theta), np.float64)
    np.testing.assert_allclose(np.cos(angles), np.cos(exact), atol=1e-6)
    np.testing.assert_allclose(np.sin(angles), np.sin(exact), atol=1e-6)


def test_small_angles_keep_their_relative_precision() -> None:
    angles = np.asarray(rotary_angles(jnp.array([[3]], jnp.int32), 64, 5e7), np.float64)[0, 0]
    np.testing.assert_allclose(angles, 3 * 5e7 ** (-np.arange(0, 64, 2) / 64), rtol=3e-7)


def test_bfloat16_features_are_turned_by_exact_angles() -> None:
    x = jnp.ones((1, 1, 1, 64), jnp.bfloat16)
    turned = rotate(x, rotary_angles(jnp.array([[1_000_000]], jnp.int32), 64, 5e7))
    exact = 1_000_000 * 5e7 ** (-np.arange(0, 64, 2) / 64)
    np.testing.assert_allclose(np.asarray(turned[0, 0, 0, 0::2], np.float64), np.cos(exact) - np.sin(exact), atol=8e-3)
    assert turned.dtype == jnp.bfloat16


def test_scores_depend_on_distance_only() -> None:
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 64))

    def score(query_position: int, key_position: int) -> float:
        a = rotate(q, rotary_angles(jnp.array([[query_position]], jnp.int32), 64, 1e7))
        b = rotate(k, rotary_angles(jnp.array([[key_position]], jnp.int32), 64, 1e7))
        return float(jnp.sum(a * b))

    assert score(1_000_000, 999_000) == pytest.approx(score(1_000, 0), abs=2e-5)


def test_rms_norm_is_computed_wide() -> None:
    x = 300 * jax.random.normal(jax.random.key(0), (3, 32))
    wide = np.asarray(x, np.float64)
    expected = wide / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(rms_norm(x, jnp.ones(32), 1e-6), expected, rtol=1e-6)
    assert rms_norm(x.astype(jnp.bfloat16), jnp.ones(32), 1e-6).dtype == jnp.bfloat16


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("chunk", [3, 4, 5, 100])
def test_chunks_change_nothing(shards: int, chunk: int) -> None:
    x = jax.random.normal(jax.random.key(0), (2, 48, 5))
    with jax.set_mesh(make_mesh(MeshShape(fsdp=1, sp=shards), jax.devices()[:shards])):
        y = jax.jit(lambda x: over_token_chunks(lambda piece: jnp.sin(piece) * 2, x, chunk))(x)
    np.testing.assert_allclose(y, jnp.sin(x) * 2, rtol=1e-6)
