"""Questions about one document: it is read once, each question then goes on from that reading."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lwm.data.tokenizer import Tokenizer
from lwm.demo.machine import compile_clock
from lwm.evals.haystack import Haystack
from lwm.evals.trial import hide
from lwm.infer.engine import Engine, Ids
from lwm.infer.prompts import document_head, encode, stop_ids
from lwm.nano.corpus import Document
from lwm.nano.facts import Fact, held_out_world, question

ANSWER_TOKENS = 64
#: what the prompt's own words take, and tokens that do not add up where texts meet
SEAMS = 32
_KINDS = ("magic", "magic", "population", "password", "door")


@dataclass(frozen=True)
class Turn:
    """A question, what the model said, and the values it should have. `depth_percent`: where the first one stands."""

    question: str
    response: str
    values: tuple[str, ...]
    depth_percent: int

    @property
    def correct(self) -> bool:
        """LWM's score: every value occurs in the response."""
        return all(value in self.response for value in self.values)

    @property
    def truth(self) -> str:
        """The values, to be read."""
        return ", ".join(self.values)


@dataclass(frozen=True)
class Conversation:
    """What was read (`excerpt`: the lines around the fact `planted` first), what was asked, and how fast it went."""

    document: str
    num_tokens: int
    planted: str
    excerpt: str
    turns: tuple[Turn, ...]
    prefill_rate: float
    decode_rate: float


def converse(engine: Engine, tokenizer: Tokenizer, document: Document, num_tokens: int, seed: int) -> Conversation:
    """Plant facts in the start of a document, read it, and ask for each of them and for two together.

    `num_tokens` is the most that all of it takes: text, facts, a question and its answer.
    """
    rng = np.random.default_rng(seed)
    facts = _facts(rng)
    depths = (rng.permutation(len(facts)) + 0.5) / len(facts)
    haystack = Haystack.of(document.text, tokenizer.encode)
    asked = [[fact] for fact in facts] + [facts[:2]]
    questions = [question(about, rng) for about in asked]
    prompts = [tokenizer.encode(f" {text} ASSISTANT:") for text in questions]
    statements = [fact.statement for fact in facts]
    planted_tokens = sum(len(tokenizer.encode(statement)) for statement in statements)
    room = num_tokens - planted_tokens - max(map(len, prompts)) - ANSWER_TOKENS - SEAMS
    context = hide(haystack, 0, float(min(room, haystack.num_tokens)), statements, depths.tolist())
    read = encode(tokenizer, document_head(context))
    answers, prefill_rate, decode_rate = _ask_each(engine, read, prompts, stop_ids(tokenizer))
    places = [round(100 * depths[facts.index(about[0])]) for about in asked]
    turns = [
        Turn(text, tokenizer.decode(ids).strip(), tuple(fact.value for fact in about), place)
        for text, ids, about, place in zip(questions, answers, asked, places, strict=True)
    ]
    planted = facts[0].statement.strip()
    excerpt = _around(context, planted)
    return Conversation(document.name, len(read), planted, excerpt, tuple(turns), prefill_rate, decode_rate)


def _facts(rng: np.random.Generator) -> list[Fact]:
    """One of each kind, and a second number, so that it takes the city to choose between them."""
    drawn = held_out_world().facts(200, 0.75, rng)
    chosen: list[Fact] = []
    for kind in _KINDS:
        taken = {fact.key for fact in chosen}
        chosen.append(next(fact for fact in drawn if fact.kind == kind and fact.key not in taken))
    return chosen


def _ask_each(engine: Engine, read: Ids, prompts: Sequence[Ids], stops: Ids) -> tuple[list[list[int]], float, float]:
    """Answers to prompts that each follow `read`, and the tokens read and generated a second, compiling left out."""
    capacity = engine.slots(len(read)) + engine.slots(max(map(len, prompts))) + ANSWER_TOKENS
    with compile_clock() as compiled:
        document = engine.start([read], capacity)
        prefill_seconds = document.timings.prefill_seconds - compiled()
    answers, decoded, decode_seconds = [], 0, 0.0
    for prompt in prompts:
        heard = engine.extend(document, [prompt])
        with compile_clock() as compiled:
            (ids,), spoken = engine.decode(heard, ANSWER_TOKENS, stop_ids=stops)
            decode_seconds += spoken.timings.decode_seconds - compiled()
        decoded += spoken.timings.decode_tokens
        answers.append(ids)
        document = engine.rewind(spoken, document)
    return answers, len(read) / prefill_seconds, decoded / decode_seconds


def _around(context: str, fact: str, characters: int = 240) -> str:
    """Whole lines around a fact."""
    place = context.index(fact)
    before = context[max(0, place - characters) : place].partition("\n")[2]
    after = context[place + len(fact) : place + len(fact) + characters].rpartition("\n")[0]
    return before + fact + after
