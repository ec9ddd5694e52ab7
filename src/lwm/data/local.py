"""Records by index from files on this disk.

Files are indexed, never read ahead: JSONL by the byte offsets of its lines, Parquet by its row groups, text by its list
of files. None is kept open, so that thousands of shards do not use up the process's descriptors.
"""

import bisect
import codecs
import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from lwm.core.errors import UserError
from lwm.data.recent import Recent
from lwm.data.records import BadRecordError, Record, RecordSource

SCAN_BLOCK_BYTES = 16 * 1024 * 1024


def index_lines(file: Path) -> Int64[np.ndarray, "lines_and_end"]:
    """Byte offset at which each line starts, then the offset of the end; an empty last line is no line."""
    starts = [np.zeros(1, np.int64)]
    size = 0
    with open(file, "rb") as stream:
        while block := stream.read(SCAN_BLOCK_BYTES):
            newlines = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
            starts.append(newlines.astype(np.int64) + size + 1)
            size += len(block)
    offsets = np.concatenate(starts)
    return offsets if offsets[-1] == size else np.append(offsets, size)


class JsonLines:
    """One JSONL file: a JSON object a line. `name` tells it from the others that it was opened with."""

    def __init__(self, file: Path, name: str) -> None:
        self.name = name
        self._path = file
        self._offsets = index_lines(file)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> Record:
        start, end = self._offsets[index : index + 2].tolist()
        record_id = f"{self.name}:{index + 1}"
        try:
            with open(self._path, "rb", buffering=0) as file:
                line = os.pread(file.fileno(), end - start, start)
        except OSError as error:
            raise UserError(f"{record_id} can no longer be read: {error.strerror or error}") from None
        if not line.strip():
            raise BadRecordError(record_id, "the line is empty")
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadRecordError(record_id, self._hint(index, line) or f"not JSON: {error}") from None
        if not isinstance(values, dict):
            reason = f"a JSON {type(values).__name__}, not an object with named fields"
            raise BadRecordError(record_id, self._hint(index, line) or reason)
        return Record(record_id, values)

    @staticmethod
    def _hint(index: int, line: bytes) -> str | None:
        """What a first line that opens a list means, of a file of the other common form."""
        if index or not line.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            return None
        return "this is one JSON array; write one object a line"


class TextFiles:
    """Text files, each of them one record with the field `text`. `names` are what a checkpoint knows them by."""

    def __init__(self, files: Sequence[Path], names: Sequence[str]) -> None:
        digest = hashlib.sha256(b"\0".join(map(os.fsencode, names))).hexdigest()[:8]
        self.name = names[0] if len(names) == 1 else f"{len(names)} text files ({digest} by their names)"
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Record:
        file = self._files[index]
        try:
            text = file.read_text(encoding="utf-8-sig")
        except (UnicodeDecodeError, OSError) as error:
            raise BadRecordError(str(file), f"not readable as UTF-8 text: {error}") from None
        if not text.strip():
            raise BadRecordError(str(file), "the file is empty")
        return Record(str(file), {"text": text})


class ParquetRows:
    """The rows of one Parquet file; `recent` keeps row groups that are in use, of this file and of others."""

    def __init__(self, file: Path, name: str, columns: Sequence[str] | None, recent: Recent) -> None:
        import pyarrow  # noqa: PLC0415 (slow to import, and most runs read JSONL)
        from pyarrow import parquet  # noqa: PLC0415

        try:
            with parquet.ParquetFile(file) as opened:
                present, metadata = opened.schema_arrow.names, opened.metadata
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file} is not a readable Parquet file: {error}") from error
        self._open = partial(parquet.ParquetFile, file, metadata=metadata)
        self._columns = [name for name in columns if name in present] or None if columns is not None else None
        rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.name = name
        self._ends = list(itertools.accumulate(rows))
        self._recent = recent
        self._unreadable = (pyarrow.ArrowException, OSError)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Record:
        group = bisect.bisect_right(self._ends, index)
        start = self._ends[group - 1] if group else 0
        record_id = f"{self.name}:{index + 1}"
        try:
            table = self._recent.get((self, group), lambda: self._read_group(group))
        except self._unreadable as error:
            if getattr(error, "errno", None):
                raise UserError(f"{record_id} can no longer be read: {error}") from None
            raise BadRecordError(record_id, f"its row group cannot be read: {error}") from None
        try:
            (values,) = table.slice(index - start, 1).to_pylist()
        except (ValueError, OverflowError) as error:  # text that is not UTF-8, a date beyond the calendar
            raise BadRecordError(record_id, f"its values cannot be read: {error}") from None
        return Record(record_id, values)

    def _read_group(self, group: int) -> Any:
        with self._open() as opened:
            return opened.read_row_group(group, columns=self._columns)


class Joined:
    """Several sources, one after another."""

    def __init__(self, sources: Sequence[RecordSource]) -> None:
        self.name = ", ".join(source.name for source in sources)
        self._sources = sources
        self._ends = list(itertools.accumulate(len(source) for source in sources))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        place = bisect.bisect_right(self._ends, index)
        return self._sources[place][index - (self._ends[place - 1] if place else 0)]
