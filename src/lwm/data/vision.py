"""Frames of codes in a record, and the ids they become.

A field with the word `vision` in its name holds the codes of one or more frames, one after another: a list of numbers,
as LWM has it, or (a million of them should not be text) bytes, two a code, the lower first.

    codes       [5 9 2 4  7 1 1 3]                          two frames of four codes
    ids         <vision> 5 9 2 4 EOF 7 1 1 3 EOV </vision>  codes behind the text's ids, the marks behind the codes

`<vision>` and `</vision>` are ordinary text of several pieces, as in LWM.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from lwm.core.errors import UserError
from lwm.core.vocab import Vocab
from lwm.data.records import BadRecordError
from lwm.data.tokenizer import Tokenizer

OPENING, CLOSING = "<vision>", "</vision>"
#: bytes of a code, and how many codes they tell apart
CODE_BYTES = 2
MOST_CODES = 1 << 8 * CODE_BYTES


def is_vision(name: str) -> bool:
    """Whether a field of that name holds codes: one of its words is `vision`."""
    return "vision" in re.split(r"[^a-zA-Z]+", name.lower())


def pack(codes: np.ndarray) -> bytes:
    """Codes as bytes.

    Raises:
        ValueError: a code needs more than two.
    """
    if codes.size and codes.max() >= MOST_CODES:
        raise ValueError(f"code {codes.max()} does not fit {CODE_BYTES} bytes")
    return codes.astype("<u2").tobytes()


@dataclass(frozen=True)
class FrameIds:
    """Turns the codes of a field into ids of a vocabulary."""

    vocab: Vocab
    tokenizer: Tokenizer
    #: longer videos keep so many frames, evenly; 0: all
    max_frames: int = 0

    def __post_init__(self) -> None:
        if not self.vocab.vision_size:
            raise UserError("fields ask for pictures, and the model is one of text alone: it has no ids for them")

    def ids(self, value: object, name: str, record_id: str) -> list[int]:
        """The ids of a field's frames.

        Raises:
            BadRecordError: not codes, a broken frame, or no frame.
        """
        return self.of(self.frames(value, name, record_id))

    def of(self, codes: Int32[np.ndarray, "N P"]) -> list[int]:
        """The ids of frames, with what goes before and after them."""
        vocab = self.vocab
        marks = np.full((len(codes), 1), vocab.end_of_frame, np.int32)
        marks[-1] = vocab.end_of_vision
        framed = np.concatenate([codes + np.int32(vocab.text_size), marks], axis=1)
        return [*self.tokenizer.encode(OPENING), *framed.ravel().tolist(), *self.tokenizer.encode(CLOSING)]

    def require(self, codes: Int32[np.ndarray, "N P"]) -> None:
        """Refuse frames that are not of the vocabulary.

        Raises:
            UserError: another number of codes a frame, or other codes.
        """
        vocab = self.vocab
        if (
            not codes.size
            or codes.shape[1] != vocab.tokens_per_frame
            or not 0 <= codes.min() <= codes.max() < vocab.num_codes
        ):
            raise UserError(
                f"frames of shape {codes.shape} are not the model's: it reads {vocab.tokens_per_frame} codes a frame, "
                f"from 0 to {vocab.num_codes - 1}"
            )

    def frames(self, value: object, name: str, record_id: str) -> Int32[np.ndarray, "N P"]:
        """The codes of each frame that is kept.

        Raises:
            BadRecordError: as `ids`.
        """
        frames = frames_in(value, self.vocab.tokens_per_frame, self.vocab.num_codes, name, record_id)
        if not 0 < self.max_frames < len(frames):
            return frames
        return frames[np.linspace(0, len(frames) - 1, self.max_frames).astype(int)]


def films_in(ids: Sequence[int], vocab: Vocab) -> list[Int32[np.ndarray, "N P"]]:
    """The codes of each picture or video among ids; one that breaks off keeps its whole frames, if it has any."""
    films: list[np.ndarray] = []
    codes: list[int] = []
    for token in [*ids, vocab.end_of_vision]:
        if vocab.text_size <= token < vocab.end_of_frame:
            codes.append(token - vocab.text_size)
        elif token != vocab.end_of_frame:  # the film is over, or there was none
            whole = len(codes) // max(1, vocab.tokens_per_frame)
            if whole:
                films.append(np.array(codes[: whole * vocab.tokens_per_frame], np.int32).reshape(whole, -1))
            codes = []
    return films


def frames_in(
    value: object, tokens_per_frame: int, num_codes: int, name: str, record_id: str
) -> Int32[np.ndarray, "N P"]:
    """The codes of each frame of a field.

    Raises:
        BadRecordError: not codes, a broken frame, or no frame.
    """
    codes = _numbers(value, name, record_id)
    if not len(codes) or len(codes) % tokens_per_frame:
        raise BadRecordError(
            record_id, f"field {name!r} has {len(codes)} codes, not whole frames of {tokens_per_frame}"
        )
    if codes.min() < 0 or codes.max() >= num_codes:
        beyond = codes.min() if codes.min() < 0 else codes.max()
        raise BadRecordError(record_id, f"field {name!r} has code {beyond}: they go from 0 to {num_codes - 1}")
    return codes.reshape(-1, tokens_per_frame)


def unpack(frames: bytes) -> Int32[np.ndarray, "n"]:
    """Codes out of bytes."""
    return np.frombuffer(frames, "<u2").astype(np.int32)


def _numbers(value: object, name: str, record_id: str) -> Int32[np.ndarray, "n"]:
    if isinstance(value, bytes):
        if len(value) % CODE_BYTES:
            raise BadRecordError(record_id, f"field {name!r} has {len(value)} bytes, and a code takes {CODE_BYTES}")
        return unpack(value)
    if not isinstance(value, list) or not all(type(code) is int for code in value):
        raise BadRecordError(record_id, f"field {name!r} is not a list of codes")
    try:
        return np.array(value, np.int32)
    except OverflowError:
        raise BadRecordError(record_id, f"field {name!r} has numbers that are no codes") from None
