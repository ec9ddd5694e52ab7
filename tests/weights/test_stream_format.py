"""Streams come out as they went in, row by row; whatever else is in a file is refused at the byte where it is met."""

from pathlib import Path

import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lwm.core.errors import UserError
from lwm.weights import stream_format, stream_writer
from lwm.weights.stream_format import scan
from lwm.weights.stream_writer import leaf_frame, write_leaf

from . import flax_stream

GOLDEN = Path(__file__).parent.parent / "golden"
BFLOAT16 = jnp.dtype("bfloat16")
DTYPES = ["float32", "bfloat16", "float16", "int32", "bool"]
QUICK = settings(max_examples=60, deadline=None)
SHAPES = st.lists(st.integers(1, 6), max_size=4).map(tuple)


def numbers(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).normal(size=shape) * 9).astype(jnp.dtype(dtype))


def assert_same(got: np.ndarray, wanted: np.ndarray) -> None:
    assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
    assert got.tobytes() == wanted.tobytes()


@QUICK
@given(SHAPES, st.sampled_from(DTYPES), st.integers(1, 70), st.data())
def test_rows_come_out_as_they_went_in(tmp_path_factory, shape, dtype, chunk_bytes, data):
    wanted = numbers(shape, dtype)
    file = tmp_path_factory.mktemp("stream") / "stream"
    flax_stream.write(file, {"before": numbers((3,), "float32"), "a/b": wanted}, chunk_bytes)
    leaf = scan(file)["a", "b"]
    assert (leaf.key, leaf.shape, leaf.num_bytes) == (("a", "b"), shape, wanted.nbytes)
    assert_same(leaf.read(), wanted)
    if shape:
        start, stop = (data.draw(st.integers(-7, 7)) for _ in range(2))
        assert_same(leaf.read(slice(start, stop)), wanted[start:stop])
        row = data.draw(st.integers(0, shape[0] - 1))
        assert_same(leaf.row(row).read(), wanted[row])


@QUICK
@given(SHAPES, st.sampled_from(DTYPES), st.integers(1, 70), st.data())
def test_written_as_the_msgpack_library_writes(tmp_path_factory, shape, dtype, chunk_bytes, data):
    array = numbers(shape, dtype)
    cuts = sorted(data.draw(st.lists(st.integers(0, array.size), max_size=4)))
    file = tmp_path_factory.getbasetemp() / "written"
    with pytest.MonkeyPatch.context() as patch, open(file, "wb") as stream:
        patch.setattr(stream_writer, "MAX_CHUNK_BYTES", chunk_bytes)
        write_leaf(stream, ("a", "b"), shape, array.dtype, np.split(array.reshape(-1), cuts))
    assert file.read_bytes() == flax_stream.pair("a/b", array, chunk_bytes)


def test_pieces_that_are_not_the_leaf(tmp_path):
    row = np.zeros((1, 3), np.float32)
    for pieces, words in [([row], "less than"), ([row] * 3, "more than"), ([row.astype(np.int8)] * 2, "piece of int8")]:
        with open(tmp_path / "stream", "wb") as stream, pytest.raises(ValueError, match=words):
            write_leaf(stream, ("a",), (2, 3), np.dtype("float32"), pieces)


def test_a_released_leaf_in_its_three_chunks(tmp_path):
    shape, file = (32, 4096, 11008), tmp_path / "stream"
    last_layer = 31 * 4096 * 11008 * 2
    with open(file, "wb") as stream:  # the numbers are holes in the file, but for one mark
        passed = 0
        for head, size in leaf_frame(("w1",), shape, BFLOAT16):
            stream.write(head)
            if 0 <= last_layer - passed < size:
                stream.seek(last_layer - passed, 1)
                stream.write(np.ones(1, BFLOAT16).tobytes())
                stream.seek(passed - last_layer - 2, 1)
            stream.seek(size, 1)
            passed += size
        stream.truncate()
    leaf = scan(file)["w1",]
    assert [size for _, size in leaf.extents] == [2**30, 2**30, 32 * 4096 * 11008 * 2 - 2**31]
    assert leaf.row(31).read(slice(0, 1))[0, :2].tolist() == [1, 0]
    assert not leaf.row(30).read(slice(4095, 4096)).any()


