"""GGUF files of any content."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def write(path: Path, fields: Mapping[str, Any], tensors: Mapping[str, tuple[np.ndarray, str]] | None = None) -> Path:
    """Fields by the Python types of their values, tensors as floats with the name of the type to store them in."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, fields.get("general.architecture", "llama"))
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in fields.items():
        if key != "general.architecture":
            adders.get(type(value), writer.add_array)(key, value)
    for name, (array, kind) in (tensors or {}).items():
        stored = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(array, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def write_gguf() -> Callable[..., Path]:
    return write
