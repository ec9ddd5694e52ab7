"""The verbs: each parses its flags, calls one room, and shows what it returns.

A verb imports its own rooms when it is called, so that `lwm --help` and a mistyped verb answer at once.
"""

import argparse
import dataclasses
import json
import shlex
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lwm.cli.machine import Devices, Machine, make_devices, open_codec, open_model, require_codec
from lwm.cli.terminal import conversion_table, note, progress, say, show
from lwm.cli.verb import VERBS, Arguments, parse, verb
from lwm.core.errors import UserError

if TYPE_CHECKING:
    from lwm.evals.needle import NeedleConfig
    from lwm.infer.draw_sampling import DrawSampling
    from lwm.infer.session import Answer


@dataclass(frozen=True)
class Start:
    """How a run is started; what it is stands in the preset."""

    #: go on from the run's last checkpoint
    resume: bool = False
    #: records never trained on, read as the training's are; their loss is reported
    held_out_path: str | None = None
    #: make this computer's processor so many devices, to try a mesh without any
    cpu_devices: int | None = None


@verb(
    "demo",
    "See it work: the embedded model finds, draws, films and tells what it never saw, and a page tells how well.",
    "lwm demo --out report",
)
def demo(arguments: Arguments) -> None:
    """`lwm demo`."""
    from lwm.demo import DemoConfig, run_demo

    (config,) = parse("demo", arguments, DemoConfig)
    with progress("seconds") as report:
        outcome = run_demo(config, report)
    show(*outcome.renderables(), f"the whole story: {config.out / 'report.html'}")


@verb(
    "chat",
    "Ask questions, about a document or about nothing; without a question, a conversation.",
    'lwm chat --document notes.txt "What is the door code of Henry?"',
)
def chat(arguments: Arguments) -> None:
    """`lwm chat [QUESTION]`: one answer, or a conversation that an empty line ends."""
    from lwm.cli.conversation import converse, reply
    from lwm.infer.commands import ChatConfig, keep_frames, open_session
    from lwm.infer.sampling import Sampling

    config, sampling, machine = parse("chat", arguments, ChatConfig, Sampling(), Machine())
    if config.shows:
        require_codec(config.model)
    opened = open_model(config.model, machine)
    codec = open_codec(config.model, Devices(machine.mesh)) if config.shows else None
    session, reading = open_session(config, *opened, sampling, codec)
    if reading is not None:
        part = f" of {reading.document_tokens:,}" if reading.truncated else ""
        note(f"read {reading.tokens:,}{part} tokens of {config.document} in {reading.seconds:.1f} s")

    def keep(answer: "Answer") -> list[str]:
        if config.out is not None and codec is not None:
            return [str(file) for file in keep_frames(answer, config.out, codec)]
        if answer.films and not config.json:
            note("the answer shows pictures: --out DIR keeps them")
        return []

    if config.question is None:
        converse(session, keep)
    elif config.json:
        answer = session.ask(config.question)
        told = dataclasses.asdict(answer) | {"files": keep(answer)}
        say(json.dumps(told, default=lambda codes: codes.tolist()) + "\n")
    else:
        reply(session, config.question, keep)


@verb(
    "generate text",
    "Continue a text.",
    'lwm generate text "Oslo: 4071. Lima: 9352. Oslo:" --max-new-tokens 4',
)
def generate_text(arguments: Arguments) -> None:
    """`lwm generate text PROMPT`: the continuation on standard output, as it comes."""
    from lwm.infer import commands
    from lwm.infer.sampling import Sampling

    config, sampling, machine = parse("generate text", arguments, commands.GenerateTextConfig, Sampling(), Machine())
    commands.generate_text(config, *open_model(config.model, machine), sampling, say)
    say("\n")


@verb(
    "generate image",
    "Draw a picture of what a text says.",
    'lwm generate image "a big red circle at the top left on snow." --out circle.png',
)
def generate_image(arguments: Arguments) -> None:
    """`lwm generate image PROMPT`."""
    from lwm.infer.pictures import ImageConfig

    _generate_frames("generate image", arguments, ImageConfig)


@verb(
    "generate video",
    "Draw a video of what a text says, as MP4, GIF or WebP.",
    'lwm generate video "a small yellow triangle moves left." --frames 8 --out triangle.mp4',
)
def generate_video(arguments: Arguments) -> None:
    """`lwm generate video PROMPT`."""
    from lwm.infer.pictures import VideoConfig

    _generate_frames("generate video", arguments, VideoConfig)


