"""An answer is what the whole prompt gets by itself, whatever the session has read before; nothing is read twice."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import lwm
from lwm.core.errors import UserError
from lwm.infer import prompts
from lwm.infer.chat_format import Question
from lwm.infer.commands import ChatConfig, GenerateTextConfig, generate_text, open_session
from lwm.infer.engine import Engine
from lwm.infer.session import Session, TextStream
from lwm.weights.load import LoadedModel

DOCUMENT = "It was a dark and stormy night; the rain fell in torrents. " * 5
QUESTIONS = ["Who?", "Where was the rain, exactly?"]


@pytest.fixture
def session(model: LoadedModel, engine: Engine) -> Session:
    return Session(model, engine, max_new_tokens=12)


def by_itself(model: LoadedModel, engine: Engine, prompt: str) -> str:
    (ids,) = engine.generate([prompts.encode(model.tokenizer, prompt)], 12, stop_ids=(2,))
    return model.tokenizer.decode(ids).strip()


def test_questions_about_a_document(session: Session, model: LoadedModel, engine: Engine) -> None:
    reading = session.read(DOCUMENT)
    assert (reading.tokens, reading.truncated) == (len(DOCUMENT), False)
    for question in [*QUESTIONS, QUESTIONS[0]]:
        answer = session.ask(question)
        assert answer.text == by_itself(model, engine, prompts.document(DOCUMENT, question))
        assert answer.prompt_tokens == 1 + len(prompts.document(DOCUMENT, question))
        assert answer.read_tokens == len(prompts.document("", question)) - len(prompts.document_head(""))
        assert answer.finished == (answer.answer_tokens < 12)


def test_a_question_longer_than_the_room_kept_for_it(session: Session, model: LoadedModel, engine: Engine) -> None:
    session.read(DOCUMENT)
    for question in ["Why? " * 110, "Who?"]:
        expected = by_itself(model, engine, prompts.document(DOCUMENT, question))
        assert session.ask(question).text == expected


def test_a_remembered_conversation(model: LoadedModel, engine: Engine) -> None:
    session = Session(model, engine, max_new_tokens=12, remember=True)
    first, second = session.ask(QUESTIONS[0]), session.ask(QUESTIONS[1])
    prompt = prompts.next_turn((prompts.chat(QUESTIONS[0]),), (first.text,), QUESTIONS[1])[0]
    assert second.text == by_itself(model, engine, prompt)
    assert second.read_tokens < second.prompt_tokens - len(prompts.chat(QUESTIONS[0])) + 2
    session.forget()
    assert session.ask(QUESTIONS[1]).text == by_itself(model, engine, prompts.chat(QUESTIONS[1]))


def test_a_remembered_conversation_that_fills_the_context(model: LoadedModel, engine: Engine) -> None:
    session = Session(model, engine, max_new_tokens=480, remember=True)
    with pytest.raises(UserError, match=r"prompt is \d+ tokens long, .* room for 544: shorten the question"):
        session.ask("Who? " * 100)
    session._turns = [(Question("Who? " * 60), ("The rain. " * 20,))]
    with pytest.raises(UserError, match=r"conversation is \d+ tokens long, .* room for 544: start a new one"):
        session.ask("Who?")


def test_chat_reads_a_document_once(session: Session, model: LoadedModel, engine: Engine) -> None:
    expected = by_itself(model, engine, prompts.document(DOCUMENT, "Who?"))
    assert session.chat("Who?", document=DOCUMENT) == expected
    kept = session._kept
    assert session.chat("Who?", document=DOCUMENT) == expected
    assert session._kept is kept


def test_an_interrupted_answer_spoils_nothing(session: Session) -> None:
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    session.read(DOCUMENT)
    before = session.ask("Who?").text
    with pytest.raises(KeyboardInterrupt):
        session.ask("Who?", on_text=interrupt)
    assert session.ask("Who?").text == before


def test_pieces_of_text_make_the_text(model: LoadedModel) -> None:
    text = "na\u00efve \u2615!"
    ids, pieces = model.tokenizer.encode(text), []
    stream = TextStream(model.tokenizer, model.config.vocab.text_size, pieces.append)
    for token in ids[:-3]:
        stream([[token]])
    assert "\ufffd" not in "".join(pieces)
    for token in ids[-3:]:
        stream([[token]])
    stream.end()
    assert "".join(pieces) == text


def test_a_document_that_is_too_long(session: Session) -> None:
    words = " ".join(f"word{i}" for i in range(300))
    with pytest.raises(UserError, match=r"document is \d+ tokens long, .* room for 756: .*--truncate head"):
        session.read(words)
    assert session.read(words, "head").truncated
    assert words.startswith(session._document) and len(session._document) == 756
    assert session.read(words, "tail").tokens == 756
    assert words.endswith(session._document)
    assert session.ask("Who?").prompt_tokens < 1024
    with pytest.raises(UserError, match=r"prompt is \d+ tokens long, .* room for 1012: shorten the question"):
        session.ask("Who? " * 100)


def test_what_cannot_be_asked(session: Session, model: LoadedModel, engine: Engine) -> None:
    with pytest.raises(UserError, match="the question is empty"):
        session.ask("  ")
    with pytest.raises(UserError, match="the document is empty"):
        session.read("\n")
    with pytest.raises(UserError, match="--max-new-tokens 0 must be 1 to 1023"):
        Session(model, engine, max_new_tokens=0)
    with pytest.raises(UserError, match="--max-new-tokens 1024 must be 1 to 1023"):
        Session(model, engine, max_new_tokens=1024)
    with pytest.raises(UserError, match="has no tokenizer"):
        Session(dataclasses.replace(model, tokenizer=None), engine)


def test_generate_text(model: LoadedModel, engine: Engine) -> None:
    pieces: list[str] = []
    generation = generate_text(GenerateTextConfig("Once", max_new_tokens=12), model, engine, on_text=pieces.append)
    (ids,) = engine.generate([[1, *model.tokenizer.encode("Once")]], 12, stop_ids=(2,))
    assert generation.text == model.tokenizer.decode(ids) == "".join(pieces)
    assert (generation.prompt_tokens, generation.answer_tokens) == (5, len(ids))
    assert generation.timings.prefill_tokens == 5 and generation.timings.decode_rate > 0


@pytest.mark.parametrize("truncate", ["head", "tail"])
def test_generate_text_truncates_when_told_to(truncate: str, model: LoadedModel, engine: Engine) -> None:
    prompt = "".join(np.random.default_rng(0).choice(list("abcdef"), 1500))
    kept = prompt[:1011] if truncate == "head" else prompt[-1011:]
    config = GenerateTextConfig(prompt, max_new_tokens=12)
    with pytest.raises(UserError, match=r"the prompt is 1501 tokens long, .* room for 1012: .*--truncate head"):
        generate_text(config, model, engine)
    cut = generate_text(dataclasses.replace(config, truncate=truncate), model, engine)
    assert cut.prompt_tokens == 1012
    assert cut.text == generate_text(dataclasses.replace(config, prompt=kept), model, engine).text


def test_open_session(tmp_path: Path, model: LoadedModel, engine: Engine) -> None:
    document = tmp_path / "document.txt"
    document.write_text(DOCUMENT)
    session, reading = open_session(ChatConfig("Who?", document=document, max_new_tokens=12), model, engine)
    assert reading is not None and reading.tokens == len(DOCUMENT)
    assert session.ask("Who?").text == by_itself(model, engine, prompts.document(DOCUMENT, "Who?"))
    assert open_session(ChatConfig("Who?"), model, engine)[1] is None
    document.write_bytes(b"ab\xff")
    with pytest.raises(UserError, match=r"not UTF-8 text \(byte 2\)"):
        open_session(ChatConfig(document=document), model, engine)
    with pytest.raises(UserError, match=r"cannot read the document .*: No such file"):
        open_session(ChatConfig(document=tmp_path / "none"), model, engine)
    with pytest.raises(UserError, match="--json"):
        open_session(ChatConfig(json=True), model, engine)


def test_the_front_door(model: LoadedModel, engine: Engine) -> None:
    session = lwm.load(model.directory, mesh="fsdp=1,sp=2,dp=4", max_new_tokens=12)
    expected = by_itself(model, engine, prompts.document(DOCUMENT, "Who?"))
    assert session.chat("Who?", document=DOCUMENT) == expected
