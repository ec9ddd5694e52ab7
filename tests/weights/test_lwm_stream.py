"""LWM's models, in every form its streams have, are ours tensor by tensor, and go back as its own code writes them."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lwm.core.errors import UserError
from lwm.core.params import shapes_by_name
from lwm.core.vocab import Vocab
from lwm.model.config import ModelConfig
from lwm.model.transformer import declare
from lwm.weights import stream_writer
from lwm.weights.lwm_stream import StreamTensors, names_there, write_stream
from lwm.weights.stream_format import scan
from lwm.weights.stream_writer import leaf_frame
from lwm.weights.tensors import InMemory, pieces, whole

from . import flax_stream

GOLDEN = Path(__file__).parent.parent / "golden"
VISION = ModelConfig(Vocab(11, 7, 5, 4), hidden_size=6, intermediate_size=10, num_layers=3, num_heads=3, num_kv_heads=3,
                     head_width=2)  # fmt: skip
TEXT = replace(VISION, vocab=Vocab(11))
LAYER_SHAPES = {
    "attention/wq": (6, 6), "attention/wk": (6, 6), "attention/wv": (6, 6), "attention/wo": (6, 6),
    "attention_norm": (6,), "ffn_norm": (6,),
    "feed_forward/w1": (6, 10), "feed_forward/w2": (10, 6), "feed_forward/w3": (6, 10),
}  # fmt: skip


def lwm_arrays(sees: bool, scanned: bool, dtype: str = "float32") -> dict[str, np.ndarray]:
    """A tiny model under LWM's names; the same numbers, stacked or layer by layer."""
    draw = np.random.default_rng(0)
    arrays = {"transformer/wte/embedding": (11, 6), "transformer/ln_f/kernel": (6,), "lm_head/kernel": (6, 11)}
    if sees:
        arrays |= {"transformer/vte/embedding": (7, 6), "vision_head/kernel": (6, 7)}
    drawn = {name: draw.normal(size=shape).astype(jnp.dtype(dtype)) for name, shape in arrays.items()}
    for name, shape in LAYER_SHAPES.items():
        stack = draw.normal(size=(3, *shape)).astype(jnp.dtype(dtype))
        if scanned:
            drawn[f"transformer/h/scan_decoder/{name}/kernel"] = stack
        else:
            drawn |= {f"transformer/h/{layer}/{name}/kernel": stack[layer] for layer in range(3)}
    return drawn


def ours(sees: bool, dtype: str = "float32") -> dict[str, np.ndarray]:
    """The same model under our names, in our layout."""
    lwm = lwm_arrays(sees, True, dtype)
    layers = {name: lwm[f"transformer/h/scan_decoder/{name}/kernel"] for name in LAYER_SHAPES}
    embeddings, heads = [lwm["transformer/wte/embedding"]], [lwm["lm_head/kernel"]]
    if sees:
        embeddings, heads = [*embeddings, lwm["transformer/vte/embedding"]], [*heads, lwm["vision_head/kernel"]]
    return {
        "embedding": np.concatenate(embeddings),
        "layers.attention_norm": layers["attention_norm"],
        "layers.query": layers["attention/wq"].reshape(3, 6, 3, 2),
        "layers.key": layers["attention/wk"].reshape(3, 6, 3, 2),
        "layers.value": layers["attention/wv"].reshape(3, 6, 3, 2),
        "layers.output": layers["attention/wo"].reshape(3, 3, 2, 6),
        "layers.ffn_norm": layers["ffn_norm"],
        "layers.gate": layers["feed_forward/w1"],
        "layers.up": layers["feed_forward/w3"],
        "layers.down": layers["feed_forward/w2"],
        "final_norm": lwm["transformer/ln_f/kernel"],
        "head": np.concatenate(heads, axis=1),
    }


def assert_same(got: np.ndarray, wanted: np.ndarray) -> None:
    assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
    assert got.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("chunk_bytes", [50, 2**30])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("before", ["", "params/", "params/params/"])
@pytest.mark.parametrize("scanned", [True, False])
@pytest.mark.parametrize("sees", [True, False])
def test_every_form_is_read(tmp_path, sees, scanned, before, dtype, chunk_bytes):
    stored = {before + name: array for name, array in lwm_arrays(sees, scanned, dtype).items()}
    if before == "params/params/":
        moments = {f"opt_state/0/mu/{name}": array for name, array in stored.items()}
        stored = {"step": np.int32(5), **stored, **moments, "opt_state/0/count": 5}
    file = flax_stream.write(tmp_path / "stream", stored, chunk_bytes)
    tensors = StreamTensors(file, VISION if sees else TEXT)
    wanted = ours(sees, dtype)
    assert tensors.specs.keys() == wanted.keys()
    for name, array in wanted.items():
        spec = tensors.specs[name]
        assert (spec.shape, spec.dtype) == (array.shape, array.dtype)
        assert_same(tensors.read(name, whole(array.shape)), array)
        assert_same(np.concatenate(list(pieces(tensors, name))), array)
    layers = f"{before}transformer/h/{'scan_decoder' if scanned else '*'}"
    assert tensors.specs["layers.query"].origin == f"{layers}/attention/wq/kernel"
    assert tensors.specs["layers.query"].change == ("heads apart" if scanned else "stacked, heads apart")
    assert tensors.specs["head"].change == ("joined" if sees else "")


