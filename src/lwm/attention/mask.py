"""Who sees whom, kept as four small integer arrays: never as a T x S array outside the reference."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Int


class AttentionMask(NamedTuple):
    """A query sees a key iff both lie in the same segment, that segment is not 0, and the key is not later.

    Segment 0 is padding: it sees nothing and nothing sees it. Tokens may lie in any order along T and S: "later"
    is a matter of positions, never of places in the array.
    """

    query_segment_ids: Int[Array, "B T"]
    query_positions: Int[Array, "B T"]
    key_segment_ids: Int[Array, "B S"]
    key_positions: Int[Array, "B S"]

    @classmethod
    def self_attention(cls, segment_ids: Int[Array, "B T"], positions: Int[Array, "B T"]) -> "AttentionMask":
        """The mask of tokens that look at one another."""
        return cls(segment_ids, positions, segment_ids, positions)

    def dense(self) -> Bool[Array, "B T S"]:
        """Every pair spelled out. For the reference and for tests: grows with T x S."""
        return visible(self.query_segment_ids, self.query_positions, self.key_segment_ids, self.key_positions)


def visible(
    query_segment_ids: Int[Array, "*batch T"],
    query_positions: Int[Array, "*batch T"],
    key_segment_ids: Int[Array, "*batch S"],
    key_positions: Int[Array, "*batch S"],
) -> Bool[Array, "*batch T S"]:
    """The rule itself, pair by pair."""
    segments, keys = query_segment_ids[..., :, None], key_segment_ids[..., None, :]
    return (segments == keys) & (segments != 0) & (key_positions[..., None, :] <= query_positions[..., :, None])
