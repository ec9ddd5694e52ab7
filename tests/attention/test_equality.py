"""Every context on every mesh and layout gives what dense attention on one device gives, and leaks nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.attention import AttentionConfig, AttentionMask, attention
from lwm.core import layout
from lwm.core.mesh import MeshShape, make_mesh

RING, ALL_TO_ALL = AttentionConfig("blockwise", "ring", 1, 10, 7), AttentionConfig("blockwise", "all_to_all", 1, 10, 7)
PAIRS, FOURS = AttentionConfig("blockwise", "hybrid", 2, 10, 7), AttentionConfig("blockwise", "hybrid", 4, 10, 7)
REFERENCE = AttentionConfig("reference")
MHA, GQA, MQA = (8, 8), (8, 2), (8, 1)


def slow(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


CASES = [
    ((1, 1, 1, 1), RING, MHA),
    ((1, 1, 1, 1), RING, GQA),
    slow((1, 1, 1, 2), RING, MHA),
    ((1, 1, 1, 2), RING, GQA),
    ((1, 1, 1, 4), RING, MHA),
    slow((1, 1, 1, 4), RING, GQA),
    slow((1, 1, 1, 8), RING, MHA),
    ((1, 1, 1, 8), RING, GQA),
    ((1, 1, 1, 2), ALL_TO_ALL, MHA),
    slow((1, 1, 1, 2), ALL_TO_ALL, GQA),
    slow((1, 1, 1, 4), ALL_TO_ALL, MHA),
    ((1, 1, 1, 4), ALL_TO_ALL, GQA),
    ((1, 1, 1, 8), ALL_TO_ALL, MHA),
    slow((1, 1, 1, 8), ALL_TO_ALL, GQA),
    slow((1, 1, 1, 8), ALL_TO_ALL, MQA),
    ((1, 1, 1, 4), PAIRS, MQA),
    slow((1, 1, 1, 4), PAIRS, MHA),
    slow((1, 1, 1, 8), PAIRS, MHA),
    ((1, 1, 1, 8), PAIRS, GQA),
    ((1, 1, 1, 8), FOURS, MHA),
    slow((1, 1, 1, 8), FOURS, GQA),
    slow((2, 1, 1, 1), RING, GQA),
    slow((1, 2, 2, 2), RING, MHA),
    ((1, 2, 2, 2), RING, GQA),
    ((2, 1, 2, 2), ALL_TO_ALL, GQA),
    slow((1, 1, 2, 4), PAIRS, GQA),
    ((1, 2, 2, 2), REFERENCE, GQA),
]


def name(value: object) -> str:
    return f"{value.kernel}-{value.context}" if isinstance(value, AttentionConfig) else "x".join(map(str, value))


each_case = pytest.mark.parametrize(("sizes", "config", "heads"), CASES, ids=name)


def orders(num_shards: int) -> list[np.ndarray]:
    length = 48
    shuffled = np.random.default_rng(0).permutation(length)
    return [layout.order("contiguous", length, num_shards), layout.order("zigzag", length, num_shards), shuffled]


def error(expected: np.ndarray, actual: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    return np.abs(actual - expected).max() / np.abs(expected).max()


@each_case
def test_equals_the_reference(problems, sizes, config, heads):
    qkvw = problems.arrays(*heads)
    dense, run = problems.runner((1, 1, 1, 1), REFERENCE), problems.runner(sizes, config)
    for documents in problems.documents.values():
        segments, positions = problems.pack(documents)
        expected = dense(qkvw, segments, positions)
        for order in orders(sizes[-1]):
            actual = problems.run_laid_out(run, qkvw, segments, positions, order)
            assert error(expected.out, actual.out) <= 2e-6
            for one, other in zip(expected[1:], actual[1:], strict=True):
                assert error(one, other) <= 1e-5
            for array in actual:
                assert (array[segments == 0] == 0).all()


@each_case
def test_a_change_in_one_document_moves_no_bit_of_another(problems, sizes, config, heads):
    qkvw, run = problems.arrays(*heads), problems.runner(sizes, config)
    segments, positions = problems.pack(problems.documents["uneven"])
    row, place = 0, 10
    inside = np.zeros(segments.shape, bool)
    inside[row] = segments[row] == segments[row, place]
    changed = tuple(array.at[row, place].add(3.0) for array in qkvw)
    for order in orders(sizes[-1]):
        before = problems.run_laid_out(run, qkvw, segments, positions, order)
        after = problems.run_laid_out(run, changed, segments, positions, order)
        for one, other in zip(before, after, strict=True):
            assert (one[inside] != other[inside]).any()
            np.testing.assert_array_equal(one[~inside], other[~inside])


@pytest.mark.parametrize(
    ("sizes", "config", "heads"),
    [((1, 1, 1, 1), RING, GQA), ((1, 1, 1, 4), RING, GQA), slow((1, 1, 1, 8), PAIRS, MQA)],
    ids=name,
)
def test_bfloat16_is_as_exact_as_bfloat16(problems, sizes, config, heads):
    rounded = problems.arrays(*heads, "bfloat16")
    segments, positions = problems.pack(problems.documents["uneven"])
    expected = problems.runner((1, 1, 1, 1), REFERENCE)(
        tuple(array.astype(jnp.float32) for array in rounded), segments, positions
    )
    actual = problems.runner(sizes, config)(rounded, segments, positions)
    for one, other in zip(expected, actual, strict=True):
        assert error(one, other) <= 2 * 2.0**-8


@pytest.mark.parametrize("config", [RING, ALL_TO_ALL, PAIRS], ids=name)
def test_lengths_that_no_device_count_divides(config):
    """50 queries and 37 keys on 8 devices: both are padded inside, and neither length nor result shows it."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, length, 8, 8)), jnp.float32) for length in (50, 37, 37))
    marks = [np.sort(rng.integers(0, 4, (2, 50))), rng.integers(0, 60, (2, 50))]
    marks += [np.sort(rng.integers(0, 4, (2, 37))), rng.integers(0, 60, (2, 37))]
    mask = AttentionMask(*(jnp.asarray(mark, jnp.int32) for mark in marks))

    def run(config: AttentionConfig) -> tuple:
        def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple:
            out = attention(q, k, v, mask, config)
            return jnp.sin(out).sum(), out

        (_, out), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
        return out, *gradients

    expected = run(REFERENCE)
    with jax.set_mesh(make_mesh(MeshShape(fsdp=1, sp=8))):
        actual = run(config)
    assert error(expected[0], actual[0]) <= 2e-6
    for one, other in zip(expected[1:], actual[1:], strict=True):
        assert one.shape == other.shape
        assert error(one, other) <= 1e-5
