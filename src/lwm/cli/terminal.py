"""What a user sees: bars, results, pieces of text, notes."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

#: of tables that do not go to a terminal, in characters
FILE_WIDTH = 160
#: of a note, in characters: names out of a file may be as long as the file; what is kept of a longer one, at both ends
MOST_NOTED, KEPT = 1000, 480


@contextmanager
def progress(what: str) -> Iterator[Callable[..., None]]:
    """A bar on the terminal; yields the callback that moves it, `report(done, total, note)`, and begins with it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    beside = TextColumn("{task.fields[note]}", markup=False)
    bar = Progress(*columns, beside, console=Console(stderr=True), transient=True)
    task = bar.add_task(what, total=None, note="")

    def report(done: int, total: int, note: str = "") -> None:
        bar.start()
        bar.update(task, completed=done, total=total, note=on_one_line(note))

    try:
        yield report
    finally:
        if bar.live.is_started:
            bar.stop()


def show(*renderables: Any) -> None:
    """Print results on standard output. A string is shown to the letter, on one line however long it is."""
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = FILE_WIDTH
    for renderable in renderables:
        console.print(renderable, soft_wrap=isinstance(renderable, str))


def say(text: str) -> None:
    """Pass a piece of the model's text on, to the character."""
    print(text, end="", flush=True)


def note(text: str) -> None:
    """Tell what is not part of the result, on one line."""
    print(f"lwm: {on_one_line(text)}", file=sys.stderr)


def on_one_line(text: str) -> str:
    """A message that may quote a stranger's file, as letters alone: a terminal obeys none of them, and it has an end.

    Line breaks, escapes and marks that turn the direction of writing are spelt as Python spells them.
    """
    if len(text) > MOST_NOTED:
        text = f"{text[:KEPT]} ... {text[-KEPT:]}"
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def conversion_table(rows: Sequence[Any]) -> Any:
    """What became of each tensor of a `Conversion`."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("from", "to", "shape", "dtype", "what was done"):
        table.add_column(column, overflow="fold")
    for row in rows:
        dtype = row.stored if row.stored == row.written else f"{row.stored} to {row.written}"
        table.add_row(row.origin, row.name, " x ".join(map(str, row.shape)), dtype, row.change)
    return table
