"""Several kinds of data in one run, each with its share of the tokens."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lwm.core.errors import UserError
from lwm.core.vocab import Vocab
from lwm.data.examples import Example, ExampleSource, nth
from lwm.data.tokenizer import Tokenizer

#: records after which every part has had its share, at least and at most
LEAST_PERIOD, GREATEST_PERIOD = 10_000, 1_000_000
#: so many records of the rarest part in a period, that rounding takes no more than 1% of it
RAREST = 50
#: records of each part that say how long all of them are
SAMPLED = 64


@dataclass(frozen=True)
class MixedData:
    """Data of several kinds. LWM mixes 16% of text into its vision stages (paper, section 4.1)."""

    #: what is mixed; each may be read by index
    parts: tuple[Any, ...]
    #: tokens of each, relative to the others; how many records that is goes by the mean length of some of them, whole
    #: as they are before a row cuts them
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.parts or len(self.parts) != len(self.shares):
            raise UserError(
                f"a mixture of {len(self.parts)} parts has {len(self.shares)} shares: give one for each part"
            )
        if min(self.shares) <= 0:
            raise UserError(f"shares {self.shares} must be positive: leave a part out instead")

    def open(self, tokenizer: Tokenizer, vocab: Vocab) -> "Mixture":
        """Open every part.

        Raises:
            UserError: a part cannot be opened, is a stream, which has no order to mix, holds nothing to learn, or its
                share is next to nothing.
        """
        sources = [part.open(tokenizer, vocab) for part in self.parts]
        if not all(isinstance(source, ExampleSource) for source in sources):
            raise UserError("a stream cannot be mixed with others: read records that are on this disk")
        frequencies = np.array(self.shares) / [_mean_length(source) for source in sources]
        return Mixture(sources, frequencies / frequencies.sum())


class Mixture:
    """Examples of several sources, interleaved; it ends when every part was read once, and shorter ones then repeat.

    `frequencies` are of examples, and sum to 1.
    """

    def __init__(self, sources: list[ExampleSource], frequencies: Float[np.ndarray, "parts"]) -> None:
        self._sources = sources
        self._counts = _counts(sources, frequencies)
        self._pattern = _interleaved(self._counts)
        self._rank = np.zeros(len(self._pattern), int)
        for part, count in enumerate(self._counts):
            self._rank[self._pattern == part] = np.arange(count)
        each = zip(sources, self._counts, strict=True)
        self.name = " + ".join(f"{count} of {_name(source)} ({len(source)})" for source, count in each)

    def __len__(self) -> int:
        turns = (-(-len(source) // count) for source, count in zip(self._sources, self._counts, strict=True))
        return len(self._pattern) * max(turns)

    def __getitem__(self, index: int) -> Example | None:
        return self.of_epoch(0, index)

    def of_epoch(self, epoch: int, index: int) -> Example | None:
        turn, place = divmod(epoch * len(self) + index, len(self._pattern))
        part = int(self._pattern[place])
        return nth(self._sources[part], turn * self._counts[part] + int(self._rank[place]))


def _name(source: ExampleSource) -> str:
    return getattr(source, "name", type(source).__name__)


def _mean_length(source: ExampleSource) -> float:
    """Tokens of an example, on average over some that lie far apart; what cannot be read has none."""
    places = {int(place) for place in np.linspace(0, len(source) - 1, SAMPLED)} if len(source) else set()
    examples = [source[place] for place in sorted(places)]
    tokens = sum(len(example.tokens) for example in examples if example is not None)
    if not tokens:
        raise UserError(f"{_name(source)} holds nothing to learn: {len(examples)} of its records were tried")
    return tokens / len(examples)


def _counts(sources: list[ExampleSource], frequencies: Float[np.ndarray, "parts"]) -> list[int]:
    """Examples of each source in a period."""
    rarest = int(np.argmin(frequencies))
    if frequencies[rarest] < RAREST / GREATEST_PERIOD:
        raise UserError(
            f"the share of {_name(sources[rarest])} comes to one record in {1 / frequencies[rarest]:,.0f}: "
            f"give it more than one in {GREATEST_PERIOD // RAREST:,}, or leave it out"
        )
    period = max(LEAST_PERIOD, int(np.ceil(RAREST / frequencies[rarest])))
    return [round(frequency * period) for frequency in frequencies]


def _interleaved(counts: list[int]) -> Int[np.ndarray, "period"]:
    """Which part comes at each place of a period: all are spread evenly over it."""
    times = [(np.arange(count) + 0.5) / count for count in counts]
    parts = np.repeat(np.arange(len(counts)), counts)
    return parts[np.argsort(np.concatenate(times), kind="stable")]
