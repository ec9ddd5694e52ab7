"""The long text needles are hidden in, measured in tokens, cut at lines and sentences, or where there are none."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lwm.core.errors import UserError

Encode = Callable[[str], Sequence[int]]

#: characters of a piece at most; a depth is met to half of them
LONGEST_PIECE = 200
_SENTENCE = r"(?:[.!?][\"')\]]*[ \t]+|[\u3002\uff01\uff1f]|\n+|\Z)"
_PIECE = re.compile(
    rf"[^\n]{{0,{LONGEST_PIECE - 1}}}?{_SENTENCE}"
    rf"|[^\n]{{0,{LONGEST_PIECE - 1}}}[^\S\n]"  # a sentence longer than that is cut behind a space
    rf"|[^\n]{{{LONGEST_PIECE}}}"
)


@dataclass(frozen=True)
class Haystack:
    """A text read in a circle: past its end it begins again, so any window of any length exists.

    `boundaries` are the character offsets where a line or a sentence ends (or a part of one that is longer than
    `LONGEST_PIECE`), from 0 to the text's length, and `tokens_before` the tokens up to each. Places below are
    characters from the start of the first turn.
    """

    text: str
    boundaries: np.ndarray
    tokens_before: np.ndarray

    @classmethod
    def of(cls, text: str, encode: Encode) -> "Haystack":
        """Measure a text with a tokenizer.

        Pieces are encoded one by one, which finds where tokens fall with nothing but `encode`; tokens that would
        span two pieces make their sum a little too large, so it is scaled to the count of the whole text.
        """
        pieces = [piece for piece in _PIECE.findall(text) if piece]
        counts = np.cumsum([0, *(len(encode(piece)) for piece in pieces)], dtype=float)
        counts *= len(encode(text)) / counts[-1]
        return cls(text, np.cumsum([0, *(len(piece) for piece in pieces)]), counts)

    @property
    def num_tokens(self) -> int:
        """Tokens in one turn."""
        return round(self.tokens_before[-1])

    @property
    def digest(self) -> str:
        """Tells this text from any other."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def place(self, tokens: float) -> int:
        """The place that has about `tokens` tokens before it."""
        turns, rest = divmod(tokens, self.tokens_before[-1])
        return int(turns) * len(self.text) + round(float(np.interp(rest, self.tokens_before, self.boundaries)))

    def nearest_boundary(self, place: int) -> int:
        """The place of the boundary nearest to a place."""
        turns, rest = divmod(place, len(self.text))
        after = int(np.searchsorted(self.boundaries, rest))
        before = max(after - 1, 0)
        nearest = min(self.boundaries[before], self.boundaries[after], key=lambda boundary: abs(int(boundary) - rest))
        return turns * len(self.text) + int(nearest)

    def between(self, start: int, end: int) -> str:
        """The text between two places."""
        skipped = start // len(self.text) * len(self.text)
        turns = math.ceil((end - skipped) / len(self.text))
        return (self.text * turns)[start - skipped : end - skipped]


def read_haystack(paths: Sequence[Path], encode: Encode) -> Haystack:
    """The texts of all files, in the order given. A `.jsonl` file gives the `text` field of each line, as LWM's did.

    Raises:
        UserError: a file that is missing, not UTF-8, without text, or (JSONL) with a line that has no `text`.
    """
    if not paths:
        raise UserError("no haystack: name at least one text file with --haystack FILE")
    return Haystack.of("\n".join(_read(path) for path in paths), encode)


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"haystack {path} cannot be read: {reason}") from None
    if path.suffix == ".jsonl":
        lines = enumerate(
            text.split("\n"), 1
        )  # splitlines() would also cut at U+2028 and others inside of JSON strings
        text = "\n".join(_line_text(path, number, line) for number, line in lines if line.strip())
    if not text.strip():
        raise UserError(f"haystack {path} is empty: give a file with text in it")
    return text


def _line_text(path: Path, number: int, line: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"haystack {path}, line {number}: not JSON ({error.msg})") from None
    except RecursionError:
        raise UserError(f"haystack {path}, line {number}: its lists and objects lie too deep in each other") from None
    except ValueError:
        raise UserError(f"haystack {path}, line {number}: a number in it has too many digits") from None
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise UserError(f'haystack {path}, line {number}: no "text" field with a string in it')
    try:
        record["text"].encode()
    except UnicodeEncodeError:
        raise UserError(f"haystack {path}, line {number}: its text is not valid Unicode") from None
    return record["text"]
