"""Packed batches for ever: shuffled, prefetched, resumable to the byte, the same for any number of processes.

Row r of the batch has a sequence of records of its own: numbers r, r+B, r+2B, ... of the endless concatenation of
per-epoch permutations. Rows are packed independently of each other, so a process loads the rows it owns, and what
a row holds at step n depends on nothing but the data, the seed and B:

    epoch order     7 2 9 4 0 5 8 1 6 3 | 1 8 3 ...        B = 2
    row 0           7   9   0   8   6   | 1   3
    row 1             2   4   5   1   3 |   8

A stream, and a single pass over the data (where every process must stop at the same batch), have one sequence for
all rows instead: it is packed into rows that are dealt to the batch in turn, and every process reads all of it.
"""

import contextlib
import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Generic, TypeVar

import numpy as np

from lwm.core.batch import Batch
from lwm.core.errors import UserError
from lwm.data.examples import ExampleSource, ExampleStream
from lwm.data.packing import LongDocuments, Packing, Weighting, fill
from lwm.data.rows import IndexCursor, RowSequence, StreamCursor
from lwm.data.shuffle import fold

Delivery = tuple[Batch, list[list[str]]]
Item = TypeVar("Item")


class BatchSequence:
    """Batches one after another, in this thread, with the state after the last one made."""

    def __init__(
        self,
        source: ExampleSource | ExampleStream,
        packing: Packing,
        *,
        batch_size: int,
        seed: int,
        rows: Sequence[int],
        repeat: bool,
        shuffle: bool,
        order: np.ndarray | None,
    ) -> None:
        num_records = len(source) if isinstance(source, ExampleSource) else None
        if num_records == 0:
            raise UserError("the data holds no records")
        self.identity = {
            "source": getattr(source, "name", type(source).__name__),
            "records": num_records,
            "batch_size": batch_size,
            "seed": seed,
            "repeat": repeat,
            "shuffle": shuffle,
            **asdict(packing),
        }
        self._packing, self._batch_size, self._rows, self._order = packing, batch_size, rows, order
        self._num_sequences = batch_size if num_records and repeat else 1
        self._sequences: dict[int, RowSequence] = {}
        for number in sorted({row % self._num_sequences for row in rows}):
            cursor = (
                IndexCursor(source, seed if shuffle else None, repeat, start=number, stride=self._num_sequences)
                if isinstance(source, ExampleSource)
                else StreamCursor(source, repeat)
            )
            self._sequences[number] = RowSequence(cursor, packing, fold(seed, number))

    def next_batch(self) -> Delivery:
        """The next batch and the record ids of each of its rows.

        Raises:
            EOFError: a single pass has ended.
        """
        made = {
            row: sequence.next_row()
            for number, sequence in self._sequences.items()
            for row in range(number, self._batch_size, self._num_sequences)
        }
        if not any(made.values()):
            raise EOFError
        rows = [made[row] for row in self._rows]
        batch = fill(rows, self._packing.seq_len)
        ids = [[piece.record_id for piece in row] for row in rows]
        return batch if self._order is None else batch.permute(self._order), ids

    def get_state(self) -> dict:
        sequences = {str(number): sequence.get_state() for number, sequence in self._sequences.items()}
        return {"identity": self.identity, "sequences": sequences}

    def set_state(self, state: dict) -> None:
        require_same(state["identity"], self.identity)
        missing = [number for number in self._sequences if str(number) not in state["sequences"]]
        if missing:
            raise UserError(
                f"the checkpoint's data state lacks batch rows {missing}: merge the states of all processes"
            )
        for number, sequence in self._sequences.items():
            sequence.set_state(state["sequences"][str(number)])