def test_a_leaf_that_no_bin_holds():
    with pytest.raises(UserError, match=r"w1 of shape \[32, 4096, 11008\] takes 5,771,\d+,\d+ bytes.*such as bfloat16"):
        leaf_frame(("w1",), (32, 4096, 11008), np.dtype("float32"))


def test_plain_numbers_carry_no_array(tmp_path):
    values = {"none": None, "yes": True, "count": 70_000, "less": -3, "rate": 0.1, "step": np.int32(4)}
    file = flax_stream.write(tmp_path / "stream", values)
    assert [(key, leaf.read().item()) for key, leaf in scan(file).items()] == [(("step",), 4)]


@pytest.mark.parametrize("chunk_bytes", [8, 2**30])
def test_every_cut_is_met(tmp_path, chunk_bytes):
    pairs = [flax_stream.pair(name, numbers((2, 3), "float32"), chunk_bytes) for name in ("first/leaf", "second")]
    content, file = b"".join(pairs), tmp_path / "stream"
    for size in range(len(content)):
        file.write_bytes(content[:size])
        if size == len(pairs[0]):  # a stream as well: what it lacks is for its reader to say
            assert list(scan(file)) == [("first", "leaf")]
            continue
        with pytest.raises(
            UserError, match=r"stream is not a whole checkpoint stream of LWM's JAX models: at byte \d+"
        ):
            scan(file)


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from([16, 2**30]),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=3),
)
def test_changed_bytes_are_refused_or_harmless(tmp_path_factory, chunk_bytes, changes):
    content = bytearray(flax_stream.pair("a/b", numbers((3, 3), "bfloat16"), chunk_bytes))
    content += flax_stream.pair("c", numbers((2,), "int32"), chunk_bytes)
    for place, value in changes:
        content[place % len(content)] = value
    file = tmp_path_factory.getbasetemp() / "changed"
    file.write_bytes(content)
    try:
        leaves = scan(file)
    except UserError as error:
        assert "at byte" in str(error)
        return
    for leaf in leaves.values():
        assert leaf.read().nbytes == leaf.num_bytes <= len(content)


def array(shape: object, dtype: object, content: object, code: int = 1) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, content)))


def chunked(**changes: object) -> dict:
    chunks = {"0": array([2], "float32", bytes(8)), "1": array([2], "float32", bytes(8))}
    return {"__msgpack_chunked_array__": True, "shape": {"0": 2, "1": 2}, "chunks": chunks} | changes


