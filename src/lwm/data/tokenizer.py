"""Text to ids and back, one protocol over the two file formats models are published with."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import sentencepiece
import tokenizers

from lwm.core.errors import UserError
from lwm.core.files import read_json

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
TOKENIZER_CONFIG, CHAT_TEMPLATE, GENERATION_CONFIG = (
    "tokenizer_config.json", "chat_template.jinja", "generation_config.json",
)  # fmt: skip
#: beside a `tokenizer.json` they say which tokens begin and end a text
SPECIAL_TOKEN_FILES = (TOKENIZER_CONFIG, "special_tokens_map.json")
#: all that goes where a tokenizer goes
COMPANION_FILES = (*SPECIAL_TOKEN_FILES, CHAT_TEMPLATE, GENERATION_CONFIG)

#: Looked for, in this order, when the files beside a `tokenizer.json` do not name its special tokens.
BOS_NAMES = ("<s>", "<|bos|>", "<|begin_of_text|>", "<bos>", "<|startoftext|>", "<|endoftext|>")
EOS_NAMES = ("</s>", "<|eos|>", "<|end_of_text|>", "<eos>", "<|endoftext|>")


@runtime_checkable
class Tokenizer(Protocol):
    """What the rest of the system asks of a tokenizer."""

    #: every id, special ones included, is below it
    size: int
    #: None: the tokenizer has no such token
    bos_id: int | None
    eos_id: int | None

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; bos and eos are not added.

        Raises:
            UserError: the text holds half of a character (a lone surrogate).
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special tokens leave no trace in it."""
        ...


class HuggingFaceTokenizer:
    """A `tokenizer.json`. A special token spelled out in a text becomes that token, as in `transformers`."""

    def __init__(self, file: Path) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
        except Exception as error:  # the Rust library raises plain Exception
            raise UserError(f"{file} is not a readable Hugging Face tokenizer: {error}") from error
        self.file = file
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.size = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1  # ids may have gaps
        self.bos_id = self._special_id(file, "bos_token", BOS_NAMES)
        self.eos_id = self._special_id(file, "eos_token", EOS_NAMES)

    def encode(self, text: str) -> list[int]:
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError:  # says no more than that it must be a string
            _require_unicode(text)
            raise

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def _special_id(self, file: Path, key: str, names: tuple[str, ...]) -> int | None:
        stated = stated_token(file.parent, key)
        for name in (stated,) if stated is not None else names:
            if (token_id := self._tokenizer.token_to_id(name)) is not None:
                return token_id
        return None


def stated_token(directory: Path, key: str) -> str | None:
    """The special token (`bos_token`, ...) that the files published beside a `tokenizer.json` name.

    Raises:
        UserError: such a file does not parse, or names something other than a token.
    """
    for name in SPECIAL_TOKEN_FILES:
        file = directory / name
        if not file.is_file():
            continue
        stated = read_json(file, str(directory)).get(key)
        if stated is None:
            continue
        token = stated.get("content") if isinstance(stated, dict) else stated
        if not isinstance(token, str):
            raise UserError(f"{file}: {key} is {stated!r}, which is no token: write it as a string")
        return token
    return None


class SentencePieceTokenizer:
    """A sentencepiece `.model`. Its control tokens cannot be spelled out in a text."""

    def __init__(self, file: Path) -> None:
        try:
            content = file.read_bytes()
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=content or b"empty")
        except (RuntimeError, OSError) as error:
            raise UserError(f"{file} is not a readable sentencepiece model") from error
        self.file = file
        self.size = self._processor.get_piece_size()
        self.bos_id = self._if_present(self._processor.bos_id())
        self.eos_id = self._if_present(self._processor.eos_id())

    def encode(self, text: str) -> list[int]:
        try:
            return self._processor.encode(text)
        except RuntimeError:  # says no more than that it cannot be cast
            _require_unicode(text)
            raise

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode([int(token_id) for token_id in ids])

    @staticmethod
    def _if_present(token_id: int) -> int | None:
        return token_id if token_id >= 0 else None


def _require_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text is not valid Unicode: character {error.start + 1:,} is {text[error.start]!r}, half of a "
            "character; leave it out"
        ) from None


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Open a `tokenizer.json`, a sentencepiece `.model`, or a directory with a file of TOKENIZER_FILES.

    Raises:
        UserError: nothing there, another kind of file, or a file that does not parse.
    """
    file = tokenizer_file(path)
    if file.suffix == ".json":
        return HuggingFaceTokenizer(file)
    if file.suffix == ".model":
        return SentencePieceTokenizer(file)
    raise UserError(f"tokenizer {file}: expected a Hugging Face .json or a sentencepiece .model")


def tokenizer_file(path: Path | str) -> Path:
    """The file that `load_tokenizer` opens.

    Raises:
        UserError: there is none.
    """
    if not str(path):
        raise UserError("no tokenizer is named: give a tokenizer.json, a .model, or a directory with one (--tokenizer)")
    if os.path.isdir(path):
        if (file := _file_in(Path(path))) is None:
            raise UserError(f"{path} holds no tokenizer: expected {' or '.join(TOKENIZER_FILES)}")
        return file
    if not os.path.isfile(path):
        raise UserError(f"tokenizer {path} does not exist: give a tokenizer.json, a .model, or a directory with one")
    return Path(path)


def has_tokenizer(directory: Path) -> bool:
    """Whether `tokenizer_file` finds one there."""
    return _file_in(directory) is not None


def _file_in(directory: Path) -> Path | None:
    return next((directory / name for name in TOKENIZER_FILES if os.path.isfile(directory / name)), None)
