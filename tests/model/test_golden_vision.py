"""The original LWM's vision-language model, to rounding: logits, losses, gradients, four steps of its optimizer."""

import json
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.core.batch import Batch
from lwm.core.mesh import MeshShape, make_mesh
from lwm.core.vocab import Vocab
from lwm.infer import grammar
from lwm.infer.engine import Engine, State
from lwm.infer.sampling import FrameSampling
from lwm.model.config import Compute
from lwm.model.transformer import Transformer, declare, head_weights, hidden_states, logits
from lwm.train.optimizer import OptimizerConfig
from lwm.train.state import init_state
from lwm.train.step import accumulate, make_train_step

from .golden_lwm import CONFIG, GOLDEN, TEXT_SIZE, VOCAB, ids, parted, read


@pytest.fixture(scope="module")
def params() -> Transformer:
    return read("lwm_video_stream", CONFIG)


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
        state = init_state(declare(CONFIG), optimizer, mesh, jax.tree.map(jnp.array, params))
        step = make_train_step(CONFIG, Compute(), optimizer, mesh)
        for wanted in json.loads(str(training["metrics_json"])):
            state, metrics = step(state, batch)
            for name in ("loss", "text_loss", "vision_loss", "gradient_norm", "param_norm"):
                np.testing.assert_allclose(metrics[name], wanted[name], rtol=1e-4, err_msg=name)
    for name, ours in parted(state.params).items():
        # Adam steps by the sign of a gradient however small it is: a few numbers whose gradient is rounding may differ.
        differs = np.abs(sampled(ours) - training[f"params_after4/{name}"])
        assert np.quantile(differs, 0.98) < 1e-4 and differs.mean() < 2e-5, name


def prompt_rows(tokens: np.ndarray, vision_masks: np.ndarray, attention_mask: np.ndarray) -> list[list[int]]:
    """LWM's left-padded prompts as lists of our ids."""
    rows = zip(ids(tokens, vision_masks), attention_mask, strict=True)
    return [row[real == 1].tolist() for row, real in rows]


class LooseVocab(Vocab):
    """LWM draws spare ids too, which a trained model never does, and this one, whose weights are random, does."""

    def is_code(self, ids: jax.Array) -> jax.Array:
        return self.is_vision(ids)


@pytest.fixture(scope="module")
def engine(params: Transformer) -> Engine:
    mesh = make_mesh(MeshShape(fsdp=1), jax.devices()[:1])
    config = replace(CONFIG, vocab=LooseVocab(**asdict(VOCAB)))
    return Engine(jax.device_put(params, mesh.devices.item()), config, Compute(), mesh)


def in_frame(state: State) -> State:
    """LWM begins to draw where it is told to, whatever the prompt; so its tiny prompts do not open a frame."""
    progress = state.progress
    whole = jnp.full_like(progress.codes_left, VOCAB.tokens_per_frame)
    return replace(state, progress=replace(progress, inside=progress.inside | True, codes_left=whole))


@pytest.mark.parametrize("guidance", [1, 3])
def test_greedy_images_with_guidance(guidance: int, engine: Engine) -> None:
    stored = np.load(GOLDEN / "lwm_video_generation.npz")
    prompts = prompt_rows(stored["prompt"], np.zeros_like(stored["prompt"]), stored["attention_mask"])
    wanted = stored[f"greedy_cfg{guidance}"]
    wanted = wanted[:, : 1 + np.argmax(np.append(wanted[0], 2) == 2)]  # LWM took code 2 for the end of a text
    state = in_frame(engine.start(prompts, 512))
    drawn, _ = engine.decode(state, wanted.shape[1], frames=FrameSampling(count=4, guidance=(float(guidance),)))
    np.testing.assert_array_equal(np.array(drawn) - TEXT_SIZE, wanted)


def test_greedy_video_goes_on_from_its_first_frame(engine: Engine) -> None:
    stored = np.load(GOLDEN / "lwm_video_generation.npz")
    prompts = prompt_rows(*(stored[f"video/{name}"] for name in ("input_ids", "vision_masks", "attention_mask")))
    state = engine.start(prompts, 600)
    drawn, _ = engine.decode(state, 257, frames=FrameSampling(count=2, guidance=(2.0,)))
    np.testing.assert_array_equal(np.array(drawn) - TEXT_SIZE, stored["video/greedy_cfg2"])


def test_greedy_text_about_a_picture(engine: Engine) -> None:
    stored = np.load(GOLDEN / "lwm_video_generation.npz")
    prompts = prompt_rows(*(stored[f"chat/{name}"] for name in ("input_ids", "vision_masks", "attention_mask")))
    state = engine.start(prompts, 600)
    told = replace(state, progress=grammar.begin(len(state.lengths)))
    said, _ = engine.decode(told, 32)
    np.testing.assert_array_equal(said, stored["chat/greedy_text"])
