"""The original LWM's vision-language model, to rounding: logits, losses, gradients, four steps of its optimizer."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.core.batch import Batch
from lwm.core.mesh import MeshShape, make_mesh
from lwm.model.config import Compute
from lwm.model.transformer import Transformer, head_weights, hidden_states, logits
from lwm.train.optimizer import OptimizerConfig
from lwm.train.step import accumulate, init_state, make_train_step

from .golden_vision import CONFIG, GOLDEN, TEXT_SIZE, ids, joined, parted


@pytest.fixture(scope="module")
def params() -> Transformer:
    return joined(np.load(GOLDEN / "lwm_video_params.npz"))


@pytest.fixture(scope="module")
def training() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "lwm_video_train.npz"))


@pytest.mark.parametrize("packing", ["plain", "leftpad", "packed"])
@pytest.mark.parametrize("length", ["short", "long"])
def test_logits(length: str, packing: str, params: Transformer) -> None:
    stored = np.load(GOLDEN / "lwm_video_forward.npz")
    case = {name: stored[f"{length}_{packing}/{name}"] for name in ("input_ids", "vision_masks", "attention_mask")}
    segments, places, at = (
        stored[f"{length}_{packing}/{name}"] for name in ("segment_ids", "position_ids", "positions")
    )
    real = case["attention_mask"] > 0

    @jax.jit
    def forward(params: Transformer, tokens: jax.Array, segment_ids: jax.Array, positions: jax.Array) -> jax.Array:
        hidden = hidden_states(params, tokens, segment_ids, positions, CONFIG, Compute(remat="none"))
        return logits(hidden, head_weights(params, CONFIG, Compute()))

    tokens = ids(case["input_ids"], case["vision_masks"])
    got = np.asarray(forward(params, tokens, np.where(real, segments + 1, 0).astype(np.int32), places))[:, at]
    for name, part in (("text", got[..., :TEXT_SIZE]), ("vision", got[..., TEXT_SIZE::16])):
        wanted = stored[f"{length}_{packing}/{name}_logits"]
        np.testing.assert_allclose(part[real[:, at]], wanted[real[:, at]], atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def batch(training: dict[str, np.ndarray]) -> Batch:
    arrays = {name: training[f"batch/{name}"] for name in ("input_tokens", "target_tokens", "loss_masks")}
    shape = arrays["input_tokens"].shape
    vision = training["batch/target_vision_masks"]
    # LWM takes the mean of each row and modality, then of the rows.
    counts = [(arrays["loss_masks"] * part).sum(axis=1, keepdims=True) for part in (1 - vision, vision)]
    weights = arrays["loss_masks"] / np.where(vision > 0, counts[1], counts[0])
    return Batch(
        tokens=jnp.asarray(ids(arrays["input_tokens"], training["batch/input_vision_masks"])),
        targets=jnp.asarray(ids(arrays["target_tokens"], training["batch/target_vision_masks"])),
        loss_weights=jnp.asarray(weights, jnp.float32),
        segment_ids=jnp.ones(shape, jnp.int32),
        positions=jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape),
    )


def sampled(array: np.ndarray) -> np.ndarray:
    return array.ravel()[:: max(1, array.size // 512)]


def test_first_gradient(params: Transformer, batch: Batch, training: dict[str, np.ndarray]) -> None:
    gradient, _ = jax.jit(lambda params, batch: accumulate(params, batch, CONFIG, Compute(), 1))(params, batch)
    for name, ours in parted(gradient).items():
        wanted = training[f"grad0/{name}"]
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(sampled(ours), wanted, atol=1e-4 * scale, rtol=1e-4, err_msg=name)


def test_four_steps(params: Transformer, batch: Batch, training: dict[str, np.ndarray]) -> None:
    told = json.loads(str(training["optimizer_json"]))["adamw_optimizer"]
    optimizer = OptimizerConfig(
        learning_rate=told["lr"],
        end_learning_rate=told["end_lr"],
        schedule="cosine",
        warmup_steps=told["lr_warmup_steps"],
        decay_steps=told["lr_decay_steps"],
        b1=told["b1"],
        b2=told["b2"],
        weight_decay=told["weight_decay"],
        decay_norms=True,
        clip_norm=told["clip_gradient"],
    )
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        state = init_state(CONFIG, optimizer, mesh, jax.tree.map(jnp.array, params))
        step = make_train_step(CONFIG, Compute(), optimizer, mesh)
        for wanted in json.loads(str(training["metrics_json"])):
            state, metrics = step(state, batch)
            for name in ("loss", "text_loss", "vision_loss", "gradient_norm", "param_norm"):
                np.testing.assert_allclose(metrics[name], wanted[name], rtol=1e-4, err_msg=name)
    for name, ours in parted(state.params).items():
        # Adam steps by the sign of a gradient however small it is: a few numbers whose gradient is rounding may differ.
        differs = np.abs(sampled(ours) - training[f"params_after4/{name}"])
        assert np.quantile(differs, 0.98) < 1e-4 and differs.mean() < 2e-5, name