def nested(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


HOSTILE = {
    "takes 16 bytes, and there are 12": array([2, 2], "float32", bytes(12)),
    "takes 16 bytes, and there are 8": array([2, 2], "float32", bytes(8)),
    "numbers of dtype 'object'": array([1], "object", bytes(8)),
    "numbers of dtype '>f4'": array([1], ">f4", bytes(4)),
    "there is an extension where|there is extension 2": array([1], "float32", bytes(4), code=2),
    "a size of -1 in a shape": array([-1], "float32", bytes(4)),
    "a size of 0 in a shape": array([0], "float32", b""),
    r"a size of 9\d+ in a shape": array([2**63], "float32", bytes(4)),
    "a shape of 100 axes": array([1] * 100, "float32", bytes(4)),
    "there is text where a size": array(["1"], "float32", bytes(4)),
    "there is an integer where a shape": array(4, "float32", bytes(4)),
    "there is text where an array's numbers": array([1], "float32", "1234"),
    "there is an array where w should be": nested(400),
    "there is text where w should be": "weights",
    "is unknown or there twice": chunked(more=1),
    "there is false where true": chunked(__msgpack_chunked_array__=False),
    "the chunks of a leaf are not numbered from 0 to 1": chunked(
        chunks={"0": array([2], "float32", bytes(8)), "2": array([2], "float32", bytes(8))}
    ),
    "chunks that are not flat arrays of one dtype": chunked(
        chunks={"0": array([2], "float32", bytes(8)), "1": array([2], "int32", bytes(8))}
    ),
    "takes 16 bytes, and there are 4": chunked(chunks={"0": array([1], "float32", bytes(4))}),
    "a map with no chunks": chunked(chunks={}),
    "there is an integer where an array, extension 1": chunked(chunks={"0": 7}),
    "a map with no .*chunks or shape": {"__msgpack_chunked_array__": True},
    "there are 9 values for the shape": chunked(shape={str(place): 1 for place in range(9)}),
    r"a name of a chunked leaf has 2000 bytes": {"x" * 2000: 1},
}


@pytest.mark.parametrize("message", HOSTILE)
def test_leaves_that_are_no_arrays(message, tmp_path):
    file = tmp_path / "stream"
    file.write_bytes(msgpack.packb((["w"], msgpack.packb(HOSTILE[message]))))
    with pytest.raises(UserError, match=rf"stream is not a whole .* at byte \d+, .*({message})"):
        scan(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file ends: it is empty"),
        (b"\xc1", "0xc1, which begins nothing"),
        (msgpack.packb({"params": 1}), "a map where a pair"),
        (msgpack.packb([1, 2, 3]), "an array of 3 where a pair"),
        (msgpack.packb(("w", b"")), "text where a key"),
        (msgpack.packb(([], b"")), "a key of 0 names"),
        (msgpack.packb((["w"] * 99, b"")), "a key of 99 names"),
        (msgpack.packb((["lm_head/kernel"], b"")), r"a key of names \('lm_head/kernel',\), and a name is text without"),
        (msgpack.packb((["w", ""], b"")), "a name is text without slashes"),
        (msgpack.packb(([b"w"], b"")), "bytes where a name of the key"),
        (b"\x92\x91\xa1\xff\xc4\x01\xc0", "a name of the key is not UTF-8"),
        (msgpack.packb((["w"], "text")), "text where the leaf w"),
        (msgpack.packb((["w"], b"")), "1 bytes more should follow, and 0 do"),
        (b"\x92\x91\xa1w\xc6\xff\xff\xff\xff", "bytes of 4294967295 bytes should be, and 0 are left"),
        (msgpack.packb((["w"], b"\x01\x01")), "1 bytes more than what is told"),
        (msgpack.packb((["w"], b"\x01")) * 2, "w stands there for the second time"),
    ],
)
def test_what_is_no_stream(content, message, tmp_path):
    file = tmp_path / "stream"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        scan(file)


def test_other_files_of_weights(tmp_path):
    nano = Path(stream_format.__file__).parent.parent / "nano" / "weights" / "model.safetensors"
    for file in (GOLDEN / "vqgan.pkl", nano, GOLDEN / "lwm_text_forward.npz"):
        with pytest.raises(UserError, match=r"at byte 0, there is .* where a pair of key and leaf should be"):
            scan(file)
    for missing in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="there is no file"):
            scan(missing)


def test_more_arrays_than_any_checkpoint_has(tmp_path, monkeypatch):
    file = flax_stream.write(tmp_path / "stream", {"w": numbers((3, 3), "float32")}, chunk_bytes=4)
    monkeypatch.setattr(stream_format, "MOST_ARRAYS", 8)
    with pytest.raises(UserError, match="more than 8"):
        scan(file)


def test_a_file_that_changes_after_it_was_opened(tmp_path):
    file = flax_stream.write(tmp_path / "stream", {"a/b": numbers((4, 4), "float32")})
    leaf = scan(file)["a", "b"]
    with pytest.raises(ValueError, match="step of 2"):
        leaf.read(slice(0, 4, 2))
    file.write_bytes(file.read_bytes()[:-1])
    assert leaf.read(slice(0, 3)).shape == (3, 4)
    with pytest.raises(UserError, match=r"stream ends within a/b"):
        leaf.read()
    file.unlink()
    with pytest.raises(UserError, match="No such file"):
        leaf.read()
