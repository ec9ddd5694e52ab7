"""Tensors declared once: shape, logical axes and initializer. Everything else is a `tree.map` over the declaration.

A declaration is the same dataclass pytree as the parameters, with a `Parameter` where an array will be.
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

from lwm.core.errors import UserError
from lwm.core.low_rank import Adapted, merge
from lwm.core.mesh import LOGICAL_AXES, constrain, divisible, sharding, ways

Tree = TypeVar("Tree")
Initializer = Callable[[jax.Array, tuple[int, ...], DTypeLike], jax.Array]


@dataclass(frozen=True)
class Parameter:
    """One tensor: its shape, the logical name of each axis (see `core.mesh`), and how it starts."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Initializer

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.axes):
            raise ValueError(f"shape {self.shape} and axes {self.axes} differ in rank")


def ones(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """For norm scales."""
    return jnp.ones(shape, dtype)


def zeros(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """For biases."""
    return jnp.zeros(shape, dtype)


def normal(standard_deviation: float) -> Initializer:
    """Gaussian with a given standard deviation."""
    return lambda key, shape, dtype: standard_deviation * jax.random.normal(key, shape, dtype)


def _is_declared(leaf: object) -> bool:
    return isinstance(leaf, Parameter)


def abstract(declaration: Tree, dtype: DTypeLike, mesh: Mesh | None = None) -> Tree:
    """Shapes, dtypes and (with a mesh) shardings, with no memory behind them."""

    def leaf(parameter: Parameter) -> jax.ShapeDtypeStruct:
        placed = None if mesh is None else sharding(mesh, *divisible(parameter.shape, parameter.axes, mesh))
        return jax.ShapeDtypeStruct(parameter.shape, dtype, sharding=placed)

    return jax.tree.map(leaf, declaration, is_leaf=_is_declared)


def shardings(declaration: Tree, mesh: Mesh) -> Tree:
    """The sharding of each tensor.

    Raises:
        UserError: a tensor's axis is not divisible by the mesh axes it is split over.
    """

    def leaf(path: tuple, parameter: Parameter) -> NamedSharding:
        split = divisible(parameter.shape, parameter.axes, mesh)
        for size, name in zip(parameter.shape, split, strict=True):
            if name and size % (parts := ways(mesh, name)):
                over, where = " x ".join(LOGICAL_AXES[name]), tensor_name(path)
                raise UserError(f"{where}: its {name} axis of {size} is not divisible by {parts}, the mesh's {over}")
        return sharding(mesh, *split)

    return jax.tree.map_with_path(leaf, declaration, is_leaf=_is_declared)


def init(declaration: Tree, key: jax.Array, dtype: DTypeLike) -> Tree:
    """Draw the parameters. A tensor's values depend on `key` and its path only, never on the mesh or its siblings."""

    def leaf(path: tuple, parameter: Parameter) -> jax.Array:
        own_key = jax.random.fold_in(key, zlib.crc32(jax.tree_util.keystr(path).encode()))
        return parameter.init(own_key, parameter.shape, dtype)

    return jax.tree.map_with_path(leaf, declaration, is_leaf=_is_declared)


def init_sharded(declaration: Tree, key: jax.Array, dtype: DTypeLike, mesh: Mesh) -> Tree:
    """`init`, each device drawing only its own share."""
    return jax.jit(lambda key: init(declaration, key, dtype), out_shardings=shardings(declaration, mesh))(key)


def count(declaration: Tree) -> int:
    """Number of scalars."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(declaration, is_leaf=_is_declared))


def tensor_name(path: tuple[Any, ...]) -> str:
    """How files and messages name the tensor at a path of the tree: `layers.query`."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Each tensor under its name, whether the tree is of dictionaries or of dataclasses."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
    return {tensor_name(path): leaf for path, leaf in leaves}


def shapes_by_name(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor under its name."""
    return {name: tuple(leaf.shape) for name, leaf in named_leaves(tree).items()}


def require_same_shapes(
    where: str, stored: dict[str, tuple[int, ...]], wanted_by: str, wanted: dict[str, tuple[int, ...]]
) -> None:
    """Refuse tensors of another model.

    Raises:
        UserError: names the first three that differ, and their shapes.
    """
    problems = [f"{name} is missing" for name in wanted.keys() - stored.keys()]
    problems += [f"{name} is not a tensor of this model" for name in stored.keys() - wanted.keys()]
    problems += [
        f"{name} has shape {stored[name]} and should have {wanted[name]}"
        for name in wanted.keys() & stored.keys()
        if stored[name] != wanted[name]
    ]
    if problems:
        first, more = ", ".join(sorted(problems)[:3]), f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"the tensors in {where} are not those of {wanted_by}: {first}{more}")


def gather(declaration: Tree, params: Tree, dtype: DTypeLike) -> Tree:
    """The weights as the model uses them: rounded to `dtype`, whole along the axes that are split only to store them.

    They travel in `dtype` and arrive in the dtype they are stored in, for their users to narrow where they multiply:
    so the gradients of many uses (chunks of tokens, repeated ids) add up wide. Vectors are not rounded. The gradient
    goes back to the stored split, so that it is reduced and scattered in one step. A layer taken out of a stack lacks
    the stack's leading axis; its declaration still has it. An adapted tensor arrives merged, and is merged before it
    travels: each device adds up its own share, and the factors' gradients come from a gradient already scattered.
    """

    def leaf(parameter: Parameter, stored: jax.Array | Adapted) -> jax.Array:
        array = merge(stored) if isinstance(stored, Adapted) else stored
        axes = parameter.axes[len(parameter.axes) - array.ndim :]
        return _gather(array, axes, jnp.dtype(dtype) if len(axes) > 1 else array.dtype)

    return jax.tree.map(leaf, declaration, params, is_leaf=_is_declared)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(array: jax.Array, axes: tuple[str | None, ...], dtype: DTypeLike) -> jax.Array:
    travelling = constrain(array.astype(dtype), *axes)
    return constrain(travelling, *(None if name == "embed" else name for name in axes)).astype(array.dtype)


def _gather_forward(array: jax.Array, axes: tuple, dtype: DTypeLike) -> tuple[jax.Array, None]:
    return _gather(array, axes, dtype), None


def _gather_backward(axes: tuple, dtype: DTypeLike, _: None, gradient: jax.Array) -> tuple:
    return (constrain(gradient, *axes),)


_gather.defvjp(_gather_forward, _gather_backward)
