import re
from dataclasses import replace

import numpy as np
import pytest

from lwm.core.errors import UserError
from lwm.data.positions import MAX_SKIPS
from lwm.infer.prompts import needle, needle_prompt
from lwm.nano.corpus import held_out_documents
from lwm.nano.facts import REQUESTS, Fact, answer, held_out_world, question, training_world
from lwm.nano.tasks import ANSWER, LINE, TEXT, TaskData, TaskSource

FACTS = TaskData(
    (512,), facts=1.0, quotes=0.0, other_facts=0.4, line_questions=0.3, requests=0.5, max_facts=6, max_questions=8
)


@pytest.fixture(scope="module")
def corpus(tokenizer):
    return np.array(tokenizer.encode(held_out_documents()[3].text), np.int32)


@pytest.fixture(scope="module")
def open_source(tokenizer, corpus):
    return lambda config: TaskSource(config, tokenizer, corpus, training_world())


@pytest.mark.parametrize("kinds", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
@pytest.mark.parametrize("length", [96, 128, 2048])
def test_records_fill_rows_exactly(open_source, tokenizer, kinds, length):
    facts, quotes, text = kinds
    source = open_source(replace(FACTS, lengths=(length,), facts=facts, quotes=quotes, text=text))
    for index in range(40):
        example = source[index]
        assert len(example.tokens) == len(example.loss_weights) == length + 1
        assert (example.tokens.dtype, example.loss_weights.dtype) == (np.int32, np.float32)
        assert example.tokens.min() >= 1 and example.tokens.max() < tokenizer.size
        assert example.loss_weights.sum() > 0


def test_a_record_is_a_function_of_seed_and_index(open_source):
    mixed = replace(FACTS, quotes=1.0, lengths=(128, 256), length_shares=(1.0, 1.0))
    first, again, other = open_source(mixed), open_source(mixed), open_source(replace(mixed, seed=1))
    backwards = [again[index] for index in reversed(range(30))][::-1]
    for index in range(30):
        assert first[index].record_id == backwards[index].record_id
        np.testing.assert_array_equal(first[index].tokens, backwards[index].tokens)
        np.testing.assert_array_equal(first[index].loss_weights, backwards[index].loss_weights)
    assert {len(first[index].tokens) for index in range(30)} == {129, 257}
    assert any(first[index].tokens.tolist() != other[index].tokens.tolist() for index in range(30))


def test_learned_answers_are_those_of_the_document(open_source, tokenizer):
    source = open_source(replace(FACTS, line_questions=0.0))
    asked = 0
    for index in range(40):
        example = source[index]
        text = tokenizer.decode(example.tokens.tolist())
        stated = dict(re.findall(r"\nThe special magic (.+?) number is: (\d{7})\n", text))
        stated |= dict(re.findall(r"\nThe (?:population|door code|password) (?:of|for) (.+?) is (\S+)\.\n", text))
        learned = tokenizer.decode(example.tokens[example.loss_weights == ANSWER].tolist())
        numbers = re.findall(r"\d{7}", learned)
        assert set(numbers) <= set(stated.values())
        for city, number in re.findall(
            r"magic (?:number for )?([\w ]+?)(?: number)?\?[^?]*? ASSISTANT: +The special magic \1 number is: (\d{7})",
            text,
        ):
            assert stated[city] == number
            asked += 1
    assert asked > 40


def test_random_quotes_are_made_of_many_tokens_or_of_ten(open_source):
    def sizes(few_symbols):
        source = open_source(TaskData((1024,), facts=0.0, quotes=1.0, few_symbols=few_symbols))
        return [len(np.unique(source[index].tokens)) for index in range(60)]

    assert min(sizes(0.0)) > 11
    assert sum(size <= 11 for size in sizes(1.0)) > 20  # the ten and the begin token; the others quote real text


def test_lines_to_complete_are_lines_of_the_corpus(open_source, tokenizer, corpus):
    source = open_source(replace(FACTS, line_questions=1.0, requests=0.0))
    text_of_corpus = tokenizer.decode(corpus.tolist())
    for index in range(10):
        text = tokenizer.decode(source[index].tokens.tolist())
        for turn in text.split(" Complete the line:")[1:]:
            start, end = turn.split(" ASSISTANT:")[:2]
            assert start + end.split(" USER:")[0] in text_of_corpus
    assert any((source[index].loss_weights == LINE).any() for index in range(10))


def test_positions_skip_over_every_distance_up_to_the_span(open_source):
    plain, skipping = open_source(FACTS), open_source(replace(FACTS, span=8192))
    reached = []
    for index in range(200):
        example = skipping[index]
        assert example.tokens.tolist() == plain[index].tokens.tolist()
        steps = np.diff(example.positions)
        assert steps.min() == 1 and 0 < (steps > 1).sum() <= MAX_SKIPS
        if example.record_id.startswith("facts"):
            assert (example.loss_weights[1:][steps > 1] == np.float32(TEXT)).all(), "a fact or an answer is torn apart"
        reached.append(int(np.ptp(example.positions)))
    assert 512 <= min(reached) < 1024 and 4096 < max(reached) < 8192
    assert plain[0].positions is None


def test_every_request_is_made_and_left_out(open_source, tokenizer):
    source = open_source(replace(FACTS, line_questions=0.0))
    text = "".join(tokenizer.decode(source[index].tokens.tolist()) for index in range(50))
    turns = [turn.split(" ASSISTANT:")[0] for turn in text.split(" USER:")]
    found = [sum(turn.endswith(request) for turn in turns) for request in REQUESTS]
    assert min(found) > len(turns) / 10
    assert any(turn.endswith("?") for turn in turns)


def test_needles_go_to_every_depth(open_source, tokenizer):
    source = open_source(replace(FACTS, other_facts=0.0, max_facts=1, max_questions=1, line_questions=0.0))
    texts = [tokenizer.decode(source[index].tokens.tolist()) for index in range(200)]
    depths = np.array([text.index("\nThe special magic") / text.index(" What is") for text in texts])
    counts, _ = np.histogram(depths, bins=5, range=(0, 1))
    assert counts.min() > 20
    starts = sum(bool(re.match(r"You are a helpful assistant\. USER: ?\nThe special", text)) for text in texts)
    ends = sum(bool(re.search(r"number is: \d{7}\n What is", text)) for text in texts)
    assert starts > 5 and ends > 5


def test_wordings_are_those_of_the_needle_tests():
    fact, other = Fact("magic", "New York", "1234567"), Fact("magic", "Rome", "7654321")
    assert fact.statement == needle("New York", "1234567")
    asked = {question([fact], np.random.default_rng(seed)) for seed in range(20)}
    asked_of_several = {question([fact, other], np.random.default_rng(0))}
    single, several = needle_prompt("", ["New York"]), needle_prompt("", ["New York", "Rome"], 4)
    one_of_several = needle_prompt("", ["New York"], 4)
    assert {REQUESTS[0] in single, REQUESTS[1] in several, REQUESTS[1] in one_of_several} == {True}
    assert any(text in single for text in asked) and any(text in one_of_several for text in asked)
    assert all(text in several for text in asked_of_several)
    assert answer([fact]) == "The special magic New York number is: 1234567"
    assert answer([fact, other]) == f"{answer([fact])} {answer([other])}"


def test_held_out_names_are_never_planted_in_training():
    trained, held_out = training_world(), held_out_world()
    for names in ("cities", "people", "words"):
        assert not set(getattr(trained, names)) & set(getattr(held_out, names))
    rng = np.random.default_rng(0)
    planted = {fact.key for _ in range(2000) for fact in trained.facts(4, 0.3, rng)}
    assert not planted & {*held_out.cities, *held_out.people}
    assert len(planted) > 6000  # names are made up on the spot


def test_some_numbers_are_made_of_three_digits():
    rng = np.random.default_rng(0)
    facts = [fact for _ in range(100) for fact in replace(training_world(), few_digits=0.5).facts(4, 0.3, rng)]
    numbers = {kind: [fact.value for fact in facts if fact.kind == kind] for kind in ("magic", "population", "door")}
    assert all(re.fullmatch(r"[1-9]\d{6}", number) for number in numbers["magic"] + numbers["population"])
    assert all(re.fullmatch(r"[1-9]\d{3}", number) for number in numbers["door"])
    few = [len(set(number)) <= 4 for number in numbers["magic"]]  # a leading 0 is written as 1
    assert 0.5 < np.mean(few) < 0.7


def test_confusers_are_pieces_of_statements_that_never_say_a_value(open_source, tokenizer):
    plain, confused = (
        open_source(TaskData((1024,), facts=1.0, quotes=0.0, max_facts=1, confusers=confusers))
        for confusers in (0.0, 0.2)
    )
    magic = tokenizer.encode(" magic")[0]
    told = [[(source[index].tokens == magic).sum() for index in range(40)] for source in (plain, confused)]
    assert np.mean(told[1]) > np.mean(told[0]) + 3
    for index in range(40):
        one, other = plain[index], confused[index]
        assert len(one.tokens) == len(other.tokens) == 1025
        text = tokenizer.decode(other.tokens.tolist())
        for city, number in re.findall(r"The special magic (.+?) number is: (\d{7})", text):
            assert text.count(f"magic {city} number is: ") == text.count(f"magic {city} number is: {number}")


def test_what_cannot_be_generated_is_refused(open_source):
    with pytest.raises(UserError, match="no room"):
        TaskData(lengths=(32,))
    with pytest.raises(UserError, match="differ in number"):
        TaskData(lengths=(128, 256))
    with pytest.raises(UserError, match="span"):
        TaskData(lengths=(128, 256), length_shares=(1.0, 1.0), span=200)
    with pytest.raises(UserError, match="too few"):
        open_source(TaskData(lengths=(1 << 20,)))
