"""`lwm VERB`: parse, call one room, show what it returns.

A verb imports its own rooms when it is called, so that `lwm --help` and a mistyped verb answer at once.
"""

import dataclasses
import difflib
import errno
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from lwm.core.errors import UserError

if TYPE_CHECKING:
    from lwm.evals.needle import NeedleConfig
    from lwm.infer.engine import Engine
    from lwm.infer.session import Session
    from lwm.weights.store import LoadedModel

Arguments = Sequence[str]


@dataclass(frozen=True)
class Verb:
    """What `lwm --help` says about a verb, and the function that takes the rest of the line."""

    call: Callable[[Arguments], int | None]
    says: str
    example: str


@dataclass(frozen=True)
class Machine:
    """Where a model is computed, and how precisely."""

    #: devices along each axis: dp and fsdp split prompts, tp heads, sp the text; one may be -1, for those that remain
    mesh: str = "dp=1,fsdp=1,tp=1,sp=-1"
    #: of weights, activations, keys and values
    dtype: Literal["float32", "bfloat16"] = "float32"
    #: make this computer's processor so many devices, to try a mesh without any
    cpu_devices: int | None = None


@dataclass(frozen=True)
class Start:
    """How a run is started; what it is stands in the preset."""

    #: go on from the run's last checkpoint
    resume: bool = False
    #: records never trained on, read as the training's are; their loss is reported
    held_out_path: str | None = None
    #: make this computer's processor so many devices, to try a mesh without any
    cpu_devices: int | None = None


