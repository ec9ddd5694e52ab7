import io
import json
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from lwm.core.errors import UserError
from lwm.data.tokenizer import load_tokenizer

TEXT = "The special magic Paris number is: 1234567 — naïve café ☕\n\n  indented"


def write_hugging_face(directory: Path, bos: str = "<s>", eos: str = "</s>") -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[bos, eos],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}", special_tokens=[(bos, 0), (eos, 1)]
    )
    tokenizer.enable_truncation(5)
    directory.mkdir(exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory / "tokenizer.json"


def write_sentencepiece(directory: Path) -> Path:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 4),
        model_writer=model,
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    directory.mkdir(exist_ok=True)
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    return directory / "tokenizer.model"


@pytest.mark.parametrize("write", [write_hugging_face, write_sentencepiece])
def test_text_survives_and_no_special_ids_are_added(write, tmp_path):
    file = write(tmp_path / "model")
    for tokenizer in (load_tokenizer(file), load_tokenizer(file.parent), load_tokenizer(str(file))):
        ids = tokenizer.encode(TEXT)
        assert len(ids) > 5, "the file's own truncation must not apply"
        assert tokenizer.decode(ids) == TEXT
        assert {tokenizer.bos_id, tokenizer.eos_id}.isdisjoint(ids)
        assert tokenizer.bos_id is not None
        assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id]) == TEXT
        assert max(ids) < tokenizer.size
        assert tokenizer.encode("") == []


@pytest.mark.parametrize("write", [write_hugging_face, write_sentencepiece])
def test_half_a_character_is_refused(write, tmp_path):
    tokenizer = load_tokenizer(write(tmp_path / "model"))
    with pytest.raises(UserError, match=r"not valid Unicode: character 3 is '\\ud83d', half of a character"):
        tokenizer.encode("a \ud83d x")


def test_a_directory_prefers_tokenizer_json(tmp_path):
    write_sentencepiece(tmp_path)
    size = load_tokenizer(tmp_path).size
    write_hugging_face(tmp_path)
    assert load_tokenizer(tmp_path).size == 300 != size


def test_special_tokens_by_convention_by_statement_or_absent(tmp_path):
    write_hugging_face(tmp_path, "<|begin_of_text|>", "<|end_of_text|>")
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)
    stated = {"bos_token": {"content": "<|end_of_text|>"}, "eos_token": "a"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(stated))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.decode([tokenizer.eos_id])) == (1, "a")
    (tmp_path / "tokenizer_config.json").unlink()
    write_hugging_face(tmp_path, "[CLS]", "[SEP]")
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, None)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{broken", "not a readable Hugging Face tokenizer"),
        ("tokenizer.json", b"\xff\xfe", "not a readable Hugging Face tokenizer"),
        ("tokenizer.model", b"garbage", "not a readable sentencepiece model"),
        ("tokenizer.model", b"", "not a readable sentencepiece model"),
        ("vocab.txt", b"a b", "expected a Hugging Face .json or a sentencepiece .model"),
    ],
)
def test_unusable_files_are_refused_by_name(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        load_tokenizer(tmp_path / name)
    assert name in str(raised.value)


@pytest.mark.parametrize("stated", [7, True, ["a"], {}, {"content": None}])
def test_a_special_token_that_is_no_string_is_refused(stated, tmp_path):
    write_hugging_face(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": stated}))
    with pytest.raises(UserError, match=r"tokenizer_config\.json: eos_token is"):
        load_tokenizer(tmp_path)


def test_the_size_has_room_for_every_id_where_some_are_missing(tmp_path):
    Tokenizer(models.WordLevel({"a": 0, "b": 9}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).size == 10


def test_missing_files_are_refused_by_name(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"absent\.json does not exist"):
        load_tokenizer(tmp_path / "absent.json")
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        load_tokenizer("x" * 300)  # the file system itself refuses the name
    write_hugging_face(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no tokenizer is named"):
        load_tokenizer("")
