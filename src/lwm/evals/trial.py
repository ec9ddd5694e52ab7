"""One question of the needle test: which numbers are hidden where, in what text, and the prompt that asks for them.

A trial is a function of the seed and its cell, of nothing else: any cell of a finished grid can be built again alone.
"""

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lwm.core.errors import UserError
from lwm.evals.haystack import Haystack
from lwm.infer.chat_format import ChatFormat
from lwm.infer.prompts import NEEDLE_CITIES, needle

Prompt = tuple[str, tuple[int, ...]]  # the text and its ids

#: a prompt is never longer than its context length leaves room for, and at most this many tokens shorter
LENGTH_TOLERANCE = 8
_MAX_FITTINGS = 12


@dataclass(frozen=True)
class Cell:
    """A place in the grid. `depth_percent` is the share of the haystack's tokens before the (first asked) needle."""

    context_length: int
    depth_percent: int
    round: int

    def seed(self, base: int) -> int:
        """The cell's own seed, unrelated to its neighbours'."""
        name = f"{base}/{self.context_length}/{self.depth_percent}/{self.round}"
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")


@dataclass(frozen=True)
class Trial:
    """A cell's question: `cities` asked for, the `numbers` that answer it, and the prompt as the model reads it."""

    cell: Cell
    seed: int
    cities: tuple[str, ...]
    numbers: tuple[str, ...]
    text: str
    prompt: tuple[int, ...]


def build_trial(
    cell: Cell,
    haystack: Haystack,
    chat: ChatFormat,
    *,
    seed: int,
    answer_tokens: int,
    needles: int = 1,
    retrieve: int = 1,
) -> Trial:
    """Hide `needles` numbers in a window of the haystack and ask for `retrieve` of them.

    The window starts at a line drawn by the cell's seed and is as long as fits: prompt and `answer_tokens` together
    take `context_length` tokens, or up to `LENGTH_TOLERANCE` fewer. The first city asked for lies at the cell's
    depth, all other needles at depths drawn at random; each is put at the haystack's boundary nearest to its
    depth.

    Raises:
        UserError: the needles, the question and the answer alone are longer than the context.
    """
    own_seed = cell.seed(seed)
    rng = random.Random(own_seed)
    cities = rng.sample(NEEDLE_CITIES, needles)
    numbers = [str(rng.randrange(1_000_000, 10_000_000)) for _ in cities]
    depths = [cell.depth_percent / 100, *(rng.random() for _ in cities[1:])]
    start = rng.randrange(len(haystack.boundaries) - 1)

    def prompt(context_tokens: float) -> tuple[str, tuple[int, ...]]:
        sentences = [needle(city, number) for city, number in zip(cities, numbers, strict=True)]
        context = hide(haystack, start, context_tokens, sentences, depths)
        text = chat.needle_prompt(context, cities[:retrieve], needles)
        return text, tuple(chat.encode((text,)))

    text, ids = _fit(prompt, cell.context_length, answer_tokens)
    return Trial(cell, own_seed, tuple(cities[:retrieve]), tuple(numbers[:retrieve]), text, ids)


def _fit(prompt: Callable[[float], Prompt], context_length: int, answer_tokens: int) -> Prompt:
    """The longest prompt that leaves room for the answer, found by measuring: tokens do not add up across seams."""
    room = context_length - answer_tokens
    best = prompt(0.0)
    if len(best[1]) > room:
        raise UserError(
            f"context length {context_length} is too short: needles and question take {len(best[1])} tokens "
            f"and the answer {answer_tokens}"
        )
    fits, exceeds, tokens = 0.0, math.inf, float(room - len(best[1]))
    for _ in range(_MAX_FITTINGS):
        tried = prompt(tokens)
        spare = room - len(tried[1])
        if spare >= 0:
            best, fits = max(best, tried, key=lambda prompt: len(prompt[1])), max(fits, tokens)
        else:
            exceeds = min(exceeds, tokens)
        if 0 <= spare <= LENGTH_TOLERANCE:
            break
        tokens += spare
        if not fits < tokens < exceeds:
            tokens = (fits + exceeds) / 2
    return best


def hide(haystack: Haystack, start: int, tokens: float, needles: Sequence[str], depths: Sequence[float]) -> str:
    """The window of about `tokens` tokens from boundary number `start` on, each needle at the boundary by its depth."""
    first = int(haystack.boundaries[start])
    before = float(haystack.tokens_before[start])
    last = max(first, haystack.place(before + tokens))
    places = []
    for depth in depths:
        wanted = haystack.place(before + depth * tokens)
        places.append(min(first, last, haystack.nearest_boundary(wanted), key=lambda place: abs(place - wanted)))
    order = sorted(range(len(needles)), key=lambda i: places[i])
    cuts = [first, *(places[i] for i in order), last]
    pieces = [haystack.between(a, b) for a, b in pairwise(cuts)]
    hidden = (piece + needles[i] for piece, i in zip(pieces, order, strict=False))
    return "".join(hidden) + pieces[-1]