def _generate_frames(name: str, arguments: Arguments, kind: type) -> None:
    from lwm.infer.pictures import draw, files_to_write

    config, sampling, machine = parse(name, arguments, kind, _own_sampling(arguments), Machine())
    files_to_write(config)
    require_codec(config.model)
    model, engine = open_model(config.model, machine)
    codec = open_codec(config.model, Devices(machine.mesh))
    with progress("frames") as report:
        for file in draw(config, model, engine, codec, sampling, report):
            show(str(file))


def _own_sampling(arguments: Arguments) -> "DrawSampling":
    """How the model that the flags name draws best."""
    from lwm.infer.draw_sampling import sampling_of
    from lwm.weights.load import locate

    return sampling_of(locate(_named(arguments, "--model") or "nano"))


@verb(
    "train",
    "Train a model: a named run, with any of its fields changed.",
    "lwm train tiny --data.path my_texts/ --steps 100 --out runs/mine",
)
def train(arguments: Arguments) -> int:
    """`lwm train RUN`: the first word names a preset, the flags change its fields."""
    if not arguments or arguments[0].startswith("-"):
        return _list_runs(asked="-h" in arguments or "--help" in arguments)
    from lwm.data.examples import RecordData
    from lwm.presets import preset
    from lwm.train import loop
    from lwm.train.codec import train_codec
    from lwm.train.codec_run import CodecRun

    name, *flags = arguments
    init_from = _named(flags, "--init-from", "--init_from", "--init")
    run, start = parse(f"train {name}", flags, preset(name, init_from), Start())
    if start.held_out_path is not None:
        if isinstance(run, CodecRun) or not isinstance(run.data, RecordData):
            raise UserError(f"--held-out-path is for runs that read records, and {name} makes its own examples")
        run = dataclasses.replace(run, held_out=dataclasses.replace(run.data, path=start.held_out_path))
    make_devices(start.cpu_devices)
    result = (train_codec if isinstance(run, CodecRun) else loop.train)(run, resume=start.resume)
    if result.stopped_by is not None:
        again = shlex.join([*arguments, *([] if start.resume else ["--resume"])])
        show(f"stopped after step {result.step}; go on with: lwm train {again}")
        return 128 + result.stopped_by
    show(f"{result.step} steps done; what was learned is in {result.directory / 'model'}")
    return 0


def _named(flags: Arguments, *spellings: str) -> str | None:
    """The model that the flags name, before they are read: it says what the others have as defaults."""
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    reader.add_argument(*spellings, nargs="?", dest="named")
    named: str | None = reader.parse_known_args(flags)[0].named
    return named


