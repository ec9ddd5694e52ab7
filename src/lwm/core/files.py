"""Files that are whole or not there, whenever the process that writes them dies."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
