"""A tokenizer simple enough to check by eye, sources of known examples, and files of records."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from lwm.data.examples import Example

settings.register_profile("data", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("data")


class ByteTokenizer:
    """Ids are UTF-8 bytes; 256 begins, 257 ends."""

    size = 258
    bos_id: int | None = 256
    eos_id: int | None = 257

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(token_id for token_id in ids if token_id < 256).decode(errors="replace")


class KnownExamples:
    """Example i has ids 1000 i, 1000 i + 1, ...; odd ids are learned. `skipped` indices give nothing."""

    def __init__(self, lengths: Sequence[int], skipped: Sequence[int] = (), name: str = "known") -> None:
        self.lengths = lengths
        self.skipped = skipped
        self.name = name

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Example | None:
        if index in self.skipped:
            return None
        ids = np.arange(self.lengths[index], dtype=np.int32) + 1000 * index
        return Example(ids, (ids % 2).astype(np.float32), str(index))


@pytest.fixture
def byte_tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


@pytest.fixture(scope="session")
def known_examples() -> type[KnownExamples]:
    return KnownExamples


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    def write(*lines: object, name: str = "records.jsonl") -> Path:
        """Strings as they are, other values as JSON."""
        file = tmp_path / name
        file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
        return file

    return write