def _list_runs(asked: bool) -> int:
    from lwm.presets import presets

    lines = [f"  {name:<18}{(build.__doc__ or '').splitlines()[0]}" for name, build in presets().items()]
    text = "usage: lwm train RUN [--FIELD VALUE ...] [--mesh MESH] [--resume]\n\nRuns:\n" + "\n".join(lines)
    text += f"\n\nExample:  {VERBS['train'].example}\nAll fields of a run:  lwm train RUN --help"
    print(text, file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


@verb(
    "check",
    "Validate records, count their tokens, and show one packed batch as training would see it.",
    "lwm check records.jsonl --fields '[question],answer'",
)
def check(arguments: Arguments) -> int:
    """`lwm check RECORDS`; 1 if any record is malformed."""
    from lwm.data.check import CheckConfig
    from lwm.data.check import check as check_records
    from lwm.weights.load import locate, read_config

    (config,) = parse("check", arguments, CheckConfig)
    directory, vocab = locate(config.model), read_config(config.model).vocab
    with progress("records") as report:
        found = check_records(config, directory, vocab, report)
    show(found)
    return 1 if found.bad else 0


@verb(
    "tokenize",
    "Turn pictures and videos into records of codes, to train on.",
    "lwm tokenize videos/ --model runs/codec/model --frames-per-second 1 --out records.jsonl",
)
def tokenize(arguments: Arguments) -> int:
    """`lwm tokenize MEDIA...`; 1 if any file could not be read."""
    from lwm.prepare.tokenize import TokenizeConfig
    from lwm.prepare.tokenize import tokenize as tokenize_media

    config, devices = parse("tokenize", arguments, TokenizeConfig, Devices())
    codec = open_codec(config.model, devices)
    with progress("files") as report:
        done = tokenize_media(config, codec, report)
    if done.resumed:
        note(f"went on behind the {done.resumed:,} files that were done")
    for name, reason in done.bad:
        note(f"left out {name}: {reason}")
    show(f"{done.num_records:,} records of {done.num_frames:,} frames are in {done.out}")
    return 1 if done.bad else 0


@verb(
    "detokenize",
    "Turn records of codes back into pictures and videos, to see what a codec keeps.",
    "lwm detokenize records.jsonl --model runs/codec/model --out seen/",
)
def detokenize(arguments: Arguments) -> None:
    """`lwm detokenize RECORDS`."""
    from lwm.prepare.detokenize import DetokenizeConfig
    from lwm.prepare.detokenize import detokenize as detokenize_records

    config, devices = parse("detokenize", arguments, DetokenizeConfig, Devices())
    codec = open_codec(config.model, devices)
    with progress("records") as report:
        written = detokenize_records(config, codec, report)
    show(f"{len(written):,} files are in {config.out}")


@verb(
    "convert",
    "Turn a model, or a codec, into another form: ours, Hugging Face's, LWM's.",
    "lwm convert LWM-Chat-1M-Jax lwm-chat-1m --to hf",
)
def convert(arguments: Arguments) -> None:
    """`lwm convert SOURCE DESTINATION`."""
    from lwm.weights.convert import ConvertConfig
    from lwm.weights.convert import convert as convert_model

    (config,) = parse("convert", arguments, ConvertConfig)
    with progress("bytes") as report:
        done = convert_model(config, report)
    show(conversion_table(done.rows), *done.notes)
    if done.difference is not None:
        difference, greatest = done.difference
        show(f"on the same tokens no logit differs by more than {difference:.2g} (the greatest is {greatest:.3g})")
    show(f"{done.num_parameters:,} parameters are in {done.directory}")


@verb(
    "eval needle",
    "Hide a number in a long text, ask for it, and chart where it is found.",
    "lwm eval needle --model nano --haystack book.txt --context-lengths 1k..16k --out needles",
)
def eval_needle(arguments: Arguments) -> None:
    """`lwm eval needle`."""
    from lwm.evals.needle import NeedleConfig

    _needle(*parse("eval needle", arguments, NeedleConfig, Machine()))


@verb(
    "eval multi-needle",
    "Hide several numbers in a long text, and ask for one or more of them.",
    "lwm eval multi-needle --model nano --haystack book.txt --needles 4 --retrieve 2 --out several",
)
def eval_multi_needle(arguments: Arguments) -> None:
    """`lwm eval multi-needle`."""
    from lwm.evals.needle import MultiNeedleConfig

    _needle(*parse("eval multi-needle", arguments, MultiNeedleConfig, Machine()))


@verb(
    "eval world",
    "Let a model draw, film and tell the small world, and read back what comes.",
    "lwm eval world --model nano --out world",
)
def eval_world(arguments: Arguments) -> None:
    """`lwm eval world`."""
    from lwm.evals.world import WorldConfig, run_world
    from lwm.evals.world_tasks import Subject

    config, sampling, machine = parse("eval world", arguments, WorldConfig, _own_sampling(arguments), Machine())
    require_codec(config.model)
    opened = open_model(config.model, machine)
    subject = Subject(*opened, open_codec(config.model, Devices(machine.mesh)), sampling, config.seed)
    with progress("questions") as report:
        outcome = run_world(config, subject, report)
    show(outcome.table(), f"results.json, summary.json, drawn.png and filmed.png are in {config.out}")


def _needle(config: "NeedleConfig", machine: Machine) -> None:
    from lwm.evals.needle import run_needle

    model, engine = open_model(config.model, machine)
    with progress("needles") as report:

        def on_cell(done: int, total: int, row: dict[str, Any]) -> None:
            mark = "found" if row["correct"] else "missed"
            report(done, total, f"{row['context_length']:,} tokens, {row['depth_percent']}%: {mark}")

        outcome = run_needle(config, model, engine, on_cell)
    show(outcome.table(), f"results.json, summary.json and heat_map.png are in {config.out}")
