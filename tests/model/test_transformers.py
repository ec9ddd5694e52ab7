"""Logits equal those of `transformers`' Llama, whose weights we import, however its rotary positions are scaled."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.attention.mask import AttentionMask
from lwm.core.errors import UserError
from lwm.core.mesh import MeshShape, make_mesh
from lwm.core.vocab import Vocab
from lwm.model.cache import allocate
from lwm.model.config import Compute, ModelConfig
from lwm.model.rope import RopeScaling, attention_factor, rotary_angles, rotary_frequencies, scaling_from_json
from lwm.model.transformer import Transformer, extend, head_weights, hidden_states, logits
from lwm.weights.hugging_face import HuggingFaceTensors
from lwm.weights.load import place
from lwm.weights.tensors import InMemory

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

#: tokens that the scaled models are said to be trained for
TRAINED = 64
SCALED: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 3.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"factor": 4.0, "beta_fast": 4.0},
}


def make_pair(num_kv_heads: int = 2, tied: bool = False, rope_theta: float = 1e6, **rope: Any):
    """A config of ours and a model of theirs, of random weights; `rope`: its `rope_parameters`."""
    kind = rope.pop("rope_type", "default")
    original = {} if kind in ("default", "linear", "dynamic") else {"original_max_position_embeddings": TRAINED}
    parameters = {"rope_type": kind, "rope_theta": rope_theta, **rope, **original}
    longest = TRAINED if kind == "dynamic" else 4 * TRAINED
    config = ModelConfig(
        Vocab(text_size=96), 64, 128, 3, 8, num_kv_heads, 8, rope_theta=rope_theta, rope_scaling=ours(parameters),
        rms_norm_eps=1e-5, tie_word_embeddings=tied, max_context=256,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=8,
            num_key_value_heads=num_kv_heads, max_position_embeddings=longest, rms_norm_eps=1e-5,
            initializer_range=0.2, rope_parameters=parameters, tie_word_embeddings=tied,
        )
    ).eval()  # fmt: skip
    return config, model


def ours(rope_parameters: dict[str, Any], trained: int = TRAINED) -> RopeScaling | None:
    """The scaling of a Hugging Face config; of a dynamic one `max_position_embeddings` is the trained length."""
    fields = {name: value for name, value in rope_parameters.items() if name != "rope_theta"}
    if fields["rope_type"] == "dynamic":
        fields["original_max_position_embeddings"] = trained
    return None if fields["rope_type"] == "default" else scaling_from_json(fields, "it")


def from_hugging_face(state: dict[str, np.ndarray], config: ModelConfig) -> Transformer:
    tensors = HuggingFaceTensors(InMemory(state), config, "the state")
    return place(tensors, config, make_mesh(MeshShape(), jax.devices()[:1]), "float32")


def state_of(model) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def draw(num_tokens: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 96, (2, num_tokens), dtype=np.int32)


def forward(config: ModelConfig, model, tokens: np.ndarray) -> np.ndarray:
    @jax.jit
    def run(params: Transformer, tokens: jax.Array, segment_ids: jax.Array, positions: jax.Array) -> jax.Array:
        hidden = hidden_states(params, tokens, segment_ids, positions, config, Compute(remat="none"))
        return logits(hidden, head_weights(params, config, Compute()))

    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return np.asarray(run(from_hugging_face(state_of(model), config), tokens, np.ones_like(tokens), positions))


@pytest.mark.parametrize(("num_kv_heads", "tied"), [(8, False), (2, False), (2, True)])
def test_logits(num_kv_heads: int, tied: bool) -> None:
    config, model = make_pair(num_kv_heads, tied)
    tokens = draw(200)
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens).long()).logits.numpy()
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(forward(config, model, tokens), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", SCALED)
def test_logits_of_scaled_models(kind: str) -> None:
    """Of sequences within the trained length and beyond it, where the same weights unscaled say something else."""
    config, model = make_pair(rope_theta=1e4, rope_type=kind, **SCALED[kind])
    plain = make_pair(rope_theta=1e4)[0]
    for num_tokens in (TRAINED - 8, 3 * TRAINED):
        tokens = draw(num_tokens)
        with torch.no_grad():
            expected = model(torch.from_numpy(tokens).long()).logits.numpy()
        np.testing.assert_allclose(forward(config, model, tokens), expected, atol=1e-4, rtol=0)
    assert np.abs(forward(plain, model, tokens) - expected).max() > 0.1


def test_dynamic_scaling_with_a_cache() -> None:
    """Read in pieces, the base rises with what has been read; keys keep the angles they came with."""
    config, model = make_pair(rope_theta=1e4, rope_type="dynamic", **SCALED["dynamic"])
    tokens = draw(144)
    params = jax.tree.map(jnp.asarray, from_hugging_face(state_of(model), config))
    cache, their_cache = allocate(config, 2, 144, jnp.float32), transformers.DynamicCache(config=model.config)
    step = jax.jit(lambda *arrays: extend(params, *arrays, config, Compute()))
    for start in range(0, 144, 48):
        piece = tokens[:, start : start + 48]
        with torch.no_grad():
            # by place: the argument's name is another since transformers 5.24
            theirs = model(torch.from_numpy(piece).long(), None, None, their_cache, use_cache=True)
        positions = np.broadcast_to(np.arange(start, start + 48, dtype=np.int32), piece.shape)
        hidden, cache = step(piece, np.ones_like(piece), positions, cache)
        got = logits(hidden, head_weights(params, config, Compute()))
        np.testing.assert_allclose(np.asarray(got), theirs.logits.numpy(), atol=1e-4, rtol=0)
    assert np.abs(forward(config, model, tokens)[:, 96:] - theirs.logits.numpy()).max() > 0.01


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
FREQUENCIES = [
    (128, 1e4, {"rope_type": "linear", "factor": 8.0}),
    (64, 5e5, {"rope_type": "linear", "factor": 1.0}),
    (128, 5e5, {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192}),
    (64, 5e5, {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}),
    (32, 1e4, {"rope_type": "llama3", "factor": 2.5, "low_freq_factor": 0.5, "high_freq_factor": 9.0,
               "original_max_position_embeddings": 100}),
    (128, 1e6, YARN),
    (64, 1e6, {**YARN, "truncate": False}),
    (64, 1e4, {**YARN, "factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 0.5}),
    (64, 1e4, {**YARN, "mscale": 0.707}),
    (64, 1e4, {**YARN, "attention_factor": 1.3, "beta_fast": 20.0, "beta_slow": 2.0}),
    (64, 1e4, {**YARN, "factor": 1.0}),
    (64, 1e4, {**YARN, "beta_fast": 3.0, "beta_slow": 3.0, "truncate": False}),
    (8, 1e4, {**YARN, "original_max_position_embeddings": 4}),
    (8, 1.5, {**YARN, "original_max_position_embeddings": 4096}),
]  # fmt: skip


@pytest.mark.parametrize(("head_width", "theta", "rope"), FREQUENCIES)
def test_frequencies(head_width: int, theta: float, rope: dict[str, Any]) -> None:
    expected, factor = theirs(head_width, theta, rope)
    np.testing.assert_allclose(rotary_frequencies(head_width, theta, ours(rope)), expected, rtol=3e-6)
    assert attention_factor(ours(rope)) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize(("head_width", "theta", "factor"), [(128, 1e4, 2.0), (64, 5e5, 8.0), (4, 1e4, 1.0)])
@pytest.mark.parametrize("length", [1, 4096, 4097, 10_000, 1_048_576])
def test_frequencies_that_depend_on_the_length(head_width: int, theta: float, factor: float, length: int) -> None:
    """At position 1 the angle is the frequency."""
    rope = {"rope_type": "dynamic", "factor": factor}
    expected, _ = theirs(head_width, theta, rope, length, max_position_embeddings=4096)
    positions = jnp.array([[1, length - 1]], jnp.int32)
    mask = AttentionMask(jnp.ones((1, 1), jnp.int32), positions[:, :1], jnp.ones((1, 2), jnp.int32), positions)
    angles = rotary_angles(mask, head_width, theta, ours(rope, trained=4096))
    np.testing.assert_allclose(np.asarray(angles)[0, 0], expected, rtol=5e-6)


def theirs(head_width: int, theta: float, rope: dict[str, Any], length: int | None = None, **fields: Any):
    """Frequencies and attention factor as transformers has them."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(
        head_dim=head_width,
        rope_parameters={"rope_theta": theta, **rope},
        **{"max_position_embeddings": 2**17, **fields},
    )
    frequencies, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, seq_len=length)
    return frequencies.numpy(), factor


def test_a_state_that_is_not_this_model_is_refused() -> None:
    config, model = make_pair(2, tied=False)
    state = state_of(model)
    with pytest.raises(UserError, match=r"model\.norm\.weight is missing"):
        from_hugging_face({name: array for name, array in state.items() if name != "model.norm.weight"}, config)
    with pytest.raises(UserError, match=r"k_proj.* has shape \(16, 64\) and should have \(64, 64\)"):
        from_hugging_face(state, make_pair(8, tied=False)[0])
    with pytest.raises(UserError, match=r"lm_head\.bias is not a tensor of this model"):
        from_hugging_face({**state, "lm_head.bias": np.zeros(96)}, config)
