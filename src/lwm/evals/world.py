"""How well a model sees, draws and films the small world, on scenes that no training showed.

    lwm eval world --model M --out DIR

DIR then holds `results.json` (a row for each question), `summary.json` (accuracy and 95% intervals), `drawn.png` and
`filmed.png` (what was asked for and what came), and `cells.jsonl`, from which an interrupted run goes on.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from rich.table import Table

from lwm.core.errors import UserError
from lwm.core.files import write_file, write_json
from lwm.evals.fingerprint import fingerprint
from lwm.evals.gallery import Shown, gallery
from lwm.evals.journal import Journal, Row
from lwm.evals.score import wilson_interval
from lwm.evals.world_codec import held_out_scenes, score_codec
from lwm.evals.world_tasks import Asking, Drawing, Finding, Subject, Task, Telling
from lwm.weights.codec_store import require_same_codes
from lwm.world.draw import SIDE
from lwm.world.film import CLIP

#: told (questions answered, questions in all, what was just done)
OnRows = Callable[[int, int, str], None]
BEYOND = "the longest videos are longer than the texts that the model was trained for"
#: of which task how many answers are shown, and where
SHOWN = {"drawn.png": ("pictures drawn", 24), "filmed.png": ("clips filmed", 8)}


@dataclass(frozen=True)
class WorldConfig:
    """Let a model draw, film, tell and answer, and read back what comes."""

    #: a model directory, or a name: nano
    model: str
    #: where results go; a run that was interrupted goes on from what is there
    out: Path
    #: pictures to draw, of what was seen in training and as many of what never was; and pictures to tell and ask about
    pictures: int = 100
    #: clips to film, tell and ask about
    clips: int = 60
    #: long videos in which a frame is to be found; 0: none
    films: int = 20
    #: their lengths, in frames
    film_frames: tuple[int, ...] = (600,)
    #: of what is drawn
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pictures < 1 or self.clips < 1 or self.films < 0:
            raise UserError(
                f"{self.pictures} pictures, {self.clips} clips, {self.films} films: "
                "ask for 1 or more pictures and clips, and 0 or more films"
            )
        lengths = self.film_frames
        if not lengths or min(lengths) < CLIP or any(n % CLIP for n in lengths) or len({*lengths}) < len(lengths):
            raise UserError(f"films of {lengths} frames: give different multiples of {CLIP}, the frames of a clip")

    def tasks(self) -> Iterator[Task]:
        """What is asked, in order."""
        yield Drawing("pictures drawn", self.pictures)
        yield Drawing("pictures drawn, of new pairs", self.pictures, new=True)
        yield Drawing("clips filmed", self.clips, CLIP)
        yield Telling("pictures told", self.pictures)
        yield Telling("clips told", self.clips, CLIP)
        yield Asking("questions about pictures", self.pictures)
        yield Asking("questions about clips", self.clips, CLIP)
        for frames in self.film_frames if self.films else ():
            yield Finding(f"marked frame of {frames:,}: what", self.films, frames, "what")
            yield Finding(f"marked frame of {frames:,}: when", self.films, frames, "when")


@dataclass(frozen=True)
class WorldReport:
    """`results`: a row for each question. `facts`: the settings, and what the codec keeps by itself."""

    results: list[Row]
    facts: Row

    def by_task(self) -> dict[str, Row]:
        """Right answers, how many were asked for, the share and its 95% interval; of drawings, in parts too."""
        groups: dict[str, list[Row]] = defaultdict(list)
        for row in self.results:
            groups[row["task"]].append(row)
        return {name: _counted([row["correct"] for row in rows]) | _parts(rows) for name, rows in groups.items()}

    def summary(self) -> Row:
        """For `summary.json`."""
        return {**self.facts, "confidence": 0.95, "by_task": self.by_task()}

    def table(self) -> Table:
        """A line for each task, and for each part of those that draw."""
        notes = ["95% intervals (Wilson)", *([BEYOND] if self.facts["beyond"] else [])]
        table = Table(title=f"{self.facts['model']} in the small world, % right", caption="; ".join(notes))
        for name in ("task", "right", "95%", "asked"):
            table.add_column(name, justify="left" if name == "task" else "right")
        for name, counted in self.by_task().items():
            table.add_row(name, *_cells(counted))
            for number, own in counted.get("by_number", {}).items():
                table.add_row(f"  shapes asked for: {number}", *_cells(own), style="dim")
            for attribute, own in counted.get("attributes", {}).items():
                table.add_row(f"  {attribute}", *_cells(own), style="dim")
        codec = self.facts["codec"]
        table.add_row(
            f"shapes after the codec ({codec['psnr']:.1f} dB)", f"{100 * codec['shapes']:.0f}", "",
            str(codec["num_pictures"]), style="italic",
        )  # fmt: skip
        return table


def run_world(config: WorldConfig, subject: Subject, on_rows: OnRows | None = None) -> WorldReport:
    """Ask what is still to be asked, and write results and pictures to `config.out`.

    Raises:
        UserError: the codec is not one of this world, the model does not draw, a directory that cannot be written or
            holds other settings.
    """
    require_same_codes(subject.model.config.vocab, subject.codec.config)
    if subject.codec.resolution != SIDE:
        raise UserError(f"the small world is drawn at {SIDE} pixels a side, and the codec's pictures have others")
    settings = _settings(config, subject)
    journal = Journal.open(config.out, settings)
    rows = {(row["task"], row["number"]): row for row in journal.rows("task", "number")}
    wanted = [(task.name, number) for task in config.tasks() for number in range(task.count)]
    for task in config.tasks():
        left = iter([number for number in range(task.count) if (task.name, number) not in rows])
        while numbers := list(islice(left, task.at_once)):
            finished = task.run(numbers, subject)
            journal.add(finished)
            rows |= {(row["task"], row["number"]): row for row in finished}
            if on_rows is not None:
                on_rows(len(rows), len(wanted), task.name)
    score, _ = score_codec(subject.codec, held_out_scenes(config.pictures))
    report = WorldReport([rows[place] for place in wanted], settings | {"model": config.model, "codec": asdict(score)})
    write_json(config.out / "results.json", report.results)
    write_json(config.out / "summary.json", report.summary())
    for file, (name, most) in SHOWN.items():
        shown = [_shown(row, subject) for row in report.results if row["task"] == name][:most]
        write_file(config.out / file, gallery(shown))
    return report


def _settings(config: WorldConfig, subject: Subject) -> Row:
    """All that the answers depend on, and whether films are longer than what the model was made for."""
    vocab = subject.model.config.vocab
    return {
        "model_digest": fingerprint(subject.model.directory),
        "dtype": subject.engine.compute.dtype,
        "pictures": config.pictures,
        "clips": config.clips,
        "films": config.films,
        "film_frames": list(config.film_frames),
        "beyond": max(config.film_frames) * (vocab.tokens_per_frame + 1) > subject.model.config.max_context,
        "seed": config.seed,
        **asdict(subject.sampling),
        "cfg": list(subject.sampling.cfg),
    }


def _shown(row: Row, subject: Subject) -> Shown:
    return Shown(row["asked"], subject.codec.decode(np.array(row["codes"], np.int32)), row["correct"])


def _counted(answers: list[bool]) -> Row:
    correct, total = sum(answers), len(answers)
    low, high = wilson_interval(correct, total)
    return {"correct": correct, "total": total, "accuracy": correct / total, "low": low, "high": high}


def _parts(rows: list[Row]) -> Row:
    """Of what was drawn: the answers by how many shapes were asked for; each attribute, and all of them together."""
    if "attributes" not in rows[0]:
        return {}
    numbers: dict[int, list[bool]] = defaultdict(list)
    attributes: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        numbers[sum(name == "shape" for name, _ in row["attributes"])].append(row["correct"])
        for name, right in row["attributes"]:
            attributes[name].append(right)
    attributes["all attributes"] = [right for each in attributes.values() for right in each]
    return {
        "by_number": {str(number): _counted(numbers[number]) for number in sorted(numbers)},
        "attributes": {name: _counted(each) for name, each in attributes.items()},
    }


def _cells(counted: Row) -> tuple[str, str, str]:
    low, high = 100 * counted["low"], 100 * counted["high"]
    return f"{100 * counted['accuracy']:.0f}", f"{low:.0f}-{high:.0f}", str(counted["total"])
