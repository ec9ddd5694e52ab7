from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from lwm.core.params import init
from lwm.model.config import SIZES, Compute
from lwm.model.transformer import declare, head_weights, hidden_states, logits
from lwm.nano.start import backward_pattern, starting_params
from lwm.nano.text import FIRST_ROPE_THETA

CONFIG = replace(SIZES["nano"], rope_theta=FIRST_ROPE_THETA)


def share_copied(params, period):
    """Of random tokens that repeat with a period, how many of the repeated ones rank first after the ones before."""
    tokens = np.tile(np.random.default_rng(1).integers(3, CONFIG.vocab.text_size, (4, period)), 2).astype(np.int32)
    one, positions = np.ones_like(tokens), np.broadcast_to(np.arange(2 * period, dtype=np.int32), tokens.shape)
    tokens, one, positions = jnp.asarray(tokens), jnp.asarray(one), jnp.asarray(positions)
    hidden = hidden_states(params, tokens, one, positions, CONFIG, Compute())
    best = logits(hidden, head_weights(params, CONFIG, Compute())).argmax(-1)
    return float((best[:, period:-1] == tokens[:, period + 1 :]).mean())


def test_the_first_weights_copy_what_came_before():
    assert share_copied(starting_params(CONFIG), 40) > 0.3
    assert share_copied(init(declare(CONFIG), jax.random.key(0), jnp.float32), 40) < 0.02


def test_a_backward_pattern_is_highest_at_its_distance():
    turns = FIRST_ROPE_THETA ** (-np.arange(0, 32, 2) / 32)
    for distance in (1, 2, 5):
        query, key = backward_pattern(distance, turns)
        scores = []
        for back in range(64):
            angle = back * turns
            turned = np.stack([np.cos(angle) * key[0::2], -np.sin(angle) * key[0::2]], axis=-1).reshape(-1)
            scores.append(float(query @ turned))
        assert int(np.argmax(scores)) == distance
