"""Records: JSON-like dictionaries with an id, by index from files here, or as a stream.

Random access is what makes shuffling and exact resume cheap, so files are indexed, never read ahead: JSONL by the
byte offsets of its lines, Parquet by its row groups, text by its list of files.
"""

import bisect
import glob
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from lwm.core.errors import UserError
from lwm.data.recent import Recent

Format = Literal["jsonl", "text", "parquet", "datasets"]
#: "auto" goes by the suffix of the files and never uses the network
FormatChoice = Literal["auto", "jsonl", "text", "parquet", "datasets"]

SUFFIXES: dict[Format, tuple[str, ...]] = {
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "text": (".txt", ".text", ".md", ".rst"),
    "parquet": (".parquet",),
}

#: What marks a directory written by `datasets`' save_to_disk.
SAVED_DATASET_FILES = ("dataset_info.json", "dataset_dict.json")

SCAN_BLOCK_BYTES = 16 * 1024 * 1024


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
            with open(self._path, "rb", buffering=0) as file:  # kept open, thousands of shards would use up descriptors
                line = os.pread(file.fileno(), end - start, start)
        except OSError as error:
            raise UserError(f"{record_id} can no longer be read: {error.strerror or error}") from None
        if not line.strip():
            raise BadRecordError(record_id, "the line is empty")
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadRecordError(record_id, f"not JSON: {error}") from None
        if not isinstance(values, dict):
            raise BadRecordError(record_id, f"a JSON {type(values).__name__}, not an object with named fields")
        return Record(record_id, values)


