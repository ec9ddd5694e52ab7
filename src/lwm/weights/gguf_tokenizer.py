"""The tokenizer in a GGUF file's metadata, written as the files that Hugging Face models carry.

    tokenizer.json            vocabulary, merges, and how text is split before them
    tokenizer_config.json     which tokens begin and end a text, and the chat template
    generation_config.json    the tokens that end an answer, where there are several

Two kinds are read: byte-level BPE, and sentencepiece's BPE with scores, whose merges follow from the scores.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from lwm.core.errors import UserError
from lwm.core.files import write_file, write_json
from lwm.weights.gguf_file import GgufFile

_BYTE_LEVEL, _SENTENCEPIECE = "gpt2", "llama"
#: token types in llama.cpp's list
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_SPECIAL = (_UNKNOWN, _CONTROL)
#: characters of a piece; Llama's longest has 16
_LONGEST_PIECE = 1024
_META_SPACE = "\u2581"
_LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: how a byte-level vocabulary's text is split, by its names for it in `tokenizer.ggml.pre`
_SPLITS = {
    "gpt-2": (), "default": (),
    "smollm": (pre_tokenizers.Digits(individual_digits=True),),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3"), (pre_tokenizers.Split(Regex(_LLAMA_3_SPLIT), behavior="isolated"),)
    ),
}  # fmt: skip


def write_tokenizer(path: Path | str, directory: Path) -> Path:
    """Write the tokenizer of a GGUF file into a directory that is there; return its `tokenizer.json`, written last.

    Raises:
        UserError: not a GGUF file, or one whose tokenizer is missing, corrupt or of another kind.
        OSError: the directory cannot be written.
    """
    file = GgufFile(path)
    kind = file.text("tokenizer.ggml.model")
    if kind not in _BUILDERS:
        raise UserError(f"{path} has a tokenizer of the kind {kind!r}: {' and '.join(_BUILDERS)} are read")
    tokens = file.texts("tokenizer.ggml.tokens")
    ids = {token: place for place, token in enumerate(tokens)}
    if len(ids) < len(tokens):
        twice = next(token for place, token in enumerate(tokens) if ids[token] != place)
        raise UserError(f"{path}: the token {twice!r} comes twice in its tokenizer.ggml.tokens")
    tokenizer = _BUILDERS[kind](file, ids)
    _add_special_tokens(tokenizer, tokens, _token_types(file, len(tokens)))
    configuration = _configuration(file, tokens, kind)
    if ends := _answer_ends(file, len(tokens)):
        write_json(directory / "generation_config.json", {"eos_token_id": ends})
    write_json(directory / "tokenizer_config.json", configuration)
    write_file(directory / "tokenizer.json", tokenizer.to_str().encode())
    return directory / "tokenizer.json"


def _byte_level(file: GgufFile, ids: dict[str, int]) -> tokenizers.Tokenizer:
    split = file.text("tokenizer.ggml.pre")
    if split not in _SPLITS:
        raise UserError(f"{file.path}: its tokenizer.ggml.pre is {split!r}: {', '.join(_SPLITS)} are read")
    pairs = [tuple(merge.split(" ")) for merge in file.texts("tokenizer.ggml.merges")]
    # Llama 3's split finds whole words of the vocabulary that its merges do not lead to.
    by_llama_3 = any(isinstance(step, pre_tokenizers.Split) for step in _SPLITS[split])
    tokenizer = _bpe(file, ids, pairs, ignore_merges=by_llama_3)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not by_llama_3)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*_SPLITS[split], byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(file: GgufFile, ids: dict[str, int]) -> tokenizers.Tokenizer:
    if "tokenizer.ggml.merges" in file.metadata:
        pairs: Iterable[tuple[str, ...]] = [tuple(merge.split(" ")) for merge in file.texts("tokenizer.ggml.merges")]
    else:
        pairs = _merges_by_score(file, ids)
    unknown = _special_token(file, "unknown", list(ids), 0)
    tokenizer = _bpe(file, ids, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    prefixed = file.metadata.get("tokenizer.ggml.add_space_prefix", True)
    steps = [normalizers.Prepend(_META_SPACE)] if prefixed else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _META_SPACE)])
    undone = [decoders.Strip(" ", 1, 0)] if prefixed else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_META_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *undone]
    )
    return tokenizer


_BUILDERS = {_BYTE_LEVEL: _byte_level, _SENTENCEPIECE: _sentencepiece}


def _bpe(file: GgufFile, ids: dict[str, int], pairs: Iterable[tuple[str, ...]], **options: Any) -> tokenizers.Tokenizer:
    merges: list[tuple[str, str]] = []
    for pair in pairs:
        if len(pair) != 2 or not {*pair, "".join(pair)} <= ids.keys():
            raise UserError(f"{file.path}: the merge {' '.join(pair)!r} is not one of two tokens to a third")
        merges.append((pair[0], pair[1]))
    return tokenizers.Tokenizer(models.BPE(ids, merges, **options))


def _merges_by_score(file: GgufFile, ids: dict[str, int]) -> list[tuple[str, ...]]:
    """The pairs that make up each piece, those of higher scores first, as sentencepiece merges them."""
    scores = file.numbers("tokenizer.ggml.scores")
    if len(scores) != len(ids):
        raise UserError(f"{file.path}: its tokenizer has {len(ids)} tokens and {len(scores)} scores")
    types = _token_types(file, len(ids))
    merged = {piece for piece, kind in zip(ids, types, strict=True) if kind == _NORMAL}
    ranked: list[tuple[float, int, int, str, str]] = []
    for piece, score in zip(ids, scores.tolist(), strict=True):
        if piece not in merged:
            continue
        if len(piece) > _LONGEST_PIECE:
            raise UserError(f"{file.path}: token {ids[piece]} has {len(piece)} characters, more than {_LONGEST_PIECE}")
        for seam in range(1, len(piece)):
            left, right = piece[:seam], piece[seam:]
            if left in merged and right in merged:
                ranked.append((-score, ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(ranked)]


def _token_types(file: GgufFile, count: int) -> list[int]:
    types = file.numbers("tokenizer.ggml.token_type", np.ones(count, np.int32)).tolist()
    if len(types) != count:
        raise UserError(f"{file.path}: its tokenizer has {count} tokens and {len(types)} types of them")
    return types


def _add_special_tokens(tokenizer: tokenizers.Tokenizer, tokens: list[str], types: list[int]) -> None:
    tokenizer.add_tokens(
        [
            AddedToken(token, normalized=False, special=kind in _SPECIAL)
            for token, kind in zip(tokens, types, strict=True)
            if token and kind in (*_SPECIAL, _USER_DEFINED)
        ]
    )


def _special_token(file: GgufFile, name: str, tokens: list[str], default: int | None = None) -> str | None:
    """The token that the metadata names by its id."""
    key = f"tokenizer.ggml.{name}_token_id"
    place = file.integer(key, default) if default is not None or key in file.metadata else None
    if place is None:
        return None
    if not 0 <= place < len(tokens):
        raise UserError(f"{file.path}: its {key} is {place}, and there are {len(tokens)} tokens")
    return tokens[place]


def _configuration(file: GgufFile, tokens: list[str], kind: str) -> dict[str, Any]:
    first, second = (1, 2) if kind == _SENTENCEPIECE else (None, None)
    values: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _special_token(file, "bos", tokens, first),
        "eos_token": _special_token(file, "eos", tokens, second),
        "unk_token": _special_token(file, "unknown", tokens),
        "pad_token": _special_token(file, "padding", tokens),
    }
    if "tokenizer.chat_template" in file.metadata:
        values["chat_template"] = file.text("tokenizer.chat_template")
    return {key: value for key, value in values.items() if value is not None}


def _answer_ends(file: GgufFile, count: int) -> list[int]:
    """The ids that end a text, a turn or a message; none if only that of a text is named."""
    keys = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")]
    named = list(dict.fromkeys(file.integer(key) for key in keys if key in file.metadata))
    if wrong := [place for place in named if not 0 <= place < count]:
        raise UserError(f"{file.path}: a token that ends a turn has the id {wrong[0]}, and there are {count} tokens")
    return named if len(named) > 1 else []
