"""A pickle is a program: this one may build arrays and containers, and nothing else runs."""

import builtins
import collections
import datetime
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from lwm.core.errors import UserError
from lwm.vqgan.config import VQGANConfig
from lwm.vqgan.quantize import Codebook
from lwm.weights.vqgan_pickle import config_from_shapes, from_pickle, read_arrays

GOLDEN = Path(__file__).parent.parent / "golden"


def write(path: Path, value: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int64", ">f4"])
def test_arrays_come_out_as_they_went_in(protocol, dtype, tmp_path):
    arrays = {"a": {"b": np.arange(12).reshape(3, 4).astype(dtype)}, "c": np.asfortranarray(np.ones((2, 3), dtype))}
    read = read_arrays(write(tmp_path / "weights.pkl", arrays, protocol))
    np.testing.assert_array_equal(read["a/b"], arrays["a"]["b"])
    np.testing.assert_array_equal(read["c"], arrays["c"])


class Runs:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


class Evaluates(Runs):
    def __reduce__(self) -> tuple:
        return builtins.eval, (f"open({str(self.mark)!r}, 'w')",)


@pytest.mark.parametrize("hostile", [Runs, Evaluates])
def test_a_hostile_pickle_does_not_run(hostile, tmp_path):
    mark = tmp_path / "it_ran"
    file = write(tmp_path / "weights.pkl", {"weights": np.ones(3), "more": hostile(mark)})
    with pytest.raises(UserError, match=r"is refused: it holds .*not an array or a container"):
        read_arrays(file)
    assert not mark.exists()


@pytest.mark.parametrize(
    "value",
    [
        datetime.date(2024, 2, 13),
        collections.Counter("abc"),
        np.array([{"an": "object"}], dtype=object),
        np.array(["text"]),
        np.zeros(2, dtype=[("field", "f4")]),
    ],
)
def test_what_is_not_numbers_is_refused(value, tmp_path):
    with pytest.raises(UserError, match="is refused: it holds"):
        read_arrays(write(tmp_path / "weights.pkl", {"weights": value}))


def test_an_array_with_too_few_bytes(tmp_path):
    file = tmp_path / "weights.pkl"
    honest = pickle.dumps({"weights": np.zeros(2, "f4")}, 4)
    file.write_bytes(honest.replace(b"K\x02\x85", b"K\x7f\x85"))
    with pytest.raises(UserError, match=r"shape \(127,\) with 8 bytes"):
        read_arrays(file)


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"\x80\x04.", pickle.dumps([1, 2])])
def test_what_is_no_pickle_of_arrays(content, tmp_path):
    file = tmp_path / "weights.pkl"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.pkl"):
        read_arrays(file)


def test_a_file_cut_short(tmp_path):
    file = tmp_path / "weights.pkl"
    file.write_bytes((GOLDEN / "vqgan.pkl").read_bytes()[:100_000])
    with pytest.raises(UserError, match="not a readable pickle"):
        read_arrays(file)
    with pytest.raises(UserError, match="No such file"):
        read_arrays(tmp_path / "missing.pkl")


def test_another_configuration_is_refused():
    arrays = read_arrays(GOLDEN / "vqgan.pkl")
    with pytest.raises(UserError, match="has no array"):
        from_pickle(arrays, VQGANConfig(resolution=64, hidden_channels=32, channel_multipliers=(1, 2, 2)))
    small = {"resolution": 64, "hidden_channels": 32, "channel_multipliers": (1, 2, 2), "num_res_blocks": 1}
    small |= {"z_channels": 16, "quantizer": Codebook(num_codes=256, width=16)}
    with pytest.raises(UserError, match="codebook has shape"):
        from_pickle(arrays, VQGANConfig(**small | {"quantizer": Codebook(num_codes=512, width=16)}))
    with pytest.raises(UserError, match="its configuration does not have"):
        from_pickle(arrays | {"extra": np.ones(1)}, VQGANConfig(**small))


def test_the_configuration_that_shapes_tell():
    arrays = read_arrays(GOLDEN / "vqgan.pkl")
    assert config_from_shapes(arrays, resolution=64) == VQGANConfig(
        64, 32, (1, 2, 2), 1, z_channels=16, quantizer=Codebook(num_codes=256, width=16)
    )
    released = np.broadcast_to(np.float32(0), (8192, 64))
    shapes = {"encoder/Conv_1/kernel": (3, 3, 768, 64)}
    for level, width in enumerate((128, 256, 256, 512, 768)):
        for block in range(2):
            shapes[f"encoder/DownsamplingBlock_{level}/ResnetBlock_{block}/Conv_0/kernel"] = (3, 3, 1, width)
    of_zeros = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    assert config_from_shapes(of_zeros | {"quantize/embeddings": released}) == VQGANConfig()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantize/embeddings": None}, "has no array quantize/embeddings"),
        ({"quantize/embeddings": np.zeros(256)}, r"has shape \(256,\) and should have 2 axes"),
        ({"encoder/Conv_1/kernel": np.zeros((2, 2))}, "should have 4 axes"),
        ({"encoder/DownsamplingBlock_x/a": np.zeros(1)}, "has no array encoder/DownsamplingBlock_3/"),
        ({"encoder/DownsamplingBlock_0/ResnetBlock_0/Conv_0/kernel": np.zeros((3, 3, 32, 8))}, "norm_groups 32"),
        ({"encoder/DownsamplingBlock_0/ResnetBlock_0/Conv_0/kernel": np.zeros((3, 3, 32, 0))}, "has no levels"),
    ],
)
def test_shapes_that_tell_no_configuration(change, message):
    arrays = read_arrays(GOLDEN / "vqgan.pkl") | change
    with pytest.raises(UserError, match=message):
        config_from_shapes({name: array for name, array in arrays.items() if array is not None}, resolution=64)


