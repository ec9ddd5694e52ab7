import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lwm.core.errors import UserError
from lwm.data.examples import Example
from lwm.data.packing import Packing, cut, fill, place

lengths_and_capacity = st.integers(1, 40).flatmap(
    lambda capacity: st.tuples(st.lists(st.integers(1, capacity), max_size=60), st.just(capacity))
)


@st.composite
def examples(draw):
    """Examples of unlike lengths and scales of weight, whose learned ids are the odd ones."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    made = []
    for number, length in enumerate(draw(st.lists(st.integers(0, 40), min_size=1, max_size=12))):
        ids = rng.integers(0, 100, length, np.int32)
        weights = (ids % 2) * rng.choice(np.array([0.03, 0.5, 1, 4], np.float32), length)
        made.append(Example(ids, weights.astype(np.float32), str(number)))
    return made


def pack(made, packing):
    pieces = [piece for example in made for piece in cut(example, packing)]
    rows = place([len(piece.tokens) for piece in pieces], packing.seq_len)
    return fill([[pieces[index] for index in row] for row in rows], packing.seq_len), pieces


def test_the_worked_example():
    """The drawing in the module's docstring, array by array."""
    first = Example(np.array([1, 2, 3, 4, 5], np.int32), np.array([0, 0, 0, 1, 1], np.float32), "first")
    second = Example(np.array([6, 7, 8], np.int32), np.array([1, 3, 3], np.float32), "second")
    third = Example(np.array([9, 10, 11, 12], np.int32), np.array([0, 0, 0, 0.2], np.float32), "third")
    (pieces,) = zip(*(cut(example, Packing(12)) for example in (first, second, third)), strict=True)
    batch = fill([pieces], 12)
    assert batch.tokens.tolist() == [[1, 2, 3, 4, 6, 7, 9, 10, 11, 0, 0, 0]]
    assert batch.targets.tolist() == [[2, 3, 4, 5, 7, 8, 10, 11, 12, 0, 0, 0]]
    assert batch.loss_weights.tolist() == [[0, 0, 0.5, 0.5, 0.5, 0.5, 0, 0, 1, 0, 0, 0]]
    assert batch.segment_ids.tolist() == [[1, 1, 1, 1, 2, 2, 3, 3, 3, 0, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 1, 0, 1, 2, 0, 0, 0]]
    assert all(array.dtype == np.int32 for array in (batch.tokens, batch.targets, batch.segment_ids, batch.positions))
    assert batch.loss_weights.dtype == np.float32


@given(lengths_and_capacity)
def test_every_item_is_placed_once_and_no_two_bins_could_be_one(case):
    lengths, capacity = case
    bins = place(lengths, capacity)
    assert sorted(item for items in bins for item in items) == list(range(len(lengths)))
    assert all(items == sorted(items) for items in bins)
    loads = sorted(sum(lengths[item] for item in items) for items in bins)
    assert all(load <= capacity for load in loads)
    assert len(loads) < 2 or loads[0] + loads[1] > capacity


def test_a_row_is_nearly_full():
    lengths = np.random.default_rng(0).integers(1, 4097, 4000).tolist()
    assert sum(lengths) / (8192 * len(place(lengths, 8192))) > 0.99


@given(examples(), st.integers(1, 32))
def test_splitting_keeps_every_pair_once_in_order_with_its_own_weight(made, seq_len):
    for example in made:
        pieces = cut(example, Packing(seq_len, weighting="tokens"))
        assert all(1 <= len(piece.tokens) <= seq_len for piece in pieces)
        if len(example.tokens) < 2:
            assert not pieces
            continue
        assert np.concatenate([piece.tokens for piece in pieces]).tolist() == example.tokens[:-1].tolist()
        assert np.concatenate([piece.targets for piece in pieces]).tolist() == example.tokens[1:].tolist()
        assert np.concatenate([piece.loss_weights for piece in pieces]).tolist() == example.loss_weights[1:].tolist()


@given(examples(), st.integers(1, 32))
def test_long_examples_are_dropped_or_truncated_by_choice(made, seq_len):
    for example in made:
        whole = cut(example, Packing(seq_len))
        fits = len(example.tokens) - 1 <= seq_len
        dropped = cut(example, Packing(seq_len, long_documents="drop"))
        truncated = cut(example, Packing(seq_len, long_documents="truncate"))
        assert len(dropped) == (len(whole) if fits else 0)
        assert [piece.targets.tolist() for piece in truncated] == [piece.targets.tolist() for piece in whole[:1]]


