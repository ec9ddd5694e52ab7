"""What the nano model is trained on: generated records, each a pure function of (seed, index).

    facts   a stretch of real text with facts planted in it, then many questions and answers; the answers are learned
    quotes  real text or random tokens, then the same or passages of it again; how they go on is learned
    text    real text, learned lightly

Quotes keep copying general, whatever is copied; finding facts builds on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from lwm.core.errors import UserError
from lwm.core.vocab import Vocab
from lwm.data.examples import Example
from lwm.data.positions import skip_positions
from lwm.data.tokenizer import Tokenizer
from lwm.nano.corpus import held_out_documents, training_documents
from lwm.nano.facts import (
    COMPLETE_LINE,
    NEXT_TURN,
    PROMPT_END,
    PROMPT_START,
    REQUESTS,
    Fact,
    World,
    answer,
    held_out_world,
    question,
    training_world,
)

#: loss weights
ANSWER, LINE, QUOTE, TEXT, SILENT = 1.0, 0.5, 0.2, 0.01, 0.0
MIN_LENGTH = 96
#: of the sources that are quoted, how many are real text; the others are random tokens
TEXT_SOURCES = 0.3
#: tokens of a line that is worth completing
SHORTEST_LINE, LONGEST_LINE = 7, 32
#: of the questions about magic numbers, how many ask for two or three at once
SEVERAL_SHARE = 0.2
#: tokens that a question, a request and an answer take, with some to spare
TURN_ROOM = 96

Ids = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class TaskData:
    """Which records to generate. All shares are relative to the others of their group.

    A record of length n has n + 1 tokens, so that it fills n targets; rows of the batch hold one or several.
    """

    lengths: tuple[int, ...] = (128,)
    length_shares: tuple[float, ...] = (1.0,)
    facts: float = 0.6
    quotes: float = 0.4
    text: float = 0.0
    #: of the quotes of random tokens, the part made of ten different ones, as numbers are: one or two tokens back do
    #: not tell where such a quote goes on
    few_symbols: float = 0.0
    #: of the planted facts, the part that are not magic numbers
    other_facts: float = 0.0
    #: of the numbers in facts, the part made of three digits
    few_digits: float = 0.0
    #: of the questions, the part that ask to complete a line of the document
    line_questions: float = 0.0
    #: of the questions, the part followed by one of LWM's requests ("Don't give information ...")
    requests: float = 0.0
    #: pieces of the statements, up to three tokens each, that lie about in the document and go on otherwise: one for so
    #: many tokens at the most, as if the document were that much longer; 0: none
    confusers: float = 0.0
    max_facts: int = 3
    max_questions: int = 4
    #: positions skip ahead here and there and reach up to this, as if text had been left out; 0: they do not
    span: int = 0
    split: Literal["training", "held_out"] = "training"
    seed: int = 0
    #: records before the source ends and begins again
    num_records: int = 1 << 20

    def __post_init__(self) -> None:
        if len(self.lengths) != len(self.length_shares):
            raise UserError(f"lengths {self.lengths} and length_shares {self.length_shares} differ in number")
        if min(self.lengths) < MIN_LENGTH:
            raise UserError(
                f"records of {min(self.lengths)} tokens have no room for a fact and a question: take {MIN_LENGTH}"
            )
        if self.seed < 0:
            raise UserError(f"seed {self.seed} must be 0 or more")
        if 0 < self.span <= max(self.lengths):
            raise UserError(f"a span of {self.span} leaves records of {max(self.lengths)} tokens no room to skip")

    def open(self, tokenizer: Tokenizer, vocab: Vocab) -> "TaskSource":
        """Tokenize the split's documents (some seconds) and make the source."""
        held_out = self.split == "held_out"
        documents = held_out_documents() if held_out else training_documents()
        corpus = np.concatenate([np.array(tokenizer.encode(document.text), np.int32) for document in documents])
        world = held_out_world() if held_out else training_world()
        return TaskSource(self, tokenizer, corpus, replace(world, few_digits=self.few_digits))


class Record:
    """Tokens and their weights, piece by piece."""

    def __init__(self) -> None:
        self.pieces: list[Ids] = []
        self.weights: list[float] = []
        self.length = 0

    def add(self, ids: Ids, weight: float) -> None:
        """Append tokens that share a weight."""
        self.pieces.append(ids)
        self.weights.append(weight)
        self.length += len(ids)

    def extend(self, other: "Record") -> None:
        """Append another record."""
        self.pieces += other.pieces
        self.weights += other.weights
        self.length += other.length

    def example(self, record_id: str) -> Example:
        """The finished record."""
        tokens = np.concatenate([np.asarray(piece, np.int32) for piece in self.pieces])
        weights = np.repeat(np.array(self.weights, np.float32), [len(piece) for piece in self.pieces])
        return Example(tokens, weights, record_id)


