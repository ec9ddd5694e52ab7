"""Every part has its share at any moment, is read in order and once, and the short ones again."""

from collections import Counter
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pytest

from lwm.core.errors import UserError
from lwm.core.vocab import Vocab
from lwm.data.examples import Example
from lwm.data.loader import Loader
from lwm.data.mixture import MixedData

VOCAB = Vocab(258)


@dataclass(frozen=True)
class Numbered:
    """Examples whose id tells part and number."""

    part: int
    count: int
    length: int = 5

    def open(self, tokenizer, vocab):
        return self

    @property
    def name(self):
        return f"part {self.part}"

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return Example(np.arange(self.length, dtype=np.int32), np.ones(self.length, np.float32), f"{self.part}/{index}")


def test_shares_hold_and_nothing_is_left_out(byte_tokenizer):
    parts = (Numbered(0, 16_800), Numbered(1, 1000), Numbered(2, 40))
    mixture = MixedData(parts, (0.84, 0.11, 0.05)).open(byte_tokenizer, VOCAB)
    assert len(mixture) == 20_000
    ids = [mixture[index].record_id for index in range(len(mixture))]
    parts = np.array([int(record_id[0]) for record_id in ids])
    for stop in (100, 500, 20_000):
        np.testing.assert_allclose(np.bincount(parts[:stop]) / stop, (0.84, 0.11, 0.05), atol=0.01)
    seen = Counter(ids)
    assert {seen[f"0/{index}"] for index in range(16_800)} == {1}
    assert {seen[f"1/{index}"] for index in range(1000)} == {2, 3}
    assert {seen[f"2/{index}"] for index in range(40)} == {25}
    assert mixture.name == "8400 of part 0 (16800) + 1100 of part 1 (1000) + 500 of part 2 (40)"


def test_shares_are_those_of_tokens(byte_tokenizer):
    mixture = MixedData((Numbered(0, 500, 8), Numbered(1, 500, 1000)), (0.84, 0.16)).open(byte_tokenizer, VOCAB)
    tokens = np.zeros(2)
    for index in range(10_000):
        example = mixture[index]
        tokens[int(example.record_id[0])] += len(example.tokens)
    np.testing.assert_allclose(tokens / tokens.sum(), (0.84, 0.16), atol=0.01)


def test_a_share_of_few_but_long_records_is_exact(byte_tokenizer):
    mixture = MixedData((Numbered(0, 500, 10), Numbered(1, 500, 6_000)), (0.75, 0.25)).open(byte_tokenizer, VOCAB)
    long = int(mixture.name.split(" + ")[1].split(" of ")[0])
    short = int(mixture.name.split(" of ")[0])
    np.testing.assert_allclose(6_000 * long / (6_000 * long + 10 * short), 0.25, rtol=0.01)
    assert max(len(mixture[index].tokens) for index in range(len(mixture) // long)) == 6_000


def test_the_loader_reads_a_mixture_and_resumes(byte_tokenizer):
    def loader():
        source = MixedData((Numbered(0, 50), Numbered(1, 50)), (1.0, 1.0)).open(byte_tokenizer, VOCAB)
        return Loader(source, batch_size=2, seq_len=16, seed=3)

    with closing(loader()) as straight:
        for _ in range(3):
            next(straight)
        state = straight.get_state()
        wanted = [next(straight)[1] for _ in range(4)]
    with closing(loader()) as again:
        again.set_state(state)
        assert [next(again)[1] for _ in range(4)] == wanted


@pytest.mark.parametrize(
    ("parts", "shares", "message"),
    [
        ((), (), "0 parts"),
        ((Numbered(0, 1),), (1.0, 2.0), "1 parts has 2 shares"),
        ((Numbered(0, 1), Numbered(1, 1)), (1.0, 0.0), "must be positive"),
        ((Numbered(0, 1), Numbered(1, 1)), (1.0, 1e-6), "the share of part 1 comes to one record in 1,000,001"),
        ((Numbered(0, 1), Numbered(1, 0)), (1.0, 1.0), "part 1 holds nothing to learn"),
        ((Numbered(0, 1), Numbered(1, 5, 0)), (1.0, 1.0), "part 1 holds nothing to learn: 5 of its records"),
    ],
)
def test_impossible_mixtures_are_refused(parts, shares, message, byte_tokenizer):
    with pytest.raises(UserError, match=message):
        MixedData(parts, shares).open(byte_tokenizer, VOCAB)
