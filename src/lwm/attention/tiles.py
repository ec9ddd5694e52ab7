"""Which tiles of the query-key plane hold anything: found from a few numbers a block, never from the pairs.

A sequence is cut into blocks of one size; where that does not divide the length, the last block starts earlier and
its first tokens, which the block before it already has, count as padding. Nothing is ever copied into a padded array.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

EMPTY, PARTIAL, FULL = 0, 1, 2
_LOWEST, _HIGHEST = np.iinfo(np.int32).min, np.iinfo(np.int32).max


class Blocks(NamedTuple):
    """One side of the mask cut into N blocks, with what each holds. Padding is left out of the four bounds.

    A token's rank is the pair (segment, position); `first_*` and `last_*` are the lowest and highest rank.
    """

    segment_ids: Int[Array, "B N n"]
    positions: Int[Array, "B N n"]
    first_segment: Int[Array, "B N"]
    first_position: Int[Array, "B N"]
    last_segment: Int[Array, "B N"]
    last_position: Int[Array, "B N"]
    #: one segment from end to end, no padding
    uniform: Bool[Array, "B N"]

    def one(self, block: Int[Array, ""]) -> "Blocks":
        """A single block, N = 1."""
        return Blocks(*(jax.lax.dynamic_slice_in_dim(field, block, 1, axis=1) for field in self))

    @property
    def num_blocks(self) -> int:
        """N."""
        return self.segment_ids.shape[1]

    @property
    def size(self) -> int:
        """Tokens in a block."""
        return self.segment_ids.shape[2]


def starts(length: int, size: int) -> np.ndarray:
    """Where each block begins."""
    return np.minimum(np.arange(0, length, size), length - size)


def cut(segment_ids: Int[Array, "B T"], positions: Int[Array, "B T"], size: int) -> Blocks:
    """Blocks of `size` tokens, or of all T if there are fewer."""
    length = segment_ids.shape[1]
    size = min(size, length)
    places = starts(length, size)[:, None] + np.arange(size)
    is_new = places >= np.arange(0, length, size)[:, None]
    segments, positions = jnp.where(is_new, segment_ids[:, places], 0), positions[:, places]
    real = segments != 0
    first = jnp.where(real, segments, _HIGHEST).min(-1)
    last = jnp.where(real, segments, _LOWEST).max(-1)
    first_position = jnp.where(segments == first[..., None], positions, _HIGHEST).min(-1)
    last_position = jnp.where(segments == last[..., None], positions, _LOWEST).max(-1)
    return Blocks(segments, positions, first, first_position, last, last_position, real.all(-1) & (first == last))


def classify(queries: Blocks, keys: Blocks) -> Int[Array, "N"]:
    """What a tile holds, for one block against N. EMPTY: no query sees any key. FULL: every query sees every key.

    EMPTY and FULL are certain; a tile called PARTIAL may hold anything. A query of rank (s, p) sees only keys (s, p')
    with p' <= p, hence of no higher rank: so a tile is empty if its segments are disjoint, or if its lowest key ranks
    above its highest query. The rows of the batch visit their tiles together: EMPTY and FULL hold in all of them.
    """
    overlap = (keys.first_segment <= queries.last_segment) & (queries.first_segment <= keys.last_segment)
    later = (keys.first_segment == queries.last_segment) & (keys.first_position > queries.last_position)
    same = queries.uniform & keys.uniform & (queries.first_segment == keys.first_segment)
    full = same & (keys.last_position <= queries.first_position)
    return jnp.where(full.all(0), FULL, jnp.where((overlap & ~later).any(0), PARTIAL, EMPTY))


def table(queries: Blocks, keys: Blocks) -> Int[Array, "M N"]:
    """`classify` for each pair of blocks: for tests and for counting work, not for the kernel."""
    return jax.vmap(lambda block: classify(queries.one(block), keys))(jnp.arange(queries.num_blocks))


class Visits(NamedTuple):
    """The blocks worth a visit: `order[:num_full]` are FULL, then up to `num_needed` PARTIAL."""

    order: Int[Array, "N"]
    num_full: Int[Array, ""]
    num_needed: Int[Array, ""]


def visits(queries: Blocks, keys: Blocks) -> Visits:
    """Which tiles to compute for one block against N, the FULL ones first."""
    kinds = classify(queries, keys)
    return Visits(jnp.argsort(-kinds), (kinds == FULL).sum(), (kinds != EMPTY).sum())
