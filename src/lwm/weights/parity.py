"""Whether two files hold the same model: both are run on the same tokens."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lwm.core.errors import UserError
from lwm.core.mesh import MeshShape, make_mesh
from lwm.model.config import Compute, ModelConfig
from lwm.model.transformer import Transformer, head_weights, hidden_states, logits
from lwm.weights.load import Source, place

#: tokens that both are run on, drawn from all ids
NUM_TOKENS = 64


def compare_logits(one: Source, other: Source) -> tuple[float, float]:
    """The greatest difference between two models' logits, and the greatest logit of the first.

    Both are run in fp32 on the first device, one after the other, so that only one is in memory.

    Raises:
        UserError: logits that are no finite numbers, of which no difference can be told.
    """
    before, after = _logits_of(one), _logits_of(other)
    return float(np.abs(after - before).max()), float(np.abs(before).max())


def _logits_of(source: Source) -> Float[np.ndarray, "T V"]:
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    params = place(source.tensors(), source.config, mesh, "float32")
    with jax.set_mesh(mesh):
        found = np.asarray(_forward(params, source.config))
    if not np.isfinite(found).all():
        raise UserError(
            f"{source.path} has logits that are not finite numbers: look for NaN or infinity in its weights"
        )
    return found


def _forward(params: Transformer, config: ModelConfig) -> Float[Array, "T V"]:
    drawn = np.random.default_rng(0).integers(0, config.vocab.size, (1, NUM_TOKENS), dtype=np.int32)
    tokens, positions = jnp.asarray(drawn), jnp.arange(NUM_TOKENS)[None]

    @jax.jit
    def run(params: Transformer) -> Float[Array, "T V"]:
        hidden = hidden_states(params, tokens, jnp.ones_like(tokens), positions, config, Compute(remat="none"))
        return logits(hidden[0], head_weights(params, config, Compute()))

    return run(params)
