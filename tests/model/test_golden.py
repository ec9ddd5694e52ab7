"""The original LWM's logits and greedy tokens, to rounding, at three rotary bases."""

import jax
import numpy as np
import pytest

from lwm.core.mesh import MeshShape, make_mesh
from lwm.core.vocab import Vocab
from lwm.infer.engine import Engine
from lwm.model.config import Compute, ModelConfig
from lwm.model.transformer import Transformer, head_weights, hidden_states, logits

from .golden_lwm import GOLDEN, read

THETAS = (10_000, 1_000_000, 50_000_000)


def config(theta: int) -> ModelConfig:
    return ModelConfig(Vocab(text_size=512), 64, 160, 2, 4, 4, 16, rope_theta=float(theta), max_context=1024)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "lwm_text_forward.npz"))


@pytest.fixture(scope="module")
def params() -> Transformer:
    return read("lwm_text_stream", config(THETAS[0]))


@pytest.mark.parametrize("theta", THETAS)
@pytest.mark.parametrize("length", ["short", "long"])
def test_logits(length: str, theta: int, params: Transformer, golden: dict[str, np.ndarray]) -> None:
    tokens = golden[f"{length}/input_ids"]
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)

    @jax.jit
    def forward(params: Transformer, tokens: jax.Array, segment_ids: jax.Array, positions: jax.Array) -> jax.Array:
        compute = Compute(remat="none")
        hidden = hidden_states(params, tokens, segment_ids, positions, config(theta), compute)
        return logits(hidden, head_weights(params, config(theta), compute))

    got = np.asarray(forward(params, tokens, np.ones_like(tokens), positions))[:, golden[f"{length}/positions"]]
    np.testing.assert_allclose(got[..., ::4], golden[f"{theta}/{length}/logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("theta", THETAS)
def test_greedy_tokens(theta: int, params: Transformer, golden: dict[str, np.ndarray]) -> None:
    mesh = make_mesh(MeshShape(fsdp=1), jax.devices()[:1])
    engine = Engine(jax.device_put(params, mesh.devices.item()), config(theta), Compute(), mesh)
    rows = zip(golden["short/input_ids"], golden["greedy/attention_mask"], strict=True)
    prompts = [ids[mask == 1].tolist() for ids, mask in rows]
    expected = golden[f"{theta}/greedy/tokens"]
    np.testing.assert_array_equal(engine.generate(prompts, expected.shape[1]), expected)