@pytest.fixture(scope="module", params=[True, False], ids=["scanned", "layer_by_layer"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StreamTensors:
    file = tmp_path_factory.mktemp("streams") / "stream"
    return StreamTensors(flax_stream.write(file, lwm_arrays(True, request.param), chunk_bytes=60), VISION)


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(sorted(ours(True))), data=st.data())
def test_any_part_is_that_part_of_the_whole(opened, name, data):
    array = ours(True)[name]
    places = st.none() | st.integers(-20, 20)
    index = tuple(slice(data.draw(places), data.draw(places)) for _ in array.shape)
    assert_same(opened.read(name, index), np.ascontiguousarray(array[index]))
    with pytest.raises(ValueError, match="without steps"):
        opened.read(name, (slice(0, 2, 2), *index[1:]))


@pytest.mark.parametrize("name", ["lwm_text_stream", "lwm_video_stream"])
def test_what_lwm_wrote_is_written_again(tmp_path, monkeypatch, name):
    vocab = Vocab(512, 8448, 8192, 256) if name == "lwm_video_stream" else Vocab(512)
    config = ModelConfig(vocab, 64, 160, 2, 4, 4, 16)
    if name == "lwm_video_stream":
        monkeypatch.setattr(stream_writer, "MAX_CHUNK_BYTES", 100_000)
    written = tmp_path / "new" / "stream"
    write_stream(written, config, StreamTensors(GOLDEN / name, config), "float32")
    assert written.read_bytes() == (GOLDEN / name).read_bytes()
    assert [path.name for path in written.parent.iterdir()] == ["stream"]


@pytest.mark.parametrize("sees", [True, False])
def test_a_written_stream_is_read_by_the_msgpack_library(tmp_path, sees):
    file = write_stream(tmp_path / "stream", VISION if sees else TEXT, InMemory(ours(sees)), "bfloat16")
    read, wanted = flax_stream.read(file), lwm_arrays(sees, True)
    assert read.keys() == wanted.keys()
    for name, array in wanted.items():
        assert_same(read[name], array.astype(jnp.dtype("bfloat16")))


def test_a_tied_head_is_written_out(tmp_path):
    tensors = {name: array for name, array in ours(True).items() if name != "head"}
    tied = replace(VISION, tie_word_embeddings=True)
    read = flax_stream.read(write_stream(tmp_path / "stream", tied, InMemory(tensors), "float32"))
    assert_same(read["lm_head/kernel"], np.ascontiguousarray(read["transformer/wte/embedding"].T))
    assert_same(read["vision_head/kernel"], np.ascontiguousarray(read["transformer/vte/embedding"].T))


class Breaks(InMemory):
    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        if name == "layers.up":
            raise UserError("the source is broken")
        return super().read(name, index)


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    file = write_stream(tmp_path / "stream", TEXT, InMemory(ours(False)), "float32")
    before = file.read_bytes()
    with pytest.raises(UserError, match="the source is broken"):
        write_stream(file, TEXT, Breaks(ours(False)), "float32")
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(UserError, match=r"cannot write .*stream/deeper: "):
        write_stream(file / "deeper", TEXT, InMemory(ours(False)))


def test_models_that_lwm_cannot_hold(tmp_path):
    config, message = replace(TEXT, head_width=4), "num_heads 3 times head_width 4 is not hidden_size 6"
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes_by_name(declare(config)).items()}
    with pytest.raises(UserError, match=f"LWM's code has no place for this model: {message}"):
        write_stream(tmp_path / "stream", config, InMemory(tensors))
    assert not list(tmp_path.iterdir())


def test_heads_that_are_shared_are_repeated(tmp_path):
    grouped, alone = replace(TEXT, num_kv_heads=1), ours(False)
    shared = alone | {name: alone[name][:, :, :1] for name in ("layers.key", "layers.value")}
    read = StreamTensors(write_stream(tmp_path / "stream", grouped, InMemory(shared), "float32"), TEXT)
    for name, array in shared.items():
        wanted = np.repeat(array, 3, axis=2) if name in ("layers.key", "layers.value") else array
        assert_same(read.read(name, whole(wanted.shape)), wanted)
    assert names_there(grouped)["layers.key"][1] == "heads repeated 3 times, joined"
    assert names_there(grouped)["layers.query"][1] == "heads joined"


