"""From packed rows on the hosts to batches on the devices."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lwm.core.errors import UserError
from lwm.core.layout import order
from lwm.core.mesh import axis_size, sharding
from lwm.data.examples import ExampleSource, ExampleStream
from lwm.data.loader import Loader
from lwm.model.loss import target_weight
from lwm.train.run import Run
from lwm.train.step import modality_shares
from lwm.train.steps import Fed

#: tokens, and batches, that are searched for a target before training is refused
SEARCHED_TOKENS, SEARCHED_BATCHES = 1 << 20, 16


class Feed:
    """The batches of a run on a mesh (the one in force); a process loads the rows that its devices hold."""

    def __init__(self, run: Run, source: ExampleSource | ExampleStream, mesh: Mesh):
        self.mesh = mesh
        self._shape = (run.batch_size, run.seq_len)
        self._placed = sharding(mesh, "batch", "tokens")
        self._rows = rows_here(self._placed, self._shape)
        self._loader = Loader(
            source,
            batch_size=run.batch_size,
            seq_len=run.seq_len,
            seed=run.seed,
            weighting=run.weighting,
            long_documents=run.long_documents,
            rows=self._rows,
            order=order(run.layout, run.seq_len, axis_size("tokens")),
        )
        self._ready: Fed | None = None

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *error: object) -> None:
        self._loader.close()

    def make_ready(self) -> Fed:
        """Read the next batch already, and return it; it stays the next one.

        Raises:
            UserError: the records cannot be read or used.
        """
        self._ready = self.next()
        return self._ready

    def next(self) -> Fed:
        """The next batch.

        Raises:
            UserError: the records cannot be read or used.
        """
        if self._ready is not None:
            ready, self._ready = self._ready, None
            return ready
        batch, record_ids = next(self._loader)
        ids = {str(row): ids for row, ids in zip(self._rows, record_ids, strict=True)}
        return Fed(jax.tree.map(self._place, batch), ids, self._loader.get_state())

    def get_state(self) -> dict[str, Any]:
        """Where the loader stands; of the rows of this process only."""
        return self._loader.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from where a loader of all rows stood."""
        self._ready = None
        self._loader.set_state(state)

    def _place(self, array: np.ndarray) -> jax.Array:
        """Rows of this process -> its shards of the global array (several processes may hold parts of one row)."""

        def shard(index: Any) -> np.ndarray:
            wanted = range(*index[0].indices(self._shape[0]))
            return array[np.searchsorted(self._rows, wanted), index[1]]

        return jax.make_array_from_callback(self._shape, self._placed, shard)


def require_targets(run: Run, feed: Feed) -> None:
    """Make the first batch ready, and refuse to train where nothing is learned of it and of those after it.

    Many batches may have no targets: their rows may hold a book that is read and not learned.

    Raises:
        UserError: no target has weight in the loss; or the records cannot be read or used.
    """
    beginning = feed.get_state()
    shares = modality_shares(run.model.vocab, run.vision_share)
    learned = jax.jit(lambda batch: jnp.dot(target_weight(batch, run.model.vocab), shares))
    if float(learned(feed.make_ready().batch)) > 0:
        return
    searched = max(SEARCHED_BATCHES, SEARCHED_TOKENS // (run.batch_size * run.seq_len))
    if not any(float(learned(feed.next().batch)) > 0 for _ in range(searched)):
        raise UserError(
            f"none of the first {searched} batches has a target of weight in the loss, so nothing would be learned: in "
            "data.fields leave a part without brackets, raise vision_share if only pictures are learned, or seq_len if "
            "what is learned comes after longer texts"
        )
    feed.set_state(beginning)
    feed.make_ready()


def rows_here(placed: NamedSharding, shape: tuple[int, int]) -> list[int]:
    """The global rows that devices of this process hold, in order."""
    shards: Iterable[Any] = placed.addressable_devices_indices_map(shape).values()
    return sorted({row for index in shards for row in range(*index[0].indices(shape[0]))})
