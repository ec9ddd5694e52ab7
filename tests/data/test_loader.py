import gc
import itertools
import json
import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lwm.core import layout
from lwm.core.errors import UserError
from lwm.core.vocab import Vocab
from lwm.data.examples import RecordData
from lwm.data.loader import Loader, merge_states

SIZES = {"batch_size": 4, "seq_len": 32, "lookahead": 3, "seed": 7}


def lengths(count, seed=0):
    return np.random.default_rng(seed).integers(2, 50, count).tolist()


def assert_same(one, other):
    (batch, ids), (other_batch, other_ids) = one, other
    assert ids == other_ids
    for name in ("tokens", "targets", "loss_weights", "segment_ids", "positions"):
        assert getattr(batch, name).tobytes() == getattr(other_batch, name).tobytes(), name


def take(loader, count):
    return list(itertools.islice(loader, count))


def through_json(state):
    return json.loads(json.dumps(state))


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=30),
    batch_size=st.integers(1, 5),
    seq_len=st.integers(1, 24),
    shuffle=st.booleans(),
)
def test_one_pass_gives_every_pair_of_every_example_exactly_once(counts, batch_size, seq_len, shuffle, known_examples):
    source = known_examples(counts)
    loader = Loader(
        source, batch_size=batch_size, seq_len=seq_len, lookahead=2, repeat=False, shuffle=shuffle, prefetch=0
    )
    pairs = Counter()
    for batch, _ in loader:
        assert batch.tokens.shape == (batch_size, seq_len)
        used = batch.segment_ids > 0
        pairs.update(zip(batch.tokens[used].tolist(), batch.targets[used].tolist(), strict=True))
    expected = Counter((1000 * i + j, 1000 * i + j + 1) for i, count in enumerate(counts) for j in range(count - 1))
    assert pairs == expected


@given(num_records=st.integers(1, 20), batch_size=st.integers(1, 4), num_batches=st.integers(1, 12))
def test_a_row_reads_its_own_records_one_epoch_after_another(num_records, batch_size, num_batches, known_examples):
    loader = Loader(
        known_examples(lengths(num_records)), batch_size=batch_size, seq_len=64, lookahead=2, shuffle=False, prefetch=0
    )
    seen = [Counter() for _ in range(batch_size)]
    for _, ids in take(loader, num_batches):
        for row in range(batch_size):
            seen[row].update(ids[row])
    for row, state in loader.get_state()["sequences"].items():
        if state["given"] == 0:
            due = Counter(str(place % num_records) for place in range(int(row), state["start"], batch_size))
            assert seen[int(row)] == due


def test_epochs_are_permutations_unlike_each_other_and_unlike_other_seeds(known_examples):
    def epochs(seed):
        loader = Loader(known_examples([9] * 20), batch_size=1, seq_len=8, lookahead=1, seed=seed, prefetch=0)
        ids = [ids[0][0] for _, ids in take(loader, 60)]
        return [tuple(ids[start : start + 20]) for start in (0, 20, 40)]

    drawn = [epoch for seed in (0, 1) for epoch in epochs(seed)]
    assert len(set(drawn)) == 6
    assert all(sorted(epoch) == sorted(map(str, range(20))) for epoch in drawn)
    assert epochs(0) == epochs(0)


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("repeat", [True, False])
def test_resume_is_exact_after_every_batch(prefetch, repeat, known_examples):
    def open_loader(prefetch):
        source = known_examples(lengths(40), skipped=(3, 17))
        return Loader(source, **SIZES, prefetch=prefetch, repeat=repeat)

    loader = open_loader(prefetch)
    states, delivered = [loader.get_state()], []
    for delivery in itertools.islice(loader, 20):
        delivered.append(delivery)
        states.append(through_json(loader.get_state()))
    assert len(delivered) == 20 if repeat else 5 < len(delivered) < 20
    resumed = open_loader(prefetch)
    for place, state in reversed(list(enumerate(states))):
        resumed.set_state(state)
        for expected in delivered[place : place + 4]:
            assert_same(next(resumed), expected)
    if not repeat:
        resumed.set_state(states[-1])
        assert take(resumed, 1) == []
    loader.close()
    resumed.close()


def test_a_state_is_small(known_examples):
    loader = Loader(known_examples(lengths(1000)), batch_size=4, seq_len=256, lookahead=8, prefetch=0)
    take(loader, 3)
    state = loader.get_state()
    assert len(json.dumps(state["sequences"])) / 4 < 100


