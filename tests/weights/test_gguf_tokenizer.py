"""The tokenizer out of a GGUF file splits real text as `transformers`, sentencepiece and the rules themselves do."""

import argparse
import io
import json
import struct
from itertools import pairwise
from pathlib import Path
from pydoc_data import topics

import pytest
import sentencepiece
import tokenizers
from tokenizers import pre_tokenizers, trainers

from lwm.core.errors import UserError
from lwm.data.tokenizer import HuggingFaceTokenizer, load_tokenizer
from lwm.weights.gguf_tokenizer import write_tokenizer

pytest.importorskip("gguf")

ODD = [
    "", " ", "   three spaces", "tabs\t\tand\ttabs", "a line\n\nand another\r\n", "\n\n\n", "trailing   ", "1234567890",
    "in 1999, 12.5% of 3e10", "x=1;y=22;z=333", "don't WON'T we'll they're", "\u2615 and \U0001f469\u200d\U0001f680!",
    "\u6f22\u5b57\u304b\u306a\u4ea4\u3058\u308a\u6587", "\uc548\ub155\ud558\uc138\uc694",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440",
    "na\u00efve caf\u00e9 e\u0301", "\u0661\u0662\u0663 \u00b2\u00b3 \u2167", "\u00a0no-break\u00a0space",
    "\u2581meta\u2581space", "a\x00b\x7f",
    "<0x0A>", "_____", "=====" * 20, "/* (c) */ #include <a.h>", "f(x)[i]{j}->k::l",
    "\ufeffmark", "\U00020000\U0010ffff",
]  # fmt: skip


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """Python, English, and what neither has."""
    source = Path(argparse.__file__).read_text(encoding="utf-8").splitlines(keepends=True)
    english = "".join(topics.topics.values()).splitlines(keepends=True)
    return ODD + [text * 2 for text in ODD] + source[:1500] + english[:1500]


def byte_level_fields(split: str, lines: list[str], *steps: pre_tokenizers.PreTokenizer) -> dict:
    """A vocabulary trained on these lines, as llama.cpp would write it down."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|begin|>", "<|end|>", "<|turn|>"]
    bpe.train_from_iterator(
        lines,
        trainers.BpeTrainer(vocab_size=1200, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    vocab, merges = bpe.get_vocab(), json.loads(bpe.to_str())["model"]["merges"]
    tokens = [*sorted(vocab, key=vocab.__getitem__), "<think>"]
    return {
        "general.architecture": "llama", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": split,
        "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 4) + [4],
        "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.eot_token_id": 2,
    }  # fmt: skip


def sentencepiece_fields(lines: list[str]) -> tuple[dict, sentencepiece.SentencePieceProcessor]:
    """A Llama-like vocabulary, as llama.cpp's converter writes it down, and what sentencepiece itself makes of it."""
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for line in lines if "\0" not in line), model_writer=proto, model_type="bpe",
        vocab_size=1200, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, allow_whitespace_only_pieces=True, minloglevel=2,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto.getvalue())
    ids = range(processor.get_piece_size())
    kinds = [(processor.is_unknown, 2), (processor.is_control, 3), (processor.is_byte, 6)]
    types = [next((kind for test, kind in kinds if test(place)), 1) for place in ids]
    return {
        "general.architecture": "llama", "tokenizer.ggml.model": "llama", "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.tokens": [processor.id_to_piece(place) for place in ids],
        "tokenizer.ggml.scores": [processor.get_score(place) for place in ids],
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
    }, processor  # fmt: skip


def by_the_rules(fields: dict, first: str, second: str):
    """Byte-level BPE as it is written down: split by one pattern, then by another, then merge the earliest pair."""
    regex = pytest.importorskip("regex")
    ids = {token: place for place, token in enumerate(fields["tokenizer.ggml.tokens"])}
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(fields["tokenizer.ggml.merges"])}
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + i) for i, byte in enumerate(sorted({*range(256)} - {*printable}))}

    def merged(word: str) -> list[str]:
        symbols = [letters[byte] for byte in word.encode()]
        while pairs := [pair for pair in pairwise(symbols) if pair in ranks]:
            best = min(pairs, key=ranks.__getitem__)
            place = 0
            while place < len(symbols) - 1:
                if (symbols[place], symbols[place + 1]) == best:
                    symbols[place : place + 2] = ["".join(best)]
                place += 1
        return symbols

    def encode(text: str) -> list[int]:
        parts = [part for part in regex.split(f"({first})", text) if part] if first else [text]
        words = [word for part in parts for word in regex.findall(second, part)]
        return [ids[symbol] for word in words for symbol in merged(word)]

    return encode


GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("split", "first", "second"),
    [("gpt-2", "", GPT_2), ("default", "", GPT_2), ("smollm", r"\p{N}", GPT_2), ("llama-bpe", "", LLAMA_3)],
)
def test_byte_level_tokens_are_those_of_the_rules(split, first, second, tmp_path, lines, write_gguf) -> None:
    fields = byte_level_fields(split, lines, *([pre_tokenizers.Digits(individual_digits=True)] if first else []))
    encode = by_the_rules(fields, first, second)
    tokenizer = load_tokenizer(write_tokenizer(write_gguf(tmp_path / "tokenizer.gguf", fields), tmp_path))
    for line in lines:
        ids = tokenizer.encode(line)
        assert ids == encode(line), line
        assert tokenizer.decode(ids) == line


@pytest.mark.parametrize("split", ["gpt-2", "llama-bpe"])
def test_byte_level_tokens_are_those_of_transformers(split, tmp_path, lines, write_gguf) -> None:
    transformers = pytest.importorskip("transformers")
    file = write_gguf(tmp_path / "tokenizer.gguf", byte_level_fields(split, lines) | PLAIN)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    ours = load_tokenizer(write_tokenizer(file, tmp_path))
    for line in [*lines, "<|begin|>a<|turn|> b<think> c<|end|>\n"]:
        assert ours.encode(line) == theirs.encode(line, add_special_tokens=False), line


def test_special_tokens(tmp_path, lines, write_gguf) -> None:
    fields = byte_level_fields("gpt-2", lines) | {"tokenizer.chat_template": "{{ bos_token }}"}
    tokenizer = load_tokenizer(write_tokenizer(write_gguf(tmp_path / "tokenizer.gguf", fields), tmp_path))
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)
    assert tokenizer.size == len(fields["tokenizer.ggml.tokens"])
    ids = tokenizer.encode("<|begin|>Hi<think> there<|end|>")
    assert ids[0] == 0 and ids[-1] == 1 and tokenizer.size - 1 in ids
    assert tokenizer.decode(ids) == "Hi<think> there"
    configuration = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert configuration["chat_template"] == "{{ bos_token }}" and "pad_token" not in configuration
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"eos_token_id": [1, 2]}


def test_sentencepiece_tokens_are_those_of_sentencepiece(tmp_path, lines, write_gguf) -> None:
    fields, processor = sentencepiece_fields(lines)
    ours = load_tokenizer(write_tokenizer(write_gguf(tmp_path / "tokenizer.gguf", fields), tmp_path))
    assert (ours.bos_id, ours.eos_id, ours.size) == (1, 2, 1200)
    for line in lines:
        if "\u2581" not in line:  # sentencepiece's own sign for a space comes back as one
            assert ours.encode(line) == processor.encode(line), line
            assert ours.decode(ours.encode(line)) == line
    assert ours.encode("<s>a</s>")[0] == 1


def test_sentencepiece_tokens_without_a_space_in_front(tmp_path, lines, write_gguf) -> None:
    fields, processor = sentencepiece_fields(lines)
    file = write_gguf(tmp_path / "tokenizer.gguf", fields | {"tokenizer.ggml.add_space_prefix": False})
    ours = load_tokenizer(write_tokenizer(file, tmp_path))
    assert ours.encode(" a") == processor.encode("a")
    assert all(ours.decode(ours.encode(line)) == line for line in lines if "\u2581" not in line)


@pytest.mark.slow
def test_a_real_tokenizer(tmp_path, lines, smollm2) -> None:
    ours = load_tokenizer(write_tokenizer(smollm2, tmp_path))
    assert isinstance(ours, HuggingFaceTokenizer) and (ours.bos_id, ours.eos_id, ours.size) == (1, 2, 49152)
    golden = json.loads((Path(__file__).parent.parent / "golden" / "smollm2_greedy.json").read_text())
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    for row in golden:
        turns = [("system", system), ("user", row["prompt"])]
        text = "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in turns)
        assert ours.encode(f"{text}<|im_start|>assistant\n") == row["ids"]
    assert all(ours.decode(ours.encode(line)) == line for line in lines)


