"""What may come next: text, and frames of codes inside it.

    text ... <vision> code x tokens_per_frame [end_of_frame code x tokens_per_frame]* end_of_vision </vision> text ...

Outside a frame only text ids may be drawn, inside one only codes, after its last code only a mark. `<vision>` is
ordinary text of several pieces (LWM's are not special tokens), so a row is inside once these pieces have been said.
A text model has no frames, and its rows are never inside.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from lwm.core.errors import UserError
from lwm.core.pytree import pytree
from lwm.core.vocab import Vocab

#: frames of a row that may have as many as the model wants
UNLIMITED = 2**30


@dataclass(frozen=True)
class Grammar:
    """The rules of a model's ids."""

    vocab: Vocab
    #: the pieces of `<vision>`; none: a row never goes inside by itself
    opening: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.opening)) < len(self.opening):
            raise UserError(f"the pieces that open a picture repeat an id: {self.opening}")


@pytree
@dataclass(frozen=True)
class Progress:
    """Where each row stands in the grammar."""

    #: between `<vision>` and `end_of_vision`
    inside: Bool[Array, "B"]
    #: codes the frame still needs
    codes_left: Int[Array, "B"]
    #: frames that are still to begin
    frames_left: Int[Array, "B"]
    #: pieces of `<vision>` just said
    matched: Int[Array, "B"]


def begin(num_rows: int) -> Progress:
    """Rows that have read nothing."""
    zeros = jnp.zeros(num_rows, jnp.int32)
    return Progress(zeros > 0, zeros, zeros + UNLIMITED, zeros)


def expect(progress: Progress, num_frames: int, grammar: Grammar) -> Progress:
    """The same rows, which will hold `num_frames` more frames; one that is not finished is the first of them."""
    if not grammar.vocab.vision_size:
        return progress
    opened = progress.inside & (progress.codes_left > 0)
    return replace(progress, frames_left=num_frames - opened.astype(jnp.int32))


def follow(progress: Progress, tokens: Int[Array, "B T"], counts: Int[Array, "B"], grammar: Grammar) -> Progress:
    """Where the rows stand after the first `counts[b]` of the tokens of each row b."""
    if not grammar.vocab.vision_size:
        return progress

    def step(progress: Progress, read: tuple[Array, Array]) -> tuple[Progress, None]:
        token, place = read
        after = advance(progress, token, grammar)
        return jax.tree.map(lambda new, old: jnp.where(place < counts, new, old), after, progress), None

    return jax.lax.scan(step, progress, (tokens.T, jnp.arange(tokens.shape[1])))[0]


def advance(progress: Progress, token: Int[Array, "B"], grammar: Grammar) -> Progress:
    """Where the rows stand after one more id each. Ids that break the rules are read as well as can be."""
    vocab = grammar.vocab
    opened, matched = _match(progress.matched, token, grammar.opening)
    is_vision = vocab.is_vision(token) | opened
    next_frame, ends = token == vocab.end_of_frame, token == vocab.end_of_vision
    starts = next_frame | opened | (is_vision & ~progress.inside)  # a code outside begins a frame that nothing opened
    codes_left = jnp.where(starts, vocab.tokens_per_frame, progress.codes_left)
    codes_left = codes_left - (vocab.is_code(token) & ~next_frame & ~opened).astype(jnp.int32)
    return Progress(
        inside=is_vision & ~ends,
        codes_left=jnp.where(is_vision & ~ends, jnp.maximum(codes_left, 0), 0),
        frames_left=progress.frames_left - starts.astype(jnp.int32),
        matched=matched,
    )


def _match(
    matched: Int[Array, "B"], token: Int[Array, "B"], opening: tuple[int, ...]
) -> tuple[Bool[Array, "B"], Int[Array, "B"]]:
    """Whether the token is the opening's last piece, and how many of its pieces have been said in a row."""
    if not opening:
        return jnp.zeros(token.shape, bool), matched
    pieces = jnp.array(opening, jnp.int32)
    goes_on = token == pieces[matched]
    matched = jnp.where(goes_on, matched + 1, (token == pieces[0]).astype(jnp.int32))
    opened = matched == len(opening)
    return opened, jnp.where(opened, 0, matched)


def allowed(progress: Progress, grammar: Grammar) -> Bool[Array, "B V"]:
    """Which ids may come next in each row."""
    vocab = grammar.vocab
    ids = jnp.arange(vocab.size, dtype=jnp.int32)
    in_frame = (progress.inside & (progress.codes_left > 0))[:, None]
    at_mark = (progress.inside & (progress.codes_left == 0))[:, None]
    may_go_on = (progress.frames_left > 0)[:, None]
    may_end = ~may_go_on | (progress.frames_left > UNLIMITED // 2)[:, None]
    marks = ((ids == vocab.end_of_vision) & may_end) | ((ids == vocab.end_of_frame) & may_go_on)
    text = ~vocab.is_vision(ids)
    if grammar.opening:
        would_open = (progress.matched == len(grammar.opening) - 1)[:, None] & (ids == grammar.opening[-1])
        text &= may_go_on | ~would_open
    return jnp.where(in_frame, vocab.is_code(ids), jnp.where(at_mark, marks, text))