@pytest.mark.parametrize("owners", [[[0, 1], [2, 3]], [[3, 0], [1], [2]]])
@pytest.mark.parametrize("repeat", [True, False])
def test_batches_do_not_depend_on_who_owns_which_rows(owners, repeat, known_examples):
    def open_loader(rows=None):
        return Loader(known_examples(lengths(40)), **SIZES, rows=rows, repeat=repeat, prefetch=0)

    whole = open_loader()
    parts = [open_loader(rows) for rows in owners]
    for step in range(12):
        if step == 6:  # other owners take over, from the states of all
            state = merge_states([through_json(part.get_state()) for part in parts])
            assert state == through_json(whole.get_state())
            parts = [open_loader(rows) for rows in reversed(owners)]
            for part in parts:
                part.set_state(state)
            owners = owners[::-1]
        batches = [list(itertools.islice(loader, 1)) for loader in (whole, *parts)]
        if not batches[0]:
            assert not any(batches), "every process must stop at the same batch"
            assert not repeat
            break
        (batch, ids), *shares = (delivery for (delivery,) in batches)
        for rows, (share, share_ids) in zip(owners, shares, strict=True):
            assert share.tokens.tobytes() == batch.tokens[rows].tobytes()
            assert share.segment_ids.tobytes() == batch.segment_ids[rows].tobytes()
            assert share_ids == [ids[row] for row in rows]


def test_a_process_reads_only_the_records_of_its_rows(known_examples):
    loader = Loader(known_examples([20] * 40), **SIZES, rows=[1], shuffle=False, prefetch=0)
    read = {int(record_id) % 4 for _, ids in take(loader, 8) for row in ids for record_id in row}
    assert read == {1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 8}, "batch_size was 4, is now 8"),
        ({"seed": 8}, "seed was 7, is now 8"),
        ({"seq_len": 64}, "seq_len was 32, is now 64"),
        ({"weighting": "tokens"}, "weighting was 'examples', is now 'tokens'"),
        ({"shuffle": False}, "shuffle was True, is now False"),
    ],
)
def test_a_state_of_other_settings_is_refused(changes, message, known_examples):
    state = Loader(known_examples(lengths(9)), **SIZES).get_state()
    with pytest.raises(UserError, match=message):
        Loader(known_examples(lengths(9)), **{**SIZES, **changes}).set_state(state)


def test_a_state_of_other_data_or_of_too_few_rows_is_refused(known_examples):
    loader = Loader(known_examples(lengths(9)), **SIZES)
    with pytest.raises(UserError, match="records was 8, is now 9"):
        loader.set_state(Loader(known_examples(lengths(8)), **SIZES).get_state())
    with pytest.raises(UserError, match="source was 'other', is now 'known'"):
        loader.set_state(Loader(known_examples(lengths(9), name="other"), **SIZES).get_state())
    with pytest.raises(UserError, match=r"lacks batch rows \[0, 3\]"):
        loader.set_state(Loader(known_examples(lengths(9)), **SIZES, rows=[1, 2]).get_state())
    with pytest.raises(UserError, match="source was"):
        merge_states([loader.get_state(), Loader(known_examples(lengths(9), name="other"), **SIZES).get_state()])


def test_data_that_shrank_under_a_checkpoint_is_refused(known_examples):
    loader = Loader(known_examples([33] * 9), **SIZES, repeat=False, prefetch=0)
    take(loader, 2)
    resumed = Loader(known_examples([3] * 9), **SIZES, repeat=False, prefetch=0)
    resumed.set_state(loader.get_state())
    with pytest.raises(UserError, match="the data has changed since the checkpoint"):
        take(resumed, 1)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_what_reading_raises_reaches_the_consumer(prefetch, known_examples):
    class Failing(known_examples):
        def __getitem__(self, index):
            if index == 25:
                raise UserError("records.jsonl:26 is broken")
            return super().__getitem__(index)

    loader = Loader(Failing(lengths(40)), **SIZES, shuffle=False, prefetch=prefetch)
    with pytest.raises(UserError, match="jsonl:26"):
        take(loader, 100)
    if prefetch:
        with pytest.raises(UserError, match="jsonl:26"):
            next(loader)
    loader.close()


def test_the_thread_ends_with_the_loader(known_examples):
    def running():
        return [thread for thread in threading.enumerate() if thread.name == "lwm-loader"]

    loader = Loader(known_examples(lengths(40)), **SIZES)
    first = next(loader)
    assert running()
    loader.close()
    assert not running()
    second = next(loader)
    fresh = Loader(known_examples(lengths(40)), **SIZES, prefetch=0)
    assert_same(first, next(fresh))
    assert_same(second, next(fresh))
    (thread,) = running()
    del loader
    gc.collect()
    thread.join(timeout=10)
    assert not running()


