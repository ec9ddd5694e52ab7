import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lwm.core.errors import UserError
from lwm.core.layout import Layout, inverse, order

LAYOUTS = st.sampled_from(["contiguous", "zigzag"])


def test_contiguous_leaves_the_order_alone() -> None:
    assert order("contiguous", 8, 2).tolist() == list(range(8))


def test_zigzag_pairs_an_early_chunk_with_a_late_one() -> None:
    assert order("zigzag", 8, 2).tolist() == [0, 1, 6, 7, 2, 3, 4, 5]
    assert order("zigzag", 8, 4).tolist() == [0, 7, 1, 6, 2, 5, 3, 4]
    assert order("zigzag", 6, 1).tolist() == list(range(6))


@given(LAYOUTS, st.integers(1, 8), st.integers(1, 5))
def test_every_layout_is_a_permutation_with_an_inverse(layout: Layout, shards: int, chunk: int) -> None:
    permutation = order(layout, 2 * shards * chunk, shards)
    natural = np.arange(2 * shards * chunk)
    np.testing.assert_array_equal(permutation[inverse(permutation)], natural)
    np.testing.assert_array_equal(inverse(permutation)[permutation], natural)


@given(st.integers(1, 8), st.integers(1, 5))
def test_zigzag_gives_every_shard_the_same_causal_work(shards: int, chunk: int) -> None:
    work = order("zigzag", 2 * shards * chunk, shards).reshape(shards, -1).sum(axis=1)
    assert np.all(work == work[0])


@pytest.mark.parametrize(("layout", "tokens", "chunks"), [("contiguous", 10, 4), ("zigzag", 12, 8)])
def test_a_length_the_layout_cannot_cut_is_refused(layout: Layout, tokens: int, chunks: int) -> None:
    with pytest.raises(UserError, match=f"sequence length {tokens} is not divisible by {chunks}, the {layout}"):
        order(layout, tokens, 4)
