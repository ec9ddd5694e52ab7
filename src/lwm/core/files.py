"""Files that are whole or not there, whenever the process that writes them dies."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lwm.core.errors import UserError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to: at the end of the block it becomes `path`, after an error it is gone."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield scratch
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def write_file(path: Path, content: bytes) -> None:
    """Write a file that is either whole or as it was before."""
    with whole(path) as scratch:
        scratch.write_bytes(content)


def write_json(path: Path, value: object) -> None:
    """Write readable JSON in UTF-8, as `write_file` does."""
    write_file(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path, when_missing: str) -> dict[str, Any]:
    """The object in a JSON file; `when_missing` says what it means that there is none.

    Raises:
        UserError: no such file, or not an object in JSON.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise UserError(f"cannot read {path}: it is not a file")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{when_missing}: it has no {path.name}") from None
    except RecursionError:
        raise UserError(f"cannot read {path}: its lists and objects lie too deep in each other") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"cannot read {path}: it is not a JSON object")
    return values


def copy_file(source: Path, destination: Path) -> None:
    """Copy what is in a file. Errors in writing are the caller's to say.

    Raises:
        UserError: the source cannot be read.
    """
    try:
        content = source.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {source}: {error.strerror}") from None
    destination.write_bytes(content)


def first_bytes(path: Path, count: int) -> bytes:
    """What a file begins with.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read(count)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
