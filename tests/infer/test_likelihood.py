"""The likelihood of an answer is that of generating it, id by id, on any mesh."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.core.mesh import MeshShape, make_mesh
from lwm.core.params import init_sharded
from lwm.infer.likelihood import log_likelihoods
from lwm.model.transformer import declare

PROMPTS = [[1, 5, 9, 200], [1, 300, 301, 340], [7] * 90]
ANSWERS = [[11, 12, 13], [20], [21, 22, 5, 6, 7]]


def one_by_one(engine, prompt, answer):
    """Each id's share of the scores of its modality, read after all that comes before it."""
    state, total = engine.start([prompt], 512), 0.0
    for token in answer:
        text = state.logits[0, : engine.config.vocab.text_size]
        total += float(jax.nn.log_softmax(text)[token])
        state = engine.extend(state, [[token]])
    return total


@pytest.mark.parametrize("shape", [MeshShape(1, 1, 1, 1), MeshShape(2, 1, 1, 2), MeshShape(1, 2, 2, 1)])
def test_it_is_that_of_generating_the_answer(vision_engine, shape):
    expected = [one_by_one(vision_engine, *each) for each in zip(PROMPTS, ANSWERS, strict=True)]
    mesh = make_mesh(shape, jax.devices()[: shape.dp * shape.fsdp * shape.tp * shape.sp])
    params = init_sharded(declare(vision_engine.config), jax.random.key(0), jnp.float32, mesh)
    found = log_likelihoods(replace(vision_engine, params=params, mesh=mesh), PROMPTS, ANSWERS)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_there_must_be_something_to_follow(vision_engine):
    with pytest.raises(ValueError, match="empty prompt"):
        log_likelihoods(vision_engine, [[]], [[1]])