def test_what_is_not_written(tmp_path):
    with pytest.raises(UserError, match="not written as int8: choose one of bfloat16, float32"):
        write_stream(tmp_path / "stream", TEXT, InMemory(ours(False)), "int8")
    with pytest.raises(UserError, match=r"embedding has shape \(18, 6\) and should have \(11, 6\)"):
        write_stream(tmp_path / "stream", TEXT, InMemory(ours(True)))
    wide = ours(False) | {"final_norm": np.full(6, 3.4e38, np.float32)}
    with pytest.raises(UserError, match="transformer/ln_f/kernel has numbers that bfloat16 does not hold"):
        write_stream(tmp_path / "stream", TEXT, InMemory(wide), "bfloat16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer/h/1/attention/wk/kernel": None}, "transformer/h/1/attention/wk/kernel is missing"),
        ({"lm_head/kernel": None}, "lm_head/kernel is missing"),
        ({"lm_head/bias": np.zeros(11, np.float32)}, "lm_head/bias is not a tensor of this model"),
        ({"transformer/h/3/ffn_norm/kernel": np.ones(6, np.float32)}, "h/3/ffn_norm/kernel is not a tensor"),
        ({"transformer/ln_f/kernel": np.ones(7, np.float32)}, r"ln_f/kernel has shape \(7,\) and should have \(6,\)"),
        ({"transformer/wte/embedding": None}, "no transformer/wte/embedding, and begins with transformer/ln_f/kernel"),
        ({"lm_head/kernel": np.zeros((6, 11), np.int8)}, "holds lm_head/kernel.* as float32 and int8"),
        ({"transformer/ln_f/kernel": np.ones(6, np.int32)}, "holds transformer/ln_f/kernel as int32"),
    ],
)
def test_streams_of_other_models(tmp_path, changes, message):
    stored = lwm_arrays(True, scanned=False) | changes
    present = {name: array for name, array in stored.items() if array is not None}
    with pytest.raises(UserError, match=message):
        StreamTensors(flax_stream.write(tmp_path / "stream", present), VISION)


def test_a_stream_cut_between_two_leaves(tmp_path):
    content, file = (GOLDEN / "lwm_text_stream").read_bytes(), tmp_path / "stream"
    last = list(scan(GOLDEN / "lwm_text_stream").values())[-2].extents[-1]
    file.write_bytes(content[: sum(last)])
    with pytest.raises(UserError, match="lm_head/kernel is missing"):
        StreamTensors(file, ModelConfig(Vocab(512), 64, 160, 2, 4, 4, 16))


LARGE = ModelConfig(Vocab(64), 256, 4096, 64, 4, 4, 64)  # three leaves of 256 MiB
READ_BY_LAYERS = """
import resource, sys
from pathlib import Path
from lwm.core.vocab import Vocab
from lwm.model.config import ModelConfig
from lwm.weights.lwm_stream import StreamTensors
from lwm.weights.tensors import pieces
tensors = StreamTensors(Path(sys.argv[1]), ModelConfig(Vocab(64), 256, 4096, 64, 4, 4, 64))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read = sum(piece.astype("bfloat16").nbytes for name in tensors.specs for piece in pieces(tensors, name))
print(read, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_large_stack_is_read_without_holding_it(tmp_path):
    file = tmp_path / "stream"
    names = {"attention/wq": (256, 256), "attention/wk": (256, 256), "attention/wv": (256, 256)}
    names |= {"attention/wo": (256, 256), "attention_norm": (256,), "ffn_norm": (256,), "feed_forward/w1": (256, 4096)}
    names |= {"feed_forward/w2": (4096, 256), "feed_forward/w3": (256, 4096)}
    shapes = {f"transformer/h/scan_decoder/{name}/kernel": (64, *shape) for name, shape in names.items()}
    shapes |= {"transformer/wte/embedding": (64, 256), "lm_head/kernel": (256, 64), "transformer/ln_f/kernel": (256,)}
    with open(file, "wb") as stream:  # numbers that are holes in the file: zeros, and no place on the disk
        for name, shape in shapes.items():
            for head, size in leaf_frame(tuple(name.split("/")), shape, np.dtype("float32")):
                stream.write(head)
                stream.seek(size, 1)
        stream.truncate()
    command = [sys.executable, "-c", READ_BY_LAYERS, str(file)]
    read, grown = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert read == sum(2 * np.prod(shape) for shape in shapes.values())
    assert grown < 48 * 1024  # KiB; a leaf is 256 MiB, a layer of it 4
