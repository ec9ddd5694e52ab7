"""Problems the attention tests share: documents laid out in every awkward way, and one way to run them."""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.attention import AttentionConfig, AttentionMask, attention
from lwm.core import layout
from lwm.core.mesh import MeshShape, make_mesh

BATCH, LENGTH, WIDTH = 2, 48, 8
DOCUMENTS = {
    "one": [[48], [48]],
    "uneven": [[1, 17, 5, 2, 14, 9], [30, 18]],
    "padding": [[7, 11, 3], []],
}


class Result(NamedTuple):
    out: np.ndarray
    dq: np.ndarray
    dk: np.ndarray
    dv: np.ndarray


def pack(documents: list[list[int]], length: int = LENGTH) -> tuple[np.ndarray, np.ndarray]:
    """Segment ids and positions of rows of documents of these lengths; the rest is padding."""
    segments, positions = np.zeros((2, len(documents), length), np.int32)
    for row, lengths in enumerate(documents):
        ends = np.cumsum([0, *lengths])
        for number, (start, end) in enumerate(pairwise(ends), 1):
            segments[row, start:end], positions[row, start:end] = number, np.arange(end - start)
    return segments, positions


@cache
def arrays(num_heads: int, num_kv_heads: int, dtype: str = "float32") -> tuple[jax.Array, ...]:
    """q, k, v and the weights of a scalar loss."""
    rng = np.random.default_rng(num_heads + num_kv_heads)
    heads = num_heads, num_kv_heads, num_kv_heads, num_heads
    return tuple(jnp.asarray(rng.normal(size=(BATCH, LENGTH, n, WIDTH)), dtype) for n in heads)


@cache
def runner(sizes: tuple[int, ...], config: AttentionConfig) -> Callable[..., Result]:
    """Output and three gradients on a mesh of these sizes, compiled once for all data of a shape."""
    mesh = make_mesh(MeshShape(*sizes), jax.devices()[: int(np.prod(sizes))])

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, weights: jax.Array, mask: AttentionMask) -> tuple:
        out = attention(q, k, v, mask, config)
        return (out * weights).astype(jnp.float32).sum(), out

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))

    def run(qkvw: tuple, segments: np.ndarray, positions: np.ndarray) -> Result:
        with jax.set_mesh(mesh):
            mask = AttentionMask.self_attention(jnp.asarray(segments), jnp.asarray(positions))
            (_, out), gradients = step(*qkvw, mask)
        return Result(*(np.asarray(array, np.float32) for array in (out, *gradients)))

    return run


def run_laid_out(run: Callable, qkvw: tuple, segments: np.ndarray, positions: np.ndarray, order: np.ndarray) -> Result:
    """`run` with the tokens in another order along T; the results are put back."""
    result = run(tuple(array[:, order] for array in qkvw), segments[:, order], positions[:, order])
    return Result(*(array[:, layout.inverse(order)] for array in result))


@pytest.fixture(scope="session")
def problems() -> SimpleNamespace:
    """The names above, for test modules, which cannot import one another."""
    return SimpleNamespace(documents=DOCUMENTS, pack=pack, arrays=arrays, runner=runner, run_laid_out=run_laid_out)
