"""Finished cells of an evaluation, kept on disk as they come, so that an interrupted run goes on where it stopped."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lwm.core.errors import UserError
from lwm.core.files import read_json, write_json

Row = dict[str, Any]

SETTINGS = "config.json"
ROWS = "cells.jsonl"


@dataclass(frozen=True)
class Journal:
    """A directory with the settings of one evaluation and a line for each finished cell."""

    directory: Path

    @classmethod
    def open(cls, directory: Path, settings: Row) -> "Journal":
        """Start a journal, or go on with one that was kept with the same settings.

        Raises:
            UserError: the directory cannot be written, or holds an evaluation with other settings (names them).
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
            kept = _read_settings(directory / SETTINGS)
            if kept is None:
                write_json(directory / SETTINGS, settings)
            elif changed := [name for name in settings | kept if settings.get(name) != kept.get(name)]:
                name = changed[0]
                raise UserError(
                    f"{directory} holds an evaluation with {name}={kept.get(name)!r}, and now it is "
                    f"{settings.get(name)!r}: choose another --out, or run it with the same settings to go on"
                )
            journal = cls(directory)
            journal._drop_torn_line()
        except OSError as error:
            raise UserError(f"cannot write results to {directory}: {error.strerror}") from None
        return journal

    def rows(self, *fields: str) -> list[Row]:
        """All finished cells, in the order they were finished; each has these fields at least.

        Raises:
            UserError: a line is not one of them (names it).
        """
        path = self.directory / ROWS
        lines = path.read_bytes().splitlines() if path.exists() else []
        return [_read_row(line, f"{path}:{number}", fields) for number, line in enumerate(lines, 1)]

    def add(self, rows: Iterable[Row]) -> None:
        """Keep finished cells; when it returns they are on the disk."""
        with open(self.directory / ROWS, "ab") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
            file.flush()
            os.fsync(file.fileno())

    def _drop_torn_line(self) -> None:
        """A run that was killed while it wrote leaves a line without its end."""
        path = self.directory / ROWS
        if path.exists():
            written = path.read_bytes()
            if not written.endswith(b"\n"):
                os.truncate(path, written.rfind(b"\n") + 1)


def _read_row(line: bytes, where: str, fields: tuple[str, ...]) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or not row.keys() >= set(fields):
        raise UserError(f"{where} is not a result: delete the line and its cell is run again")
    return row


def _read_settings(path: Path) -> Row | None:
    if not os.path.lexists(path):
        return None
    try:
        return read_json(path, str(path.parent))
    except UserError as error:
        raise UserError(f"{error}; it does not describe an evaluation: choose another --out") from None
