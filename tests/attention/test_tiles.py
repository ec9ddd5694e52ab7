"""The predicate that decides which tiles are computed: never wrong, and worth having."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lwm.attention import AttentionMask, tiles

LENGTH = 12
marks = arrays.arrays(np.int32, (4, 2, LENGTH), elements=st.integers(0, 3))


@partial(jax.jit, static_argnums=(1, 2))
def table(mask: AttentionMask, query_size: int, key_size: int) -> jax.Array:
    queries = tiles.cut(mask.query_segment_ids, mask.query_positions, query_size)
    return tiles.table(queries, tiles.cut(mask.key_segment_ids, mask.key_positions, key_size))


@given(marks, st.sampled_from([(12, 5), (3, 4), (5, 1), (7, 7)]))
@settings(deadline=None, max_examples=200, derandomize=True)
def test_no_tile_is_wrongly_empty_or_full(values, sizes):
    mask = AttentionMask(*jnp.asarray(values))
    kinds, dense = np.asarray(table(mask, *sizes)), np.asarray(mask.dense())
    query_starts, key_starts = (tiles.starts(LENGTH, size) for size in sizes)
    for (row, column), kind in np.ndenumerate(kinds):
        start, other = query_starts[row], key_starts[column]
        tile = dense[:, start : start + sizes[0], other : other + sizes[1]]
        if kind == tiles.FULL:
            assert tile.all()
        if kind == tiles.EMPTY:
            # what the last block shares with its neighbour is the neighbour's
            own_rows, own_columns = row * sizes[0] - start, column * sizes[1] - other
            assert not tile[:, own_rows:, own_columns:].any()


def counts(segments: np.ndarray, positions: np.ndarray, size: int) -> dict[int, int]:
    mask = AttentionMask.self_attention(jnp.asarray(segments), jnp.asarray(positions))
    kinds, numbers = np.unique(np.asarray(table(mask, size, size)), return_counts=True)
    return dict(zip(kinds.tolist(), numbers.tolist(), strict=True))


def test_causal_order_leaves_half_of_the_tiles(problems):
    segments, positions = problems.pack([[512]], 512)
    assert counts(segments, positions, 32) == {tiles.EMPTY: 120, tiles.FULL: 120, tiles.PARTIAL: 16}


def test_packed_documents_leave_few_tiles(problems):
    segments, positions = problems.pack([[64] * 8], 512)
    assert counts(segments, positions, 32) == {tiles.EMPTY: 256 - 8 * 3, tiles.FULL: 8, tiles.PARTIAL: 16}


def test_documents_that_fit_no_block_leave_few_tiles(problems):
    lengths = np.random.default_rng(0).multinomial(512, np.ones(9) / 9).tolist()
    segments, positions = problems.pack([lengths], 512)
    assert counts(segments, positions, 32)[tiles.EMPTY] > 0.75 * 256


def test_padding_leaves_no_tile(problems):
    segments, positions = problems.pack([[32], [32]], 512)
    assert counts(segments, positions, 32) == {tiles.EMPTY: 255, tiles.PARTIAL: 1}


@pytest.mark.parametrize(("length", "size"), [(12, 5), (5, 5), (5, 1)])
def test_blocks_hold_each_token_once(length, size):
    segments = jnp.arange(1, length + 1, dtype=jnp.int32)[None]
    blocks = tiles.cut(segments, segments, size)
    held = np.asarray(blocks.segment_ids).ravel()
    assert sorted(held[held > 0]) == list(range(1, length + 1))
