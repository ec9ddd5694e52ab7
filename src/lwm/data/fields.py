"""How a record becomes a text, and what of it is learned: a small grammar kept from LWM.

    fields      "[system+question],answer"
    record      {"system": "Be brief.", "question": "2 + 2?", "answer": " 4"}
    text        <bos>Be brief. 2 + 2? 4<eos>
    learned                          4<eos>

A comma separates what is tokenized apart, with nothing between, hence the space in the answer; brackets mean: read,
not learned; `+` joins fields of the record into one text with a separator; `<|bos|>` and `<|eos|>` stand for those
tokens. Fields with the word `vision` in their names hold frames of codes (`data.vision`); nothing goes between them and
a text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lwm.core.errors import UserError

BOS, EOS = "<|bos|>", "<|eos|>"


@dataclass(frozen=True)
class Part:
    """One comma-separated part of `fields`."""

    #: names of record fields joined into one text, or the one name BOS or EOS
    names: tuple[str, ...]
    learned: bool


def parse_fields(fields: str) -> tuple[Part, ...]:
    """Read the `fields` grammar.

    Raises:
        UserError: an empty part, an unclosed bracket, or bos or eos joined with a text.
    """
    parts = []
    for text in fields.split(","):
        part = text.strip()
        learned = not part.startswith("[")
        if learned == part.endswith("]"):
            raise UserError(f"fields {fields!r}: the bracket in {part!r} does not close; write [a+b], one part in each")
        names = tuple(name.strip() for name in part.removeprefix("[").removesuffix("]").split("+"))
        if not all(names):
            raise UserError(f"fields {fields!r}: an empty name in {part!r}; write names separated by commas or +")
        if len(names) > 1 and {BOS, EOS} & {*names}:
            raise UserError(f"fields {fields!r}: {part!r} joins texts; set {BOS} and {EOS} apart with commas")
        parts.append(Part(names, learned))
    return tuple(parts)


def field_names(orders: Sequence[tuple[Part, ...]]) -> list[str]:
    """The record fields that any of the orders reads, each once."""
    names = (name for order in orders for part in order for name in part.names)
    return list(dict.fromkeys(name for name in names if name not in (BOS, EOS)))
