"""Questions and answers, from a terminal or out of a pipe."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from lwm.cli.terminal import note, say, show
from lwm.core.errors import UserError

if TYPE_CHECKING:
    from lwm.infer.session import Answer, Session

#: writes what is drawn in an answer; returns the names of the files
Keep = Callable[["Answer"], list[str]]


def reply(session: "Session", question: str, keep: Keep) -> None:
    """One answer, as it comes, and the files of what it shows."""
    answer = session.ask(question, say)
    say("\n")
    if not answer.finished:
        note(f"the answer is cut off after {answer.answer_tokens} tokens: --max-new-tokens allows more")
    for file in keep(answer):
        show(file)


def converse(session: "Session", keep: Keep) -> None:
    """A question a line until an empty one or the end of input; one that is refused is told of, and the next comes.

    Raises:
        UserError: out of a pipe, where nobody could ask again, a question was refused; there is no input at all.
    """
    if sys.stdin is None:
        raise UserError("there is nothing to read questions from: give one")
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        _edit_lines()
        note("ask; an empty line or Ctrl-D ends")
    answered = [_answered(session, question, keep) for question in iter(_typed if is_terminal else _piped, "")]
    if not is_terminal and not all(answered):
        raise UserError(f"{answered.count(False)} of {len(answered)} questions have no answer: see above")


def _typed() -> str:
    """Empty at an empty line or the end."""
    try:
        return input("> ").strip()
    except EOFError:
        say("\n")
        return ""


def _piped() -> str:
    try:
        return sys.stdin.readline().strip()
    except UnicodeDecodeError:
        raise UserError("what is asked is not UTF-8 text") from None


def _answered(session: "Session", question: str, keep: Keep) -> bool:
    try:
        reply(session, question, keep)
    except UserError as error:
        note(str(error))
        return False
    return True


def _edit_lines() -> None:
    """Arrow keys move in the line and fetch earlier questions, where Python was built with that."""
    try:
        import readline  # noqa: F401 (`input` finds it loaded)
    except ImportError:
        return
