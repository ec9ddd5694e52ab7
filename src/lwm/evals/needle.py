"""Needle in a haystack: numbers hidden in a long text, asked for at its end (LWM, section 3.3; one needle or many).

    lwm eval needle --model M --haystack FILE --context-lengths 1k..64k --depths 5 --rounds 3 --out DIR

DIR then holds `results.json` (LWM's fields, a row for each cell), `summary.json` (accuracy and 95% intervals),
`heat_map.png`, and `cells.jsonl`, from which an interrupted run goes on.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, product
from pathlib import Path

from lwm.core.errors import UserError
from lwm.core.files import write_file, write_json
from lwm.data.tokenizer import Tokenizer
from lwm.evals.fingerprint import fingerprint
from lwm.evals.haystack import Haystack, read_haystack
from lwm.evals.journal import Journal, Row
from lwm.evals.lengths import parse_lengths
from lwm.evals.needle_report import NeedleReport
from lwm.evals.score import fraction_found
from lwm.evals.trial import Cell, Trial, build_trial
from lwm.infer.chat_format import ChatFormat, chat_format
from lwm.infer.engine import Engine
from lwm.infer.prompts import NEEDLE_CITIES
from lwm.infer.session import require_tokenizer
from lwm.weights.load import LoadedModel

#: told (cells done, cells in all, the row just finished)
OnCell = Callable[[int, int, Row], None]


@dataclass(frozen=True)
class NeedleConfig:
    """Hide a number in a long text and ask for it, for every context length, depth and round."""

    #: a model directory, a GGUF file, or a name: nano, smollm2
    model: str
    #: text files (or .jsonl with a "text" in each line), read one after another; too short a text is repeated
    haystack: tuple[Path, ...]
    #: where results go; a run that was interrupted goes on from what is there
    out: Path
    #: in tokens of the model's tokenizer, prompt and answer included: 1024,4096 or 1k,4k or 1k..64k (doubling);
    #: also beyond what the model was trained for, to see how far it carries
    context_lengths: str = "1k..4k"
    #: how many depths, evenly from 0% (start of the text) to 100% (end)
    depths: int = 5
    #: trials for each length and depth, each with its own city, number and stretch of the text
    rounds: int = 3
    #: numbers hidden in the text
    needles: int = 1
    #: how many of them are asked for
    retrieve: int = 1
    #: of cities, numbers and stretches of text
    seed: int = 1234
    #: room kept for the answer; by default 64, or 24 for each number asked for where that is more
    answer_tokens: int | None = None
    #: prompts of one length are read together while they stay within this many tokens
    batch_tokens: int = 32_768

    def __post_init__(self) -> None:
        parse_lengths(self.context_lengths)
        if not 1 <= self.depths <= 101:
            raise UserError(f"--depths {self.depths}: give 1 to 101 depths")
        for name in ("rounds", "answer_tokens", "batch_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} {value}: give 1 or more")
        if not 1 <= self.retrieve <= self.needles <= len(NEEDLE_CITIES):
            raise UserError(
                f"--needles {self.needles} --retrieve {self.retrieve}: "
                f"hide 1 to {len(NEEDLE_CITIES)} and ask for 1 to as many"
            )

    @property
    def answer_room(self) -> int:
        return self.answer_tokens or max(64, 24 * self.retrieve)

    @property
    def lengths(self) -> tuple[int, ...]:
        return parse_lengths(self.context_lengths)

    @property
    def depth_percents(self) -> tuple[int, ...]:
        if self.depths == 1:
            return (50,)
        return tuple(round(100 * i / (self.depths - 1)) for i in range(self.depths))

    @property
    def cells(self) -> list[Cell]:
        """The grid, short contexts first."""
        return [Cell(*place) for place in product(self.lengths, self.depth_percents, range(self.rounds))]


@dataclass(frozen=True)
class MultiNeedleConfig(NeedleConfig):
    """Hide several numbers in a long text and ask for one or more of them.

    The depth of a cell is that of the first number asked for; the others lie at depths drawn at random.
    """

    needles: int = 4


@dataclass(frozen=True)
class NeedleTask:
    """Cells in, answered rows out: what a grid is made of, for those who choose their own cells."""

    haystack: Haystack
    tokenizer: Tokenizer
    engine: Engine
    seed: int
    answer_tokens: int
    needles: int = 1
    retrieve: int = 1

    @cached_property
    def chat(self) -> ChatFormat:
        """How the model is asked."""
        return chat_format(self.tokenizer, self.engine.config.vocab)

    def trial(self, cell: Cell) -> Trial:
        """What is asked in a cell."""
        return build_trial(
            cell,
            self.haystack,
            self.chat,
            seed=self.seed,
            answer_tokens=self.answer_tokens,
            needles=self.needles,
            retrieve=self.retrieve,
        )

    def run(self, cells: Sequence[Cell]) -> list[Row]:
        """Ask the model, all cells in one batch, greedily."""
        trials = [self.trial(cell) for cell in cells]
        asked = [trial.prompt for trial in trials]
        answers = self.engine.generate(asked, self.answer_tokens, stop_ids=self.chat.stop_ids)
        return [_row(trial, self.tokenizer.decode(ids)) for trial, ids in zip(trials, answers, strict=True)]


def run_needle(config: NeedleConfig, model: LoadedModel, engine: Engine, on_cell: OnCell | None = None) -> NeedleReport:
    """Run the grid, or what is left of it, and write its results to `config.out`.

    Raises:
        UserError: a haystack that cannot be read, a length that the needles do not fit, a model without
            tokenizer, an output directory that cannot be written or holds other settings.
    """
    tokenizer = require_tokenizer(model)
    haystack = read_haystack(config.haystack, tokenizer.encode)
    task = NeedleTask(haystack, tokenizer, engine, config.seed, config.answer_room, config.needles, config.retrieve)
    for cell in config.cells[: config.depths * config.rounds]:  # the shortest: what fits them fits all
        task.trial(cell)
    settings = _settings(config, model, engine, haystack)
    journal = Journal.open(config.out, settings)
    rows = {_cell_of(row): row for row in journal.rows("context_length", "depth_percent", "round")}
    left = [cell for cell in config.cells if cell not in rows]
    for cells in _batches(left, config.batch_tokens):
        finished = task.run(cells)
        journal.add(finished)
        for row in finished:
            rows[_cell_of(row)] = row
            if on_cell is not None:
                on_cell(len(rows), len(config.cells), row)
    facts = {"model": config.model, "haystack": [str(path) for path in config.haystack], **settings}
    facts |= {"haystack_tokens": haystack.num_tokens, "max_context": model.config.max_context}
    report = NeedleReport([rows[cell] for cell in config.cells], facts)
    write_json(config.out / "results.json", report.results)
    write_json(config.out / "summary.json", report.summary())
    write_file(config.out / "heat_map.png", report.heat_map())
    return report


def _settings(config: NeedleConfig, model: LoadedModel, engine: Engine, haystack: Haystack) -> Row:
    """All that the answers depend on: a run goes on only where these are the same. Files count by what is in them."""
    return {
        "model_digest": fingerprint(model.directory),
        "dtype": engine.compute.dtype,
        "haystack_digest": haystack.digest,
        "context_lengths": list(config.lengths),
        "depths": list(config.depth_percents),
        "rounds": config.rounds,
        "needles": config.needles,
        "retrieve": config.retrieve,
        "seed": config.seed,
        "answer_tokens": config.answer_room,
    }


def _cell_of(row: Row) -> Cell:
    return Cell(row["context_length"], row["depth_percent"], row["round"])


def _batches(cells: list[Cell], batch_tokens: int) -> Iterator[list[Cell]]:
    """Neighbouring cells of one length, as many as `batch_tokens` allow and at least one."""
    for length, group in groupby(cells, key=lambda cell: cell.context_length):
        same_length = list(group)
        size = max(1, batch_tokens // length)
        for first in range(0, len(same_length), size):
            yield same_length[first : first + size]


def _row(trial: Trial, response: str) -> Row:
    """LWM's six fields, then what is needed to look closer."""
    found = fraction_found(response, trial.numbers)
    return {
        "context_length": trial.cell.context_length,
        "depth_percent": trial.cell.depth_percent,
        "response": response,
        "answer": ", ".join(trial.numbers),
        "correct": found == 1,
        "seed": trial.seed,
        "round": trial.cell.round,
        "cities": list(trial.cities),
        "fraction_found": found,
        "prompt_tokens": len(trial.prompt),
    }
