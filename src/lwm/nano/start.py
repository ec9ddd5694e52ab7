"""The weights that training begins with: random, but for seven heads that are set so that they copy.

A model of this size needs millions of tokens to find out that what followed once may follow again, and most of them
pass on a plateau (docs/log.md). The circuit that does it is known (Olsson et al. 2022, induction heads), so it is
written down here, and gradient descent begins with a model that copies half of what repeats:

    layer 0   a head each attends to the token 1, 2, 4 and 5 back, and writes what it reads into a room of its own
    layer 1   two heads compare the token at hand and the one 4 back with what stood 1 and 5 back elsewhere: where both
              agree is what came next after the same words, and they write that to the output; a third compares the
              token at hand and the one 1 back with those 1 and 2 back

One token would do to copy. The second, four back, is where a planted name ends when its number begins; the one before
tells apart numbers that share a digit.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lwm.core import params as parameters
from lwm.model.config import ModelConfig
from lwm.model.transformer import Transformer, declare
from lwm.weights.store import save_model

#: what random layers write at first, beside the embedding: at full size they drown what the set heads read
QUIET = 0.05
#: logits are sharp enough at these to attend to one token of hundreds
BACKWARD_GAIN, NEAR_GAIN, OTHER_GAIN = 2.0, 3.5, 1.8
COPY_GAIN = 5.0
FAR = 4
#: features of a token that are kept in each room
ROOM = 15
#: the first pairs of rotary features tell neighbours apart; those that turn less than this (radians a token) compare
#: contents over any distance, so many of them the token at hand
NUM_FAST_PAIRS, SLOW_TURN, NEAR_SHARE = 6, 1e-3, 0.6


def starting_params(config: ModelConfig, seed: int = 0) -> Transformer:
    """Fresh fp32 parameters with the circuit set; the model has 2 layers or more, 4 heads and D >= 4 h."""
    drawn = jax.tree.map(np.array, parameters.init(declare(config), jax.random.key(seed), jnp.float32))
    layers, D, h = drawn.layers, config.hidden_size, config.head_width
    directions = np.linalg.qr(np.random.default_rng(seed).normal(size=(D, D)))[0].astype(np.float32)
    # Every embedding gets this direction, and a tied head ignores what all its rows share. It gives positions a handle:
    # without any constant in its input a head cannot attend by distance.
    constant, content, free = directions[:, 0], directions[:, 1 : h + 1], directions[:, h + 1 :]
    layers.output[:] *= QUIET
    layers.down[:] *= QUIET

    turns = config.rope_theta ** (-np.arange(0, h, 2) / h)
    rooms = {0: content}
    for head, distance in enumerate((1, 2, FAR, FAR + 1)):
        rooms[distance], free = free[:, :ROOM], free[:, ROOM:]
        query, key = backward_pattern(distance, turns)
        layers.query[0, :, head] = BACKWARD_GAIN * np.outer(constant, query)
        layers.key[0, :, head] = BACKWARD_GAIN * np.outer(constant, key)
        layers.value[0, :, head], layers.output[0, head] = content, _widened(rooms[distance], h).T

    near, other = _slow_features(turns)
    for head, (distance, copied) in enumerate(((FAR, content), (FAR, free[:, :h]), (1, content))):
        layers.query[1, :, head] = layers.key[1, :, head] = 0.0
        for features, gain, back in ((near, NEAR_GAIN, 0), (other, OTHER_GAIN, distance)):
            some = (np.arange(len(features)) + head * ROOM // 3) % ROOM
            layers.query[1, :, head, features] = gain * rooms[back][:, some].T
            layers.key[1, :, head, features] = gain * rooms[back + 1][:, some].T
        layers.value[1, :, head] = _widened(copied, h)
        layers.output[1, head] = COPY_GAIN * layers.value[1, :, head].T
    return jax.tree.map(jnp.asarray, dataclasses.replace(drawn, embedding=drawn.embedding + constant))


def write_start(config: ModelConfig, directory: Path) -> None:
    """Save them as a model that a run can begin from."""
    save_model(directory, config, starting_params(config), None, "float32")


def backward_pattern(distance: int, turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A query and a key whose rotated product is highest at `distance` tokens back; features are pairs in turn."""
    heights = np.where(np.arange(len(turns)) < NUM_FAST_PAIRS, 1.0, 0.0)
    query, key = np.zeros(2 * len(turns)), np.zeros(2 * len(turns))
    query[0::2], query[1::2] = heights * np.cos(distance * turns), -heights * np.sin(distance * turns)
    key[0::2] = heights
    return query, key


def _slow_features(turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features to compare the token at hand in, and those for the one farther back: of every speed each."""
    slow = np.flatnonzero(np.repeat(turns < SLOW_TURN, 2))
    mixed = slow[np.argsort(np.arange(len(slow)) // 2 % 2, kind="stable")]
    count = round(NEAR_SHARE * len(slow))
    return mixed[:count], mixed[count:]


def _widened(columns: np.ndarray, width: int) -> np.ndarray:
    return np.pad(columns, ((0, 0), (0, width - columns.shape[1])))
