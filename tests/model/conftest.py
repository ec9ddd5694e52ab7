"""A small model and a packed batch that the model tests share."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.attention import AttentionConfig
from lwm.core import params as parameters
from lwm.core.batch import Batch
from lwm.core.vocab import Vocab
from lwm.model.config import Compute, ModelConfig
from lwm.model.transformer import Transformer, declare

CONFIG = ModelConfig(
    vocab=Vocab(text_size=48, vision_size=16, num_codes=8, tokens_per_frame=4),
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_width=8,
    rope_theta=10_000.0,
)
COMPUTE = Compute(attention=AttentionConfig(query_block=8, key_block=8), ffn_chunk=8, loss_chunk=8, remat="none")


@pytest.fixture(scope="session")
def config() -> ModelConfig:
    return CONFIG


@pytest.fixture(scope="session")
def compute() -> Compute:
    return COMPUTE


@pytest.fixture(scope="session")
def tied() -> ModelConfig:
    return dataclasses.replace(CONFIG, tie_word_embeddings=True)


@pytest.fixture(scope="session")
def params() -> Transformer:
    return parameters.init(declare(CONFIG), jax.random.key(1), jnp.float32)


def packed_batch(lengths: list[int], num_tokens: int, rows: int, seed: int = 0) -> Batch:
    """Rows of documents of the given lengths, the rest padding, tokens of both modalities."""
    rng = np.random.default_rng(seed)
    segments = np.zeros(num_tokens, np.int32)
    positions = np.zeros(num_tokens, np.int32)
    start = 0
    for segment, length in enumerate(lengths, 1):
        segments[start : start + length] = segment
        positions[start : start + length] = np.arange(length)
        start += length
    draw = rng.integers(0, CONFIG.vocab.size, (2, rows, num_tokens)).astype(np.int32)
    weights = (segments > 0) * rng.uniform(0.1, 1.0, (rows, num_tokens))
    segments, positions = (np.broadcast_to(x, (rows, num_tokens)) for x in (segments, positions))
    arrays = (draw[0], draw[1], weights.astype(np.float32), segments, positions)
    return Batch(*(jnp.asarray(array) for array in arrays))


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    return packed_batch


@pytest.fixture(scope="session")
def batch() -> Batch:
    return packed_batch([21, 9, 1, 26], 64, 4)
