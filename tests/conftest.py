"""Strictness that costs nothing at run time: typed shapes, no silent dtype promotion, eight virtual devices."""

import os

import jaxtyping

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_hook = jaxtyping.install_import_hook("lwm", "beartype.beartype")
_hook.__enter__()

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def rng_key() -> jax.Array:
    return jax.random.key(0)
