import logging

import numpy as np
import pytest

from lwm.core.errors import UserError
from lwm.core.vocab import Vocab
from lwm.data.examples import Encoder, RecordData, nth
from lwm.data.fields import BOS, EOS, Part, parse_fields
from lwm.data.mixture import MixedData
from lwm.data.packing import Packing, cut
from lwm.data.positions import MAX_SKIPS
from lwm.data.records import BadRecordError, Record

#: four codes a frame, behind the bytes and the two special ids
VOCAB = Vocab(text_size=258, vision_size=12, num_codes=10, tokens_per_frame=4, bos_id=256, eos_id=257)
CHAT = {"system": "Hi.", "prompt": "2+2?", "answer": "4!"}


def spelled(example, tokenizer):
    """Characters of the example: learned ones in capitals' place, marked by a following underscore."""
    marks = {tokenizer.bos_id: "<", tokenizer.eos_id: ">"}
    return "".join(
        marks.get(token_id, chr(token_id)) + ("_" if weight else "")
        for token_id, weight in zip(example.tokens.tolist(), example.loss_weights.tolist(), strict=True)
    )


def encode(tokenizer, fields, **options):
    return Encoder(tokenizer, (parse_fields(fields),), **options).encode(Record("r:1", CHAT), 0)


@pytest.mark.parametrize(
    ("fields", "options", "expected"),
    [
        ("answer", {}, "<4_!_>_"),
        ("[prompt],answer", {}, "<2+2?4_!_>_"),
        ("[system+prompt],answer", {}, "<Hi. 2+2?4_!_>_"),
        ("[system+prompt],answer", {"separator": "|"}, "<Hi.|2+2?4_!_>_"),
        (" [system + prompt] , answer ", {}, "<Hi. 2+2?4_!_>_"),
        ("[prompt],answer", {"add_bos": False, "add_eos": False}, "2+2?4_!_"),
        ("[<|bos|>],[prompt],answer,[<|eos|>]", {}, "<2+2?4_!_>"),
        ("[prompt],answer,<|eos|>,[system]", {"add_eos": False}, "<2+2?4_!_>_Hi."),
        ("prompt,[answer]", {}, "<2_+_2_?_4!>_"),
    ],
)
def test_the_grammar(fields, options, expected, byte_tokenizer):
    assert spelled(encode(byte_tokenizer, fields, **options), byte_tokenizer) == expected


def test_the_grammar_parses_into_parts():
    assert parse_fields("[a+b],c,<|eos|>") == (Part(("a", "b"), False), Part(("c",), True), Part((EOS,), True))
    assert parse_fields("<|bos|>")[0].names == (BOS,)


@pytest.mark.parametrize("fields", ["", "a,,b", "a+", "[a", "a]", "[a,b]", "[]", "[<|bos|>+a]", "a+<|eos|>"])
def test_malformed_fields_are_refused(fields):
    with pytest.raises(UserError, match="fields"):
        parse_fields(fields)


def test_a_truncated_record_keeps_its_mask_aligned(byte_tokenizer):
    """LWM's mask slips by one where a record is cut; every cut must leave each target its own weight."""
    whole = encode(byte_tokenizer, "[prompt],answer,[system],prompt")
    learned = dict(enumerate(whole.loss_weights > 0))
    for seq_len in range(1, len(whole.tokens) + 1):
        for long_documents in ("split", "truncate"):
            packing = Packing(seq_len, weighting="tokens", long_documents=long_documents)
            place = 0
            for piece in cut(whole, packing):
                for token, target, weight in zip(piece.tokens, piece.targets, piece.loss_weights, strict=True):
                    assert (token, target) == (whole.tokens[place], whole.tokens[place + 1])
                    assert (weight > 0) == learned[place + 1]
                    place += 1


def test_a_tokenizer_without_special_tokens(byte_tokenizer):
    byte_tokenizer.bos_id = byte_tokenizer.eos_id = None
    assert encode(byte_tokenizer, "answer").tokens.tolist() == list(b"4!")
    with pytest.raises(UserError, match=r"<\|eos\|>, which this tokenizer does not have"):
        encode(byte_tokenizer, "answer,<|eos|>")


def test_orders_are_drawn_by_seed_and_index_alone(byte_tokenizer):
    orders = (parse_fields("prompt"), parse_fields("answer"), parse_fields("system"))

    def drawn(seed):
        encoder = Encoder(byte_tokenizer, orders, seed=seed)
        return [encoder.encode(Record("r", CHAT), index).tokens.tobytes() for index in range(200)]

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    counts = np.unique(drawn(0), return_counts=True)[1]
    assert len(counts) == 3
    assert counts.min() > 40


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "field 'answer' is null, not text"),
        (["4"], "field 'answer' is list, not text"),
        (True, "field 'answer' is bool, not text"),
        (float("nan"), "field 'answer' is nan, neither text nor a number"),
        (float("inf"), "field 'answer' is inf, neither text nor a number"),
    ],
)
def test_a_field_that_is_not_text_is_a_bad_record(value, reason, byte_tokenizer):
    encoder = Encoder(byte_tokenizer, (parse_fields("[prompt],answer"),))
    with pytest.raises(BadRecordError, match=reason):
        encoder.encode(Record("r:1", {**CHAT, "answer": value}), 0)


def test_half_a_character_is_a_bad_record(byte_tokenizer):
    encoder = Encoder(byte_tokenizer, (parse_fields("answer"),))
    with pytest.raises(BadRecordError, match="not valid Unicode"):
        encoder.encode(Record("r:1", {"answer": "\ud800"}), 0)