@pytest.mark.slow
def test_a_real_tokenizer_splits_lines_as_transformers_does(tmp_path, lines, smollm2) -> None:
    transformers = pytest.importorskip("transformers")
    ours = load_tokenizer(write_tokenizer(smollm2, tmp_path))
    theirs = transformers.AutoTokenizer.from_pretrained(str(smollm2.parent), gguf_file=smollm2.name)
    # Its reader of GGUF leaves out that this model takes digits one by one.
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    assert len(lines) > 1000
    for line in lines:
        assert ours.encode(line) == theirs.encode(line, add_special_tokens=False), line


PLAIN = {
    "llama.block_count": 1, "llama.embedding_length": 8, "llama.feed_forward_length": 8, "llama.context_length": 8,
    "llama.attention.head_count": 1, "llama.attention.layer_norm_rms_epsilon": 1e-5,
}  # fmt: skip
SMALL = {
    "general.architecture": "llama", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["a", "b", "ab"], "tokenizer.ggml.merges": ["a b"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"tokenizer.ggml.model": "t5"}, "a tokenizer of the kind 't5': gpt2 and llama are read"),
        ({"tokenizer.ggml.model": None}, r"has no tokenizer\.ggml\.model"),
        ({"tokenizer.ggml.pre": "qwen2"}, r"tokenizer\.ggml\.pre is 'qwen2'"),
        ({"tokenizer.ggml.pre": None}, r"has no tokenizer\.ggml\.pre"),
        ({"tokenizer.ggml.tokens": ["a", "b", "a"]}, "the token 'a' comes twice"),
        ({"tokenizer.ggml.tokens": "a"}, r"tokens is 'a' and should be a list of texts"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "the merge 'a b c' is not one of two tokens"),
        ({"tokenizer.ggml.merges": ["b a"]}, "the merge 'b a' is not one of two tokens"),
        ({"tokenizer.ggml.bos_token_id": 3}, "bos_token_id is 3, and there are 3 tokens"),
        ({"tokenizer.ggml.eot_token_id": 3}, "has the id 3, and there are 3 tokens"),
        ({"tokenizer.ggml.token_type": [1, 3]}, "3 tokens and 2 types"),
        ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.merges": None}, r"has no tokenizer\.ggml\.scores"),
        (
            {"tokenizer.ggml.model": "llama", "tokenizer.ggml.merges": None, "tokenizer.ggml.scores": [0.0]},
            "3 tokens and 1 scores",
        ),
        (
            {
                "tokenizer.ggml.model": "llama", "tokenizer.ggml.merges": None, "tokenizer.ggml.scores": [0.0] * 3,
                "tokenizer.ggml.tokens": ["a", "b", "ab" * 1000],
            },
            "token 2 has 2000 characters",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(change, complaint, tmp_path, write_gguf) -> None:
    fields = {key: value for key, value in (SMALL | change).items() if value is not None}
    file, directory = write_gguf(tmp_path / "tokenizer.gguf", fields), tmp_path / "tokenizer"
    directory.mkdir()
    with pytest.raises(UserError, match=complaint) as raised:
        write_tokenizer(file, directory)
    assert str(file) in str(raised.value)
    assert not list(directory.iterdir())


def test_a_file_cut_short_or_with_broken_bytes(tmp_path, write_gguf) -> None:
    content = write_gguf(tmp_path / "tokenizer.gguf", SMALL | {"tokenizer.ggml.token_type": [1, 1, 1]}).read_bytes()
    broken, place = tmp_path / "broken.gguf", content.index(struct.pack("<Q", 3) + struct.pack("<Q", 1) + b"a")
    for size in range(0, len(content) - 64, 3):
        broken.write_bytes(content[:size])
        with pytest.raises(UserError):
            write_tokenizer(broken, tmp_path)
    for value in (2**62, 2**32, 4):
        broken.write_bytes(content[:place] + struct.pack("<Q", value) + content[place + 8 :])
        with pytest.raises(UserError, match="cut short or corrupt"):
            write_tokenizer(broken, tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()
