"""LWM's prompts, to the space."""

import numpy as np

from lwm.core.vocab import Vocab
from lwm.data.vision import FrameIds
from lwm.infer import prompts


def test_chat() -> None:
    assert prompts.chat("Why?") == "You are a helpful assistant. USER: Why? ASSISTANT:"
    assert prompts.next_turn((prompts.chat("Why?"),), ("So.",), "How?") == (
        "You are a helpful assistant. USER: Why? ASSISTANT: So. USER: How? ASSISTANT:",
    )


def test_pictures() -> None:
    film = np.zeros((2, 4), np.int32)
    first = prompts.about_frames("What?", [film])
    assert first == ("You are a helpful assistant. USER: What?\n", film, " ASSISTANT:")
    second = prompts.next_turn(first, ("A dog.",), "And here?", [film, film])
    assert second == (*first[:2], " ASSISTANT: A dog. USER: And here?\n", film, film, " ASSISTANT:")
    assert prompts.next_turn(first, ("A dog.",), "Why?") == (*first[:2], " ASSISTANT: A dog. USER: Why? ASSISTANT:")


def test_drawing() -> None:
    assert prompts.draw_image("a cat") == "You are a helpful assistant. USER: Generate an image of a cat ASSISTANT:"
    assert prompts.draw_video("a cat") == "You are a helpful assistant. USER: Generate a video of a cat ASSISTANT:"


def test_document() -> None:
    prompt = prompts.document("A text.", "Why?")
    assert prompt.startswith(prompts.document_head("A text."))
    assert prompt == (
        "You are a helpful assistant. USER: A text. Why? Don't give information outside the document or repeat your "
        "findings. Keep your response short and direct. ASSISTANT:"
    )


def test_needle() -> None:
    assert prompts.needle("Oslo", 1234567) == "\nThe special magic Oslo number is: 1234567\n"
    assert prompts.needle_prompt("A text.", ["Oslo"]) == (
        "You are a helpful assistant. USER: A text. What is the special magic Oslo number? Don't give information "
        "outside the document or repeat your findings. Keep your response short and direct. ASSISTANT: "
    )


def test_multi_needle() -> None:
    end = " Don't give information outside the document. ASSISTANT: "
    head = "You are a helpful assistant. USER: A text. "
    assert prompts.needle_prompt("A text.", ["Oslo"], num_needles=4) == (
        head + "What is the special magic number for Oslo?" + end
    )
    assert prompts.needle_prompt("A text.", ["Oslo", "Rome", "Lima"], num_needles=4) == (
        head + "What are the special magic numbers for Oslo, Rome, and Lima?" + end
    )


class Letters:
    """Ids are characters; those of 1000 and more are codes."""

    size, bos_id, eos_id = 1000, None, None

    def encode(self, text):
        return [ord(letter) for letter in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


VOCAB = Vocab(text_size=1000, vision_size=10, num_codes=8, tokens_per_frame=2)


def shown(prompt):
    return [piece if isinstance(piece, str) else piece.tolist() for piece in prompt]


def test_what_an_answer_drew_stays_where_it_was_drawn():
    letters = Letters()
    film, other = np.zeros((2, 2), np.int32), np.ones((1, 2), np.int32)
    ids = FrameIds(VOCAB, letters).of
    answer = [*letters.encode(" Here: "), *ids(film), *letters.encode(" and "), *ids(other), *letters.encode(" done. ")]
    pieces = prompts.in_pieces(answer, letters, VOCAB)
    assert shown(pieces) == ["Here: ", film.tolist(), " and ", other.tolist(), " done."]
    turn = prompts.next_turn((prompts.chat("Draw!"),), pieces, "Why?", [film])
    assert shown(turn) == [
        f"{prompts.chat('Draw!')} Here: ", film.tolist(), " and ", other.tolist(), " done. USER: Why?\n", film.tolist(),
        " ASSISTANT:",
    ]  # fmt: skip


def test_answers_that_begin_with_a_picture_or_break_off_in_one():
    letters = Letters()
    film = np.zeros((2, 2), np.int32)
    drawn = prompts.in_pieces(FrameIds(VOCAB, letters).of(film), letters, VOCAB)
    assert shown(drawn) == ["", film.tolist(), ""]
    assert shown(prompts.next_turn(("Draw! ASSISTANT:",), drawn, "Why?")) == [
        "Draw! ASSISTANT:", film.tolist(), " USER: Why? ASSISTANT:",
    ]  # fmt: skip
    one, two = letters.encode("One.<vision>"), letters.encode(" Two.<vision>")
    unclosed = [*one, 1000, 1001, 1009, *two, 1002, 1003, 1008, 1001]
    assert shown(prompts.in_pieces(unclosed, letters, VOCAB)) == ["One.", [[0, 1]], " Two.", [[2, 3]], ""]
    assert prompts.in_pieces(letters.encode(" Words. "), letters, VOCAB) == ("Words.",)
