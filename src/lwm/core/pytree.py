"""Frozen dataclasses as JAX pytrees."""

import dataclasses
from typing import Any, TypeVar

import jax

Node = TypeVar("Node", bound=type)


def pytree(cls: Node) -> Node:
    """Register a frozen dataclass as a pytree whose every field is a child.

    Unlike `jax.tree_util.register_dataclass` it is rebuilt without `__init__`: the leaves of a mapped tree may be
    shardings or markers, which the field annotations (checked in tests) would refuse.
    """
    names = tuple(field.name for field in dataclasses.fields(cls))

    def flatten(node: Any) -> tuple[tuple, None]:
        return tuple(getattr(node, name) for name in names), None

    def flatten_with_keys(node: Any) -> tuple[tuple, None]:
        return tuple((jax.tree_util.GetAttrKey(name), getattr(node, name)) for name in names), None

    def unflatten(_: None, children: Any) -> Any:
        node: Any = object.__new__(cls)
        for name, child in zip(names, children, strict=True):
            object.__setattr__(node, name, child)
        return node

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
