"""Planted facts: how each is stated in a document, asked for, and answered; and the prompts around them.

Magic numbers are LWM's needle test word for word (`infer.prompts`). The other kinds let the model answer more than
one question, and keep it from answering every question with the nearest number.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lwm.infer.prompts import ALL_ANSWERS, SHORT_ANSWER, SYSTEM, needle
from lwm.nano.names import CITIES, HELD_OUT_CITIES, HELD_OUT_PEOPLE, HELD_OUT_WORDS, PEOPLE, WORDS, invent

PROMPT_START = f"{SYSTEM} USER:"
NEXT_TURN = " USER:"
PROMPT_END = " ASSISTANT:"
#: what LWM's single and multi-needle prompts ask besides the question; plain chat asks nothing more
REQUESTS = (f" {SHORT_ANSWER}", f" {ALL_ANSWERS}")
COMPLETE_LINE = " Complete the line:"


@dataclass(frozen=True)
class Kind:
    """Wordings of one kind of fact. Keys and values follow a space everywhere, so that they tokenize alike."""

    statement: str
    questions: tuple[str, ...]


class Fact(NamedTuple):
    """`value` is known of `key`, in the sense of `kind` (a name in `KINDS`)."""

    kind: str
    key: str
    value: str

    @property
    def statement(self) -> str:
        """The sentence to plant, on a line of its own."""
        return KINDS[self.kind].statement.format(key=self.key, value=self.value)


KINDS = {
    "magic": Kind(
        needle("{key}", "{value}"),
        ("What is the special magic {key} number?", "What is the special magic number for {key}?"),
    ),
    "population": Kind("\nThe population of {key} is {value}.\n", ("What is the population of {key}?",)),
    "password": Kind("\nThe password for {key} is {value}.\n", ("What is the password for {key}?",)),
    "door": Kind("\nThe door code of {key} is {value}.\n", ("What is the door code of {key}?",)),
}


@dataclass(frozen=True)
class World:
    """The names that facts are made of."""

    cities: tuple[str, ...]
    people: tuple[str, ...]
    words: tuple[str, ...]
    #: of the names, the part made up on the spot
    invented: float = 0.0
    #: of the numbers, the part made of three or four digits, whose last one or two do not tell which comes next
    few_digits: float = 0.0

    def facts(self, count: int, other_share: float, rng: np.random.Generator) -> list[Fact]:
        """`count` facts with distinct (kind, key), about `other_share` of them other than magic numbers."""
        others = rng.random(count) < other_share
        kinds = np.where(others, rng.choice(["population", "password", "door"], count), "magic")
        drawn = (self._fact(str(kind), rng) for kind in kinds)
        return list({(fact.kind, fact.key): fact for fact in drawn}.values())

    def _fact(self, kind: str, rng: np.random.Generator) -> Fact:
        names = self.cities if kind in ("magic", "population") else self.people
        key = invent(rng) if rng.random() < self.invented else names[rng.integers(len(names))]
        match kind:
            case "password":
                value = "-".join(self.words[place] for place in rng.integers(len(self.words), size=2))
            case "door":
                value = self._number(4, rng)
            case _:
                value = self._number(7, rng)
        return Fact(kind, key, value)

    def _number(self, num_digits: int, rng: np.random.Generator) -> str:
        if self.few_digits and rng.random() < self.few_digits:
            first, *others = rng.choice(10, 3, replace=False)
            return "".join(map(str, [first or 1, *rng.choice([first, *others], num_digits - 1)]))
        return str(rng.integers(10 ** (num_digits - 1), 10**num_digits))


def training_world() -> World:
    """Known names now and then, made-up ones most of the time."""
    return World(CITIES, PEOPLE, WORDS, invented=0.95)


def held_out_world() -> World:
    """Names that training never plants."""
    return World(HELD_OUT_CITIES, HELD_OUT_PEOPLE, HELD_OUT_WORDS)


def question(facts: list[Fact], rng: np.random.Generator) -> str:
    """Ask for one fact of any kind, or for several magic numbers at once."""
    if len(facts) > 1:
        *first, last = (fact.key for fact in facts)
        return f"What are the special magic numbers for {', '.join(first)}, and {last}?"
    wordings = KINDS[facts[0].kind].questions
    return wordings[rng.integers(len(wordings))].format(key=facts[0].key)


def answer(facts: list[Fact]) -> str:
    """What each fact says, in the order asked, word for word.

    Saying the sentence again leads up to the value: by then what to copy follows from what was just said. A bare value
    has to be found from the question alone. On that the model stood still for millions of tokens at the first digit,
    with all others right; with sentences it found whole numbers after half a million.
    """
    return " ".join(fact.statement.strip() for fact in facts)


def prompts() -> list[str]:
    """Every fixed part of a prompt."""
    starts = (PROMPT_START, NEXT_TURN + COMPLETE_LINE)
    return [start + request + PROMPT_END for start in starts for request in ("", *REQUESTS)]


def sentences() -> list[str]:
    """Every kind of fact, stated and asked for, with the known names that training plants."""
    rng = np.random.default_rng(0)
    facts = [Fact(kind, name, "1234567") for kind in KINDS for name in (*CITIES, *PEOPLE)]
    return [text for fact in facts for text in (fact.statement, question([fact], rng))] + list(WORDS)
