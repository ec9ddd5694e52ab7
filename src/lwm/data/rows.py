"""Rows of packed pieces from a sequence of records, window by window.

A window takes the next records that need `lookahead` rows, packs them (`packing.place`) and gives the rows out one
by one. The state is where the window began and how many of its rows are out; resuming reads the window again.
"""

from collections import deque
from itertools import islice
from typing import Any, Protocol, runtime_checkable

from lwm.core.errors import UserError
from lwm.data.examples import Example, ExampleSource, ExampleStream, nth
from lwm.data.packing import Packing, Piece, cut, place
from lwm.data.shuffle import fold, shuffled_index

#: Give up after this many records in a row without one that can be used, beyond a whole epoch.
PATIENCE = 1000


@runtime_checkable
class Cursor(Protocol):
    """A place in a sequence of records."""

    patience: int

    def read(self) -> Example | None:
        """The next example; None: its record is to be skipped; EOFError: the sequence has ended."""
        ...

    def get_state(self) -> Any:
        """A JSON-able mark of this place."""
        ...

    def set_state(self, state: Any) -> None:
        """Go to a marked place."""
        ...


class IndexCursor:
    """Walks the endless concatenation of epochs from `start` in steps of `stride`.

    Args:
        source: examples by index.
        seed: of the order of each epoch; None: the order of the source.
        repeat: whether there is more than one epoch.
        start: where to begin.
        stride: how far to step.
    """

    def __init__(self, source: ExampleSource, seed: int | None, repeat: bool, *, start: int, stride: int) -> None:
        self.patience = len(source) + PATIENCE
        self._source = source
        self._seed = seed
        self._repeat = repeat
        self._position = start
        self._stride = stride

    def read(self) -> Example | None:
        epoch, index = divmod(self._position, len(self._source))
        if epoch and not self._repeat:
            raise EOFError
        self._position += self._stride
        if self._seed is not None:
            index = shuffled_index(index, len(self._source), fold(self._seed, epoch))
        return nth(self._source, epoch * len(self._source) + index)

    def get_state(self) -> int:
        return self._position

    def set_state(self, state: int) -> None:
        self._position = state


class StreamCursor:
    """Reads a stream, from its beginning again after its end if asked to."""

    def __init__(self, stream: ExampleStream, repeat: bool) -> None:
        self.patience = 100 * PATIENCE
        self._stream = stream
        self._repeat = repeat

    def read(self) -> Example | None:
        try:
            return self._stream.read()
        except EOFError:
            if not self._repeat:
                raise
        self._stream.set_state(None)
        try:
            return self._stream.read()
        except EOFError:
            raise UserError(f"{self._stream.name} holds no records") from None

    def get_state(self) -> dict:
        return self._stream.get_state()

    def set_state(self, state: dict) -> None:
        self._stream.set_state(state)


class RowSequence:
    """Packed rows from one sequence of records."""

    def __init__(self, cursor: Cursor, packing: Packing, seed: int) -> None:
        self._cursor = cursor
        self._packing = packing
        self._seed = seed
        self._pending: deque[tuple[Any, list[Piece]]] = deque()  # read, not yet in a window; with the place before each
        self._start = cursor.get_state()
        self._window: list[list[Piece]] | None = None
        self._windows = 0
        self._given = 0

    def next_row(self) -> list[Piece]:
        """The pieces of the next row; none at the end of the sequence."""
        if self._window is None:
            self._window = self._pack_window()
            if self._given > max(len(self._window) - 1, 0):
                raise UserError(
                    "the data has changed since the checkpoint was written: start afresh or restore the data"
                )
        if not self._window:
            return []
        row = self._window[self._given]
        self._given += 1
        if self._given == len(self._window):
            self._start = self._pending[0][0] if self._pending else self._cursor.get_state()
            self._window, self._windows, self._given = None, self._windows + 1, 0
        return row

    def get_state(self) -> dict:
        return {"start": self._start, "window": self._windows, "given": self._given}

    def set_state(self, state: dict) -> None:
        self._cursor.set_state(state["start"])
        self._pending.clear()
        self._start, self._windows, self._given = state["start"], state["window"], state["given"]
        self._window = None

    def _pack_window(self) -> list[list[Piece]]:
        """Take the records that need `lookahead` rows (one record, if it alone needs more), in a random row order.

        The order is drawn anew because best-fit decreasing puts the long pieces into the first rows.
        """
        taken = self._read_window()
        while True:
            pieces = [piece for _, some in islice(self._pending, taken) for piece in some]
            rows = place([len(piece.tokens) for piece in pieces], self._packing.seq_len)
            if len(rows) <= self._packing.lookahead or taken == 1:
                break
            taken -= 1
        for _ in range(taken):
            self._pending.popleft()
        key = fold(self._seed, self._windows)
        shuffled = [rows[shuffled_index(row, len(rows), key)] for row in range(len(rows))]
        return [[pieces[index] for index in row] for row in shuffled]

    def _read_window(self) -> int:
        """Read ahead until `lookahead` rows could be full; how many of the pending records fit into them."""
        room = self._packing.lookahead * self._packing.seq_len
        taken = 0
        while taken < len(self._pending) or self._read_record():
            room -= sum(len(piece.tokens) for piece in self._pending[taken][1])
            if room < 0 and taken:
                break
            taken += 1
        return taken

    def _read_record(self) -> bool:
        for _ in range(self._cursor.patience):
            before = self._cursor.get_state()
            try:
                example = self._cursor.read()
            except EOFError:
                return False
            if example is not None and (pieces := cut(example, self._packing)):
                self._pending.append((before, pieces))
                return True
        raise UserError(
            f"none of {self._cursor.patience} records in a row gave an example: too short, malformed, "
            f"or dropped as longer than {self._packing.seq_len} tokens (long_documents={self._packing.long_documents})"
        )
