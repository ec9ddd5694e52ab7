"""`lwm check`: read every record as training would, and show what the model would get."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional, Suppress

from lwm.core.batch import Batch
from lwm.core.errors import UserError
from lwm.core.vocab import Vocab
from lwm.data.examples import Example, RecordData, RecordExamples
from lwm.data.loader import Loader
from lwm.data.packing import LongDocuments, Weighting
from lwm.data.records import BadRecordError
from lwm.data.tokenizer import Tokenizer, load_tokenizer

Progress = Callable[[int, int], None]

SEGMENT_STYLES = ("cyan", "yellow", "green", "magenta", "bright_blue", "bright_red")
#: Shown of each run of tokens, from its beginning and from its end.
SHOWN_CHARACTERS = 160
SHOWN_SEGMENTS = 12
LISTED_BAD_RECORDS = 20


@dataclass(frozen=True)
class CheckConfig(RecordData):
    """Validate records, count their tokens, and show one packed batch: what sees what, and what is learned."""

    #: a JSONL, text or Parquet file, a directory or a pattern, or (format "datasets") a dataset's name or directory
    path: Positional[str]
    #: all malformed records are counted
    max_bad_records: Suppress[int] = 0
    #: a stream has no end to wait for
    streaming: Suppress[Literal[False]] = False
    #: the model that is to read them, a directory or nano: its tokenizer, and its ids for frames
    model: str = "nano"
    #: a tokenizer file or a model directory, in place of the model's tokenizer
    tokenizer: Path | None = None
    #: tokens a packed row
    seq_len: int = 2048
    #: rows of the batch that is shown
    rows: int = 2
    #: "examples": every example weighs the same; "tokens": every learned token does
    weighting: Weighting = "examples"
    #: what becomes of an example longer than a row
    long_documents: LongDocuments = "split"


@dataclass
class CheckReport:
    """What was found; rich renders it."""

    config: CheckConfig
    tokenizer: Tokenizer
    vocab: Vocab
    num_records: int
    #: record id -> what is wrong with it
    bad: dict[str, str] = field(default_factory=dict)
    #: ids in each usable record
    lengths: list[int] = field(default_factory=list)
    num_learned: int = 0
    num_rows: int = 0
    num_packed: int = 0
    first: Batch | None = None
    first_ids: list[list[str]] = field(default_factory=list)

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = [_summary(self)]
        if self.bad:
            parts.append(_bad_table(self.bad))
        if self.first is not None:
            rows = range(len(self.first_ids))
            parts += [_row_panel(self, self.first, row) for row in rows]
            parts.append(
                Text("one colour a segment; ⟦learned⟧; … left out here; the rest of a row is padding", style="dim")
            )
        return Group(*parts)


def check(config: CheckConfig, model_directory: Path, vocab: Vocab, progress: Progress | None = None) -> CheckReport:
    """Read and pack every record once, for a model in a directory and its vocabulary.

    `progress` is called with the number of records read and their total.

    Raises:
        UserError: nothing to read, no such field, no tokenizer or one of more ids than the model has for text, or no
            rows or no tokens in them.
    """
    for name in ("rows", "seq_len"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)}: give 1 or more")
    tokenizer = load_tokenizer(config.tokenizer or model_directory)
    if tokenizer.size > vocab.text_size:
        raise UserError(
            f"the tokenizer {config.tokenizer or model_directory} does not match the model: it has {tokenizer.size} "
            f"ids, the model {vocab.text_size} text ids; name its own model with --model"
        )
    source = config.open(tokenizer, vocab)
    if not isinstance(source, RecordExamples):
        raise UserError(f"{config.path} is a stream: only records on this disk can be checked")
    report = CheckReport(config, tokenizer, vocab, len(source))
    loader = Loader(
        _Examined(source, report, progress),
        batch_size=config.rows,
        seq_len=config.seq_len,
        weighting=config.weighting,
        long_documents=config.long_documents,
        repeat=False,
        shuffle=False,
        prefetch=0,
    )
    for batch, record_ids in loader:
        if report.first is None:
            report.first, report.first_ids = batch, [ids for ids in record_ids if ids]
        report.num_rows += sum(bool(ids) for ids in record_ids)
        report.num_packed += int(np.count_nonzero(np.asarray(batch.segment_ids)))
    return report


class _Examined:
    """Passes examples on and notes what they are like."""

    def __init__(self, source: RecordExamples, report: CheckReport, progress: Progress | None) -> None:
        self._source = source
        self._report = report
        self._progress = progress

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example | None:
        if self._progress is not None:
            self._progress(index + 1, len(self))
        try:
            example = self._source.encode(index)
        except BadRecordError as bad:
            self._report.bad[bad.record_id] = bad.reason
            return None
        self._report.lengths.append(len(example.tokens))
        self._report.num_learned += int(np.count_nonzero(example.loss_weights[1:]))
        return example


def _summary(report: CheckReport) -> Table:
    config, lengths = report.config, np.array(report.lengths)
    fields = (config.fields,) if isinstance(config.fields, str) else config.fields
    title = Text(f"{config.path}   fields {' | '.join(fields)}")
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("records", f"{report.num_records:,}")
    table.add_row("malformed", Text(f"{len(report.bad):,}", style="bold red" if report.bad else "green"))
    if not len(lengths):
        return table
    total = lengths.sum()
    table.add_row("tokens", f"{total:,}")
    table.add_row("learned", f"{report.num_learned:,}  ({report.num_learned / total:.1%})")
    low, median, high = np.percentile(lengths, (5, 50, 95))
    table.add_row("tokens a record: mean", f"{lengths.mean():,.1f}")
    table.add_row(
        "smallest, 5%, median, 95%, largest",
        f"{lengths.min():,}  {low:,.0f}  {median:,.0f}  {high:,.0f}  {lengths.max():,}",
    )
    outcome = {"split": "split", "drop": "dropped", "truncate": "truncated"}[config.long_documents]
    table.add_row(f"longer than {config.seq_len:,}, {outcome}", f"{np.count_nonzero(lengths - 1 > config.seq_len):,}")
    if report.num_rows:
        capacity = report.num_rows * config.seq_len
        padded = np.minimum(lengths - 1, config.seq_len).mean() / config.seq_len
        table.add_row(f"packed rows of {config.seq_len:,}", f"{report.num_rows:,}")
        table.add_row("filled (one record a row would be)", f"{report.num_packed / capacity:.1%}  ({padded:.1%})")
    return table


def _bad_table(bad: dict[str, str]) -> Table:
    table = Table(title=f"{len(bad):,} malformed", title_style="bold red", title_justify="left")
    table.add_column("record", style="bold")
    table.add_column("reason")
    for record_id, reason in islice(bad.items(), LISTED_BAD_RECORDS):
        table.add_row(Text(record_id), Text(reason))
    if len(bad) > LISTED_BAD_RECORDS:
        rest = Counter(reason for reason in islice(bad.values(), LISTED_BAD_RECORDS, None)).most_common(3)
        kinds = "; ".join(f"{count:,} x {reason}" for reason, count in rest)
        table.add_row("…", Text(f"{len(bad) - LISTED_BAD_RECORDS:,} more, most often: {kinds}"))
    return table


def _row_panel(report: CheckReport, batch: Batch, row: int) -> Panel:
    record_ids = report.first_ids[row]
    arrays = (batch.tokens, batch.targets, batch.loss_weights, batch.segment_ids)
    tokens, targets, loss_weights, segment_ids = (np.asarray(array)[row] for array in arrays)
    text = Text()
    for number, record_id in enumerate(record_ids[:SHOWN_SEGMENTS], start=1):
        places = np.flatnonzero(segment_ids == number)
        style = SEGMENT_STYLES[(number - 1) % len(SEGMENT_STYLES)]
        text.append(f"{number} {record_id}, {len(places):,} tokens\n", style=f"bold reverse {style}")
        ids = [*tokens[places[:1]].tolist(), *targets[places].tolist()]
        weights = [0.0, *loss_weights[places].tolist()]
        for shown, learned in _runs(ids, weights, report):
            text.append(f"⟦{shown}⟧" if learned else shown, style=f"bold underline {style}" if learned else style)
        text.append("\n")
    if len(record_ids) > SHOWN_SEGMENTS:
        text.append(f"… {len(record_ids) - SHOWN_SEGMENTS} more segments\n", style="dim")
    used = np.count_nonzero(segment_ids)
    title = f"row {row + 1}: {len(record_ids)} segments, {used:,} of {len(tokens):,} tokens"
    return Panel(text, title=title, title_align="left")


def _runs(ids: list[int], weights: list[float], report: CheckReport) -> Iterator[tuple[str, bool]]:
    """Text of each run of tokens that are learned, or not."""
    for learned, run in groupby(zip(ids, weights, strict=True), key=lambda pair: pair[1] > 0):
        yield _shorten(_spell([token_id for token_id, _ in run], report)), learned


def _spell(ids: list[int], report: CheckReport) -> str:
    """Decode; bos and eos, which leave no trace in decoded text, and frames are spelled out."""
    tokenizer, vocab = report.tokenizer, report.vocab
    marks = {
        tokenizer.bos_id: "<|bos|>",
        tokenizer.eos_id: "<|eos|>",
        vocab.end_of_frame: "▪",
        vocab.end_of_vision: "■",
    }

    def kind(token_id: int) -> str:
        return marks.get(token_id, "codes" if vocab.vision_size and token_id >= vocab.text_size else "text")

    spelled = {"codes": lambda run: f"[{len(run)} codes]", "text": tokenizer.decode}
    runs = ((name, list(run)) for name, run in groupby(ids, key=kind))
    return "".join(spelled[name](run) if name in spelled else name * len(run) for name, run in runs)


def _shorten(text: str) -> str:
    if len(text) <= 2 * SHOWN_CHARACTERS:
        return text
    return f"{text[:SHOWN_CHARACTERS]} … {text[-SHOWN_CHARACTERS:]}"
