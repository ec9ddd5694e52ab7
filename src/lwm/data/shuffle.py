"""A random order computed place by place: no memory, and the same on every machine and with every library version.

A checkpoint says how far a run is in an order, so the order itself must never change under it.
"""

_WORD = (1 << 64) - 1
_ROUNDS = 6


def fold(*numbers: int) -> int:
    """One 64-bit key from several integers; nearby integers give unrelated keys."""
    key = 0
    for number in numbers:
        key = _mix(key ^ _mix(number & _WORD))
    return key


def shuffled_index(index: int, length: int, key: int) -> int:
    """Where the permutation of `range(length)` chosen by `key` sends `index`.

    A Feistel network (Luby and Rackoff 1988) permutes the next power of four; values beyond `length` are permuted on
    until they fall inside (Black and Rogaway 2002), after fewer than four steps on average.
    """
    half = ((length - 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for step in range(_ROUNDS):
            left, right = right, left ^ (_mix(key + (step << half) + right) & mask)
        index = left << half | right
        if index < length:
            return index


def _mix(word: int) -> int:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014)."""
    word = (word + 0x9E3779B97F4A7C15) & _WORD
    word = ((word ^ word >> 30) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ word >> 27) * 0x94D049BB133111EB) & _WORD
    return word ^ word >> 31
