"""How likely a model finds an answer, without generating it: one forward pass over prompt and answer."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from lwm.core.batch import Batch
from lwm.core.mesh import axis_size, constrain
from lwm.infer.engine import Engine
from lwm.model.config import Compute, ModelConfig
from lwm.model.loss import token_losses
from lwm.model.transformer import Transformer

#: rows are padded to this many tokens or twice, four times, ... as many: few shapes to compile
LEAST_LENGTH = 64


def log_likelihoods(
    engine: Engine, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> Float32[np.ndarray, "n"]:
    """The logarithm of the probability that each answer follows its prompt, every id among those of its modality.

    Raises:
        ValueError: an empty prompt, or not an answer for each.
    """
    if not prompts or not all(prompts):
        raise ValueError("an empty prompt: there is nothing for an answer to follow")
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    with jax.set_mesh(engine.mesh):
        ways, shards = axis_size("batch"), axis_size("tokens")
        length = LEAST_LENGTH * shards
        while length < max(map(len, rows)):
            length *= 2
        batch = _padded(rows, [len(answer) for answer in answers], -(-len(rows) // ways) * ways, length)
        # Chunks in which nothing is learned are skipped, and answers are short.
        sums = _sums(engine.params, batch, engine.config, replace(engine.compute, loss_chunk=LEAST_LENGTH))
        return np.asarray(sums)[: len(rows)]


def _padded(rows: Sequence[Sequence[int]], learned: Sequence[int], num_rows: int, length: int) -> Batch:
    """A row for each, of which the last `learned` ids count."""
    ids, segments, weights = (np.zeros((num_rows, length + 1), kind) for kind in (np.int32, np.int32, np.float32))
    for place, (row, count) in enumerate(zip(rows, learned, strict=True)):
        ids[place, : len(row)], segments[place, : len(row)] = row, 1
        weights[place, len(row) - count : len(row)] = 1.0
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (num_rows, length))
    return Batch(ids[:, :-1], ids[:, 1:], weights[:, 1:], segments[:, :-1], positions)


@partial(jax.jit, static_argnames=("config", "compute"))
def _sums(params: Transformer, batch: Batch, config: ModelConfig, compute: Compute) -> Float[Array, "B"]:
    batch = jax.tree.map(lambda array: constrain(jnp.asarray(array), "batch", "tokens"), batch)
    each = token_losses(params, batch, config, compute)
    return constrain(-(each.weights * each.nll).sum(axis=1), None)
