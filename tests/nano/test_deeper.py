"""New layers change nothing until they are trained, and can be trained."""

import jax
import jax.numpy as jnp
import numpy as np

from lwm.core import params as parameters
from lwm.core.batch import Batch
from lwm.core.mesh import MeshShape, make_mesh
from lwm.core.vocab import Vocab
from lwm.model.config import Compute, ModelConfig
from lwm.model.loss import loss_sums
from lwm.model.transformer import declare, hidden_states
from lwm.nano.deeper import deepen, write_deeper
from lwm.weights.load import load_model
from lwm.weights.store import save_model

CONFIG = ModelConfig(Vocab(text_size=40), 16, 24, 3, 4, 2, 8, tie_word_embeddings=True)


def test_a_deeper_model_says_what_the_shallow_one_did_and_every_new_layer_learns():
    params = parameters.init(declare(CONFIG), jax.random.key(0), jnp.float32)
    deeper, config = deepen(params, CONFIG, before=(1, 2))
    assert config.num_layers == 5
    tokens = jax.random.randint(jax.random.key(1), (2, 24), 0, 40)
    places, segments = jnp.broadcast_to(jnp.arange(24), (2, 24)), jnp.ones((2, 24), jnp.int32)
    batch = Batch(tokens, tokens, jnp.ones((2, 24), jnp.float32), segments, places)
    before, after = (
        hidden_states(model, tokens, segments, places, how, Compute())
        for model, how in ((params, CONFIG), (deeper, config))
    )
    np.testing.assert_allclose(after, before, atol=1e-6)
    # the old layers lie at 0, 2 and 4, in their order
    np.testing.assert_array_equal(deeper.layers.query[np.array([0, 2, 4])], params.layers.query)
    assert not deeper.layers.output[np.array([1, 3])].any() and not deeper.layers.down[np.array([1, 3])].any()
    gradient = jax.grad(lambda model: loss_sums(model, batch, config, Compute()).weighted_nll.sum())(deeper)
    for layer in (1, 3):
        assert gradient.layers.output[layer].any() and gradient.layers.down[layer].any()


def test_a_deeper_model_is_saved_as_one_to_begin_from(tmp_path):
    params = parameters.init(declare(CONFIG), jax.random.key(0), jnp.float32)
    save_model(tmp_path / "shallow", CONFIG, params, None, "float32")
    write_deeper(tmp_path / "shallow", (2,), tmp_path / "deep")
    loaded = load_model(tmp_path / "deep", make_mesh(MeshShape(), jax.devices()[:1]))
    assert loaded.config.num_layers == 4
    np.testing.assert_array_equal(loaded.params.layers.up[3], params.layers.up[2])
