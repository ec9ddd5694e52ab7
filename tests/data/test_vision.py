"""Frames in records: the ids of LWM's form, both ways to write codes, and what is wrong said by name."""

import numpy as np
import pytest

from lwm.core.errors import UserError
from lwm.core.vocab import Vocab
from lwm.data.examples import Encoder, RecordData
from lwm.data.fields import parse_fields
from lwm.data.records import BadRecordError, Record
from lwm.data.vision import FrameIds, pack

VOCAB = Vocab(text_size=258, vision_size=12, num_codes=10, tokens_per_frame=4, bos_id=256, eos_id=257)
CODES = [5, 9, 2, 4, 7, 1, 1, 3]
EOF, EOV = 268, 269


@pytest.fixture
def encoder(byte_tokenizer):
    def make(fields, max_frames=0):
        return Encoder(byte_tokenizer, (parse_fields(fields),), frame_ids=FrameIds(VOCAB, byte_tokenizer, max_frames))

    return make


@pytest.mark.parametrize("codes", [CODES, pack(np.array(CODES))], ids=["list", "bytes"])
def test_frames_end_with_marks_and_stand_between_words(encoder, codes):
    values = {"ask": "What?", "vision": codes, "answer": "A dog."}
    example = encoder("[ask+vision],answer").encode(Record("r:1", values), 0)
    ids = example.tokens.tolist()
    frames = [263, 267, 260, 262, EOF, 265, 259, 259, 261, EOV]
    assert ids == [256, *b"What?<vision>", *frames, *b"</vision>A dog.", 257]
    learned = example.loss_weights.nonzero()[0]
    assert [ids[place] for place in learned] == [*b"A dog.", 257]


def test_what_goes_before_and_after_a_picture_is_learned_with_it(encoder):
    example = encoder("[ask],vision").encode(Record("r:1", {"ask": "Draw.", "vision": CODES[:4]}), 0)
    assert example.loss_weights.tolist() == [0.0] * 6 + [1.0] * (len("<vision>") + 5 + len("</vision>") + 1)


def test_long_videos_keep_frames_evenly(encoder):
    codes = np.repeat(np.arange(9), 4)
    example = encoder("vision", max_frames=3).encode(Record("r:1", {"vision": codes.tolist()}), 0)
    ids = example.tokens
    np.testing.assert_array_equal(ids[(ids >= 258) & (ids < 268)].reshape(-1, 4)[:, 0] - 258, [0, 4, 8])
    assert (ids == EOF).sum() == 2
    assert (ids == EOV).sum() == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2, 3], "3 codes, not whole frames of 4"),
        ([], "0 codes"),
        ([1, 2, 3, 10], "code 10: they go from 0 to 9"),
        ([1, 2, 3, -1], "code -1"),
        ([1, 2, 3, 2**40], "no codes"),
        ("1 2 3 4", "not a list of codes"),
        ([1, 2, 3, True], "not a list of codes"),
        (b"\0\0\0", "3 bytes"),
    ],
)
def test_what_is_not_frames_is_said(encoder, value, message):
    with pytest.raises(BadRecordError, match=message):
        encoder("vision").encode(Record("r:1", {"vision": value}), 0)


def test_a_text_model_has_no_place_for_pictures(byte_tokenizer, write_jsonl):
    file = write_jsonl({"vision": CODES})
    with pytest.raises(UserError, match="one of text alone"):
        RecordData(str(file), "vision").open(byte_tokenizer, Vocab(258))


def test_records_in_files_hold_either_form(byte_tokenizer, write_jsonl, tmp_path):
    import pyarrow
    from pyarrow import parquet

    listed = RecordData(str(write_jsonl({"vision": CODES})), "vision").open(byte_tokenizer, VOCAB)
    table = pyarrow.table({"vision": pyarrow.array([pack(np.array(CODES))], pyarrow.binary())})
    parquet.write_table(table, tmp_path / "records.parquet")
    packed = RecordData(str(tmp_path / "records.parquet"), "vision").open(byte_tokenizer, VOCAB)
    np.testing.assert_array_equal(listed[0].tokens, packed[0].tokens)


def test_codes_that_do_not_fit_are_not_packed():
    with pytest.raises(ValueError, match="65536"):
        pack(np.array([1 << 16]))
