import pytest
from tokenizers import Tokenizer

from lwm.infer.prompts import needle, needle_prompt
from lwm.nano.corpus import held_out_documents
from lwm.nano.train_tokenizer import (
    SIZE_WITH_WORDS,
    SPECIAL,
    TOKENIZER_FILE,
    train_tokenizer,
    with_words,
    world_words,
)


def test_special_tokens_have_the_ids_that_llama_gave_them(tokenizer):
    raw = Tokenizer.from_file(str(TOKENIZER_FILE))
    assert (raw.get_vocab_size(), tokenizer.size) == (SIZE_WITH_WORDS, SIZE_WITH_WORDS)
    assert [raw.token_to_id(name) for name in SPECIAL] == [0, 1, 2]
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)


def test_every_pair_of_digits_is_a_token(tokenizer):
    ids = tokenizer.encode("1234567")
    assert [tokenizer.decode([token]) for token in ids] == ["12", "34", "56", "7"]
    assert tokenizer.encode(" 1234567") == tokenizer.encode(" ") + ids
    assert len({*(tuple(tokenizer.encode(f"{pair:02d}")) for pair in range(100))}) == 100
    assert all(len(tokenizer.encode(f"{pair:02d}")) == 1 for pair in range(100))


@pytest.mark.parametrize("text", ["def f(x):\n\treturn 'naïve ☃'\r\n\n", "", " ", "\n\n  x  ", "日本語 and \x00 bytes"])
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_prompts_and_documents_are_compact(tokenizer):
    frame = len(tokenizer.encode(needle_prompt("", ["Boston"]))) + len(tokenizer.encode(needle("Boston", "1234567")))
    assert frame < 70
    document = held_out_documents()[0].text
    assert len(document) / len(tokenizer.encode(document)) > 2.5


def test_training_gives_the_same_tokenizer_each_time():
    texts = ["the special magic number 12\n", "def special(): pass\n"] * 50
    first, second = (train_tokenizer(iter(texts)).to_str() for _ in range(2))
    assert first == second


def test_words_of_the_small_world_become_pieces_and_other_text_stays():
    few = train_tokenizer(iter(["the special magic number 12\n", "def special(): pass\n"] * 50))
    more = with_words(few, ["circle", "special", "circles"])
    assert len(few.encode(" circle").ids) > 1 == len(more.encode(" circle").ids) == len(more.encode(" circles").ids)
    for text in (" special magic 12", "circle", "def f(x): pass", " circuit"):
        assert more.decode(more.encode(text).ids) == text
    unseen = " special magic 12 def pass"
    assert more.encode(unseen).ids == few.encode(unseen).ids
    ids = more.get_vocab()
    assert {piece: ids[piece] for piece in few.get_vocab()} == few.get_vocab()
    assert sorted(ids.values()) == list(range(len(ids)))


def test_all_words_of_the_small_world_can_be_pieces():
    words = world_words()
    assert {"circle", "purple", "blossom", "vanishes"} <= {*words}
    known = with_words(Tokenizer.from_file(str(TOKENIZER_FILE)), words)
    assert known.get_vocab_size() == SIZE_WITH_WORDS
    assert all(len(known.encode(f" {word}").ids) == 1 for word in words)
