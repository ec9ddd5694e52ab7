"""Hugging Face directories: `transformers`' logits from what is read, and from what is written; all else is refused."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lwm.core.errors import UserError
from lwm.core.mesh import MeshShape, make_mesh
from lwm.core.params import init_sharded, named_leaves
from lwm.core.vocab import Vocab
from lwm.model.config import Compute, ModelConfig
from lwm.model.rope import DynamicScaling, Llama3Scaling, YarnScaling
from lwm.model.transformer import Transformer, declare, head_weights, hidden_states, logits
from lwm.weights.hugging_face import halve, interleave
from lwm.weights.hugging_face_config import config_from_hugging_face, config_to_hugging_face
from lwm.weights.hugging_face_export import write_hugging_face
from lwm.weights.load import load_model, open_source
from lwm.weights.tensors import InMemory

PLAIN: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
TIED, GROUPED = {"tie_word_embeddings": True}, {"num_key_value_heads": 2}
#: what differs from a plain Llama
MODELS: dict[str, dict[str, Any]] = {
    "many heads": {},
    "one kv head": {"num_key_value_heads": 1, "rms_norm_eps": 1e-5},
    "grouped, tied": GROUPED | TIED,
    "odd sizes": {"vocab_size": 97, "hidden_size": 60, "intermediate_size": 53, "num_attention_heads": 3},
    "wide heads": {"head_dim": 32, **GROUPED},
    "narrow heads, tied": {"head_dim": 6, **TIED},
    "one layer, high base": {"num_hidden_layers": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 5e6}},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}},
    "dynamic": {
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
        "max_position_embeddings": 32,
    },
    "dynamic, with a length that is passed over": {
        "rope_parameters": {
            "rope_type": "dynamic",
            "rope_theta": 1e4,
            "factor": 2.0,
            "original_max_position_embeddings": 16,
        },
        "max_position_embeddings": 32,
    },
    "llama3, sharded": {"rope_parameters": {"rope_theta": 5e5, **LLAMA3}, **GROUPED},
    "yarn": {"rope_parameters": {"rope_theta": 1e4, **YARN}},
    "bfloat16, sharded, tied": GROUPED | TIED,
    "float16": {},
    "Mistral": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None, **GROUPED},
}


def our_logits(directory: Path, tokens: np.ndarray) -> np.ndarray:
    model = load_model(directory, make_mesh(MeshShape(), jax.devices()[:1]))
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)

    @jax.jit
    def forward(params: Transformer, *arrays: jax.Array) -> jax.Array:
        hidden = hidden_states(params, *arrays, model.config, Compute(remat="none"))
        return logits(hidden, head_weights(params, model.config, Compute()))

    return np.asarray(forward(model.params, tokens, np.ones_like(tokens), positions))


def their_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return model(torch.from_numpy(tokens).long()).logits.numpy()


@pytest.mark.parametrize("name", MODELS)
def test_what_transformers_saves_gives_its_logits(name: str, tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    values = {**PLAIN, "max_position_embeddings": 128, "initializer_range": 0.15, **MODELS[name]}
    dtype = next((dtype for dtype in ("bfloat16", "float16") if dtype in name), "float32")
    kinds = {"llama": transformers.LlamaConfig, "mistral": transformers.MistralConfig}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(kinds[values["model_type"]](**values)).eval()
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path, max_shard_size="40KB" if "sharded" in name else "5GB")
    assert (len(list(tmp_path.glob("model*.safetensors"))) > 1) == ("sharded" in name)
    tokens = np.random.default_rng(0).integers(0, values["vocab_size"], (2, 50), dtype=np.int32)
    read_back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32").eval()
    expected = their_logits(read_back, tokens)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(our_logits(tmp_path, tokens), expected, atol=1e-4, rtol=0)


SCALINGS = [None, DynamicScaling(2.0, 32), Llama3Scaling(8.0, 1.0, 4.0, 32), YarnScaling(4.0, 32)]


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: getattr(scaling, "rope_type", "plain"))
@pytest.mark.parametrize("seeing", [False, True], ids=["text", "seeing"])
def test_transformers_opens_what_is_written(seeing: bool, scaling: Any, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    vocab = Vocab(64, 40, 32, 4) if seeing else Vocab(64)
    config = ModelConfig(vocab, 32, 48, 2, 4, 2, 16, 1e5, scaling, tie_word_embeddings=not seeing, max_context=64)
    params = init_sharded(declare(config), jax.random.key(1), np.float32, make_mesh(MeshShape(), jax.devices()[:1]))
    write_hugging_face(tmp_path, config, InMemory(named_leaves(params)), None, "float32")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32").eval()
    assert type(model).__name__ == "LlamaForCausalLM"
    rng = np.random.default_rng(0)
    spans = {"text": (0, 64), "vision": (64, vocab.size), "mixed": (0, vocab.size)} if seeing else {"text": (0, 64)}
    for low, high in spans.values():
        tokens = rng.integers(low, high, (1, 48), dtype=np.int32)
        np.testing.assert_allclose(our_logits(tmp_path, tokens), their_logits(model, tokens), atol=1e-4, rtol=0)
    assert open_source(tmp_path).config == config
    assert (tmp_path / "README.md").exists() == seeing


def test_greedy_codes_are_those_of_transformers(tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from lwm.infer.engine import Engine
    from lwm.infer.sampling import FrameSampling, Sampling

    vocab = Vocab(64, 40, 32, 4)
    config = ModelConfig(vocab, 32, 48, 2, 4, 4, 8, max_context=64)
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    params = init_sharded(declare(config), jax.random.key(2), np.float32, mesh)
    write_hugging_face(tmp_path, config, InMemory(named_leaves(params)), None, "float32")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32").eval()
    prompt = [1, 5, 9, 13]
    theirs = list(prompt)
    for _ in range(vocab.tokens_per_frame):
        with torch.no_grad():
            scores = model(torch.tensor([theirs])).logits[0, -1]
        theirs.append(vocab.text_size + int(scores[vocab.text_size : vocab.end_of_frame].argmax()))
    loaded = load_model(tmp_path, mesh)
    engine = Engine(loaded.params, loaded.config, Compute(), mesh, opening=(prompt[-1],))
    state = engine.start([prompt], 32)
    frames = FrameSampling(count=1, sampling=Sampling(), guidance=())
    (ours,), _ = engine.decode(state, vocab.tokens_per_frame, Sampling(), frames=frames)
    assert prompt + ours == theirs


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"architectures": ["Qwen2ForCausalLM"]}, "architecture is 'Qwen2ForCausalLM'"),
    "type": ({"architectures": None, "model_type": "gemma"}, "model_type is 'gemma'"),
    "no type": ({"architectures": None, "model_type": None}, "model_type is None"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "bias": ({"attention_bias": True}, "attention_bias is True"),
    "window": ({"sliding_window": 4096}, "sliding_window is 4096"),
    "Mistral's window": ({"architectures": None, "model_type": "mistral"}, "sliding_window is 4096"),
    "layers with windows": ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    "layers": ({"layer_types": ["full_attention"] * 9}, "layer_types has 9 layers, and num_hidden_layers is 2"),
    "one architecture": ({"architectures": "Qwen2ForCausalLM"}, "architectures is 'Qwen2ForCausalLM', which is not a"),
    "quantized": ({"quantization_config": {"bits": 4}}, "quantization_config is"),
    "unknown": ({"attention_multiplier": 0.5}, "attention_multiplier is 0.5, which is not known"),
    "part of a head": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    "scaling": ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_type='longrope'"),
    "two scalings": (
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
        "rope_scaling and rope_parameters say different things",
    ),
    "by layers": (
        {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}},
        "rope_parameters has a block 'full_attention'",
    ),
    "kind of scaling": (
        {"rope_scaling": {"rope_type": []}},
        r"rope_scaling has a rope_type of \[\], which is not text",
    ),
    "a field of a scaling": ({"rope_scaling": {"rope_type": "linear", "factr": 2.0}}, "unknown field 'factr'"),
    "no size": ({"hidden_size": None}, "it has no hidden_size"),
    "text": ({"num_hidden_layers": "two"}, "num_hidden_layers is 'two', which is not int"),
    "true": ({"num_hidden_layers": True}, "num_hidden_layers is True, which is not int"),
    "negative": ({"vocab_size": -5}, "vocab_size is -5"),
    "huge": ({"num_hidden_layers": 10**30}, "num_hidden_layers is 10+: it must be positive"),
    "heads": ({"num_attention_heads": 5}, "hidden_size 64 is not a multiple of num_attention_heads 5"),
    "groups": ({"num_key_value_heads": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"),
    "its own ids": ({"lwm_vocab": {"text_size": 96, "eos_id": 96}}, "eos_id of a vocabulary is 96"),
    "ids": ({"lwm_vocab": {"text_size": 5}}, "vocab_size is 96 and lwm_vocab has 5 ids"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_is_not_computed_is_refused_by_name(how: str, tmp_path: Path) -> None:
    changes, sentence = REFUSED[how]
    with pytest.raises(UserError, match=sentence) as refusal:
        config_from_hugging_face({**PLAIN, **changes}, tmp_path / "config.json")
    assert str(tmp_path / "config.json") in str(refusal.value)


def test_what_says_nothing_passes() -> None:
    plain = config_from_hugging_face(PLAIN, Path("config.json"))
    empty = {"some_new_option": None, "another": False, "a_list": [], "transformers_version": "5.1", "use_cache": True}
    assert config_from_hugging_face({**PLAIN, **empty}, Path("config.json")) == plain
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    new = {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}}
    old_config, new_config = (config_from_hugging_face({**PLAIN, **own}, Path("config.json")) for own in (old, new))
    assert old_config == new_config and old_config.rope_scaling is not None
    assert config_from_hugging_face({**PLAIN, **old, **new}, Path("config.json")) == old_config
    notes = {
        "unsloth_version": "2025.1",
        "max_new_tokens": 20,
        "sep_token_id": 5,
        "layer_types": ["full_attention"] * 2,
    }
    assert config_from_hugging_face({**PLAIN, **notes}, Path("config.json")) == plain
    assert config_from_hugging_face({**PLAIN, "vocab_size": 2}, Path("config.json")).vocab == Vocab(2, eos_id=1)


def test_the_trained_length_of_a_scaling_is_the_context_if_nothing_says_it() -> None:
    def scaling(**fields: Any) -> Any:
        values = {**PLAIN, "max_position_embeddings": 32, "rope_scaling": fields}
        return config_from_hugging_face(values, Path("config.json")).rope_scaling

    llama3 = {name: value for name, value in LLAMA3.items() if name != "original_max_position_embeddings"}
    assert scaling(**llama3) == Llama3Scaling(8.0, 1.0, 4.0, 32)
    assert scaling(**YARN, finetuned=True) == YarnScaling(4.0, 32)
    dynamic = {"rope_type": "dynamic", "factor": 2.0}
    assert scaling(**dynamic) == scaling(**dynamic, original_max_position_embeddings=16) == DynamicScaling(2.0, 32)


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: getattr(scaling, "rope_type", "plain"))
def test_a_configuration_comes_back(scaling: Any) -> None:
    config = ModelConfig(Vocab(64, 40, 32, 4, 3, 4), 32, 48, 2, 4, 2, 16, 1e16, scaling, 1e-5, True, 64)
    values = json.loads(json.dumps(config_to_hugging_face(config, "bfloat16")))
    assert config_from_hugging_face(values, Path("config.json")) == config


SMALL = ModelConfig(Vocab(16), 8, 16, 2, 2, 1, 4)


@cache
def small_tensors() -> InMemory:
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    return InMemory(named_leaves(init_sharded(declare(SMALL), jax.random.key(0), np.float32, mesh)))


def written(directory: Path, **changes: Any) -> Path:
    write_hugging_face(directory, SMALL, small_tensors(), None, "float32")
    values = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(values))
    return directory


def test_a_configuration_that_lies_about_its_tensors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it tells of 3000000 layers, and there are 21 tensors"):
        open_source(written(tmp_path, num_hidden_layers=3_000_000)).tensors()
    with pytest.raises(UserError, match=r"layers\.1\.input_layernorm\.weight is not a tensor of this model"):
        open_source(written(tmp_path, num_hidden_layers=1)).tensors()
    with pytest.raises(UserError, match=r"embed_tokens\.weight has shape \(16, 8\) and should have \(17, 8\)"):
        open_source(written(tmp_path, vocab_size=17)).tensors()


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    (written(tmp_path) / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle, which is a program"):
        open_source(tmp_path).tensors()


def test_halves_become_pairs() -> None:
    halves = np.array([["x0", "x1", "x2", "y0", "y1", "y2"]])
    assert interleave(halves).tolist() == [["x0", "y0", "x1", "y1", "x2", "y2"]]
    assert halve(interleave(halves)).tolist() == halves.tolist()
