"""Context lengths as a user writes them: `1024,4096`, `1k,4k`, `1k..64k`."""

import re

from lwm.core.errors import UserError

_LENGTH = re.compile(r"(\d+)([km]?)", re.IGNORECASE)
_UNITS = {"": 1, "k": 1024, "m": 1024 * 1024}


def parse_lengths(text: str) -> tuple[int, ...]:
    """Lengths in tokens, ascending, each once. `k` is 1024, `m` is 1024 k; `a..b` doubles from a and ends with b.

        1024,4096       1024 4096
        1k..8k,1m       1024 2048 4096 8192 1048576
        1k..6k          1024 2048 4096 6144

    Raises:
        UserError: an item that is neither, a length of 0, a range that goes down.
    """
    lengths: set[int] = set()
    for item in text.split(","):
        first, dots, last = item.strip().partition("..")
        start = _length(first, text)
        end = _length(last, text) if dots else start
        if end < start:
            raise UserError(f"context lengths {text!r}: {item.strip()!r} goes down; write the smaller length first")
        while start < end:
            lengths.add(start)
            start *= 2
        lengths.add(end)
    return tuple(sorted(lengths))


def _length(word: str, text: str) -> int:
    match = _LENGTH.fullmatch(word.strip())
    if match is None or int(match[1]) == 0:
        raise UserError(f"context lengths {text!r}: {word.strip()!r} is not a length; write 1024,4096 or 1k..64k")
    return int(match[1]) * _UNITS[match[2].lower()]


def short(length: int) -> str:
    """The length as it is written on an axis: 1K, 1M, or the number where it is no multiple of 1024."""
    for size, unit in ((1024 * 1024, "M"), (1024, "K")):
        if length % size == 0:
            return f"{length // size}{unit}"
    return f"{length:,}"
