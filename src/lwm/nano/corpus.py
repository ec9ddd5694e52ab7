"""Text that every Python carries: the language reference behind `help()` and the sources of the standard library.

Found through the running interpreter, so it differs a little from one Python version to the next. What is held out is
named here, by topic and module: neither the tokenizer nor the model was trained on a word of it.
"""

import sysconfig
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics  # type: ignore[import-untyped]
from typing import NamedTuple

#: reference topics no other topic quotes, and long modules that read unlike each other
HELD_OUT_TOPICS = ("formatstrings", "debugger", "string-methods")
HELD_OUT_MODULES = (
    "argparse", "difflib", "doctest", "inspect", "ipaddress", "mailbox", "optparse", "statistics", "subprocess",
    "turtle", "typing", "urllib.request",
)  # fmt: skip
#: packages whose sources are trained on, besides the single-file modules
PACKAGES = (
    "asyncio", "collections", "concurrent", "email", "html", "http", "importlib", "json", "logging", "multiprocessing",
    "re", "unittest", "urllib", "wsgiref", "xml", "xmlrpc",
)  # fmt: skip


class Document(NamedTuple):
    """A topic of the language reference (`topic:NAME`) or the source of a module (its dotted name)."""

    name: str
    text: str


def training_documents() -> list[Document]:
    """Every document that is not held out, in order of name."""
    held_out = {document.name for document in held_out_documents()}
    return [document for document in _documents() if document.name not in held_out]


def held_out_documents() -> list[Document]:
    """The documents kept for evaluation and the demo, topics first, each group in order of name."""
    names = [f"topic:{name}" for name in sorted(HELD_OUT_TOPICS)] + list(HELD_OUT_MODULES)
    documents = {document.name: document for document in _documents()}
    return [documents[name] for name in names if name in documents]


@cache
def _documents() -> tuple[Document, ...]:
    pages = [Document(f"topic:{name}", text) for name, text in sorted(topics.items())]
    return (*pages, *_modules(Path(sysconfig.get_path("stdlib"))))


def _modules(library: Path) -> list[Document]:
    """Single-file modules and the chosen packages; generated files (`_sysconfigdata...`) differ by machine."""
    files = [path for path in library.glob("*.py") if not path.name.startswith("_sysconfigdata")]
    files += [path for package in PACKAGES for path in (library / package).rglob("*.py") if "test" not in path.parts]
    texts = {_dotted_name(path.relative_to(library)): path.read_text("utf-8", errors="replace") for path in files}
    return [Document(name, text) for name, text in sorted(texts.items()) if text.strip()]


def _dotted_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")
