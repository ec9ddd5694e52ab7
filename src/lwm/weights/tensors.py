"""What every reader of weights offers and every writer takes: tensors of ours, read piece by piece.

A reader says which tensors a file holds, under our names and in our layout, and what it does to bring them there. It
reads no more than it is asked for, so that a model is converted, or placed on a mesh, without the host holding it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

#: names of tensors that are stacked over layers begin with it
STACKED = "layers."


@dataclass(frozen=True)
class TensorSpec:
    """What is to be known of a tensor before it is read."""

    #: in our layout
    shape: tuple[int, ...]
    #: as it is stored, and as it comes
    dtype: np.dtype
    #: its name, or names, in the file: `model.layers.*.mlp.up_proj.weight`
    origin: str
    #: what is done to it on the way: "transposed"; empty: nothing
    change: str = ""

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@runtime_checkable
class Tensors(Protocol):
    """The tensors of a model, wherever they lie."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Each tensor under its name, as `core.params.named_leaves` has it: `layers.query`."""
        ...

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Part of a tensor, in our layout and its stored dtype; slices have a start and a stop, and no step.

        Raises:
            UserError: the file is not what it said it was.
        """
        ...


def whole(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The index of all of a tensor."""
    return tuple(slice(0, size) for size in shape)


def pieces(tensors: Tensors, name: str) -> Iterator[np.ndarray]:
    """A tensor from its first row to its last: layer by layer, with the layers' axis, or at once if it has none."""
    shape = tensors.specs[name].shape
    if not name.startswith(STACKED):
        yield tensors.read(name, whole(shape))
        return
    for layer in range(shape[0]):
        yield tensors.read(name, (slice(layer, layer + 1), *whole(shape[1:])))


class InMemory:
    """Tensors that are there already, on the host or on a mesh."""

    def __init__(self, leaves: Mapping[str, Any], origin: str = "") -> None:
        self._leaves = leaves
        self.specs = {
            name: TensorSpec(tuple(leaf.shape), np.dtype(leaf.dtype), origin or name) for name, leaf in leaves.items()
        }

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        return np.asarray(self._leaves[name][index])
