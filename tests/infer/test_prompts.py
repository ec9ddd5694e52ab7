"""LWM's prompts, to the space."""

import numpy as np

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


def test_what_an_answer_drew_stays_where_it_was_drawn():
    film, other = np.zeros((2, 4), np.int32), np.ones((1, 4), np.int32)
    text = "Here: <vision></vision> and <vision></vision> done."
    answer = prompts.in_pieces(text, [film, other])
    assert [piece if isinstance(piece, str) else len(piece) for piece in answer] == ["Here: ", 2, " and ", 1, " done."]
    turn = prompts.next_turn((prompts.chat("Draw!"),), answer, "Why?", [film])
    assert [piece if isinstance(piece, str) else len(piece) for piece in turn] == [
        f"{prompts.chat('Draw!')} Here: ", 2, " and ", 1, " done. USER: Why?\n", 2, " ASSISTANT:",
    ]  # fmt: skip
    assert prompts.in_pieces("No picture <vision></vision>", []) == ("No picture <vision></vision>",)
    assert prompts.in_pieces("Broken off", [film]) == ("Broken off",)