def nested(levels: int) -> dict:
    value: dict = {"leaf": np.ones(1)}
    for _ in range(levels):
        value = {"a": value, "b": value}
    return value


def itself() -> dict:
    value: dict = {"leaf": np.ones(1)}
    value["again"] = value
    return value


@pytest.mark.parametrize("value", [nested(60), itself(), {7: np.ones(1)}])
def test_small_files_that_would_take_for_ever_are_refused(value, tmp_path):
    with pytest.raises(UserError, match="is refused: it holds a dictionary"):
        read_arrays(write(tmp_path / "weights.pkl", value))


PAIRS = b")" + b"2\x86" * 60  # a pair of the same pair of the same pair ...
FROZEN = b"cflax.core.frozen_dict\nFrozenDict\n"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"}" + PAIRS + b"K\x01s", "a dictionary whose keys are not names"),
        (b"(" + PAIRS + b"K\x01d", "a dictionary whose keys are not names"),
        (b"\x8f(" + PAIRS + b"\x90", "a set"),
        (b"(" + PAIRS + b"\x91", "a set"),
        (FROZEN + b"](" + PAIRS + b"K\x01\x86e\x85R", "made of something else"),
        (FROZEN + b"](" + PAIRS + b"K\x01\x86e\x85\x81", "an object"),
        (b"\x96" + struct.pack("<Q", 2**33), "more than the file"),
    ],
)
def test_small_programs_that_would_run_for_ever_are_refused(program, message, tmp_path):
    file = tmp_path / "weights.pkl"
    file.write_bytes(b"\x80\x04" + program + b".")
    with pytest.raises(UserError, match=f"is refused: it holds .*{message}"):
        read_arrays(file)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_file_of_flaxs_frozen_dictionaries(protocol, tmp_path):
    content = pickle.dumps({"a": np.ones(3, "f4")}, protocol)
    file = tmp_path / "weights.pkl"
    file.write_bytes(content[:2] + FROZEN + content[2:-1] + b"\x85R.")
    np.testing.assert_array_equal(read_arrays(file)["a"], np.ones(3))


def test_an_array_in_several_places_is_refused(tmp_path):
    shared = np.zeros(1000)
    for value, protocol in [({"a": shared, "b": shared}, 4), ({"a": {"c": shared}, "b": {"c": shared}}, 5)]:
        with pytest.raises(UserError, match="is refused: it holds arrays that are in several places"):
            read_arrays(write(tmp_path / "weights.pkl", value, protocol))
    encode = b"c_codecs\nencode\n" + b"X" + struct.pack("<I", 1000) + b"a" * 1000 + b"X\x06\0\0\0latin1\x86q\0R0"
    again = b"c_codecs\nencode\nh\0R0"
    (tmp_path / "weights.pkl").write_bytes(b"\x80\x02" + encode + again * 1000 + b"}.")
    with pytest.raises(UserError, match="bytes that are in several places"):
        read_arrays(tmp_path / "weights.pkl")


def test_a_name_without_end_is_refused(tmp_path):
    with pytest.raises(UserError, match="a name of more than 1000 letters"):
        read_arrays(write(tmp_path / "weights.pkl", {"a" * 600: {"a" * 600: np.ones(1)}}))


def test_blocks_that_are_empty_are_not_declared():
    arrays = {f"encoder/DownsamplingBlock_0/ResnetBlock_{place}/x": np.ones(1) for place in range(20)}
    config = VQGANConfig(64, 32, (1, 2, 2), num_res_blocks=20)
    with pytest.raises(UserError, match="its num_res_blocks asks for 960 tensors or more, and there are 20"):
        from_pickle(arrays, config)


def test_a_file_that_asks_for_all_memory_gets_none(tmp_path):
    file = tmp_path / "weights.pkl"
    file.write_bytes(b"\x80\x04N" + b"r\xff\xff\xff\x7f" + b".")
    with pytest.raises(UserError, match="holds no arrays"):
        read_arrays(file)
