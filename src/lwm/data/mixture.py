"""Several kinds of data in one run, each with its share of the tokens."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lwm.core.errors import UserError
from lwm.core.vocab import Vocab
from lwm.data.examples import Example, ExampleSource, nth
from lwm.data.tokenizer import Tokenizer

#: records after which every part has had its share, and how many of each part say how long its records are
PERIOD, SAMPLED = 10_000, 64


@dataclass(frozen=True)
class MixedData:
    """Data of several kinds. LWM mixes 16% of text into its vision stages (paper, section 4.1)."""

    #: what is mixed; each may be read by index
    parts: tuple[Any, ...]
    #: tokens of each, relative to the others; how many records that is goes by the mean length of some of them
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
            UserError: a part cannot be opened, or is a stream, which has no order to mix.
        """
        sources = [part.open(tokenizer, vocab) for part in self.parts]
        if not all(isinstance(source, ExampleSource) for source in sources):
            raise UserError("a stream cannot be mixed with others: read records that are on this disk")
        return Mixture(sources, np.array(self.shares) / [_mean_length(source) for source in sources])


class Mixture:
    """Examples of several sources, interleaved; it ends when every part was read once, and shorter ones then repeat."""

    def __init__(self, sources: list[ExampleSource], shares: Float[np.ndarray, "parts"]) -> None:
        named = [getattr(source, "name", type(source).__name__) for source in sources]
        self.name = " + ".join(f"{name} ({len(source)})" for name, source in zip(named, sources, strict=True))
        self._sources = sources
        self._pattern = _interleaved(shares / shares.sum())
        ranks = [np.flatnonzero(self._pattern == part) for part in range(len(sources))]
        self._counts = [len(places) for places in ranks]
        self._rank = np.zeros(PERIOD, int)
        for places in ranks:
            self._rank[places] = np.arange(len(places))

    def __len__(self) -> int:
        turns = (-(-len(source) // count) for source, count in zip(self._sources, self._counts, strict=True))
        return PERIOD * max(turns)

    def __getitem__(self, index: int) -> Example | None:
        return self.of_epoch(0, index)

    def of_epoch(self, epoch: int, index: int) -> Example | None:
        turn, place = divmod(epoch * len(self) + index, PERIOD)
        part = int(self._pattern[place])
        return nth(self._sources[part], turn * self._counts[part] + int(self._rank[place]))


def _mean_length(source: ExampleSource) -> float:
    """Tokens of an example, on average over some that lie far apart."""
    places = np.unique(np.linspace(0, len(source) - 1, SAMPLED).astype(int))
    lengths = [len(example.tokens) for place in places if (example := source[int(place)]) is not None]
    return float(np.mean(lengths)) if lengths else 1.0


def _interleaved(shares: Float[np.ndarray, "parts"]) -> Int[np.ndarray, "period"]:
    """Which part comes at each place of a period: always the one that is farthest behind its share."""
    counts, pattern = np.zeros(len(shares)), np.zeros(PERIOD, int)
    for place in range(PERIOD):
        pattern[place] = np.argmax(shares * (place + 1) - counts)
        counts[pattern[place]] += 1
    if not counts.all():
        raise UserError(f"a share of less than one record in {PERIOD} cannot be mixed: {shares.min():.1e}")
    return pattern
