"""The kernel by itself: queries and keys of different lengths, its log-sum-exp, and what it never reads."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.attention import AttentionConfig, AttentionMask, blockwise, reference
from lwm.attention.merge import NOTHING, merge

CONFIG = AttentionConfig(query_block=8, key_block=16)
attend = jax.jit(partial(blockwise.attend, config=CONFIG))


def draw(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


def cache_mask(problems, num_queries: int, used: list[int], capacity: int) -> AttentionMask:
    """Each row's last `num_queries` tokens look into a cache that holds `used` tokens."""
    segments, positions = problems.pack([[length] for length in used], capacity)
    ends = np.array(used, np.int32)[:, None] - num_queries + np.arange(num_queries, dtype=np.int32)
    return AttentionMask(*map(jnp.asarray, (np.ones_like(ends), ends, segments, positions)))


@pytest.mark.parametrize("num_queries", [1, 13])
def test_chunks_of_queries_read_a_mostly_empty_cache(problems, num_queries):
    mask = cache_mask(problems, num_queries, [13, 31], 100)
    q, k, v = draw(2, num_queries, 4, 8), draw(2, 100, 2, 8), draw(2, 100, 2, 8)
    for expected, actual in zip(reference.attend(q, k, v, mask), attend(q, k, v, mask), strict=True):
        np.testing.assert_allclose(actual, expected, atol=2e-6)


def test_empty_blocks_are_never_read(problems):
    mask = cache_mask(problems, 1, [13, 31], 100)
    q, k, v = draw(2, 1, 4, 8), draw(2, 100, 2, 8), draw(2, 100, 2, 8)
    out, _ = attend(q, k, v, mask)
    poisoned, _ = attend(q, k.at[:, 32:].set(jnp.nan), v.at[:, 32:].set(jnp.nan), mask)
    np.testing.assert_array_equal(out, poisoned)


def test_gradients_flow_through_log_sum_exp(problems):
    segments, positions = problems.pack([[7, 11, 3]], 48)
    mask = AttentionMask.self_attention(jnp.asarray(segments), jnp.asarray(positions))
    arrays = draw(1, 48, 4, 8), draw(1, 48, 2, 8), draw(1, 48, 2, 8)

    def gradients(attend):
        return jax.jit(jax.grad(lambda *arrays: jnp.sin(attend(*arrays, mask)[1]).sum(), argnums=(0, 1, 2)))(*arrays)

    for expected, actual in zip(gradients(reference.attend), gradients(attend), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_parts_merge_into_the_whole(problems):
    segments, positions = problems.pack([[48], [20]], 48)
    mask = AttentionMask.self_attention(jnp.asarray(segments), jnp.asarray(positions))
    q, k, v = draw(2, 48, 4, 8), draw(2, 48, 2, 8), draw(2, 48, 2, 8)

    def part(keys: slice) -> tuple:
        seen = mask._replace(key_segment_ids=mask.key_segment_ids[:, keys], key_positions=mask.key_positions[:, keys])
        return reference.attend(q, k[:, keys], v[:, keys], seen)

    whole, merged = reference.attend(q, k, v, mask), merge(*part(slice(0, 30)), *part(slice(30, 48)))
    for expected, actual in zip(whole, merged, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-6)
    assert (merged[0][1, 20:] == 0).all()
    assert (merged[1][1, 20:] == NOTHING).all()


def test_scores_of_any_size_stay_finite(problems):
    segments, positions = problems.pack([[48]], 48)
    mask = AttentionMask.self_attention(jnp.asarray(segments), jnp.asarray(positions))
    q, k, v = 1e4 * draw(1, 48, 4, 8), 1e4 * draw(1, 48, 2, 8), draw(1, 48, 2, 8)
    expected, actual = reference.attend(q, k, v, mask), attend(q, k, v, mask)
    np.testing.assert_allclose(actual[0], expected[0], atol=2e-6)
    assert np.isfinite(actual[1]).all()
