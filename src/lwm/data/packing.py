"""Masked packing: many examples in one row, each seeing only itself, the loss what separate rows would give.

Three examples in a row of 12 tokens (`.` is padding; letters are ids):

    example 1   A B C D E        learned: D E           A reads nothing, is never a target
    example 2   P Q R            learned: Q R
    example 3   U V W X          learned: X

    tokens         A  B  C  D  P  Q  U  V  W  .  .  .     all but each example's last id
    targets        B  C  D  E  Q  R  V  W  X  .  .  .     the id that follows within the same example
    loss_weights   0  0  ½  ½  ½  ½  0  0  1  0  0  0     of the *target*; they sum to 1 in each example
    segment_ids    1  1  1  1  2  2  3  3  3  0  0  0     who may see whom
    positions      0  1  2  3  0  1  0  1  2  0  0  0     rotary angles start anew

**Why packed equals padded.** Let example e have target weights u_ei and losses l_ei. A padded batch puts each example
in a row of its own and averages over rows: the mean over e of (sum_i u_ei l_ei / sum_i u_ei). With packed weights
w_ei = u_ei / sum_j u_ej the sum of w l over everything is the sum of those row means, and the sum of w is the number
of examples; so sum(w l) / sum(w) is the same mean, however the examples are laid into rows. It stays so under any
split of the rows into micro-batches or over devices, as long as both sums are added up before the division.
An example with nothing to learn has w = 0 and counts in neither sum. Weighting "tokens" leaves w = u: long
examples then count for more, as in plain language modelling.

**Placement.** Best-fit decreasing over a window of examples: the longest first, each into the fullest row that still
has room. Short ones follow in the order they came: sorted too, they would make rows of one length each, and where
length goes with kind (texts, pictures to draw, pictures to tell) a step would learn one kind and the next another. A
window is chosen to need just `lookahead` rows (see `loader`).
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from lwm.core.batch import Batch
from lwm.core.errors import UserError
from lwm.data.examples import Example

#: "examples": every example weighs the same, however long; "tokens": every learned token does
Weighting = Literal["examples", "tokens"]
#: what happens to an example that does not fit in a row. The pieces of a split example are examples of their own:
#: each sees only itself and weighs as much as any other
LongDocuments = Literal["split", "drop", "truncate"]


@dataclass(frozen=True)
class Packing:
    """How examples become rows of `seq_len` tokens."""

    seq_len: int
    weighting: Weighting = "examples"
    long_documents: LongDocuments = "split"
    #: rows packed together: more fills rows better (16: about 98%), needs more memory and a longer start
    lookahead: int = 16

    def __post_init__(self) -> None:
        if self.seq_len < 1 or self.lookahead < 1:
            raise UserError(f"sequence length {self.seq_len} and lookahead {self.lookahead} must be at least 1")


class Piece(NamedTuple):
    """A run of an example that fits in a row; four arrays of one length, positions from 0."""

    tokens: np.ndarray
    targets: np.ndarray
    loss_weights: np.ndarray
    positions: np.ndarray
    record_id: str


def cut(example: Example, packing: Packing) -> list[Piece]:
    """Pair each id with its successor, and cut what is longer than a row.

    n ids make n - 1 pairs; each pair is in exactly one piece, so no target is lost where a document is split.
    """
    num_pairs = len(example.tokens) - 1
    if num_pairs > packing.seq_len and packing.long_documents == "drop":
        return []
    end = packing.seq_len if packing.long_documents == "truncate" else num_pairs
    positions = np.arange(num_pairs, dtype=np.int32) if example.positions is None else example.positions
    pieces = []
    for start in range(0, min(num_pairs, end), packing.seq_len):
        stop = min(start + packing.seq_len, num_pairs)
        weights = example.loss_weights[start + 1 : stop + 1]
        total = weights.sum(dtype=np.float64)
        if packing.weighting == "examples" and total > 0:
            weights = (weights / total).astype(np.float32)
        targets = example.tokens[start + 1 : stop + 1]
        places = positions[start:stop] - positions[start]
        pieces.append(Piece(example.tokens[start:stop], targets, weights, places, example.record_id))
    return pieces


#: an example is short if so many fit into a row
SHORT = 8


def place(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Lay items into few bins, each into the fullest that has room; each bin lists its items in their own order.

    Long items come first, the longest before the others; short ones follow as they come. Every length must be at most
    `capacity`. About a microsecond an item.
    """
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room, bin), sorted
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item] * (SHORT * lengths[item] > capacity)):
        tightest = bisect.bisect_left(free, (lengths[item], -1))
        if tightest == len(free):
            room, chosen = capacity, len(bins)
            bins.append([])
        else:
            room, chosen = free.pop(tightest)
        bins[chosen].append(item)
        bisect.insort(free, (room - lengths[item], chosen))
    return [sorted(items) for items in bins]


def fill(rows: Sequence[Sequence[Piece]], seq_len: int) -> Batch:
    """Write pieces into rows: int32 and float32 arrays [len(rows), seq_len], zero where nothing is."""
    shape = (len(rows), seq_len)
    tokens, targets, segment_ids, positions = (np.zeros(shape, np.int32) for _ in range(4))
    loss_weights = np.zeros(shape, np.float32)
    for row, pieces in enumerate(rows):
        if not pieces:
            continue
        lengths = np.array([len(piece.tokens) for piece in pieces])
        end = lengths.sum()
        np.concatenate([piece.tokens for piece in pieces], out=tokens[row, :end])
        np.concatenate([piece.targets for piece in pieces], out=targets[row, :end])
        np.concatenate([piece.loss_weights for piece in pieces], out=loss_weights[row, :end])
        segment_ids[row, :end] = np.repeat(np.arange(1, len(pieces) + 1), lengths)
        np.concatenate([piece.positions for piece in pieces], out=positions[row, :end])
    return Batch(tokens, targets, loss_weights, segment_ids, positions)
