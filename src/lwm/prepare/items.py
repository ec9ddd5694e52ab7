"""What is to be tokenized: files as named, of directories and patterns, or out of records; the order is by name."""

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lwm.core.errors import UserError
from lwm.data.media import is_media, media_files
from lwm.data.records import BadRecordError
from lwm.data.sources import open_records

MEDIA, CAPTION = "media", "caption"
VISION, TIMES = "vision", "times"
#: fields that are made here, in place of any that were there
MADE = (VISION, TIMES)


@dataclass(frozen=True)
class Item:
    """A file to be read, and what else its record holds."""

    name: str
    path: Path
    values: dict[str, Any]
    #: why it cannot be used, where that is known before it is read
    problem: str = ""


def list_items(media: tuple[str, ...]) -> list[Item]:
    """What is to be read: as named, and within a directory or a pattern by name; a file that is named twice, once.

    Raises:
        UserError: a name that stands for nothing.
    """
    files = {name: _files(name) for name in media if not _is_records(name)}
    above = _directory_above(files)
    items: list[Item] = []
    known: set[str] = set()
    for name in media:
        if name not in files:
            items += _from_records(Path(name))
            continue
        for file in files[name]:
            if (path := os.path.abspath(file)) not in known:
                known.add(path)
                items.append(_item(file, os.path.relpath(path, above)))
    if not items:
        raise UserError(f"no pictures or videos in {', '.join(media)}")
    return items


def _is_records(name: str) -> bool:
    return name.endswith(".jsonl") and os.path.isfile(name)


def _files(name: str) -> list[Path]:
    """What a name stands for: a file, those of a directory, or those of a pattern."""
    if os.path.isdir(name):
        return media_files(Path(name))
    if os.path.isfile(name):
        return [Path(name)]
    found = sorted(Path(file) for file in glob.glob(name, recursive=True))
    if not found:
        raise UserError(f"no picture or video at {name}")
    return [file for file in found if file.is_file() and is_media(Path(file.name))]


def _directory_above(files: dict[str, list[Path]]) -> str:
    """Where the names of files begin: the directory that holds all that is named, so that no two have one name."""
    directories = {os.path.abspath(name) for name in files if os.path.isdir(name)}
    for name, found in files.items():
        if not os.path.isdir(name):
            directories |= {os.path.dirname(os.path.abspath(file)) for file in found}
    return os.path.commonpath(directories) if directories else ""


def _item(path: Path, name: str) -> Item:
    """A file; a text beside it with its name is its caption."""
    text = path.with_suffix(".txt")
    try:
        return Item(name, path, {CAPTION: text.read_text(encoding="utf-8-sig").strip()} if os.path.isfile(text) else {})
    except (OSError, UnicodeDecodeError) as error:
        return Item(name, path, {}, f"the caption {text} cannot be read: {error}")


def _from_records(file: Path) -> Iterator[Item]:
    """Paths are relative to the file they stand in."""
    source = open_records(str(file), "jsonl")
    for index in range(len(source)):
        try:
            record = source[index]
        except BadRecordError as bad:
            yield Item(bad.record_id, file, {}, bad.reason)
            continue
        values = {key: value for key, value in record.values.items() if key not in MADE}
        name = values.pop(MEDIA, None)
        wrong = [key for key, value in values.items() if not isinstance(value, str)]
        if not isinstance(name, str):
            yield Item(record.record_id, file, {}, f"it names no file: give it a field {MEDIA!r}")
        elif wrong:
            problem = f"{record.record_id}: field {wrong[0]!r} is not text, and only text is kept beside the codes"
            yield Item(name, file.parent / name, {}, problem)
        else:
            yield Item(name, file.parent / name, values)