@given(examples(), st.integers(1, 32))
def test_segments_are_examples_positions_restart_and_weights_sum_to_one(made, seq_len):
    batch, pieces = pack(made, Packing(seq_len))
    seen = []
    for row in range(len(batch.tokens)):
        segments = batch.segment_ids[row]
        used = segments[segments > 0]
        assert (segments[len(used) :] == 0).all()
        assert used.tolist() == sorted(used)
        assert set(used.tolist()) == set(range(1, len(set(used.tolist())) + 1))
        assert not batch.loss_weights[row][segments == 0].any()
        for segment in set(used.tolist()):
            inside = segments == segment
            assert batch.positions[row][inside].tolist() == list(range(inside.sum()))
            tokens, targets = batch.tokens[row][inside], batch.targets[row][inside]
            assert targets[:-1].tolist() == tokens[1:].tolist(), "a target must be of the same example"
            weights = batch.loss_weights[row][inside]
            assert ((weights > 0) == (targets % 2 == 1)).all(), "the weight must be the target's own"
            assert weights.sum() == pytest.approx(1 if (targets % 2).any() else 0, abs=1e-5)
            seen.append((tokens.tolist(), targets.tolist()))
    assert sorted(seen) == sorted((piece.tokens.tolist(), piece.targets.tolist()) for piece in pieces)


@given(examples(), st.integers(1, 32), st.integers(0, 2**32 - 1))
def test_packed_loss_is_the_padded_mean_over_examples(made, seq_len, seed):
    nll = np.random.default_rng(seed).exponential(size=(100, 100))  # of a target after a token
    batch, _ = pack(made, Packing(seq_len))
    packed_losses = nll[batch.tokens, batch.targets]
    weight = batch.loss_weights.sum(dtype=np.float64)
    means = []
    for example in made:
        for start in range(0, len(example.tokens) - 1, seq_len):
            ids = example.tokens[start : start + seq_len + 1]
            weights = example.loss_weights[start + 1 : start + seq_len + 1].astype(np.float64)
            if weights.sum() > 0:
                means.append((weights * nll[ids[:-1], ids[1:]]).sum() / weights.sum())
    assert weight == pytest.approx(len(means), rel=1e-5)
    if means:
        assert (batch.loss_weights * packed_losses).sum() / weight == pytest.approx(np.mean(means), rel=1e-5)


def test_positions_that_skip_stay_so_and_start_at_zero_in_each_piece():
    places = np.array([5, 6, 9, 20, 21, 30], np.int32)
    example = Example(np.arange(6, dtype=np.int32), np.ones(6, np.float32), "skips", places)
    batch = fill([cut(example, Packing(3))], 6)
    assert batch.positions.tolist() == [[0, 1, 4, 0, 1, 0]]
    assert batch.segment_ids.tolist() == [[1, 1, 1, 2, 2, 0]]


def test_positions_that_do_not_rise_are_refused():
    with pytest.raises(UserError, match="here:1: positions must rise"):
        Example(np.zeros(3, np.int32), np.ones(3, np.float32), "here:1", np.array([0, 2, 2], np.int32))


@given(examples(), st.integers(1, 32))
def test_weighting_tokens_leaves_weights_as_given(made, seq_len):
    batch, _ = pack(made, Packing(seq_len, weighting="tokens"))
    given_weight = sum(example.loss_weights[1:].sum(dtype=np.float64) for example in made)
    assert batch.loss_weights.sum(dtype=np.float64) == pytest.approx(given_weight)


@pytest.mark.parametrize("sizes", [{"seq_len": 0}, {"seq_len": 8, "lookahead": 0}])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(UserError, match="at least 1"):
        Packing(**sizes)


def test_rows_of_short_examples_hold_every_kind_as_often_as_the_data():
    rng = np.random.default_rng(0)
    lengths = rng.choice([60, 130, 800], size=2000, p=[0.5, 0.47, 0.03])
    rows = place(lengths.tolist(), 8192)
    shares = [np.mean(lengths[row] == 60) for row in rows[:-1]]
    assert min(shares) > 0.2 and max(shares) < 0.8
    assert len(rows) == -(-lengths.sum() // 8192)
