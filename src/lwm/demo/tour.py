"""`lwm demo`: needles in ever longer documents, questions about one of them, the small world, then the page.

Texts and names were held out of the model's training. How far the grid goes is decided by the speed of the machine.
"""

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax
from jax.sharding import Mesh
from rich.table import Table
from rich.text import Text

from lwm.core.errors import UserError
from lwm.core.files import write_file, write_json
from lwm.core.mesh import MeshShape, make_mesh
from lwm.demo.conversation import Conversation, converse
from lwm.demo.machine import compile_clock, describe_machine, peak_memory, versions
from lwm.demo.report import page
from lwm.demo.survey import Survey, survey
from lwm.demo.world import WorldSeen, see_world
from lwm.evals.haystack import Haystack
from lwm.evals.journal import Row
from lwm.evals.lengths import short
from lwm.evals.needle import NeedleTask
from lwm.evals.needle_report import NeedleReport
from lwm.evals.world_tasks import Subject
from lwm.infer.draw_sampling import sampling_of
from lwm.infer.engine import Engine
from lwm.infer.session import require_tokenizer
from lwm.nano.corpus import Document, held_out_documents
from lwm.weights.codec_store import load_codec
from lwm.weights.load import LoadedModel, load_model
from lwm.world.draw import SIDE
from lwm.world.film import CLIP

LENGTHS = tuple(1024 * 2**doubling for doubling in range(7))  # 1K to 64K
#: the sentence with the number takes up to 21
NEEDLE_ANSWER_TOKENS = 32
#: of the time, for the grid; the conversation, the world and the page take the rest
GRID_SHARE = {"text": 0.75, "vision": 0.4}
#: and for the long video
FILM_SHARE = 0.4

#: told (seconds passed, seconds there are, what goes on)
OnProgress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class DemoConfig:
    """Let the embedded model read, draw, film and tell what it has never seen, and write a page about it."""

    #: where report.html, results.json, summary.json and heat_map.png go
    out: Path = Path("report")
    #: about how long it may take; with more of it the grid and the long video go further
    seconds: int = 160
    #: of the long video, at one a second: an hour; fewer where there is no time to read them
    film_frames: int = 3600
    #: of cities, numbers and stretches of text
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seconds < 1:
            raise UserError(f"--seconds {self.seconds}: give 1 or more")
        if self.film_frames < CLIP:
            raise UserError(f"--film-frames {self.film_frames}: give {CLIP} or more")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: give 0 or more")


@dataclass(frozen=True)
class DemoReport:
    """What the tour found: the needle grid, the conversation, and `facts` about the model, the machine and the time."""

    needles: NeedleReport
    conversation: Conversation
    facts: Row
    #: None of a model that does not see the small world
    world: WorldSeen | None = None

    def renderables(self) -> tuple[Table, ...]:
        """The grid, the transcript and what it saw, for a terminal."""
        title = Text(f"{self.conversation.num_tokens:,} tokens of {self.conversation.document}, read once")
        transcript = Table(title=title)
        for name in ("asked", "the model", "true", ""):
            transcript.add_column(name)
        for turn in self.conversation.turns:
            cells = (turn.question, turn.response, turn.truth, "right" if turn.correct else "wrong")
            transcript.add_row(*map(Text, cells))
        return self.needles.table(), transcript, *([] if self.world is None else [_seen(self.world)])

    def summary(self) -> Row:
        """For `summary.json`."""
        turns = [asdict(turn) | {"correct": turn.correct} for turn in self.conversation.turns]
        return {
            **self.facts,
            "needles": self.needles.summary(),
            "conversation": asdict(self.conversation) | {"turns": turns},
            "world": None if self.world is None else self.world.summary(),
        }


