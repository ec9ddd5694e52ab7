"""A frozen tensor and the low-rank change of it that is learned (LoRA, Hu et al. 2021).

It stands in a parameter tree where the tensor would stand. `core.params.gather` merges the two where a layer's weights
are read, so that of a stack of layers the merged weights of one exist at a time.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@partial(jax.tree_util.register_dataclass, data_fields=["frozen", "A", "B"], meta_fields=["scale"])
@dataclass(frozen=True)
class Adapted:
    """`frozen + scale * A B`: a matrix from its first axes, `in`, to its last ones, `out`."""

    frozen: Any  # *in *out
    A: Any  # *in r
    B: Any  # r *out
    scale: float


def merge(adapted: Adapted) -> Float[Array, "..."]:
    """The tensor that an adapted one stands for; of stacked layers map it over the layers."""
    return adapted.frozen + adapted.scale * jnp.tensordot(adapted.A, adapted.B, axes=1)
