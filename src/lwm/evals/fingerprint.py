"""What an evaluation knows its model by."""

import hashlib
from pathlib import Path

from lwm.data.tokenizer import COMPANION_FILES, TOKENIZER_FILES
from lwm.weights.released import STREAM_FILE
from lwm.weights.store import CONFIG, DRAWING

#: what a model's directory has besides
_SUFFIXES = (".safetensors", ".json", ".model", ".jinja")
#: of a large file this much is read at either end
_END = 1 << 20


def fingerprint(model: Path) -> str:
    """Changes when a model, a directory or a file, is replaced; of large files only the two ends are read."""
    digest = hashlib.sha256()
    for path in _files(model):
        with open(path, "rb") as file:
            digest.update(file.read(_END))
            file.seek(max(0, path.stat().st_size - _END))
            digest.update(file.read())
    return digest.hexdigest()[:16]


def _files(model: Path) -> list[Path]:
    """Of a file, what is told of it beside it, too."""
    if model.is_dir():
        told = (path for path in model.iterdir() if path.suffix in _SUFFIXES or path.name == STREAM_FILE)
        return sorted(path for path in told if path.is_file())
    beside = [model.parent / name for name in sorted((CONFIG, DRAWING, *TOKENIZER_FILES, *COMPANION_FILES))]
    return [model, *(path for path in beside if path.is_file())]
