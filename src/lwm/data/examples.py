"""Examples: what the model is to read (ids) and what of it to learn (a weight for each id as a target).

A record becomes an example by its `fields`, in the grammar of `data.fields`.
"""

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32

from lwm.core.errors import UserError
from lwm.core.vocab import Vocab
from lwm.data.fields import BOS, EOS, Part, field_names, parse_fields
from lwm.data.positions import skip_positions
from lwm.data.records import BadRecordError, Record, RecordSource, RecordStream
from lwm.data.shuffle import fold
from lwm.data.sources import FormatChoice, open_records, stream_records
from lwm.data.tokenizer import Tokenizer
from lwm.data.vision import FrameIds, is_vision

logger = logging.getLogger("lwm.data")

#: A field that none of this many first records has is a mistake in `fields`, not in the records.
PROBED_RECORDS = 16


@dataclass(frozen=True)
class Example:
    """Ids of one document or conversation, and the weight of each id *as a target* (0: read, not learned)."""

    tokens: Int32[np.ndarray, "n"]
    loss_weights: Float32[np.ndarray, "n"]
    #: where it comes from, for reports: `chat.jsonl:12`
    record_id: str
    #: rising place of each id in its document; None: one after another
    positions: Int32[np.ndarray, "n"] | None = None

    def __post_init__(self) -> None:
        if self.positions is not None and not (np.diff(self.positions) > 0).all():
            raise UserError(f"{self.record_id}: positions must rise from each id to the next")


