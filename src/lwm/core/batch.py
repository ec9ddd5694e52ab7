"""`Batch`: where data and model meet."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float, Int

from lwm.core.pytree import pytree

if TYPE_CHECKING:
    Array = Any  # whoever holds a batch knows which of the three it is
else:
    Array = jax.Array | np.ndarray | jax.ShapeDtypeStruct


@pytree
@dataclass(frozen=True)
class Batch:
    """Packed rows of examples, next-token targets already aligned with the tokens that predict them.

    Tokens may lie in any order along T: attention reads order from `positions` and `segment_ids` only.
    """

    tokens: Int[Array, "B T"]
    targets: Int[Array, "B T"]
    #: share of each target in the loss; 0 = not learned
    loss_weights: Float[Array, "B T"]
    #: which packed example a token belongs to, from 1; 0 = padding
    segment_ids: Int[Array, "B T"]
    #: place within the example, rising from 0 in each segment
    positions: Int[Array, "B T"]

    def permute(self, order: np.ndarray) -> "Batch":
        """The same batch with tokens laid out in another order along T (see `core.layout`)."""
        return jax.tree.map(lambda array: array[:, order], self)
