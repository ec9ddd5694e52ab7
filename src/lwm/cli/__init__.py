"""`lwm VERB`: find the verb, hand it the rest of the line, and end with the right code."""

import difflib
import errno
import os
import sys

import lwm.cli.verbs  # noqa: F401 (registers them)
from lwm.cli.terminal import note
from lwm.cli.verb import VERBS, Arguments, Verb
from lwm.core.errors import UserError

#: the reader is gone; the disk is full, over quota, read-only, broken: what may come in the middle of any work
WRITE_REFUSALS = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)

ABOUT = "LWM: one transformer over long texts, pictures and videos."
HELP = ("-h", "--help")


def overview(verbs: dict[str, Verb]) -> str:
    """What `lwm --help` prints: each verb, its sentence, its example."""
    lines = [f"  {name:<20}{verb.says}\n{'':22}{verb.example}" for name, verb in verbs.items()]
    return "\n".join(["usage: lwm VERB ...", "", ABOUT, "", *lines, "", "Each verb explains itself: lwm VERB --help"])


def dispatch(arguments: Arguments) -> int:
    """Find the verb, one word or two, and hand it the rest of the line."""
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in VERBS:
            return VERBS[name].call(arguments[words:]) or 0
    first = arguments[0] if arguments else ""
    family = {name: verb for name, verb in VERBS.items() if name.split()[0] == first}
    if first in HELP or not arguments or (family and {*arguments[1:]} <= {*HELP}):
        asked = bool({*arguments} & {*HELP})
        print(overview(family or VERBS), file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    typed = " ".join(arguments[: 2 if family else 1])
    known = list(family) or [*VERBS, *(name.split(maxsplit=1)[0] for name in VERBS)]
    near = difflib.get_close_matches(typed, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the verbs are {', '.join(family or VERBS)}"
    raise UserError(f"there is no verb {typed!r}: {hint}")


def main(arguments: Arguments | None = None) -> int:
    """The console script. Bad input ends with code 2 and one sentence, Ctrl-C with 130; a bug keeps its traceback."""
    try:
        code = dispatch(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        note(str(error))
        return 2
    except KeyboardInterrupt:
        note("interrupted")
        return 130
    except OSError as error:
        if error.errno not in WRITE_REFUSALS:
            raise
        if error.filename is None:  # it was the output, and the rest of it cannot go there either
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:  # whoever read it has seen enough
            return 141
        note(f"{error.filename or 'cannot write any more'}: {error.strerror}")
        return 2