def parse(verb: str, arguments: Arguments, *configs: Any) -> tuple[Any, ...]:
    """One flat set of flags for several config dataclasses; an instance in place of a class gives the defaults.

    Flags that are wrong, and `--help`, end the program here (codes 2 and 0).
    """
    import tyro

    classes = [config if isinstance(config, type) else type(config) for config in configs]
    fields: list[Any] = []
    for config, kind in zip(configs, classes, strict=True):
        flat = Annotated[kind, tyro.conf.arg(name="")]  # type: ignore[valid-type]
        default = [] if config is kind else [dataclasses.field(default=config)]
        fields.append((kind.__name__.lower(), flat, *default))
    table = VERBS[verb] if verb in VERBS else VERBS[verb.split(maxsplit=1)[0]]
    options: Any = tyro.cli(
        dataclasses.make_dataclass("Options", fields, kw_only=True),
        args=arguments,
        prog=f"lwm {verb}",
        description=f"{table.says}\n\nExample:  {table.example}",
        registry=_mesh_on_one_line(),
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    return tuple(getattr(options, field[0]) for field in fields)


def _mesh_on_one_line() -> Any:
    """Teach tyro to read a `MeshShape` as `MeshShape.parse` does, not as four flags."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    from lwm.core.mesh import MeshShape

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def _(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[MeshShape] | None:
        if info.type is not MeshShape:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="MESH",
            instance_from_str=lambda words: MeshShape.parse(words[0]),
            is_instance=lambda value: isinstance(value, MeshShape),
            str_from_instance=lambda shape: [str(shape)],
        )

    return registry


def make_devices(count: int | None) -> None:
    """Split the processor into `count` devices; must come before the first computation."""
    if count is None:
        return
    if count < 1:
        raise UserError(f"--cpu-devices {count}: give 1 or more")
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)


def open_model(name: str, machine: Machine) -> "tuple[LoadedModel, Engine]":
    """The model on the machine's mesh, and an engine that runs it there."""
    make_devices(machine.cpu_devices)
    from lwm.core.mesh import MeshShape, make_mesh
    from lwm.infer.engine import Engine
    from lwm.model.config import Compute
    from lwm.weights.store import load_model

    mesh = make_mesh(MeshShape.parse(machine.mesh))
    model = load_model(name, mesh, machine.dtype)
    return model, Engine(model.params, model.config, Compute(dtype=machine.dtype), mesh)


@contextmanager
def progress(what: str) -> Iterator[Callable[..., None]]:
    """A bar on the terminal; yields the callback that moves it, `report(done, total, note)`, and begins with it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True), transient=True)
    task = bar.add_task(what, total=None, note="")

    def report(done: int, total: int, note: str = "") -> None:
        bar.start()
        bar.update(task, completed=done, total=total, note=note)

    try:
        yield report
    finally:
        if bar.live.is_started:
            bar.stop()


def show(*renderables: Any) -> None:
    """Print results on standard output. A string is shown to the letter, on one line however long it is."""
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    for renderable in renderables:
        console.print(renderable, soft_wrap=isinstance(renderable, str))


def say(text: str) -> None:
    """Pass a piece of the model's text on, to the character."""
    print(text, end="", flush=True)


def note(text: str) -> None:
    """Tell what is not part of the result."""
    print(f"lwm: {text}", file=sys.stderr)


def demo(arguments: Arguments) -> None:
    """`lwm demo`."""
    from lwm.demo import DemoConfig, run_demo

    (config,) = parse("demo", arguments, DemoConfig)
    with progress("seconds") as report:
        outcome = run_demo(config, report)
    show(*outcome.renderables(), f"the whole story: {config.out / 'report.html'}")


def train(arguments: Arguments) -> int:
    """`lwm train RUN`: the first word names a preset, the flags change its fields."""
    if not arguments or arguments[0].startswith("-"):
        return _list_runs(asked="-h" in arguments or "--help" in arguments)
    from lwm.data.examples import RecordData
    from lwm.presets import preset
    from lwm.train import loop

    name, *flags = arguments
    run, start = parse(f"train {name}", flags, preset(name), Start())
    if start.held_out_path is not None:
        if not isinstance(run.data, RecordData):
            raise UserError(f"--held-out-path is for runs that read records, and {name} makes its own examples")
        run = dataclasses.replace(run, held_out=dataclasses.replace(run.data, path=start.held_out_path))
    make_devices(start.cpu_devices)
    result = loop.train(run, resume=start.resume)
    if result.stopped_by is not None:
        again = shlex.join([*arguments, *([] if start.resume else ["--resume"])])
        show(f"stopped after step {result.step}; go on with: lwm train {again}")
        return 128 + result.stopped_by
    show(f"{result.step} steps done; the model is in {result.directory / 'model'}")
    return 0


def _list_runs(asked: bool) -> int:
    from lwm.presets import presets

    lines = [f"  {name:<16}{(build.__doc__ or '').splitlines()[0]}" for name, build in presets().items()]
    text = "usage: lwm train RUN [--FIELD VALUE ...] [--mesh MESH] [--resume]\n\nRuns:\n" + "\n".join(lines)
    text += f"\n\nExample:  {VERBS['train'].example}\nAll fields of a run:  lwm train RUN --help"
    print(text, file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


def check(arguments: Arguments) -> int:
    """`lwm check RECORDS`; 1 if any record is malformed."""
    from lwm.data.check import CheckConfig
    from lwm.data.check import check as check_records
    from lwm.weights.store import EMBEDDED

    (config,) = parse("check", arguments, CheckConfig)
    with progress("records") as report:
        found = check_records(config, EMBEDDED["nano"], report)
    show(found)
    return 1 if found.bad else 0


def generate_text(arguments: Arguments) -> None:
    """`lwm generate text PROMPT`: the continuation on standard output, as it comes."""
    from lwm.infer import commands
    from lwm.infer.sampling import Sampling

    config, sampling, machine = parse("generate text", arguments, commands.GenerateTextConfig, Sampling(), Machine())
    commands.generate_text(config, *open_model(config.model, machine), sampling, say)
    say("\n")


def chat(arguments: Arguments) -> None:
    """`lwm chat [QUESTION]`: one answer, or a conversation that an empty line ends."""
    from lwm.infer.commands import ChatConfig, open_session
    from lwm.infer.sampling import Sampling

    config, sampling, machine = parse("chat", arguments, ChatConfig, Sampling(), Machine())
    session, reading = open_session(config, *open_model(config.model, machine), sampling)
    if reading is not None:
        part = f" of {reading.document_tokens:,}" if reading.truncated else ""
        note(f"read {reading.tokens:,}{part} tokens of {config.document} in {reading.seconds:.1f} s")
    if config.question is None:
        converse(session)
    elif config.json:
        say(json.dumps(dataclasses.asdict(session.ask(config.question))) + "\n")
    else:
        session.ask(config.question, say)
        say("\n")


def converse(session: "Session") -> None:
    """Questions from the terminal until an empty line or the end of input."""
    from rich.console import Console

    console = Console()
    note("ask; an empty line or Ctrl-D ends")
    while True:
        try:
            question = console.input("[bold cyan]> [/]")
        except EOFError:
            return say("\n")
        if not question.strip():
            return None
        try:
            session.ask(question, say)
            say("\n")
        except UserError as error:
            note(str(error))


def eval_needle(arguments: Arguments) -> None:
    """`lwm eval needle`."""
    from lwm.evals.needle import NeedleConfig

    _needle(*parse("eval needle", arguments, NeedleConfig, Machine()))


def eval_multi_needle(arguments: Arguments) -> None:
    """`lwm eval multi-needle`."""
    from lwm.evals.needle import MultiNeedleConfig

    _needle(*parse("eval multi-needle", arguments, MultiNeedleConfig, Machine()))


def _needle(config: "NeedleConfig", machine: Machine) -> None:
    from lwm.evals.needle import run_needle

    model, engine = open_model(config.model, machine)
    with progress("needles") as report:

        def on_cell(done: int, total: int, row: dict[str, Any]) -> None:
            mark = "found" if row["correct"] else "missed"
            report(done, total, f"{row['context_length']:,} tokens, {row['depth_percent']}%: {mark}")

        outcome = run_needle(config, model, engine, on_cell)
    show(outcome.table(), f"results.json, summary.json and heat_map.png are in {config.out}")


VERBS: dict[str, Verb] = {
    "demo": Verb(
        demo,
        "See it work: the embedded model reads long documents, answers, and a page tells how well.",
        "lwm demo --out report",
    ),
    "chat": Verb(
        chat,
        "Ask questions, about a document or about nothing; without a question, a conversation.",
        'lwm chat --document manual.txt "Which port does the server listen on?"',
    ),
    "generate text": Verb(
        generate_text,
        "Continue a text.",
        'lwm generate text "The library reference says" --max-new-tokens 40 --temperature 0.8',
    ),
    "train": Verb(
        train,
        "Train a model: a named run, with any of its fields changed.",
        "lwm train tiny --data.path my_texts/ --steps 100 --out runs/mine",
    ),
    "check": Verb(
        check,
        "Validate records, count their tokens, and show one packed batch as training would see it.",
        "lwm check records.jsonl --fields '[question],answer'",
    ),
    "eval needle": Verb(
        eval_needle,
        "Hide a number in a long text, ask for it, and chart where it is found.",
        "lwm eval needle --model nano --haystack book.txt --context-lengths 1k..16k --out needles",
    ),
    "eval multi-needle": Verb(
        eval_multi_needle,
        "Hide several numbers in a long text, and ask for one or more of them.",
        "lwm eval multi-needle --model nano --haystack book.txt --needles 4 --retrieve 2 --out several",
    ),
}

#: the reader is gone; the disk is full, over quota, read-only, broken: what may come in the middle of any work
WRITE_REFUSALS = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)

ABOUT = "LWM: one transformer over long documents."
HELP = ("-h", "--help")


def overview(verbs: dict[str, Verb]) -> str:
    """What `lwm --help` prints: each verb, its sentence, its example."""
    lines = [f"  {name:<20}{verb.says}\n{'':22}{verb.example}" for name, verb in verbs.items()]
    return "\n".join(["usage: lwm VERB ...", "", ABOUT, "", *lines, "", "Each verb explains itself: lwm VERB --help"])


def dispatch(arguments: Arguments) -> int:
    """Find the verb, one word or two, and hand it the rest of the line."""
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in VERBS:
            return VERBS[name].call(arguments[words:]) or 0
    first = arguments[0] if arguments else ""
    family = {name: verb for name, verb in VERBS.items() if name.split()[0] == first}
    if first in HELP or not arguments or (family and {*arguments[1:]} <= {*HELP}):
        asked = bool({*arguments} & {*HELP})
        print(overview(family or VERBS), file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    typed = " ".join(arguments[: 2 if family else 1])
    known = list(family) or [*VERBS, *(name.split(maxsplit=1)[0] for name in VERBS)]
    near = difflib.get_close_matches(typed, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the verbs are {', '.join(family or VERBS)}"
    raise UserError(f"there is no verb {typed!r}: {hint}")


def main(arguments: Arguments | None = None) -> int:
    """The console script. Bad input ends with code 2 and one sentence, Ctrl-C with 130; a bug keeps its traceback."""
    try:
        code = dispatch(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        note(str(error))
        return 2
    except KeyboardInterrupt:
        note("interrupted")
        return 130
    except OSError as error:
        if error.errno not in WRITE_REFUSALS:
            raise
        if error.filename is None:  # it was the output, and the rest of it cannot go there either
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:  # whoever read it has seen enough
            return 141
        note(f"{error.filename or 'cannot write any more'}: {error.strerror}")
        return 2
