import io

import pytest
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lwm.core.errors import UserError
from lwm.core.vocab import Vocab
from lwm.data.check import CheckConfig, check

#: a text model's
VOCAB = Vocab(text_size=512)


@pytest.fixture
def tokenizer_file(tmp_path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {token: number for number, token in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(tokens, []))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def rendered(report):
    console = Console(file=io.StringIO(), width=200)
    console.print(report)
    return console.file.getvalue()


def test_it_counts_lists_and_shows(write_jsonl, tokenizer_file):
    file = write_jsonl(
        {"prompt": "What? ", "answer": "This."},
        "{broken",
        {"prompt": "no answer"},
        {"prompt": "[b]", "answer": "x" * 400},
    )
    seen = []
    config = CheckConfig(str(file), fields=("[prompt],answer",), seq_len=512)
    report = check(config, tokenizer_file, VOCAB, lambda done, total: seen.append((done, total)))
    assert sorted(report.bad) == ["records.jsonl:2", "records.jsonl:3"]
    assert sorted(report.lengths) == [13, 405]
    assert report.num_learned == 6 + 401
    assert (report.num_rows, report.num_packed) == (1, 12 + 404)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    text = rendered(report)
    for expected in (
        "fields [prompt],answer",
        "<|bos|>What? ⟦This.<|eos|>⟧",
        "<|bos|>[b]⟦xxx",
        "records.jsonl:3 │ no field 'answer'; it has prompt",
        "row 1: 2 segments, 416 of 512 tokens",
        "81.2%",
    ):
        assert expected in text, text
    assert "x" * 200 not in text, "long runs are shortened"


def test_learned_tokens_and_segments_are_styled(write_jsonl, tokenizer_file):
    file = write_jsonl({"prompt": "ask", "answer": "tell"}, {"prompt": "ask", "answer": "tell"})
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system="standard")
    console.print(check(CheckConfig(str(file), fields=("[prompt],answer",), seq_len=64), tokenizer_file, VOCAB))
    text = console.file.getvalue()
    assert "\x1b[36m<|bos|>ask\x1b[0m\x1b[1;4;36m⟦tell<|eos|>⟧" in text
    assert "\x1b[33m<|bos|>ask\x1b[0m\x1b[1;4;33m⟦tell<|eos|>⟧" in text


def test_a_file_without_one_good_record_is_still_reported(write_jsonl, tokenizer_file):
    report = check(CheckConfig(str(write_jsonl(*["{broken"] * 30))), tokenizer_file, VOCAB)
    assert (report.num_rows, report.first, len(report.bad)) == (0, None, 30)
    assert "10 more, most often: 10 x not JSON" in rendered(report)


def test_it_reads_as_training_is_told_to(write_jsonl, tokenizer_file):
    file = write_jsonl({"text": "hello"})
    assert check(CheckConfig(str(file), add_bos=False), tokenizer_file, VOCAB).lengths == [6]
    assert check(CheckConfig(str(file), add_bos=False, add_eos=False), tokenizer_file, VOCAB).lengths == [5]


@pytest.mark.parametrize("change", [{"rows": 0}, {"seq_len": 0}])
def test_no_rows_and_no_tokens_are_refused(write_jsonl, tokenizer_file, change):
    with pytest.raises(UserError, match=r"--(rows|seq-len) 0: give 1 or more"):
        check(CheckConfig(str(write_jsonl({"text": "hello"})), **change), tokenizer_file, VOCAB)


def test_the_tokenizer_may_be_named(write_jsonl, tokenizer_file, tmp_path):
    file = write_jsonl({"text": "hello"})
    assert check(CheckConfig(str(file), tokenizer=tokenizer_file.parent), tmp_path / "absent.json", VOCAB).lengths == [
        7
    ]
    with pytest.raises(UserError, match=r"absent\.json does not exist"):
        check(CheckConfig(str(file)), tmp_path / "absent.json", VOCAB)


def test_frames_are_counted_not_spelled(write_jsonl, tokenizer_file):
    vocab = Vocab(text_size=258, vision_size=12, num_codes=10, tokens_per_frame=4, bos_id=0, eos_id=1)
    file = write_jsonl({"ask": "Look: ", "vision": [1, 2, 3, 4, 5, 6, 7, 8], "answer": "Two."})
    report = check(CheckConfig(str(file), fields=("[ask+vision],answer",)), tokenizer_file, vocab)
    assert not report.bad
    assert "Look: <vision>[4 codes]▪[4 codes]■</vision>⟦Two.<|eos|>⟧" in rendered(report)


def test_a_tokenizer_of_more_ids_than_the_models_is_refused(write_jsonl, tokenizer_file):
    with pytest.raises(UserError, match=r"tokenizer\.json does not match the model: it has 258 ids, the model 257"):
        check(CheckConfig(str(write_jsonl({"text": "hello"}))), tokenizer_file, Vocab(text_size=257))


def test_half_a_character_is_malformed(write_jsonl, tokenizer_file):
    report = check(CheckConfig(str(write_jsonl('{"text": "\\ud83d x"}', {"text": "x"}))), tokenizer_file, VOCAB)
    assert report.bad == {"records.jsonl:1": "text is not valid Unicode"}
