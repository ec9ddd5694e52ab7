import re
from dataclasses import replace
from pathlib import Path

import pytest

from lwm.core.errors import UserError
from lwm.core.vocab import Vocab
from lwm.evals.haystack import Haystack
from lwm.evals.trial import LENGTH_TOLERANCE, Cell, build_trial
from lwm.infer.chat_format import LWMChat, TemplateChat
from lwm.infer.prompts import NEEDLE_CITIES
from lwm.infer.templates import ChatTemplate

ANSWER_TOKENS = 32


@pytest.fixture(scope="module")
def haystack(haystack_file, tokenizer):
    return Haystack.of(haystack_file.read_text(), tokenizer.encode)


def build(haystack, tokenizer, cell, **options):
    chat = LWMChat(tokenizer, Vocab(tokenizer.size))
    return build_trial(cell, haystack, chat, **({"seed": 7, "answer_tokens": ANSWER_TOKENS} | options))


def test_a_single_needle_prompt_is_lwms_to_the_letter(haystack, tokenizer):
    trial = build(haystack, tokenizer, Cell(512, 50, 0))
    (city,), (number,) = trial.cities, trial.numbers
    before, needle, rest = trial.text.partition(f"\nThe special magic {city} number is: {number}\n")
    assert needle
    assert before.startswith("You are a helpful assistant. USER: ")
    assert rest.endswith(
        f" What is the special magic {city} number? Don't give information outside the document or repeat your "
        "findings. Keep your response short and direct. ASSISTANT: "
    )
    context = before.removeprefix("You are a helpful assistant. USER: ") + rest[: rest.index(" What is the special")]
    assert context in haystack.text * 2


@pytest.mark.parametrize(
    ("retrieve", "question"),
    [
        (1, "What is the special magic number for {0}?"),
        (2, "What are the special magic numbers for {0}, and {1}?"),
        (3, "What are the special magic numbers for {0}, {1}, and {2}?"),
    ],
)
def test_a_multi_needle_prompt_is_lwms_to_the_letter(haystack, tokenizer, retrieve, question):
    trial = build(haystack, tokenizer, Cell(512, 50, 0), needles=4, retrieve=retrieve)
    hidden = dict(re.findall(r"\nThe special magic ([\w ]+) number is: (\d{7})\n", trial.text))
    assert len(hidden) == 4
    assert [hidden[city] for city in trial.cities] == list(trial.numbers)
    asked = question.format(*trial.cities)
    assert trial.text.endswith(f" {asked} Don't give information outside the document. ASSISTANT: ")


@pytest.mark.parametrize("length", [256, 1000, 4096, 60_000])  # the last is more than the haystack holds
@pytest.mark.parametrize("needles", [1, 4])
def test_prompt_and_answer_fill_the_context_in_the_models_tokens(haystack, tokenizer, length, needles):
    for depth in (0, 37, 100):
        trial = build(haystack, tokenizer, Cell(length, depth, 1), needles=needles)
        assert trial.prompt == (tokenizer.bos_id, *tokenizer.encode(trial.text))
        assert 0 <= length - ANSWER_TOKENS - len(trial.prompt) <= LENGTH_TOLERANCE


ONE_LINE = "word and other words again " * 4000


@pytest.mark.parametrize(
    ("text", "options", "tolerance"),
    [(None, {}, 0.5), (None, {"needles": 2, "retrieve": 2}, 1.5), (ONE_LINE, {}, 2.0)],
)
def test_depth_is_in_tokens_and_rises_with_what_was_asked(haystack, tokenizer, text, options, tolerance):
    haystack = haystack if text is None else Haystack.of(text, tokenizer.encode)
    measured = []
    for depth in range(0, 101, 10):
        trial = build(haystack, tokenizer, Cell(4096, depth, 0), **options)
        before, after = trial.text.removeprefix("You are a helpful assistant. USER: ").split(
            f"\nThe special magic {trial.cities[0]} number is: {trial.numbers[0]}\n"
        )
        after = after[: after.index(" What ")]
        tokens_before, tokens_after = (len(tokenizer.encode(text)) for text in (before, after))
        measured.append(100 * tokens_before / (tokens_before + tokens_after))
    assert measured == sorted(measured)
    assert measured == pytest.approx(list(range(0, 101, 10)), abs=tolerance)
    assert (measured[0], measured[-1]) == (0, 100)


def test_a_templated_model_is_asked_the_same_in_its_own_words(haystack, tokenizer):
    source = "<s>{% for message in messages %}{{ message.role }}: {{ message.content }}{% endfor %}</s>"
    chat = TemplateChat(tokenizer, ChatTemplate(source, {}, Path()), ())
    trial = build_trial(Cell(512, 50, 0), haystack, chat, seed=7, answer_tokens=ANSWER_TOKENS)
    in_lwms_words = build(haystack, tokenizer, Cell(512, 50, 0))
    assert (trial.cities, trial.numbers) == (in_lwms_words.cities, in_lwms_words.numbers)
    question = in_lwms_words.text[in_lwms_words.text.index(" What is") :].removesuffix(" ASSISTANT: ")
    assert trial.text.startswith("<s>user: ") and trial.text.endswith(f"{question}</s>")
    assert "ASSISTANT" not in trial.text and "helpful" not in trial.text
    assert trial.prompt == tuple(tokenizer.encode(trial.text))
    assert (trial.prompt.count(tokenizer.bos_id), trial.prompt[0]) == (1, tokenizer.bos_id)
    assert 0 <= 512 - ANSWER_TOKENS - len(trial.prompt) <= LENGTH_TOLERANCE


def test_needles_stand_at_line_or_sentence_ends(haystack, tokenizer):
    for depth in (20, 40, 60, 80):
        trial = build(haystack, tokenizer, Cell(1024, depth, 0))
        assert trial.text[: trial.text.index("\nThe special magic")].endswith((". ", ".\n"))


def test_a_cell_is_a_function_of_seed_and_place_and_of_nothing_else(haystack, tokenizer):
    cell = Cell(512, 50, 0)
    trial = build(haystack, tokenizer, cell)
    assert build(haystack, tokenizer, cell) == trial
    neighbours = [replace(cell, round=1), replace(cell, depth_percent=75), replace(cell, context_length=513)]
    others = [build(haystack, tokenizer, other) for other in neighbours] + [build(haystack, tokenizer, cell, seed=8)]
    assert len({trial.seed, *(other.seed for other in others)}) == 5
    assert len({trial.numbers, *(other.numbers for other in others)}) == 5


def test_rounds_read_other_windows_of_a_text_on_one_line(tokenizer):
    haystack = Haystack.of(" ".join(map(str, range(9000))), tokenizer.encode)
    starts = {build(haystack, tokenizer, Cell(512, 100, number)).text[30:80] for number in range(4)}
    assert len(starts) == 4


def test_cities_are_distinct():
    assert len(set(NEEDLE_CITIES)) == len(NEEDLE_CITIES)


def test_a_context_too_short_for_its_question_is_refused(haystack, tokenizer):
    with pytest.raises(UserError, match=r"context length 64 is too short: needles and question take \d+ tokens"):
        build(haystack, tokenizer, Cell(64, 50, 0))
