"""Whether two files hold the same model: both are run on the same tokens."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lwm.core.mesh import MeshShape, make_mesh
from lwm.model.config import Compute, ModelConfig
from lwm.model.transformer import Transformer, head_weights, hidden_states, logits
from lwm.weights.load import Source, place

#: tokens that both are run on, drawn from all ids
NUM_TOKENS = 64


def compare_logits(*sources: Source) -> tuple[float, float]:
    """The greatest difference between logits of the first model and of the others, and the first's greatest logit.

    All are run in fp32 on the first device, one after the other.
    """
    first, *others = _each_models_logits(sources)
    return max(float(np.abs(other - first).max()) for other in others), float(np.abs(first).max())


def _each_models_logits(sources: tuple[Source, ...]) -> Iterator[Float[np.ndarray, "T V"]]:
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    for source in sources:
        params = place(source.tensors(), source.config, mesh, "float32")
        with jax.set_mesh(mesh):
            yield np.asarray(_forward(params, source.config))


def _forward(params: Transformer, config: ModelConfig) -> Float[Array, "T V"]:
    drawn = np.random.default_rng(0).integers(0, config.vocab.size, (1, NUM_TOKENS), dtype=np.int32)
    tokens, positions = jnp.asarray(drawn), jnp.arange(NUM_TOKENS)[None]

    @jax.jit
    def run(params: Transformer) -> Float[Array, "T V"]:
        hidden = hidden_states(params, tokens, jnp.ones_like(tokens), positions, config, Compute(remat="none"))
        return logits(hidden[0], head_weights(params, config, Compute()))

    return run(params)
