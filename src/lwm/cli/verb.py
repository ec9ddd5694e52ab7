"""What a verb is, the table of them, and how their flags are read: out of the dataclasses that the rooms take."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

Arguments = Sequence[str]
Call = Callable[[Arguments], int | None]


@dataclass(frozen=True)
class Verb:
    """What `lwm --help` says about a verb, and the function that takes the rest of the line."""

    call: Call
    says: str
    example: str


#: in the order in which `lwm --help` lists them
VERBS: dict[str, Verb] = {}


def verb(name: str, says: str, example: str) -> Callable[[Call], Call]:
    """Make a function a verb, of one word or two."""

    def register(call: Call) -> Call:
        VERBS[name] = Verb(call, says, example)
        return call

    return register


def parse(verb: str, arguments: Arguments, *configs: Any) -> tuple[Any, ...]:
    """One flat set of flags for several config dataclasses; an instance in place of a class gives the defaults.

    Flags that are wrong, and `--help`, end the program here (codes 2 and 0).
    """
    import tyro

    classes = [config if isinstance(config, type) else type(config) for config in configs]
    fields: list[Any] = []
    for config, kind in zip(configs, classes, strict=True):
        flat = Annotated[kind, tyro.conf.arg(name="")]  # type: ignore[valid-type]
        default = [] if config is kind else [dataclasses.field(default=config)]
        fields.append((kind.__name__.lower(), flat, *default))
    table = VERBS[verb] if verb in VERBS else VERBS[verb.split(maxsplit=1)[0]]
    options: Any = tyro.cli(
        dataclasses.make_dataclass("Options", fields, kw_only=True),
        args=arguments,
        prog=f"lwm {verb}",
        description=f"{table.says}\n\nExample:  {table.example}",
        registry=_mesh_on_one_line(),
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.AvoidSubcommands),
    )
    return tuple(getattr(options, field[0]) for field in fields)


def _mesh_on_one_line() -> Any:
    """Teach tyro to read a `MeshShape` as `MeshShape.parse` does, not as four flags."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    from lwm.core.mesh import MeshShape

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def _(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[MeshShape] | None:
        if info.type is not MeshShape:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="MESH",
            instance_from_str=lambda words: MeshShape.parse(words[0]),
            is_instance=lambda value: isinstance(value, MeshShape),
            str_from_instance=lambda shape: [str(shape)],
        )

    return registry
