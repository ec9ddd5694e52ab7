"""From a path, a pattern or a dataset's name to its records."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lwm.core.errors import UserError
from lwm.data.hub import HubRows, HubStream, is_saved_dataset, open_dataset, stream_files
from lwm.data.local import Joined, JsonLines, ParquetRows, TextFiles
from lwm.data.recent import Recent
from lwm.data.records import RecordSource, RecordStream

Format = Literal["jsonl", "text", "parquet", "datasets"]
#: "auto" goes by the suffix of the files and never uses the network
FormatChoice = Literal["auto", "jsonl", "text", "parquet", "datasets"]

SUFFIXES: dict[Format, tuple[str, ...]] = {
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "text": (".txt", ".text", ".md", ".rst"),
    "parquet": (".parquet",),
}


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
        source: RecordSource = HubRows(path, open_dataset(path, split, subset, streaming=False))
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
        return HubStream(path, open_dataset(path, split, subset, streaming=True))
    files, kind = _find(path, format)
    builder = {"jsonl": "json", "text": "text", "parquet": "parquet"}[kind]
    options = {"sample_by": "document"} if kind == "text" else {}
    return stream_files(builder, [str(file) for file in files], path, **options)


def _open_files(files: Sequence[Path], kind: Format, columns: Sequence[str] | None) -> RecordSource:
    try:
        above = os.path.commonpath([file.parent for file in files])
        names = [file.relative_to(above).as_posix() for file in files]
        if kind == "text":
            return TextFiles(files, names)
        recent = Recent()
        opened = [
            JsonLines(file, name) if kind == "jsonl" else ParquetRows(file, name, columns, recent)
            for file, name in zip(files, names, strict=True)
        ]
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
    return opened[0] if len(opened) == 1 else Joined(opened)


def _is_hub(path: str, format: FormatChoice) -> bool:
    return format == "datasets" or (format == "auto" and is_saved_dataset(path))


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
