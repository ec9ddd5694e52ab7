"""How a sequence is laid over the devices of the sp axis, as permutations with inverses.

With a causal mask, contiguous shares give the last device nearly all the work. Zigzag gives device i the chunks
i and 2n-1-i of 2n, so that each device sees early and late tokens alike (Brandon et al. 2023, "Striped Attention",
and the zigzag variant of ring-flash-attention):

    n = 2, T = 8      device 0      device 1
    contiguous        0 1 2 3       4 5 6 7
    zigzag            0 1 6 7       2 3 4 5
"""

from typing import Literal

import numpy as np

from lwm.core.errors import UserError

Layout = Literal["contiguous", "zigzag"]


def order(layout: Layout, num_tokens: int, num_shards: int) -> np.ndarray:
    """`order[i]` is the sequence index of the token at place i.

    Raises:
        UserError: `num_tokens` is not divisible by the number of chunks the layout needs.
    """
    chunks = num_shards if layout == "contiguous" or num_shards == 1 else 2 * num_shards
    if num_tokens % chunks:
        raise UserError(
            f"sequence length {num_tokens} is not divisible by {chunks}, the {layout} chunks of sp={num_shards}"
        )
    if chunks == num_shards:
        return np.arange(num_tokens)
    pieces = np.arange(num_tokens).reshape(chunks, -1)
    return np.concatenate([pieces[[i, chunks - 1 - i]].ravel() for i in range(num_shards)])


def inverse(permutation: np.ndarray) -> np.ndarray:
    """`permutation[inverse] == inverse[permutation] == arange`: puts a laid-out sequence back in order."""
    return np.argsort(permutation)
