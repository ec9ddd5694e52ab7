"""Logits equal those of `transformers`' Llama, whose weights we import."""

import jax
import numpy as np
import pytest

from lwm.core.errors import UserError
from lwm.core.vocab import Vocab
from lwm.model.config import Compute, ModelConfig
from lwm.model.transformer import Transformer, head_weights, hidden_states, logits
from lwm.weights.hugging_face import from_hugging_face

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def make_pair(num_kv_heads: int, tied: bool, rope_theta: float = 1e6):
    config = ModelConfig(
        Vocab(text_size=96), 64, 128, 3, 8, num_kv_heads, 8,
        rope_theta=rope_theta, rms_norm_eps=1e-5, tie_word_embeddings=tied, max_context=256,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=8,
            num_key_value_heads=num_kv_heads, max_position_embeddings=256, rms_norm_eps=1e-5, initializer_range=0.2,
            rope_parameters={"rope_type": "default", "rope_theta": rope_theta}, tie_word_embeddings=tied,
        )
    ).eval()  # fmt: skip
    return config, model


def state_of(model) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(("num_kv_heads", "tied"), [(8, False), (2, False), (2, True)])
def test_logits(num_kv_heads: int, tied: bool) -> None:
    config, model = make_pair(num_kv_heads, tied)
    tokens = np.random.default_rng(0).integers(0, 96, (2, 200), dtype=np.int32)
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens).long()).logits.numpy()

    @jax.jit
    def forward(params: Transformer, tokens: jax.Array, segment_ids: jax.Array, positions: jax.Array) -> jax.Array:
        hidden = hidden_states(params, tokens, segment_ids, positions, config, Compute(remat="none"))
        return logits(hidden, head_weights(params, config, Compute()))

    positions = np.broadcast_to(np.arange(200, dtype=np.int32), tokens.shape)
    got = forward(from_hugging_face(state_of(model), config), tokens, np.ones_like(tokens), positions)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(np.asarray(got), expected, atol=1e-4, rtol=0)


def test_a_state_that_is_not_this_model_is_refused() -> None:
    config, model = make_pair(2, tied=False)
    state = state_of(model)
    with pytest.raises(UserError, match=r"no tensor model\.norm\.weight"):
        from_hugging_face({name: array for name, array in state.items() if name != "model.norm.weight"}, config)
    with pytest.raises(UserError, match=r"k_proj.* has shape \(16, 64\) and should have \(64, 64\)"):
        from_hugging_face(state, make_pair(8, tied=False)[0])
    with pytest.raises(UserError, match=r"no place for: lm_head\.bias"):
        from_hugging_face({**state, "lm_head.bias": np.zeros(96)}, config)
