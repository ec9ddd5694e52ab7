"""Frozen dataclasses out of JSON objects, each field checked."""

import dataclasses
from types import NoneType
from typing import Any, get_args, get_type_hints

from lwm.core.errors import UserError

#: kinds of fields that a JSON value is checked against; a tuple of one of them is a list in JSON
PLAIN = (int, float, bool)


def from_json(cls: type, values: object, block: str) -> Any:
    """The dataclass that a JSON object describes; `block` is what messages call it.

    Raises:
        UserError: not an object, or a field that is missing, unknown or of another kind.
    """
    if not isinstance(values, dict):
        raise UserError(f"{block} is missing or is not an object")
    known = {f.name: f for f in dataclasses.fields(cls)}
    required = {name for name, f in known.items() if f.default is f.default_factory is dataclasses.MISSING}
    if problems := [f"unknown field {name!r}" for name in values.keys() - known] + [
        f"missing field {name!r}" for name in required - values.keys()
    ]:
        raise UserError(f"{block} has {', '.join(sorted(problems))}")
    hints = get_type_hints(cls)
    checked = {name: _checked(value, hints[name], f"{block} has {name}") for name, value in values.items()}
    try:
        return cls(**checked)
    except (ValueError, UserError) as error:
        raise UserError(f"{block}: {error}") from None


def _checked(value: object, kind: Any, where: str) -> object:
    if NoneType in get_args(kind):
        if value is None:
            return None
        kind = next(other for other in get_args(kind) if other is not NoneType)
    if kind in PLAIN and (isinstance(value, bool) != (kind is bool) or not isinstance(value, int | kind)):
        raise UserError(f"{where}={value!r}, which is not {kind.__name__}")
    if kind is float and isinstance(value, int):
        try:
            return float(value)
        except OverflowError:
            raise UserError(f"{where}={value!r}, which is too large") from None
    if getattr(kind, "__origin__", None) is not tuple:
        return value
    item = get_args(kind)[0]
    if not isinstance(value, list | tuple):
        raise UserError(f"{where}={value!r}, which is not a list of {item.__name__}")
    return tuple(_checked(one, item, f"{where} with an item") for one in value)
