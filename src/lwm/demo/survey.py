"""A needle grid that fits the time there is: short contexts often, long ones as far as this machine carries."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from lwm.evals.journal import Row
from lwm.evals.trial import Cell

#: so ordered that a column cut short by the clock still spans the text
DEPTHS = (50, 0, 100, 25, 75)
MAX_ROUNDS = 3
#: up to this length the depths of a round are read together; longer ones fill the machine alone
BATCHED_LENGTH = 4096

# What a length may take of the time left when its turn comes, so that longer ones have theirs.
FIRST_ROUND_SHARE, LATER_ROUNDS_SHARE = 0.5, 0.25
#: twice the length costs between two times (all else) and four times (attention)
GROWTH = 3.5


#: answers cells together, one row each, as `evals.needle.NeedleTask.run` does
Ask = Callable[[Sequence[Cell]], list[Row]]


@dataclass
class Survey:
    """Rows in the order they were asked, and for each length the seconds a prompt took once all was compiled."""

    rows: list[Row] = field(default_factory=list)
    seconds_per_prompt: dict[int, float] = field(default_factory=dict)

    def readable_tokens(self, seconds: float) -> int:
        """What can surely be read in so many seconds: the time goes with the length, at worst with its square."""
        length, spent = max(self.seconds_per_prompt.items())
        times = seconds / spent
        return int(length * min(times, math.sqrt(times)))


def survey(
    ask: Ask,
    lengths: Sequence[int],
    deadline: float,
    on_rows: Callable[[Sequence[Row]], None] = lambda rows: None,
    clock: Callable[[], float] = time.monotonic,
) -> Survey:
    """Ask as many cells as end before `deadline` (by `clock`), from the shortest length to the longest.

    The shortest length is always asked once. What a batch will cost is foretold from the one before, with compile
    time where the length is new; what has not been measured is taken to grow by `GROWTH` a doubling.
    """
    found = Survey()
    per_prompt, compiling = 0.0, 0.0
    for length in lengths:
        began, seconds = clock(), []
        per_prompt *= GROWTH
        for number, cells in enumerate(_batches(length)):
            expected = per_prompt * len(cells) + (compiling if number == 0 else 0)
            share = 1.0 if length == lengths[-1] else FIRST_ROUND_SHARE if cells[0].round == 0 else LATER_ROUNDS_SHARE
            if found.rows and clock() + expected > began + share * (deadline - began):
                break
            started = clock()
            rows = ask(cells)
            seconds.append((clock() - started) / len(cells))
            per_prompt = seconds[-1]
            if number == 1:
                compiling = max(0.0, seconds[0] - seconds[1]) * len(cells)
            found.rows += rows
            on_rows(rows)
        if not seconds:
            break
        found.seconds_per_prompt[length] = min(seconds)
    return found


def _batches(length: int) -> Iterator[list[Cell]]:
    size = len(DEPTHS) if length <= BATCHED_LENGTH else 1
    for round_ in range(MAX_ROUNDS):
        for first in range(0, len(DEPTHS), size):
            yield [Cell(length, depth, round_) for depth in DEPTHS[first : first + size]]
