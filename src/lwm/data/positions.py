"""Positions that skip ahead, as if text had been left out: short rows teach the distances of long ones.

PoSE (Zhu et al. 2023) lengthens the context of a model like this, at the price of the rows it has.
"""

import numpy as np
from jaxtyping import Int, Int32

#: places of an example where positions skip, at most
MAX_SKIPS = 8


def skip_positions(
    count: int, places: Int[np.ndarray, "places"], span: int, rng: np.random.Generator
) -> Int32[np.ndarray, "count"]:
    """Positions of `count` tokens that had been part of a longer text, by any factor alike up to `span` tokens.

    They jump at a few of `places`, the indices of tokens before which something may be missing: inside of a number,
    nothing can be. Without places, or with a span that is no longer than the text, they follow one another.
    """
    if span <= count or not len(places):
        return np.arange(count, dtype=np.int32)
    reach = max(int(np.exp(rng.uniform(np.log(count), np.log(span)))), count)
    skips = np.zeros(count, np.int64)
    chosen = rng.choice(places, rng.integers(1, MAX_SKIPS + 1))
    np.add.at(skips, chosen, rng.multinomial(reach - count, rng.dirichlet(np.ones(len(chosen)))))
    return (np.arange(count) + skips.cumsum()).astype(np.int32)
