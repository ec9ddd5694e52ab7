"""Questions about pictures and videos: read once, in LWM's order, several in one conversation."""

import io
from pathlib import Path

import numpy as np
import pytest

from lwm.cli.conversation import converse
from lwm.core.errors import UserError
from lwm.data.media import read_frames
from lwm.data.media_out import save_frames
from lwm.data.vision import FrameIds, films_in
from lwm.infer.commands import ChatConfig, keep_frames, open_session
from lwm.infer.sampling import FrameSampling
from lwm.infer.session import Answer, Session

FILM, PICTURE = np.arange(48, dtype=np.int32).reshape(3, 16), np.full((1, 16), 7, np.int32)


def by_itself(model, engine, *parts, max_new_tokens=8):
    """What the model says after a prompt of texts and codes, read at once."""
    frame_ids, ids = FrameIds(model.config.vocab, model.tokenizer), [model.tokenizer.bos_id]
    for part in parts:
        ids += model.tokenizer.encode(part) if isinstance(part, str) else frame_ids.of(part)
    (tokens,) = engine.generate([ids], max_new_tokens, stop_ids=(model.tokenizer.eos_id,))
    return model.tokenizer.decode([token for token in tokens if token < model.config.vocab.text_size]).strip()


def test_a_second_question_costs_its_own_tokens(vision_model, vision_engine):
    session = Session(vision_model, vision_engine, max_new_tokens=8, remember=True)
    session.look(FILM)
    first = session.ask("What?")
    start = "You are a helpful assistant. USER: What?\n", FILM
    assert first.text == by_itself(vision_model, vision_engine, *start, " ASSISTANT:")
    second = session.ask("Why?")
    prompt = (*start, f" ASSISTANT: {first.text} USER: Why? ASSISTANT:")
    assert second.text == by_itself(vision_model, vision_engine, *prompt)
    assert second.read_tokens < 40 < FILM.size < second.prompt_tokens


def test_media_that_come_later(vision_model, vision_engine):
    session = Session(vision_model, vision_engine, max_new_tokens=8, remember=True)
    session.look(PICTURE)
    first = session.ask("A?")
    session.look(FILM)
    session.look(PICTURE)
    second = session.ask("B?")
    prompt = ("You are a helpful assistant. USER: A?\n", PICTURE, f" ASSISTANT: {first.text} USER: B?\n", FILM, PICTURE)
    assert second.text == by_itself(vision_model, vision_engine, *prompt, " ASSISTANT:")


def test_the_models_own_frames_follow_the_grammar(vision_model, vision_engine):
    opening = vision_engine.opening
    assert opening == (1, 2, 3)
    state = vision_engine.start([[5, *opening]], 256)
    (tokens,), _ = vision_engine.decode(state, 60, frames=FrameSampling(count=2))
    vocab = vision_model.config.vocab
    (film,) = films_in(tokens, vocab)
    assert film.shape == (2, 16)
    assert tokens[16] == vocab.end_of_frame and tokens[33] == vocab.end_of_vision
    assert all(token < vocab.text_size for token in tokens[34:])


def test_films_among_ids():
    from lwm.core.vocab import Vocab

    vocab = Vocab(text_size=10, vision_size=8, num_codes=6, tokens_per_frame=2)
    films = films_in([1, 10, 11, 16, 12, 13, 17, 2, 14, 15, 17, 3, 10, 11, 16, 12], vocab)
    assert [film.tolist() for film in films] == [[[0, 1], [2, 3]], [[4, 5]], [[0, 1]]]
    assert films_in([1, 2, 3], vocab) == []


def test_files_are_looked_at(vision_model, vision_engine, vision_codec, tmp_path):
    noise = np.random.default_rng(0).integers(256, size=(6, 32, 32, 3), dtype=np.uint8)
    picture, film = save_frames(tmp_path / "one.png", noise[:1]), save_frames(tmp_path / "film.gif", noise, 2.0)
    config = ChatConfig("What?", image=(picture,), video=(film,), num_frames=2, max_new_tokens=8)
    session, reading = open_session(config, vision_model, vision_engine, codec=vision_codec)
    assert reading is None
    codes = vision_codec.encode(noise[:1])
    answer = session.ask("What?")
    assert answer.prompt_tokens > 3 * 17
    assert session._media == []
    ((asked, _),) = session._turns
    np.testing.assert_array_equal(asked.media[0], codes)
    assert len(asked.media[1]) == 2


def test_what_an_answer_shows_is_kept(vision_codec, tmp_path):
    answer = Answer("", 1, 1, 1, 0.0, 0.0, True, ("See ", PICTURE, " and ", FILM, "."))
    first, second = (keep_frames(answer, tmp_path / "kept", vision_codec) for _ in range(2))
    assert [file.name for file in first + second] == ["answer-1.png", "answer-2.mp4", "answer-3.png", "answer-4.mp4"]
    assert [len(read_frames(file, 16).pixels) for file in first] == [1, 3]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"image": (Path("a.png"),), "document": Path("a.txt"), "question": "?"}, "not about both at once"),
        ({"json": True}, "give a question"),
        ({"question": " "}, "the question is empty"),
        ({"question": "?", "truncate": "head"}, "give --document"),
        ({"question": "?", "num_frames": 8}, "give --video"),
        ({"question": "?", "out": Path(__file__)}, "is not a directory"),
    ],
)
def test_flags_that_say_nothing_are_refused(fields, complaint):
    with pytest.raises(UserError, match=complaint):
        ChatConfig(**fields)


def test_questions_out_of_a_pipe(vision_model, vision_engine, monkeypatch, capsys):
    session = Session(vision_model, vision_engine, max_new_tokens=4)
    monkeypatch.setattr("sys.stdin", io.StringIO("What?\nWhy?\n\nnever asked\n"))
    converse(session, lambda answer: [])
    answers = [session.ask(question).text for question in ("What?", "Why?")]
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == answers
    monkeypatch.setattr("sys.stdin", io.StringIO("What?\n" + "word " * 2000))
    with pytest.raises(UserError, match="1 of 2 questions have no answer"):
        converse(session, lambda answer: [])
    assert "shorten the question" in capsys.readouterr().err


def test_a_text_model_has_no_eyes(model, engine):
    with pytest.raises(UserError, match="one of text alone"):
        Session(model, engine).look(PICTURE)