def test_numbers_are_read_as_text(byte_tokenizer):
    encoder = Encoder(byte_tokenizer, (parse_fields("answer"),))
    assert bytes(encoder.encode(Record("r:1", {"answer": 42}), 0).tokens[1:-1].tolist()) == b"42"


def test_malformed_records_are_counted_named_and_skipped_up_to_a_limit(write_jsonl, byte_tokenizer, caplog):
    file = write_jsonl(CHAT, "{broken", {"prompt": "no answer"}, CHAT, "[]")
    source = RecordData(str(file), "[prompt],answer", max_bad_records=2).open(byte_tokenizer, VOCAB)
    with caplog.at_level(logging.WARNING, "lwm.data"):
        assert source[0] is not None
        assert [source[index] for index in (1, 2, 1, 1)] == [None] * 4
        assert source[3] is not None
    assert list(source.bad_records.reasons) == ["records.jsonl:2", "records.jsonl:3"]
    assert len(caplog.messages) == 2
    assert "skipped records.jsonl:3: no field 'answer'; it has prompt" in caplog.messages
    with pytest.raises(UserError, match=r"max_bad_records=2 .*jsonl:2: not JSON.*jsonl:3: no field"):
        source[4]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_field_that_no_record_has_is_refused_at_once(streaming, write_jsonl, byte_tokenizer):
    file = write_jsonl(*[CHAT] * 20)
    with pytest.raises(UserError, match=r"no field 'anwser' in the first 16 records; they have answer, prompt, system"):
        RecordData(str(file), "[prompt],anwser", streaming=streaming).open(byte_tokenizer, VOCAB)


def test_without_a_path_nothing_is_read(write_jsonl, byte_tokenizer, tmp_path, monkeypatch):
    write_jsonl(CHAT)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no records are named.*--data\.path"):
        RecordData("", fields="answer").open(byte_tokenizer, VOCAB)


def test_records_of_which_none_can_be_used_are_refused_with_the_first(write_jsonl, byte_tokenizer):
    examples = RecordData(str(write_jsonl("{broken", "[]", {"text": None}))).open(byte_tokenizer, VOCAB)
    assert (examples[2], examples[1], examples[2]) == (None, None, None)
    with pytest.raises(UserError, match=r"all records cannot be used, first records\.jsonl:3: field 'text' is null"):
        examples[0]


def test_one_order_may_be_given_as_one_string(write_jsonl, byte_tokenizer):
    file = write_jsonl(CHAT)
    one = RecordData(str(file), "[prompt],answer").open(byte_tokenizer, VOCAB)[0]
    listed = RecordData(str(file), ("[prompt],answer",)).open(byte_tokenizer, VOCAB)[0]
    assert one.tokens.tolist() == listed.tokens.tolist()


def test_each_epoch_draws_the_order_of_a_record_anew(write_jsonl, byte_tokenizer):
    path = write_jsonl({"one": "x", "two": "yy"}, {"one": "z", "two": "ww"})
    data = RecordData(str(path), fields=("one", "two"), add_bos=False, add_eos=False)
    source = data.open(byte_tokenizer, VOCAB)
    drawn = [source.of_epoch(epoch, 1).tokens.tolist() for epoch in range(20)]
    assert {tuple(tokens) for tokens in drawn} == {(*b"z",), (*b"ww",)}
    assert [source.of_epoch(epoch, 1).tokens.tolist() for epoch in range(20)] == drawn
    assert source[1].tokens.tolist() == drawn[0] == nth(source, 1).tokens.tolist()
    assert [nth(source, 1 + 2 * epoch).tokens.tolist() for epoch in range(20)] == drawn
    mixed = MixedData((data,), (1.0,)).open(byte_tokenizer, VOCAB)
    assert [mixed[1 + 2 * epoch].tokens.tolist() for epoch in range(20)] == drawn
    assert mixed.of_epoch(3, 5).tokens.tolist() == mixed[3 * len(mixed) + 5].tokens.tolist()


def test_positions_skip_where_text_is_read(write_jsonl, byte_tokenizer):
    """Distances up to the span, differently in each epoch, and answers whole."""
    path = write_jsonl({"text": "x" * 200, "answer": "y" * 20})
    plain = RecordData(str(path), "[text],answer").open(byte_tokenizer, VOCAB)
    skipping = RecordData(str(path), "[text],answer", span=4000).open(byte_tokenizer, VOCAB)
    examples = [skipping.of_epoch(epoch, 0) for epoch in range(100)]
    assert plain[0].positions is None
    for example in examples:
        assert example.tokens.tolist() == plain[0].tokens.tolist()
        steps = np.diff(example.positions)
        assert steps.min() == 1 and (steps > 1).sum() <= MAX_SKIPS
        assert (example.loss_weights[1:][steps > 1] == 0).all(), "an answer is torn apart"
    reached = [example.positions[-1] for example in examples]
    assert 220 < min(reached) < 400 and 3000 < max(reached) < 4000
    assert examples[7].positions.tolist() == skipping.of_epoch(7, 0).positions.tolist()


def test_of_what_is_learned_whole_any_place_may_skip(write_jsonl, byte_tokenizer):
    source = RecordData(str(write_jsonl({"text": "x" * 200})), span=4000).open(byte_tokenizer, VOCAB)
    assert max(source.of_epoch(epoch, 0).positions[-1] for epoch in range(50)) > 1000
    short = RecordData(str(write_jsonl({"text": "x" * 200})), span=100).open(byte_tokenizer, VOCAB)
    assert short[0].positions.tolist() == list(range(202))
    with pytest.raises(UserError, match="span -1"):
        RecordData("any.jsonl", span=-1).open(byte_tokenizer, VOCAB)
