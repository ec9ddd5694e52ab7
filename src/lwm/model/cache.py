"""The key-value cache: slots split over the sp axis, each with its segment id and position (see `attention.decode`)."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from lwm.attention.decode import append_marks, first_slot
from lwm.core.mesh import axis_size, constrain
from lwm.core.pytree import pytree
from lwm.model.config import ModelConfig


@pytree
@dataclass(frozen=True)
class KVCache:
    """Keys and values of all layers, and where each slot stands."""

    keys: Float[Array, "L B K S h"]
    values: Float[Array, "L B K S h"]
    #: 0 = an empty slot or padding
    segment_ids: Int[Array, "B S"]
    positions: Int[Array, "B S"]
    #: slots filled so far, over all devices, padding included
    used: Int[Array, ""]

    @property
    def capacity(self) -> int:
        """Slots in all."""
        return self.segment_ids.shape[1]

    def append(self, segment_ids: Int[Array, "B T"], positions: Int[Array, "B T"]) -> tuple[Int[Array, ""], "KVCache"]:
        """Mark the slots of T more tokens. Returns their first slot and the cache that awaits their entries.

        The caller sees to it that they fit: nothing on the device can refuse.
        """
        start = first_slot(self.used, segment_ids.shape[1])
        cache = replace(
            self,
            segment_ids=append_marks(self.segment_ids, segment_ids, start),
            positions=append_marks(self.positions, positions, start),
            used=start + segment_ids.shape[1],
        )
        return start, cache

    def with_entries(self, keys: Float[Array, "L B K S h"], values: Float[Array, "L B K S h"]) -> "KVCache":
        """The cache with its keys and values replaced."""
        return replace(self, keys=keys, values=values)


def allocate(config: ModelConfig, batch_size: int, capacity: int, dtype: DTypeLike) -> KVCache:
    """An empty cache of at least `capacity` slots a row, under the mesh in force.

    Rows a device are rounded up to a multiple of 16, beyond 1024 to a multiple of 1024, so that attention can cut
    them into even blocks.
    """
    shards = axis_size("tokens")
    rows = -(-capacity // shards)
    granule = 1024 if rows > 1024 else 16
    slots = -(-rows // granule) * granule * shards
    shape = (config.num_layers, batch_size, config.num_kv_heads, slots, config.head_width)

    return _zeros(shape, jnp.dtype(dtype))


@partial(jax.jit, static_argnums=(0, 1))
def _zeros(shape: tuple[int, ...], dtype: jnp.dtype) -> KVCache:
    entries = constrain(jnp.zeros(shape, dtype), None, "batch", "kv_heads", "tokens", None)
    marks = constrain(jnp.zeros((shape[1], shape[3]), jnp.int32), "batch", "tokens")
    return KVCache(entries, entries, marks, marks, jnp.int32(0))