@runtime_checkable
class ExampleSource(Protocol):
    """Examples by index. The loader asks for any index, in any order, from one thread.

    A source may also have a `name: str`, by which the loader recognizes it when it resumes.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example | None:
        """None: this record is to be skipped."""
        ...


@runtime_checkable
class EpochSource(ExampleSource, Protocol):
    """A source in whose records something is drawn by lot, in each epoch anew."""

    def of_epoch(self, epoch: int, index: int) -> Example | None:
        """As `source[index]`, which is that of epoch 0."""
        ...


def nth(source: ExampleSource, number: int) -> Example | None:
    """The example at a place of the endless concatenation of epochs."""
    epoch, index = divmod(number, len(source))
    return source.of_epoch(epoch, index) if isinstance(source, EpochSource) else source[index]


@runtime_checkable
class ExampleStream(Protocol):
    """Examples in the one order they come in, resumable after any of them."""

    name: str

    def read(self) -> Example | None:
        """The next example; None: this record is to be skipped.

        Raises:
            EOFError: the stream is at its end.
        """
        ...

    def get_state(self) -> dict:
        """A JSON-able mark of the place after the last example read."""
        ...

    def set_state(self, state: dict | None) -> None:
        """Go to a marked place; None: to the beginning."""
        ...


@dataclass(frozen=True)
class Encoder:
    """Turns records into examples: one tokenizer, one or more orders of fields."""

    tokenizer: Tokenizer
    orders: tuple[tuple[Part, ...], ...]
    separator: str = " "
    add_bos: bool = True
    add_eos: bool = True
    seed: int = 0
    #: needed where a field holds frames
    frame_ids: FrameIds | None = None
    #: see `RecordData`
    span: int = 0

    def __post_init__(self) -> None:
        written = {name for order in self.orders for part in order for name in part.names}
        for name, token_id in ((BOS, self.tokenizer.bos_id), (EOS, self.tokenizer.eos_id)):
            if name in written and token_id is None:
                raise UserError(f"fields ask for {name}, which this tokenizer does not have: leave it out")

    def encode(self, record: Record, index: int) -> Example:
        """The example of a record; `index`, which counts on over epochs, and the seed decide the order of its fields.

        Raises:
            BadRecordError: a field is missing or is not text.
        """
        ids: list[int] = []
        weights: list[float] = []
        for part in self._complete(self._order(index)):
            new = self._part_ids(part, record)
            ids += new
            weights += [float(part.learned)] * len(new)
        loss_weights = np.array(weights, np.float32)
        positions = self._skip(loss_weights, index) if self.span else None
        return Example(np.array(ids, np.int32), loss_weights, record.record_id, positions)

    def _skip(self, loss_weights: Float32[np.ndarray, "n"], index: int) -> Int32[np.ndarray, "n"]:
        """Positions that skip where tokens are read and not learned, if there are such."""
        read = np.flatnonzero(loss_weights[1:] == 0) + 1
        places = read if len(read) else np.arange(1, len(loss_weights))
        return skip_positions(len(loss_weights), places, self.span, np.random.default_rng((self.seed, index)))

    def _order(self, index: int) -> tuple[Part, ...]:
        if len(self.orders) == 1:
            return self.orders[0]
        return self.orders[fold(self.seed, index) % len(self.orders)]

    def _complete(self, order: tuple[Part, ...]) -> Iterator[Part]:
        if self.add_bos and self.tokenizer.bos_id is not None and order[0].names != (BOS,):
            yield Part((BOS,), learned=False)
        yield from order
        if self.add_eos and self.tokenizer.eos_id is not None and order[-1].names != (EOS,):
            yield Part((EOS,), learned=True)

    def _part_ids(self, part: Part, record: Record) -> list[int]:
        if part.names in ((BOS,), (EOS,)):
            token_id = self.tokenizer.bos_id if part.names == (BOS,) else self.tokenizer.eos_id
            return [] if token_id is None else [token_id]
        ids: list[int] = []
        for vision, group in groupby(part.names, is_vision):
            if vision:
                ids += [id for name in group for id in self._frame_ids(name, record)]
            else:
                ids += self._text_ids([*group], record)
        return ids

    def _text_ids(self, names: list[str], record: Record) -> list[int]:
        text = self.separator.join(_text(record, name) for name in names)
        try:
            return self.tokenizer.encode(text)
        except (UserError, TypeError, UnicodeError):  # whoever's tokenizer it is
            raise BadRecordError(record.record_id, f"{'+'.join(names)} is not valid Unicode") from None

    def _frame_ids(self, name: str, record: Record) -> list[int]:
        if self.frame_ids is None:
            raise UserError(f"field {name!r} holds frames: say for which model's vocabulary")
        return self.frame_ids.ids(_value(record, name), name, record.record_id)


def _value(record: Record, name: str) -> object:
    if name not in record.values:
        raise BadRecordError(record.record_id, f"no field {name!r}; it has {_listed(record.values)}")
    return record.values[name]


def _text(record: Record, name: str) -> str:
    value = _value(record, name)
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise BadRecordError(record.record_id, f"field {name!r} is {value}, neither text nor a number")
        return str(value)
    kind = "null" if value is None else type(value).__name__
    raise BadRecordError(record.record_id, f"field {name!r} is {kind}, not text")


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(sorted(names)) or "no fields"


class BadRecords:
    """Counts records that cannot be used, logs each once, and stops the run when there are too many.

    Args:
        limit: how many there may be.
        total: how many records there are, if that is known: never may all of them be bad.
    """

    def __init__(self, limit: int, total: int | None = None) -> None:
        self.limit = limit
        self.total = total
        #: record id -> what is wrong with it
        self.reasons: dict[str, str] = {}

    def add(self, bad: BadRecordError) -> None:
        """Count a record.

        Raises:
            UserError: more than `limit` different bad records, or no others; names the first ones.
        """
        if bad.record_id in self.reasons:
            return
        self.reasons[bad.record_id] = bad.reason
        logger.warning("skipped %s: %s", bad.record_id, bad.reason)
        if len(self.reasons) > self.limit or len(self.reasons) == self.total:
            first = "; ".join(f"{record_id}: {reason}" for record_id, reason in islice(self.reasons.items(), 3))
            many = f"more than max_bad_records={self.limit}" if len(self.reasons) > self.limit else "all"
            raise UserError(
                f"{many} records cannot be used, first {first}; `lwm check` lists them, max_bad_records allows more"
            )


def _probe(name: str, records: Iterator[Record], names: Sequence[str]) -> None:
    """Refuse a field that none of the first records has.

    Raises:
        UserError: names the field and the fields there are.
    """
    first = list(islice(records, PROBED_RECORDS))
    for field in names if first else ():
        if all(field not in record.values for record in first):
            where = f"the first {len(first)} records" if len(first) > 1 else "the only record"
            raise UserError(f"{name}: no field {field!r} in {where}; they have {_listed(first[0].values)}")


class RecordExamples:
    """Examples of a random-access record source."""

    def __init__(self, source: RecordSource, encoder: Encoder, max_bad_records: int) -> None:
        self.name = source.name
        self.bad_records = BadRecords(max_bad_records, len(source))
        self._source = source
        self._encoder = encoder
        _probe(source.name, self._first_records(), field_names(encoder.orders))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example | None:
        return self.of_epoch(0, index)

    def of_epoch(self, epoch: int, index: int) -> Example | None:
        try:
            return self.encode(index, epoch)
        except BadRecordError as bad:
            self.bad_records.add(bad)
            return None

    def encode(self, index: int, epoch: int = 0) -> Example:
        """The example of a record.

        Raises:
            BadRecordError: the record is malformed.
        """
        return self._encoder.encode(self._source[index], epoch * len(self) + index)

    def _first_records(self) -> Iterator[Record]:
        for index in range(min(PROBED_RECORDS, len(self._source))):
            with contextlib.suppress(BadRecordError):
                yield self._source[index]


class StreamExamples:
    """Examples of a record stream."""

    def __init__(self, stream: RecordStream, encoder: Encoder, max_bad_records: int) -> None:
        self.name = stream.name
        self.bad_records = BadRecords(max_bad_records)
        self._stream = stream
        self._encoder = encoder
        self._index = 0
        _probe(stream.name, iter(stream), field_names(encoder.orders))
        stream.set_state(None)

    def read(self) -> Example | None:
        record = self._stream.read()
        self._index += 1
        try:
            return self._encoder.encode(record, self._index - 1)
        except BadRecordError as bad:
            self.bad_records.add(bad)
            return None

    def get_state(self) -> dict:
        return {"index": self._index, "stream": self._stream.get_state()}

    def set_state(self, state: dict | None) -> None:
        self._index = state["index"] if state else 0
        self._stream.set_state(state["stream"] if state else None)


@dataclass(frozen=True)
class RecordData:
    """Records in files (JSONL, text, Parquet) or a Hugging Face dataset, and how they become examples."""

    #: a file, a directory, a pattern such as data/*.jsonl, or (format "datasets") a dataset's name or directory
    path: str
    #: which fields to read and learn: "[prompt],answer"; of several orders one is drawn for each record and epoch
    fields: str | tuple[str, ...] = "text"
    #: "auto" goes by the suffix of the files and never uses the network
    format: FormatChoice = "auto"
    #: between fields joined by +
    separator: str = " "
    add_bos: bool = True
    add_eos: bool = True
    #: decides which order of fields a record takes in each epoch
    seed: int = 0
    #: positions skip ahead here and there and reach up to this, as if text had been left out: short rows teach the
    #: distances of a longer context; 0: they do not
    span: int = 0
    #: of longer videos so many frames are kept, evenly; 0: all
    max_frames: int = 0
    #: skip and report up to this many malformed records
    max_bad_records: int = 100
    #: of a Hugging Face dataset
    split: str = "train"
    #: of a Hugging Face dataset: its configuration
    subset: str | None = None
    #: read a Hugging Face dataset in its own order, without downloading it first
    streaming: bool = False

    def open(self, tokenizer: Tokenizer, vocab: Vocab) -> RecordExamples | StreamExamples:
        """Open the files and check the first records. `vocab` says how codes of frames become ids.

        Raises:
            UserError: nothing to read, an unreadable file, or fields that the records do not have.
        """
        if self.span < 0 or self.seed < 0:
            raise UserError(f"span {self.span} and seed {self.seed} must be 0 or more")
        if not self.path:
            raise UserError("no records are named: give a file, a directory or a pattern with --data.path")
        written = (self.fields,) if isinstance(self.fields, str) else self.fields
        orders = tuple(parse_fields(order) for order in written)
        if not orders:
            raise UserError("fields is empty: name at least one field of the records")
        has_frames = any(is_vision(name) for name in field_names(orders))
        frame_ids = FrameIds(vocab, tokenizer, self.max_frames) if has_frames else None
        encoder = Encoder(
            tokenizer, orders, self.separator, self.add_bos, self.add_eos, self.seed, frame_ids, self.span
        )
        if self.streaming:
            stream = stream_records(self.path, self.format, self.split, self.subset)
            return StreamExamples(stream, encoder, self.max_bad_records)
        source = open_records(self.path, self.format, field_names(orders), self.split, self.subset)
        return RecordExamples(source, encoder, self.max_bad_records)
