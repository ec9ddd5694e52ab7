"""What a stream does not say is taken from beside it, and never guessed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lwm.core.errors import UserError
from lwm.core.params import shapes_by_name
from lwm.core.vocab import Vocab
from lwm.model.config import SIZES, ModelConfig
from lwm.model.transformer import declare
from lwm.weights.lwm_stream import StreamTensors, write_stream
from lwm.weights.lwm_stream_config import StreamSizes, config_from_json, config_of_stream, sizes_in
from lwm.weights.stream_writer import leaf_frame
from lwm.weights.tensors import InMemory

from . import flax_stream

GOLDEN = Path(__file__).parent.parent / "golden"
VISION = ModelConfig(Vocab(512, 8448, 8192, 256), 64, 160, 2, 4, 4, 16, rope_theta=1e4, max_context=1024)
TEXT = replace(VISION, vocab=Vocab(512))
#: as the golden models' own
STATED = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_sequence_length": 1024, "rms_norm_eps": 1e-06, "use_cache": True, "tie_word_embeddings": False,
    "scan_query_chunk_size": 64, "mesh_dim": "1,1,1,1", "theta": 10000, "bos_token_id": 1, "eos_token_id": 2,
    "vision_vocab_size": 8448,
}  # fmt: skip


def stated(directory: Path, **changes: object) -> Path:
    file = directory / "config.json"
    file.write_text(json.dumps({name: value for name, value in (STATED | changes).items() if value != "absent"}))
    return file


def zeros(config: ModelConfig) -> InMemory:
    return InMemory({name: np.zeros(shape, np.float32) for name, shape in shapes_by_name(declare(config)).items()})


def test_sizes():
    assert sizes_in(GOLDEN / "lwm_text_stream") == StreamSizes(512, 0, 64, 160, 2, True)
    assert sizes_in(GOLDEN / "lwm_video_stream") == StreamSizes(512, 8448, 64, 160, 2, True)


def test_sizes_layer_by_layer(tmp_path):
    arrays = {"transformer/wte/embedding": (11, 6)} | {
        f"transformer/h/{layer}/feed_forward/w1/kernel": (6, 10) for layer in (0, 1, 10)
    }
    file = flax_stream.write(tmp_path / "stream", {name: np.zeros(shape) for name, shape in arrays.items()})
    assert sizes_in(file) == StreamSizes(11, 0, 6, 10, 3, False)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"transformer/wte/embedding": (11, 6)}, "has no transformer/h/0/feed_forward/w1/kernel"),
        ({"transformer/wte/embedding": (11,)}, r"wte/embedding of shape \(11,\), which should have 2 axes"),
        ({"opt_state/mu": (3,)}, "no transformer/wte/embedding, and begins with opt_state/mu"),
    ],
)
def test_streams_without_sizes(tmp_path, arrays, message):
    file = flax_stream.write(tmp_path / "stream", {name: np.zeros(shape) for name, shape in arrays.items()})
    with pytest.raises(UserError, match=message):
        sizes_in(file)


def test_lwm_s_configuration_beside_the_stream(tmp_path):
    video, text, file = GOLDEN / "lwm_video_stream", GOLDEN / "lwm_text_stream", stated(tmp_path)
    assert config_of_stream(video, json=file, theta=None, max_context=None) == VISION
    assert config_of_stream(text, json=file, theta=None, max_context=None) == TEXT
    longer = config_of_stream(text, json=file, theta=5e7, max_context=2**20)
    assert longer == replace(TEXT, rope_theta=5e7, max_context=2**20)
    bare = stated(tmp_path, vision_vocab_size="absent", tie_word_embeddings=True, rms_norm_eps="absent")
    assert config_of_stream(video, json=bare, theta=None, max_context=None) == VISION
    named = stated(tmp_path, theta="absent", rope_theta=1e6, max_sequence_length="absent", max_position_embeddings=64)
    wanted = replace(TEXT, rope_theta=1e6, max_context=64)
    assert config_of_stream(text, json=named, theta=None, max_context=None) == wanted


def test_a_tied_model_of_lwm_s(tmp_path):
    arrays = flax_stream.read(GOLDEN / "lwm_text_stream")
    del arrays["lm_head/kernel"]
    file = flax_stream.write(tmp_path / "stream", arrays)
    config = config_of_stream(file, json=stated(tmp_path, tie_word_embeddings=True), theta=None, max_context=None)
    assert config.tie_word_embeddings
    assert "head" not in StreamTensors(file, config).specs
    untied = config_of_stream(file, json=stated(tmp_path), theta=None, max_context=None)
    with pytest.raises(UserError, match="lm_head/kernel is missing"):
        StreamTensors(file, untied)


def test_a_model_of_ours_and_back(tmp_path):
    config = ModelConfig(Vocab(20, 9, 7, 4), 8, 12, 2, 2, 2, 4, rope_theta=1e16, tie_word_embeddings=True)
    file = write_stream(tmp_path / "stream", config, zeros(config), "float32")
    beside = tmp_path / "config.json"
    beside.write_text(json.dumps({"model_type": "lwm", **config.to_json()}))
    read = config_of_stream(file, json=beside, theta=None, max_context=8192)
    assert read == replace(config, tie_word_embeddings=False, max_context=8192)
    assert StreamTensors(file, read).specs["head"].shape == (8, 29)


@pytest.mark.parametrize("vision_size", [0, 8448])
def test_a_released_model_is_known_by_its_widths(tmp_path, vision_size):
    """The 7B models, whose numbers are holes in the file."""
    file = tmp_path / "stream"
    shapes = {"transformer/wte/embedding": (32000, 4096), "lm_head/kernel": (4096, 32000)}
    shapes["transformer/h/scan_decoder/feed_forward/w1/kernel"] = (32, 4096, 11008)
    if vision_size:
        shapes["transformer/vte/embedding"] = (vision_size, 4096)
    with open(file, "wb") as stream:
        for name, shape in shapes.items():
            for head, size in leaf_frame(tuple(name.split("/")), shape, np.dtype("float16")):
                stream.write(head)
                stream.seek(size, 1)
        stream.truncate()
    vocab = Vocab(32000, 8448, 8192, 256) if vision_size else Vocab(32000)
    wanted = replace(SIZES["7b"], vocab=vocab, rope_theta=5e7, max_context=2**20)
    assert config_of_stream(file, json=None, theta=5e7, max_context=2**20) == wanted
    with pytest.raises(UserError, match=r"says its theta: give --theta \(LWM's text models have .*5e\+07 at 1048576"):
        config_of_stream(file, json=None, theta=None, max_context=2**20)
    with pytest.raises(UserError, match=r"theta and max_sequence_length: give --theta and --max-context"):
        config_of_stream(file, json=None, theta=None, max_context=None)
    assert config_of_stream(file, json=None, theta=5e7, max_context=None) == wanted
    assert config_of_stream(file, json=None, theta=1e7, max_context=None).max_context == 2**18
    with pytest.raises(UserError, match="says its max_sequence_length: give --max-context "):
        config_of_stream(file, json=None, theta=3e6, max_context=None)
    with pytest.raises(UserError, match="--theta nan is no rotary base"):
        config_of_stream(file, json=None, theta=float("nan"), max_context=2**20)


def test_heads_that_nobody_tells():
    with pytest.raises(UserError, match=r"hidden_size of 64.*number of heads is not known: .* with --config"):
        config_of_stream(GOLDEN / "lwm_text_stream", json=None, theta=1e4, max_context=1024)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 128}, r"not the configuration of .*: it says a hidden_size of 128, and the tensors have 64"),
        ({"num_hidden_layers": 3}, "a number of layers of 3, and the tensors have 2"),
        ({"vocab_size": 513}, "a vocabulary of text of 513"),
        ({"vision_vocab_size": 8194}, "a vocabulary of vision of 8194, and the tensors have 8448"),
        ({"vision_vocab_size": 256}, "of 256 vision ids none are codes"),
        ({"num_attention_heads": 5}, "hidden_size 64 is not a multiple of num_attention_heads 5"),
        ({"num_attention_heads": 0}, "not a multiple of num_attention_heads 0"),
        ({"num_attention_heads": "absent"}, "num_attention_heads None, which should be a whole number"),
        ({"vocab_size": "512"}, "vocab_size '512', which should be a whole number"),
        ({"theta": "10000"}, "rope_theta='10000', which is not float"),
        ({"theta": 0}, "rope_theta is 0"),
        ({"theta": float("inf")}, "rope_theta is inf"),
        ({"bos_token_id": 512}, "bos_id of a vocabulary is 512"),
        ({"num_key_value_heads": 2}, "num_key_value_heads 2, and its code computes 4"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling .*, and its code computes None"),
        ({"rms_norm_eps": True}, "rms_norm_eps=True, which is not float"),
        ({"theta": "absent"}, "give --theta"),
        ({"vocab": {"text_size": 512}}, "unknown field"),
    ],
)
def test_configurations_of_other_models(tmp_path, changes, message):
    file = stated(tmp_path, **changes)
    with pytest.raises(UserError, match=rf"config\.json(:| is).*{message}"):
        config_of_stream(GOLDEN / "lwm_video_stream", json=file, theta=None, max_context=None)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"theta": 1' + b"0" * 5000 + b"}"])
def test_files_that_are_no_configuration(tmp_path, content):
    file = tmp_path / "config.json"
    file.write_bytes(content)
    for json_file in (file, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=rf"cannot read .*{json_file.name}"):
            config_of_stream(GOLDEN / "lwm_text_stream", json=json_file, theta=None, max_context=None)


def test_a_configuration_by_itself():
    assert config_from_json(STATED) == VISION
    assert config_from_json(STATED | {"num_key_value_heads": 4, "head_dim": None, "rope_scaling": {}}) == VISION
    assert config_from_json(STATED | {"vision_vocab_size": None, "bos_token_id": 0, "eos_token_id": 1}).vocab == Vocab(
        512, bos_id=0, eos_id=1
    )
