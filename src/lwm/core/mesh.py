"""The device mesh and the one table that maps logical array axes onto it.

Model code names what an axis *is* (`"batch"`, `"tokens"`, `"heads"`); only this file knows which mesh axes
carry it. The four mesh axes:

    dp    copies of the model, batch split between them
    fsdp  batch split, parameters split
    tp    heads, ffn width and, where it divides, the vocabulary split
    sp    the sequence split (ring or all-to-all attention), parameters split as well
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from lwm.core.errors import UserError

AXES = ("dp", "fsdp", "tp", "sp")
#: the axis along which attention passes keys and values, or partial results, between devices
SEQUENCE_AXIS = "sp"

LOGICAL_AXES: dict[str, tuple[str, ...]] = {
    "batch": ("dp", "fsdp"),
    "tokens": ("sp",),
    "heads": ("tp",),
    "kv_heads": ("tp",),
    "embed": ("fsdp", "sp"),
    "ffn": ("tp",),
    "vocab": ("tp",),
    "layers": (),
}
#: that stay whole where the mesh does not divide them: a vocabulary has as many ids as its tokenizer made
MAY_STAY_WHOLE = ("vocab",)


@dataclass(frozen=True)
class MeshShape:
    """How many devices lie along each mesh axis; one axis may be -1: whatever devices remain."""

    dp: int = 1
    fsdp: int = -1
    tp: int = 1
    sp: int = 1

    @classmethod
    def parse(cls, text: str) -> "MeshShape":
        """Read `dp=1,fsdp=-1,tp=1,sp=1` (any subset, any order) or LWM's `1,-1,1,1`.

        Raises:
            UserError: an unknown or repeated axis, a size that is not a positive integer or -1, more than one -1.
        """
        parts = [part.strip() for part in text.split(",")]
        named = any("=" in part for part in parts)
        if not named and len(parts) != len(AXES):
            raise UserError(f"mesh {text!r}: give {len(AXES)} sizes for {','.join(AXES)}, or name them: dp=1,fsdp=-1")
        pairs = [tuple(part.split("=", 1)) for part in parts] if named else list(zip(AXES, parts, strict=True))
        sizes: dict[str, int] = {}
        for pair in pairs:
            if len(pair) != 2 or pair[0] not in AXES or pair[0] in sizes:
                raise UserError(f"mesh {text!r}: {'='.join(pair)!r} is not a new axis=size with axis in {AXES}")
            try:
                sizes[pair[0]] = int(pair[1])
            except ValueError:
                raise UserError(f"mesh {text!r}: the size of {pair[0]} must be an integer, not {pair[1]!r}") from None
        if "fsdp" not in sizes and -1 in sizes.values():
            sizes["fsdp"] = 1
        return cls(**sizes)

    def __post_init__(self) -> None:
        sizes = self.sizes
        if any(size == 0 or size < -1 for size in sizes) or sizes.count(-1) > 1:
            raise UserError(
                f"mesh {self}: each size must be positive, and at most one may be -1 (the remaining devices)"
            )

    def __str__(self) -> str:
        return ",".join(f"{axis}={size}" for axis, size in zip(AXES, self.sizes, strict=True))

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))

    def resolve(self, num_devices: int) -> "MeshShape":
        """Replace -1 so that the product of sizes is `num_devices`.

        Raises:
            UserError: no such size exists.
        """
        known = math.prod(size for size in self.sizes if size != -1)
        sizes = tuple(num_devices // known if size == -1 else size for size in self.sizes)
        if math.prod(sizes) != num_devices:
            raise UserError(
                f"mesh {self} does not fit the {num_devices} devices here: choose sizes whose product is {num_devices}"
            )
        return MeshShape(*sizes)


def make_mesh(shape: MeshShape, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of `devices` (default: all) in the given shape; enter it with `jax.set_mesh(mesh)`."""
    devices = jax.devices() if devices is None else devices
    resolved = shape.resolve(len(devices))
    if len(devices) == 1 or devices[0].platform == "cpu":
        grid = np.array(devices).reshape(resolved.sizes)
        return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    return jax.make_mesh(resolved.sizes, AXES, devices=devices, axis_types=(AxisType.Auto,) * len(AXES))


def spec(*logical: str | None) -> PartitionSpec:
    """The partition spec of an array whose axes have these logical names (None: not split).

    Raises:
        ValueError: an unknown name, or two axes of the array that land on one mesh axis.
    """
    entries = [LOGICAL_AXES[name] if name is not None and name in LOGICAL_AXES else () for name in logical]
    unknown = [name for name in logical if name is not None and name not in LOGICAL_AXES]
    used = [axis for entry in entries for axis in entry]
    if unknown or len(used) != len(set(used)):
        raise ValueError(
            f"axes {logical}: unknown {unknown}" if unknown else f"axes {logical} collide on the mesh: {used}"
        )
    return PartitionSpec(*(entry or None for entry in entries))


def sharding(mesh: Mesh, *logical: str | None) -> NamedSharding:
    """`spec` bound to a mesh."""
    return NamedSharding(mesh, spec(*logical))


def axis_size(logical: str) -> int:
    """How many ways the mesh in force (`jax.set_mesh`) splits a logical axis; 1 outside any mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else ways(mesh, logical)


def ways(mesh: Mesh | AbstractMesh, logical: str) -> int:
    """How many ways a mesh splits a logical axis."""
    return math.prod(mesh.shape[axis] for axis in LOGICAL_AXES[logical])


def divisible(
    shape: tuple[int, ...], logical: tuple[str | None, ...], mesh: Mesh | AbstractMesh
) -> tuple[str | None, ...]:
    """The logical names, without those that stay whole on this mesh."""
    return tuple(
        None if name in MAY_STAY_WHOLE and size % ways(mesh, name) else name
        for size, name in zip(shape, logical, strict=True)
    )


def constrain(array: jax.Array, *logical: str | None) -> jax.Array:
    """Pin the sharding of an intermediate value; outside any mesh it is returned as it is.

    An axis of length 1 (the one token of a decoding step, a batch of one) is never split.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return array
    return jax.lax.with_sharding_constraint(array, spec(*splittable(array.shape, logical)))


def splittable(shape: tuple[int, ...], logical: tuple[str | None, ...]) -> tuple[str | None, ...]:
    """The logical names, without those of axes of length 1 and those that stay whole on the mesh in force."""
    names = divisible(shape, logical, jax.sharding.get_abstract_mesh())
    return tuple(None if size == 1 else name for size, name in zip(shape, names, strict=True))


def require_divisible(what: str, size: int, logical: str) -> None:
    """Refuse a size that the mesh in force cannot split evenly.

    Raises:
        UserError: names the quantity, its size, the mesh axes and their sizes.
    """
    parts = axis_size(logical)
    if size % parts:
        axes = " x ".join(f"{axis}" for axis in LOGICAL_AXES[logical])
        raise UserError(f"{what} {size} is not divisible by {parts}, the mesh's {axes}: change one of them")
