"""What is done of a long work on files: a line for each, so that a killed run goes on where it was."""

import base64
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from lwm.core.errors import UserError
from lwm.prepare.items import TIMES


class Journal:
    """A line for each file done; of an unfinished group, left by a crash, nothing is kept."""

    def __init__(self, out: Path, identity: dict[str, Any]) -> None:
        """Beside `out`; a run with another identity does not go on with it."""
        self.path, self._identity = out.with_name(f".{out.name}.journal"), identity
        self.num_done = self.num_frames = 0

    def open(self) -> int:
        """Begin, or go on; returns how many files are done.

        Raises:
            UserError: it cannot be written, or is of other files or settings.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                self._cut()
            self._file = self.path.open("ab")
            if not self.path.stat().st_size:
                self._write([self._identity])
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from None
        return self.num_done

    def _cut(self) -> None:
        """Drop what follows the last whole group."""
        whole_bytes = size = done = frames = group_frames = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                size += len(line)
                values = _parsed(line)
                if values is None:
                    break
                if number == 0:
                    if values != self._identity:
                        raise UserError(f"{self.path} is of another run: delete it, or choose another --out")
                    whole_bytes = size
                    continue
                done += 1
                group_frames += len(values.get("record", {}).get(TIMES, ()))
                if values.get("ends"):
                    whole_bytes, self.num_done, frames, group_frames = size, done, frames + group_frames, 0
        self.num_frames = frames
        os.truncate(self.path, whole_bytes)

    def add(self, lines: list[dict[str, Any]]) -> None:
        """A group that is done."""
        self._write([*lines[:-1], lines[-1] | {"ends": True}])
        self.num_done += len(lines)
        self.num_frames += sum(len(line["record"][TIMES]) for line in lines if "record" in line)

    def _write(self, lines: list[dict[str, Any]]) -> None:
        self._file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def delete(self) -> None:
        self.path.unlink()

    def records(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Each record and its packed codes."""
        for values in self._lines():
            if "record" in values:
                yield values["record"], base64.b64decode(values["codes"])

    def bad(self) -> list[tuple[str, str]]:
        """Each file that could not be read, and why."""
        return [(values["bad"], values["reason"]) for values in self._lines() if "bad" in values]

    def _lines(self) -> Iterator[dict[str, Any]]:
        with self.path.open("rb") as file:
            yield from (json.loads(line) for line in islice(file, 1, None))


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return values if isinstance(values, dict) else None