def run_demo(
    config: DemoConfig,
    on_progress: OnProgress = lambda passed, total, note: None,
    name: str = "nano",
    mesh: Mesh | None = None,
) -> DemoReport:
    """Take the tour of the embedded model, or of another by `name`, on all devices or on `mesh`; write its four files.

    Raises:
        UserError: no such model, one without tokenizer, or a directory that cannot be written.
    """
    began = time.monotonic()

    def tell(note: str) -> None:
        on_progress(round(time.monotonic() - began), config.seconds, note)

    _require_writable(config.out)
    with compile_clock() as compiled:
        tell(f"loading {name}")
        model = load_model(name, mesh or make_mesh(MeshShape(fsdp=1, sp=-1)))
        tokenizer = require_tokenizer(model)
        engine = Engine.of(model)
        subject = _subject(model, engine)
        load_seconds = time.monotonic() - began
        tell("reading the documents")
        documents = held_out_documents()
        haystack = Haystack.of("\n".join(document.text for document in documents), tokenizer.encode)
        task = NeedleTask(haystack, tokenizer, engine, config.seed, NEEDLE_ANSWER_TOKENS)
        share = GRID_SHARE["text" if subject is None else "vision"]
        grid = survey(task.run, LENGTHS, began + share * config.seconds, lambda rows: tell(_note(rows)))
        tell("asking about one document")
        longest = max(documents, key=lambda document: len(document.text))
        spoken = converse(engine, tokenizer, longest, _readable_length(grid, model, config.seconds), config.seed)
        looking = time.monotonic()
        frames = _watchable_frames(grid, model, config)
        world = None if subject is None else see_world(subject, frames, config.seed, tell)
        seconds = {"load": load_seconds, "world": time.monotonic() - looking}
        seconds |= {"compile": compiled(), "all": time.monotonic() - began}
    report = replace(_report(config, name, model, documents, haystack, grid, spoken, seconds), world=world)
    _write(config.out, report)
    return report


def _subject(model: LoadedModel, engine: Engine) -> Subject | None:
    """None: a model of text alone, or one that draws other pictures than those of the small world."""
    if not model.config.vocab.vision_size:
        return None
    codec = load_codec(model.directory, model.mesh)
    return Subject(model, engine, codec, sampling_of(model.directory)) if codec.resolution == SIDE else None


def _seen(world: WorldSeen) -> Table:
    table = Table(title="scenes of the small world that no training showed")
    table.add_column("")
    table.add_column("right", justify="right")
    for name, right, of in world.counts():
        table.add_row(name, f"{right} of {of}")
    return table


def _readable_length(grid: Survey, model: LoadedModel, seconds: int) -> int:
    """The longest document worth reading once more: within the model's training, and in a tenth of the time."""
    times, limit = grid.seconds_per_prompt, model.config.max_context
    return max((n for n, spent in times.items() if n <= limit and spent < seconds / 10), default=min(times))


def _watchable_frames(grid: Survey, model: LoadedModel, config: DemoConfig) -> int:
    """As many frames of the long video as there is time to read."""
    tokens = grid.readable_tokens(FILM_SHARE * config.seconds)
    clips = tokens // (model.config.vocab.tokens_per_frame + 1) // CLIP
    return min(config.film_frames, CLIP * max(1, clips))


def _note(rows: Sequence[Row]) -> str:
    found = sum(row["correct"] for row in rows)
    return f"{short(rows[0]['context_length'])} tokens: {found} of {len(rows)} found"


def _report(
    config: DemoConfig,
    name: str,
    model: LoadedModel,
    documents: Sequence[Document],
    haystack: Haystack,
    grid: Survey,
    spoken: Conversation,
    seconds: dict[str, float],
) -> DemoReport:
    rows = sorted(grid.rows, key=lambda row: (row["context_length"], row["depth_percent"], row["round"]))
    limit = model.config.max_context
    about = {"model": name, "needles": 1, "retrieve": 1}
    about |= {"max_context": limit, "haystack_tokens": haystack.num_tokens}
    command = ["lwm", "demo", "--out", str(config.out)]
    command += ["--seconds", str(config.seconds), "--film-frames", str(config.film_frames), "--seed", str(config.seed)]
    leaves = jax.tree.leaves(model.params)
    facts = {
        "model": name,
        "parameters": sum(leaf.size for leaf in leaves),
        "file_bytes": sum(path.stat().st_size for path in model.directory.glob("*.safetensors")),
        "layers": model.config.num_layers,
        "max_context": limit,
        "documents": [document.name for document in documents],
        "document_tokens": haystack.num_tokens,
        "seconds": {part: round(spent, 1) for part, spent in seconds.items()},
        "seconds_per_prompt": {str(length): round(spent, 3) for length, spent in grid.seconds_per_prompt.items()},
        "peak_memory_bytes": peak_memory(),
        "machine": describe_machine(),
        "versions": versions(),
        "command": shlex.join(command),
    }
    return DemoReport(NeedleReport(rows, about), spoken, facts)


def _write(out: Path, report: DemoReport) -> None:
    write_json(out / "results.json", report.needles.results)
    write_json(out / "summary.json", report.summary())
    write_file(out / "heat_map.png", report.needles.heat_map())
    write_file(out / "report.html", page(report.needles, report.conversation, report.facts, report.world).encode())


def _require_writable(out: Path) -> None:
    """Found out before the work, not after it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write the report to {out}: {error.strerror}") from None