class TextFiles:
    """Text files, each of them one record with the field `text`."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.name = files[0].name if len(files) == 1 else f"{len(files)} text files"
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Record:
        file = self._files[index]
        try:
            return Record(str(file), {"text": file.read_text(encoding="utf-8")})
        except (UnicodeDecodeError, OSError) as error:
            raise BadRecordError(str(file), f"not readable as UTF-8 text: {error}") from None


class ParquetRows:
    """The rows of one Parquet file; `recent` keeps row groups that are in use, of this file and of others."""

    def __init__(self, file: Path, name: str, columns: Sequence[str] | None, recent: Recent) -> None:
        import pyarrow  # noqa: PLC0415 (slow to import, and most runs read JSONL)
        from pyarrow import parquet  # noqa: PLC0415

        try:
            self._parquet = parquet.ParquetFile(file)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{file} is not a readable Parquet file: {error}") from error
        present = self._parquet.schema_arrow.names
        self._columns = [name for name in columns if name in present] or None if columns is not None else None
        metadata = self._parquet.metadata
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
            table = self._recent.get((self, group), lambda: self._parquet.read_row_group(group, columns=self._columns))
        except self._unreadable as error:
            raise BadRecordError(record_id, f"its row group cannot be read: {error}") from None
        (values,) = table.slice(index - start, 1).to_pylist()
        return Record(record_id, values)


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


class HubRows:
    """The rows of a Hugging Face dataset on this disk."""

    def __init__(self, name: str, dataset: Any) -> None:
        self.name = name
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Record:
        return Record(f"{self.name}:{index + 1}", self._dataset[index])


class HubStream:
    """A Hugging Face dataset in streaming form."""

    def __init__(self, name: str, dataset: Any) -> None:
        self.name = name
        self._dataset = dataset
        self._beginning = dataset.state_dict()
        self._rows: Iterator[dict[str, Any]] = iter(())
        self.set_state(None)

    def __iter__(self) -> Iterator[Record]:
        while True:
            try:
                yield self.read()
            except EOFError:
                return

    def read(self) -> Record:
        import datasets  # noqa: PLC0415 (an extra)

        try:
            values = next(self._rows)
        except StopIteration:
            raise EOFError(f"{self.name} has {self._count} records") from None
        except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
            raise UserError(f"{self.name}: cannot read record {self._count + 1}: {error}") from error
        self._count += 1
        self._place = None
        return Record(f"{self.name}:{self._count}", values)

    def get_state(self) -> dict:
        return {"count": self._count, "dataset": self._place or self._dataset.state_dict()}

    def set_state(self, state: dict | None) -> None:
        self._count = state["count"] if state else 0
        # Until the first record is read, the dataset's own state is that of its previous reading.
        self._place = state["dataset"] if state else self._beginning
        self._dataset.load_state_dict(self._place)
        self._rows = iter(self._dataset)


def open_records(
    path: str,
    format: FormatChoice = "auto",
    columns: Sequence[str] | None = None,
    split: str = "train",
    subset: str | None = None,
) -> RecordSource:
    """Records by index from a file, a directory, a pattern, or (format "datasets") a Hugging Face dataset.

    `columns` names the fields that will be asked for: Parquet reads no others.

    Raises:
        UserError: nothing there, no records in it, a format that the name does not tell, or an unreadable file.
    """
    if _is_hub(path, format):
        source: RecordSource = HubRows(path, _open_hub(path, split, subset, streaming=False))
    else:
        files, kind = _find(path, format)
        source = _open_files(files, kind, columns)
    if not len(source):
        raise UserError(f"{path} holds no records")
    return source


def stream_records(
    path: str, format: FormatChoice = "auto", split: str = "train", subset: str | None = None
) -> RecordStream:
    """Records in their own order from a Hugging Face dataset, or through it from local JSONL, text or Parquet files.

    Raises:
        UserError: as `open_records`; or the `datasets` package is not installed.
    """
    if _is_hub(path, format):
        return HubStream(path, _open_hub(path, split, subset, streaming=True))
    files, kind = _find(path, format)
    builder = {"jsonl": "json", "text": "text", "parquet": "parquet"}[kind]
    options = {"sample_by": "document"} if kind == "text" else {}
    names = [str(file) for file in files]
    datasets = _datasets()
    try:
        dataset = datasets.load_dataset(builder, data_files=names, split="train", streaming=True, **options)
    except StopIteration:  # it asks the files for a first record
        raise UserError(f"{path} holds no records") from None
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"cannot open {path} as a stream: {error}") from error
    return HubStream(path, dataset)


def _open_files(files: Sequence[Path], kind: Format, columns: Sequence[str] | None) -> RecordSource:
    try:
        if kind == "text":
            return TextFiles(files)
        recent = Recent()
        above = os.path.commonpath([file.parent for file in files])
        names = [file.relative_to(above).as_posix() for file in files]
        opened = [
            JsonLines(file, name) if kind == "jsonl" else ParquetRows(file, name, columns, recent)
            for file, name in zip(files, names, strict=True)
        ]
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
    return opened[0] if len(opened) == 1 else Joined(opened)


def _is_hub(path: str, format: FormatChoice) -> bool:
    return format == "datasets" or (format == "auto" and _is_saved_dataset(path))


def _is_saved_dataset(path: str) -> bool:
    return any(os.path.isfile(Path(path) / name) for name in SAVED_DATASET_FILES)


def _find(path: str, format: FormatChoice) -> tuple[list[Path], Format]:
    """The files that a path, directory or pattern stands for, in order, and their common format."""
    if os.path.isdir(path):
        files = [file for file in sorted(Path(path).rglob("*")) if os.path.isfile(file) and not _hidden(file, path)]
        files = [file for file in files if _format_of(file) in ((format,) if format != "auto" else SUFFIXES)]
    elif os.path.isfile(path):
        files = [Path(path)]
    else:
        files = [Path(name) for name in sorted(glob.glob(path, recursive=True)) if os.path.isfile(name)]
    if not files:
        raise UserError(f"no {'records' if format == 'auto' else format} at {path!r}{_hint(path)}")
    if format != "auto":
        return files, format
    kinds = {_format_of(file) for file in files}
    kind = kinds.pop()
    if kinds or kind is None:
        what = "mixes formats" if kinds else "does not tell its format by its suffix"
        raise UserError(f"{path} {what}: name one format (jsonl, text or parquet), or the files by a pattern")
    return files, kind


def _hidden(file: Path, directory: str) -> bool:
    return any(part.startswith(".") for part in file.relative_to(directory).parts)


def _format_of(file: Path) -> Format | None:
    return next((kind for kind, suffixes in SUFFIXES.items() if file.suffix.lower() in suffixes), None)


def _hint(path: str) -> str:
    if os.path.isdir(path):
        known = ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
        return f": the directory holds no {known}"
    return ": no such file or directory; for a Hugging Face dataset of that name set the format to datasets"


def _datasets() -> ModuleType:
    try:
        import datasets  # noqa: PLC0415 (an extra)
    except ImportError:
        raise UserError("Hugging Face datasets need the package `datasets`: pip install 'lwm[datasets]'") from None
    return datasets


def _open_hub(path: str, split: str, subset: str | None, streaming: bool) -> Any:
    datasets = _datasets()
    try:
        if not _is_saved_dataset(path):
            return datasets.load_dataset(path, subset, split=split, streaming=streaming)
        dataset = datasets.load_from_disk(path)
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"cannot open dataset {path!r} (split {split!r}): {error}") from error
    if isinstance(dataset, dict):
        if split not in dataset:
            raise UserError(f"dataset {path} has no split {split!r}; it has {', '.join(dataset)}")
        dataset = dataset[split]
    return dataset.to_iterable_dataset() if streaming else dataset