class Loader:
    """Iterator of `(Batch, record ids of each row)`, made ahead in a background thread.

    Args:
        source: examples by index or as a stream.
        batch_size: rows of the global batch.
        seq_len: tokens a row.
        seed: of the shuffle.
        weighting, long_documents, lookahead: see `packing.Packing`.
        rows: the global rows this process owns; None: all. Batches have `len(rows)` rows.
        repeat: False: one pass, the last batch padded with empty rows.
        shuffle: False: in the order of the source. A stream is never shuffled.
        order: the layout of the tokens along T (`core.layout.order`).
        prefetch: batches made ahead; 0: none, no thread.

    Raises:
        UserError: no records, or rows that are not rows of the batch. While iterating: whatever reading raises.
    """

    def __init__(
        self,
        source: ExampleSource | ExampleStream,
        *,
        batch_size: int,
        seq_len: int,
        seed: int = 0,
        weighting: Weighting = "examples",
        long_documents: LongDocuments = "split",
        lookahead: int = 16,
        rows: Sequence[int] | None = None,
        repeat: bool = True,
        shuffle: bool = True,
        order: np.ndarray | None = None,
        prefetch: int = 2,
    ) -> None:
        rows = range(batch_size) if rows is None else rows
        if batch_size < 1 or not len(rows) or min(rows) < 0 or max(rows) >= batch_size:
            raise UserError(f"rows {list(rows)} of a batch of {batch_size}: give rows from 0 to {batch_size - 1}")
        packing = Packing(seq_len, weighting, long_documents, lookahead)
        self.source = source
        self._batches = BatchSequence(
            source, packing, batch_size=batch_size, seed=seed, rows=rows, repeat=repeat, shuffle=shuffle, order=order
        )
        self._prefetch = prefetch
        self._ahead: _Ahead[tuple[Delivery, dict]] | None = None
        self._state = self._batches.get_state()

    def __iter__(self) -> Iterator[Delivery]:
        return self

    def __next__(self) -> Delivery:
        try:
            delivery, self._state = self._next()
        except EOFError:
            raise StopIteration from None
        return delivery

    def get_state(self) -> dict:
        """JSON-able state after the last batch *delivered*; with `rows`, of these rows only (see `merge_states`)."""
        return self._state

    def set_state(self, state: dict) -> None:
        """Go on after the batch that was the last delivered when `state` was taken, by any number of processes.

        Raises:
            UserError: the state belongs to other data, another batch size, seed or packing, or lacks rows.
        """
        self.close()
        self._batches.set_state(state)
        self._state = self._batches.get_state()

    def close(self) -> None:
        """Stop reading ahead. Iterating again goes on after the last batch delivered."""
        if self._ahead is not None:
            self._ahead.join()
            self._ahead = None
            self._batches.set_state(self._state)

    def _next(self) -> tuple[Delivery, dict]:
        if not self._prefetch:
            return _with_state(self._batches)
        if self._ahead is None:
            batches = self._batches
            self._ahead = _Ahead(lambda: _with_state(batches), self._prefetch)
            weakref.finalize(self, self._ahead.stop).atexit = False
        return self._ahead.next()


def merge_states(states: Sequence[dict]) -> dict:
    """One state of all rows from those of the processes that owned them.

    Raises:
        UserError: they are states of different runs.
    """
    for state in states[1:]:
        require_same(state["identity"], states[0]["identity"])
    sequences = {number: sequence for state in states for number, sequence in state["sequences"].items()}
    return {"identity": states[0]["identity"], "sequences": sequences}


def require_same(saved: dict, current: dict) -> None:
    """Refuse to go on in other data, or with other settings, than a checkpoint's.

    Raises:
        UserError: names what differs.
    """
    differing = [
        f"{key} was {saved.get(key)!r}, is now {current[key]!r}" for key in current if saved.get(key) != current[key]
    ]
    if differing:
        raise UserError(f"the checkpoint's place in the data is of other data or settings: {'; '.join(differing)}")


def _with_state(batches: BatchSequence) -> tuple[Delivery, dict]:
    return batches.next_batch(), batches.get_state()


class _Ahead(Generic[Item]):
    """Calls `make` in a thread, a bounded number of results ahead; what it raises is raised by `next`."""

    def __init__(self, make: Callable[[], Item], depth: int) -> None:
        self._make = make
        self._queue: queue.Queue[Item | BaseException] = queue.Queue(depth)
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="lwm-loader", daemon=True)
        self._thread.start()

    def next(self) -> Item:
        if self._failure is None:
            item = self._queue.get()
            if not isinstance(item, BaseException):
                return item
            self._failure = item
        raise self._failure

    def stop(self) -> None:
        """Have the thread end after the result it is at; an emptied queue never blocks it."""
        self._stopping.set()
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()

    def join(self) -> None:
        self.stop()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                item: Item | BaseException = self._make()
            except BaseException as failure:
                item = failure
            self._queue.put(item)
            if isinstance(item, BaseException):
                return