def test_prefetch_is_bounded(known_examples):
    read = []

    class Counting(known_examples):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    loader = Loader(Counting([33] * 10), batch_size=1, seq_len=32, lookahead=1, prefetch=2)
    take(loader, 3)
    loader.close()
    assert 3 <= len(read) <= 3 + 2 + 1 + 2  # delivered, queued, in the making; each window looks one record ahead


def test_nothing_usable_is_an_error_not_an_endless_loop(known_examples):
    skipping = Loader(known_examples([5] * 3, skipped=range(3)), **SIZES)
    with pytest.raises(UserError, match="none of 1003 records in a row gave an example"):
        next(skipping)
    dropping = Loader(known_examples([50] * 3), **SIZES, long_documents="drop")
    with pytest.raises(UserError, match="longer than 32 tokens"):
        next(dropping)
    with pytest.raises(UserError, match="holds no records"):
        Loader(known_examples([]), **SIZES)
    assert list(Loader(known_examples([5] * 3, skipped=range(3)), **SIZES, repeat=False)) == []


@pytest.mark.parametrize("rows", [[], [4], [-1, 0]])
def test_rows_outside_the_batch_are_refused(rows, known_examples):
    with pytest.raises(UserError, match="rows from 0 to 3"):
        Loader(known_examples([5]), **SIZES, rows=rows)


def test_a_layout_permutes_tokens_with_their_positions(known_examples):
    order = layout.order("zigzag", 32, 4)
    plain = next(Loader(known_examples(lengths(40)), **SIZES, prefetch=0))
    zigzag = next(Loader(known_examples(lengths(40)), **SIZES, prefetch=0, order=order))
    assert_same((plain[0].permute(order), plain[1]), zigzag)
    assert zigzag[0].positions.tolist() != plain[0].positions.tolist()


def test_rows_are_nearly_full(known_examples):
    documents = np.random.default_rng(0).integers(1, 513, 2000).tolist()
    loader = Loader(known_examples(documents), batch_size=2, seq_len=1024, prefetch=0)
    filled = [np.count_nonzero(batch.segment_ids) / batch.segment_ids.size for batch, _ in take(loader, 128)]
    assert np.mean(filled) > 0.97


@pytest.mark.parametrize("repeat", [True, False])
def test_a_stream_resumes_exactly_and_is_the_same_for_every_owner(repeat, write_jsonl, byte_tokenizer):
    file = write_jsonl(*({"text": "x" * int(length)} for length in lengths(30)), '{"other": 1}', '{"text": "end"}')
    data = RecordData(str(file), streaming=True)

    def open_loader(rows=None, prefetch=0):
        source = data.open(byte_tokenizer, Vocab(258))
        return Loader(source, batch_size=2, seq_len=64, lookahead=2, rows=rows, repeat=repeat, prefetch=prefetch)

    loader = open_loader(prefetch=2)
    states, delivered = [loader.get_state()], []
    for delivery in itertools.islice(loader, 20):
        delivered.append(delivery)
        states.append(through_json(loader.get_state()))
    loader.close()
    assert len(delivered) == 20 if repeat else 5 < len(delivered) < 20
    resumed, second_row = open_loader(), open_loader(rows=[1])
    for place in range(0, len(states), 3):
        resumed.set_state(states[place])
        second_row.set_state(states[place])
        for batch, ids in delivered[place : place + 2]:
            assert_same(next(resumed), (batch, ids))
            share, share_ids = next(second_row)
            assert share.tokens.tobytes() == batch.tokens[1:].tobytes()
            assert share_ids == ids[1:]


def test_the_rows_of_a_window_come_in_an_order_of_their_own(known_examples):
    """Best-fit decreasing makes rows of long examples first: given out like that, every row would do so in step."""
    loader = Loader(known_examples([17] * 64), batch_size=2, seq_len=16, lookahead=8, shuffle=False, prefetch=0)
    ids = [[int(row[0]) // 2 % 8 for row in ids] for _, ids in take(loader, 16)]
    orders = {tuple(places[row] for places in ids[start : start + 8]) for row in (0, 1) for start in (0, 8)}
    assert len(orders) == 4
    assert all(sorted(order) == list(range(8)) for order in orders)
