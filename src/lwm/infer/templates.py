"""A model's own chat template: the words and marks it was taught to expect around what is said, written in Jinja.

It is rendered as `transformers` renders it. A template is a program of whoever made the model: it runs in Jinja's
sandbox, which lets it put texts together and nothing else, and only so many steps of it do.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateRuntimeError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from lwm.core.errors import UserError
from lwm.core.files import read_json
from lwm.data.tokenizer import CHAT_TEMPLATE, GENERATION_CONFIG, TOKENIZER_CONFIG, stated_token

#: what is said and by whom: {"role": "user", "content": "Why?"}
Message = Mapping[str, str]
#: that a template may write, by the names it has for them
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
#: turns of a template's loops and calls of its macros, of one rendering; a turn a message is usual
MOST_STEPS = 100_000
#: letters of a text, or items of a list, that a template may multiply into being
MOST_ITEMS = 1_000_000
#: and that it may join: documents stand in what is said
MOST_JOINED = 100_000_000
#: bits of a number that it may raise to
MOST_BITS = 100_000


class ChatTemplate:
    """A template and the special tokens it writes. `origin`: the file it is from.

    Raises:
        UserError: it is not a Jinja template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], origin: Path) -> None:
        self._special_tokens, self._origin = dict(special_tokens), origin
        environment = self._environment = _Bounded(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _now}
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise UserError(
                f"the chat template in {origin} is not one that Jinja can read: {error.message} (line {error.lineno})"
            ) from None
        except RecursionError:
            raise UserError(f"the chat template in {origin} is not one that Jinja can read: it is too deep") from None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The text a model reads: by default up to where its answer begins.

        Raises:
            UserError: the template refuses these messages, or fails.
        """
        said = [dict(message) for message in messages]
        known = {"tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
        self._environment.num_steps = 0
        try:
            parts: list[str] = []
            length = 0
            for part in self._template.generate(messages=said, **known, **self._special_tokens):
                _require_short(length := length + len(part), MOST_JOINED)
                parts.append(part)
            return "".join(parts)
        except TemplateError as error:
            raise UserError(f"the chat template in {self._origin} refuses what is said: {error.message}") from None
        except Exception as error:  # a program: it may divide by zero
            raise UserError(f"the chat template in {self._origin} fails: {type(error).__name__}: {error}") from None


class _Bounded(ImmutableSandboxedEnvironment):
    """Jinja's sandbox bounds one range; here turns of all loops are counted, and lengths of what operators make.

    What filters and methods pad or replace is not bounded.
    """

    intercepted_binops = frozenset(["+", "*", "**"])
    num_steps = 0

    def step(self) -> bool:
        """Count one; true, so that it can stand in a condition."""
        self.num_steps += 1
        if self.num_steps > MOST_STEPS:
            raise TemplateRuntimeError(f"it takes more than {MOST_STEPS} steps")
        return True

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Every turn of a loop, one that its condition leaves out too, and every call of a macro is counted."""
        tree: nodes.Template = _Joins().visit(super()._parse(source, name, filename))
        repeated: list[Any] = list(tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)))
        for node in repeated:
            method, line = nodes.EnvironmentAttribute("step", lineno=node.lineno), node.lineno
            call = nodes.Call(method, [], [], None, None, lineno=line)
            if isinstance(node, nodes.For) and node.test is not None:
                node.test = nodes.And(call, node.test, lineno=line)
            else:
                node.body.insert(0, nodes.ExprStmt(call, lineno=line))
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > MOST_BITS:
                raise TemplateRuntimeError(f"it makes a number of more than {MOST_BITS} bits")
        elif operator == "*":
            for repeated, times in ((left, right), (right, left)):
                if isinstance(times, int) and hasattr(repeated, "__len__"):
                    _require_short(len(repeated) * times, MOST_ITEMS)
        elif hasattr(left, "__len__") and hasattr(right, "__len__"):
            _require_short(len(left) + len(right), MOST_JOINED)
        return super().call_binop(context, operator, left, right)

    def join(self, *parts: Any) -> str:
        """What `~` makes."""
        texts = [str(part) for part in parts]
        _require_short(sum(map(len, texts)), MOST_JOINED)
        return "".join(texts)


class _Joins(NodeTransformer):
    """`a ~ b` is called by name, so that its length can be looked at."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:  # noqa: N802 (as Jinja looks for it)
        parts = [self.visit(part) for part in node.nodes]
        method = nodes.EnvironmentAttribute("join", lineno=node.lineno)
        return nodes.Call(method, parts, [], None, None, lineno=node.lineno)


def _require_short(length: int, most: int) -> None:
    if length > most:
        raise TemplateRuntimeError(f"it makes a text or a list of more than {most} parts")


class _Generation(Extension):
    """`{% generation %}` marks what a model is trained to say; reading is not changed by it."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Jinja's own would write `<` as HTML wants it."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def read_template(directory: Path) -> ChatTemplate | None:
    """The template beside a tokenizer, if there is one: in a file of its own, or else in its configuration.

    Raises:
        UserError: it cannot be read.
    """
    origin = directory / CHAT_TEMPLATE
    try:
        source = origin.read_text(encoding="utf-8") if origin.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the chat template {origin}: {error}") from None
    if source is None:
        origin = directory / TOKENIZER_CONFIG
        source = _default(_read_object(origin).get("chat_template"), origin)
    if source is None:
        return None
    tokens = {name: stated_token(directory, name) for name in _SPECIAL_TOKENS}
    return ChatTemplate(source, {name: token for name, token in tokens.items() if token is not None}, origin)


def _default(stated: Any, origin: Path) -> str | None:
    """Some models have several templates by name."""
    if isinstance(stated, list):
        named = [each.get("template") for each in stated if isinstance(each, dict) and each.get("name") == "default"]
        stated = named[0] if named else None
    if stated is not None and not isinstance(stated, str):
        raise UserError(f"{origin}: chat_template is not a text")
    return stated


def turn_ends(directory: Path) -> tuple[int, ...]:
    """The ids at which the model's makers stop it: of the end of a text, of a turn, or both; none if nothing is said.

    Raises:
        UserError: the file that says it cannot be read.
    """
    file = directory / GENERATION_CONFIG
    stated = _read_object(file).get("eos_token_id")
    ends = stated if isinstance(stated, list) else [stated]
    if stated is None:
        return ()
    if not all(type(token) is int and token >= 0 for token in ends):
        raise UserError(f"{file}: eos_token_id is {stated!r}, and should be an id or a list of ids")
    return tuple(ends)


def _read_object(file: Path) -> dict[str, Any]:
    return read_json(file, str(file.parent)) if file.is_file() else {}