class TaskSource:
    """Random access to generated records (an `ExampleSource`)."""

    def __init__(self, config: TaskData, tokenizer: Tokenizer, corpus: np.ndarray, world: World) -> None:
        if len(corpus) <= max(config.lengths):
            raise UserError(f"the corpus has {len(corpus)} tokens, too few for records of {max(config.lengths)}")
        self._config, self._corpus, self._world = config, corpus, world
        if tokenizer.bos_id is None or tokenizer.eos_id is None:
            raise UserError("these records begin and end with special tokens, and the tokenizer lacks one of the two")
        self._bos, self._eos, self._encode = tokenizer.bos_id, tokenizer.eos_id, tokenizer.encode
        self._space = tokenizer.encode(" ")
        self._num_ids = tokenizer.size
        self._pairs = np.array([tokenizer.encode(f"{pair:02d}")[-1] for pair in range(100)], np.int32)
        self._ends_line = np.array(["\n" in tokenizer.decode([id]) for id in range(tokenizer.size)])
        self._length_shares = _normalized(config.length_shares)
        self._builders = {"facts": self._facts, "quotes": self._quotes, "text": self._text}
        self._builder_shares = _normalized([getattr(config, kind) for kind in self._builders])

    def __len__(self) -> int:
        return self._config.num_records

    def __getitem__(self, index: int) -> Example:
        """Record `index`, of one of the configured lengths."""
        rng = np.random.default_rng((self._config.seed, index))
        length = int(rng.choice(self._config.lengths, p=self._length_shares)) + 1
        kind = str(rng.choice(list(self._builders), p=self._builder_shares))
        example = self._builders[kind](length, rng).example(f"{kind}/{self._config.seed}/{index}")
        return replace(example, positions=self._skip(example.loss_weights, rng)) if self._config.span else example

    def _skip(self, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Positions that skip in the text: facts, questions and answers stay whole."""
        text = np.flatnonzero(weights[1:] == np.float32(TEXT)) + 1
        places = text if len(text) else np.arange(1, len(weights))
        return skip_positions(len(weights), places, self._config.span, rng)

    def _text(self, length: int, rng: np.random.Generator) -> Record:
        record = self._begin(rng)
        record.add(self._slice(length - record.length, rng), QUOTE)
        return record

    def _quotes(self, length: int, rng: np.random.Generator) -> Record:
        """Half of them one passage over and over, the others a longer source and passages cut from it."""
        record = self._begin(rng)
        is_text = rng.random() < TEXT_SOURCES
        is_one = rng.random() < 0.5
        room = int(rng.integers(12, length // 3)) if is_one else int(length * rng.uniform(0.3, 0.6))
        source = self._slice(room, rng) if is_text else self._random_tokens(room, rng)
        record.add(source, TEXT if is_text else SILENT)
        while record.length < length:
            size = room if is_one else int(rng.integers(12, 65))
            start = rng.integers(max(1, room - size))
            quote = source[start : start + size][: length - record.length]
            record.add(quote[:2], SILENT)  # where a quote begins, nobody can know
            record.add(quote[2:], QUOTE)
        return record

    def _random_tokens(self, count: int, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= self._config.few_symbols:
            return rng.integers(3, self._num_ids, count, dtype=np.int32)
        symbols = self._pairs if rng.random() < 0.5 else np.arange(3, self._num_ids, dtype=np.int32)
        return rng.choice(rng.choice(symbols, 10), count)

    def _facts(self, length: int, rng: np.random.Generator) -> Record:
        record = self._begin(rng)
        record.add(self._encode(PROMPT_START), SILENT)
        record.add(self._space if rng.random() < 0.5 else [], SILENT)
        most = max(1, min(self._config.max_facts, length // 45))
        facts = self._world.facts(int(rng.integers(1, most + 1)), self._config.other_facts, rng)
        statements = [self._encode(fact.statement) for fact in facts]
        document = self._slice(length - record.length - sum(map(len, statements)), rng)
        if self._config.confusers:
            document = self._confuse(document, facts, rng)
        turns = self._turns(facts, document, rng)
        self._plant(record, document[turns.length :], statements, rng)
        record.extend(turns)
        return record

    def _confuse(self, document: np.ndarray, facts: list[Fact], rng: np.random.Generator) -> np.ndarray:
        """The document with pieces of what comes before a value in it: where they lead, the text goes on."""
        leads = [self._encode(fact.statement.split(fact.value)[0]) for fact in facts]
        document = document.copy()
        for _ in range(int(rng.uniform(0, self._config.confusers) * len(document))):
            lead = leads[rng.integers(len(leads))]
            start = int(rng.integers(len(lead)))
            piece = lead[start : start + int(rng.integers(1, 4))]
            place = int(rng.integers(len(document) - len(piece)))
            document[place : place + len(piece)] = piece
        return document

    def _plant(
        self, record: Record, document: np.ndarray, statements: list[list[int]], rng: np.random.Generator
    ) -> None:
        """Add the document with statements at random depths: the very ends too, and half of the others at line ends."""
        count = len(statements)
        depths = np.where(rng.random(count) < 0.2, rng.integers(2, size=count), rng.random(count))
        places = np.round(depths * len(document)).astype(int)
        line_ends = np.append(np.flatnonzero(self._ends_line[document]) + 1, len(document))
        move = (places > 0) & (rng.random(count) < 0.5)
        places = np.where(move, line_ends[np.searchsorted(line_ends, places)], places)
        before = 0
        for which in np.argsort(places, kind="stable"):
            record.add(document[before : places[which]], TEXT)
            record.add(statements[which], SILENT)
            before = places[which]
        record.add(document[before:], TEXT)

    def _turns(self, facts: list[Fact], document: np.ndarray, rng: np.random.Generator) -> Record:
        """Questions and answers, to take the place of the document's beginning (of 3/4 of it at most)."""
        turns = Record()
        most = self._config.max_questions
        count = int(rng.integers((most + 1) // 2, most + 1))
        room = min(count * TURN_ROOM, 3 * len(document) // 4)
        separator = self._encode(NEXT_TURN)
        end = [self._eos] if rng.random() < 0.5 else []  # a conversation may go on with or without it
        for number in range(count):
            turn = Record()
            if rng.random() < self._config.line_questions:
                turn = self._ask_line(document[room:], rng)
            if not turn.length:
                turn = self._ask_facts(facts, number, rng)
            if turns.length + len(end) + len(separator) + turn.length >= room:
                continue
            if turns.length:
                turns.add(end, ANSWER)
                turns.add(separator, SILENT)
            turns.extend(turn)
        turns.add([self._eos], ANSWER)
        return turns

    def _ask_facts(self, facts: list[Fact], number: int, rng: np.random.Generator) -> Record:
        """Ask for two or three magic numbers at once, or for each fact in turn."""
        asked = [facts[number % len(facts)]]
        magic = [fact for fact in facts if fact.kind == "magic"]
        if len(magic) > 1 and rng.random() < SEVERAL_SHARE:
            asked = [magic[which] for which in rng.permutation(len(magic))[: rng.integers(2, 4)]]
        reply = self._encode(" " + answer(asked))
        # LWM's prompt ends in a space. Before a number that is a token of its own anyway; before a word it is one more.
        spaced = reply[:1] != self._space and rng.random() < 0.5
        return self._turn(self._encode(" " + question(asked, rng)), self._space if spaced else [], reply, ANSWER, rng)

    def _ask_line(self, document: np.ndarray, rng: np.random.Generator) -> Record:
        """Ask how a line goes on whose beginning no other has; an empty record where the draw finds none."""
        line_ends = np.flatnonzero(self._ends_line[document])
        lines = [(a + 1, b) for a, b in pairwise(line_ends) if SHORTEST_LINE < b - a <= LONGEST_LINE]
        if not lines:
            return Record()
        first, last = lines[rng.integers(len(lines))]
        cut = first + int(rng.integers(3, SHORTEST_LINE - 1))
        if _occurrences(document, document[first:cut]) > 1:
            return Record()
        asked = [*self._encode(COMPLETE_LINE), *document[first:cut].tolist()]
        return self._turn(asked, [], document[cut:last], LINE, rng)

    def _turn(self, asked: Ids, silent: Ids, reply: Ids, weight: float, rng: np.random.Generator) -> Record:
        turn = Record()
        request = REQUESTS[rng.integers(len(REQUESTS))] if rng.random() < self._config.requests else ""
        turn.add([*asked, *self._encode(request + PROMPT_END), *silent], SILENT)
        turn.add(reply, weight)
        return turn

    def _begin(self, rng: np.random.Generator) -> Record:
        """Most records begin with the begin token; some prompts come without."""
        record = Record()
        record.add([self._bos] if rng.random() < 0.8 else [], SILENT)
        return record

    def _slice(self, length: int, rng: np.random.Generator) -> np.ndarray:
        start = rng.integers(len(self._corpus) - length)
        return self._corpus[start : start + length]


def _normalized(shares: Sequence[float]) -> np.ndarray:
    return np.asarray(shares, float) / sum(shares)


def _occurrences(document: np.ndarray, pattern: np.ndarray) -> int:
    windows = np.lib.stride_tricks.sliding_window_view(document, len(pattern))
    return int((windows == pattern).all(axis=1).sum())
