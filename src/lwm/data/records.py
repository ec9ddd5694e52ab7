"""What a record is, and what gives records: by index, or as a stream.

Random access is what makes shuffling and exact resume cheap; a stream is for what cannot be indexed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


class BadRecordError(Exception):
    """A record that cannot be used: its id and the reason. Whoever reads counts it and goes on."""

    def __init__(self, record_id: str, reason: str) -> None:
        super().__init__(f"{record_id}: {reason}")
        self.record_id = record_id
        self.reason = reason


@dataclass(frozen=True)
class Record:
    """Named values, and where they come from: `chat.jsonl:12`."""

    record_id: str
    values: dict[str, Any]


@runtime_checkable
class RecordSource(Protocol):
    """Records by index."""

    #: names the data in reports, and in checkpoints, where it must be the same on resume
    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record:
        """Read one record.

        Raises:
            BadRecordError: it is malformed.
        """
        ...


@runtime_checkable
class RecordStream(Protocol):
    """Records in the one order they come in, resumable after any of them."""

    name: str

    def __iter__(self) -> Iterator[Record]: ...

    def read(self) -> Record:
        """The next record.

        Raises:
            EOFError: the stream is at its end.
        """
        ...

    def get_state(self) -> dict:
        """A JSON-able mark of the place after the last record read."""
        ...

    def set_state(self, state: dict | None) -> None:
        """Go to a marked place; None: to the beginning."""
        ...
