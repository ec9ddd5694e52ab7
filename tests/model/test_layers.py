"""Norm and chunking against plain NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.core.mesh import MeshShape, make_mesh
from lwm.model.layers import over_token_chunks, rms_norm


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
