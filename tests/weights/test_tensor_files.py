"""Safetensors written piece by piece are read by the library; files and indexes that lie get one sentence each."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lwm.core.errors import UserError
from lwm.weights.tensor_files import INDEX, TENSORS, Outgoing, TensorFiles, narrowed, write_tensors
from lwm.weights.tensors import whole

ARRAYS = {
    "first": np.arange(12, dtype=np.float32).reshape(4, 3),
    "second": np.linspace(-1, 1, 30, dtype=np.float32).reshape(2, 5, 3),
    "one": np.float32([7]),
}


def outgoing(array: np.ndarray) -> Outgoing:
    def pieces() -> Iterator[np.ndarray]:
        yield from np.array_split(array, 2)

    return Outgoing(array.shape, pieces)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_library_reads_what_is_written(dtype: str, tmp_path: Path) -> None:
    write_tensors(tmp_path, {name: outgoing(array) for name, array in ARRAYS.items()}, jnp.dtype(dtype))
    read = load_file(tmp_path / TENSORS)
    assert read.keys() == ARRAYS.keys()
    files = TensorFiles(tmp_path)
    for name, array in ARRAYS.items():
        expected = array.astype(jnp.dtype(dtype))
        np.testing.assert_array_equal(read[name], expected)
        np.testing.assert_array_equal(files.read(name, whole(array.shape)), expected)
        assert files.specs[name].dtype == jnp.dtype(dtype)


@pytest.mark.parametrize(
    ("number", "stored", "dtype", "remedy"),
    [
        (1e6, "float32", "float16", "write it in bfloat16 or float32"),
        (3.4e38, "float32", "bfloat16", "write it in float32"),
        (1e300, "float64", "float32", "nothing wider is written"),
    ],
)
def test_numbers_that_a_dtype_does_not_hold(number: float, stored: str, dtype: str, remedy: str) -> None:
    for others in ([], [np.inf], [np.nan, 1]):  # what is not finite already does not hide the rest
        with pytest.raises(UserError, match=f"wide has numbers that {dtype} does not hold: {remedy}"):
            narrowed(np.array([*others, number], stored), jnp.dtype(dtype), "wide")
    assert np.isinf(narrowed(np.array([np.inf, -np.inf], stored), jnp.dtype(dtype), "infinite")).all()


def header(entries: dict, num_bytes: int) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + bytes(num_bytes)


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "no header": b"\x05\x00",
    "a header beyond the file": (10**12).to_bytes(8, "little") + b"{}",
    "not JSON": header({}, 0)[:8] + b"{]",
    "overlapping": header({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, 12),
    "beyond the end": header({"a": entry(0, 800, [200])}, 8),
    "backwards": header({"a": entry(8, 0, [2])}, 8),
    "a gap": header({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, 12),
    "another size than its shape's": header({"a": entry(0, 8, [3])}, 8),
    "a shape that overflows": header({"a": entry(0, 8, [2**62, 2**62])}, 8),
    "negative": header({"a": entry(0, 8, [-2])}, 8),
    "an unknown dtype": header({"a": entry(0, 8, [2], "F33")}, 8),
    "cut short": header({"a": entry(0, 8, [2])}, 8)[:-3],
    "a pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
}


@pytest.mark.parametrize("how", HOSTILE)
def test_hostile_files_are_refused(how: str, tmp_path: Path) -> None:
    (tmp_path / TENSORS).write_bytes(HOSTILE[how])
    with pytest.raises(UserError, match=r"cannot read the tensors in .*model\.safetensors") as refusal:
        TensorFiles(tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("dtype", [np.int8, np.float64, np.int64])
def test_numbers_that_are_no_weights(dtype: type, tmp_path: Path) -> None:
    save_file({"a": np.zeros(3, dtype)}, tmp_path / TENSORS)
    with pytest.raises(UserError, match=r"the tensor a in .* is of [IF](8|64): weights are read in F32, F16, BF16"):
        TensorFiles(tmp_path)


INDEXES: dict[str, tuple[object, str]] = {
    "another directory": ({"weight_map": {"a": "../secret.safetensors"}}, "not a .safetensors file beside it"),
    "the root": ({"weight_map": {"a": "/etc/passwd"}}, "not a .safetensors file beside it"),
    "no tensors": ({"weight_map": {"a": "config.json"}}, "not a .safetensors file beside it"),
    "a number": ({"weight_map": {"a": 5}}, "not a .safetensors file beside it"),
    "no text": ({"weight_map": {"a": "\ud800.safetensors"}}, r"is in '\\ud800\.safetensors', which is not a"),
    "a zero byte": ({"weight_map": {"a": "x\0.safetensors"}}, "not a .safetensors file beside it"),
    "nothing": ({"weight_map": {}}, "has no weight_map"),
    "a list": ({"weight_map": ["a"]}, "has no weight_map"),
    "no object": ([], "not a JSON object"),
    "a name that is too long": ({"weight_map": {"a": "a" * 5000 + ".safetensors"}}, "cannot read the tensors in"),
    "a file that is not there": ({"weight_map": {"a": "model-1.safetensors"}}, "cannot read the tensors in"),
}


@pytest.mark.parametrize("how", INDEXES)
def test_indexes_that_lead_elsewhere(how: str, tmp_path: Path) -> None:
    values, sentence = INDEXES[how]
    (tmp_path / INDEX).write_text(json.dumps(values))
    save_file({"a": np.zeros(3, np.float32)}, tmp_path.parent / "secret.safetensors")
    with pytest.raises(UserError, match=sentence):
        TensorFiles(tmp_path)


def test_deeply_nested_json(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text("[" * 100_000)
    with pytest.raises(UserError, match="cannot read"):
        TensorFiles(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / TENSORS)
    with pytest.raises(UserError, match="there are no tensors in"):
        TensorFiles(tmp_path)
    os.mkfifo(tmp_path / "model-1.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(UserError, match=r"cannot read the tensors in .*model-1\.safetensors: it is not a file"):
        TensorFiles(tmp_path)


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    for number in (1, 2):
        save_file(
            {"a": np.float32([number]), f"b{number}": np.zeros(1, np.float32)}, tmp_path / f"{number}.safetensors"
        )
    weight_map = {"a": "1.safetensors", "b1": "1.safetensors", "b2": "2.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=r"the tensor a is in .*1\.safetensors and in .*2\.safetensors: take one"):
        TensorFiles(tmp_path)
