"""A bounded memory of the tables read last."""

from collections.abc import Callable, Hashable
from typing import Any

#: Parquet row groups kept in memory, those of all files of a source together; a group is what one read brings in.
CACHED_BYTES = 512 * 1024 * 1024


class Recent:
    """What was made last, by key, up to `CACHED_BYTES` of it, but always the very last."""

    def __init__(self) -> None:
        self._tables: dict[Hashable, Any] = {}
        self._bytes = 0

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The Arrow table of that key, made if it is not here."""
        table = self._tables.pop(key, None)
        if table is None:
            table = make()
            self._bytes += table.nbytes
            while self._tables and self._bytes > CACHED_BYTES:
                self._bytes -= self._tables.pop(next(iter(self._tables))).nbytes
        self._tables[key] = table  # in order of use
        return table
