from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lwm.data.shuffle import fold, shuffled_index


@given(st.integers(1, 70), st.integers(0, 2**64 - 1))
def test_it_is_a_permutation(length, key):
    assert sorted(shuffled_index(index, length, key) for index in range(length)) == list(range(length))


@given(st.integers(2**30, 2**60), st.integers(0, 2**64 - 1))
def test_large_lengths_stay_in_range(length, key):
    assert 0 <= shuffled_index(length - 1, length, key) < length


def test_every_order_of_three_is_about_as_frequent():
    orders = Counter(tuple(shuffled_index(index, 3, fold(0, key)) for index in range(3)) for key in range(600))
    assert len(orders) == 6
    assert max(abs(count - 100) for count in orders.values()) < 40


def test_neighbours_do_not_stay_neighbours():
    order = np.array([shuffled_index(index, 400, fold(1, 0)) for index in range(400)])
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.15
    assert np.mean(np.abs(np.diff(order))) == pytest.approx(400 / 3, rel=0.15)


def test_the_order_never_changes():
    """A run resumed with a later version must go on in the order it began with."""
    assert [shuffled_index(index, 10, fold(7, 0)) for index in range(10)] == [7, 1, 5, 2, 4, 3, 6, 0, 8, 9]
    assert fold(1, 2) != fold(2, 1)
