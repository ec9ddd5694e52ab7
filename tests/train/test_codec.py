"""A codec learns, goes on exactly where it was, and leaves a directory that works; idle codes come back to life."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lwm.core import params as declared
from lwm.core.errors import UserError
from lwm.core.mesh import MeshShape, make_mesh
from lwm.presets import preset
from lwm.train.codec import train_codec
from lwm.train.codec_run import CodecRun, ReconstructionLoss
from lwm.train.codec_step import Pictures, make_revival, objective, reconstruct
from lwm.train.optimizer import OptimizerConfig
from lwm.train.state import init_state
from lwm.vqgan.codec import declare
from lwm.vqgan.config import CodecConfig, PatchCodecConfig, VQGANConfig
from lwm.vqgan.quantize import Codebook, Levels
from lwm.weights.codec_store import load_codec

PATCH = PatchCodecConfig(
    resolution=16, encoder_width=32, decoder_width=16, fine_widths=(8, 8), quantizer=Levels((8, 8, 8))
)
VQGAN = VQGANConfig(
    resolution=16,
    hidden_channels=8,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    z_channels=4,
    quantizer=Codebook(64, 4),
    norm_groups=4,
)


@dataclass(frozen=True)
class Blobs:
    """A bright square on a dark ground."""

    seed: int = 0

    def open(self, resolution: int) -> "Blobs":
        return self

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((self.seed, place))
        frame = np.full((16, 16, 3), rng.integers(60, size=3), np.uint8)
        x, y = rng.integers(11, size=2)
        frame[y : y + 6, x : x + 6] = rng.integers(150, 256, size=3)
        return frame, np.ones((16, 16), np.float32)


def run_of(codec: CodecConfig, out: Path, **fields: object) -> CodecRun:
    settings: dict = {
        "name": "blobs",
        "codec": codec,
        "data": Blobs(),
        "held_out": Blobs(seed=1),
        "steps": 60,
        "batch_size": 8,
        "optimizer": OptimizerConfig(learning_rate=3e-3, warmup_steps=5),
        "held_out_batches": 2,
        "eval_every": 30,
        "checkpoint_every": 30,
        "revive_every": 10,
        "out": out,
    }
    return CodecRun(**settings | fields)


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("codec", [PATCH, pytest.param(VQGAN, marks=pytest.mark.slow)], ids=["patch", "vqgan"])
def test_a_codec_learns_and_its_directory_works(tmp_path, codec):
    run = run_of(codec, tmp_path / "run", warm_start=0.3)
    result = train_codec(run)
    assert (result.step, result.stopped_by) == (60, None)
    first, last = (line for line in lines(run.out) if "held_out_psnr" in line)
    assert last["held_out_psnr"] > first["held_out_psnr"] > 5
    assert 1 < last["held_out_code_perplexity"] <= codec.quantizer.num_codes
    with Image.open(run.out / "samples" / "000060.png") as samples:
        assert samples.width >= 8 * 16
    loaded = load_codec(run.out / "model", make_mesh(MeshShape(), jax.devices()[:1]))
    frames = np.stack([Blobs(seed=2)[place][0] for place in range(16)])
    again = loaded.decode(loaded.encode(frames))
    psnr = -10 * np.log10(np.mean(np.square((again.astype(float) - frames) / 255)))
    assert psnr > first["held_out_psnr"]


@pytest.mark.slow
def test_a_codec_of_files(tmp_path):
    media, rng = tmp_path / "media", np.random.default_rng(0)
    media.mkdir()
    for number in range(12):
        Image.fromarray(rng.integers(256, size=(20, 24, 3), dtype=np.uint8)).save(media / f"{number:02d}.png")
    run = preset("vqgan")
    data, held_out = (replace(part, path=str(media)) for part in (run.data, run.held_out))
    sizes = {"steps": 2, "batch_size": 8, "eval_every": 2, "held_out_batches": 1, "out": tmp_path / "run"}
    train_codec(replace(run, codec=VQGAN, data=data, held_out=held_out, **sizes))
    assert (tmp_path / "run" / "samples" / "000002.png").exists()
    assert load_codec(tmp_path / "run" / "model", make_mesh(MeshShape(1, 1, 1, 1), jax.devices()[:1])).config == VQGAN


@pytest.mark.slow
def test_resuming_gives_the_same_bits(tmp_path):
    straight = run_of(VQGAN, tmp_path / "straight", steps=40, revive_every=5, eval_every=20, checkpoint_every=20)
    train_codec(straight)
    halves = replace(straight, out=tmp_path / "halves")
    train_codec(halves)
    (halves.out / "checkpoints" / "40").rename(tmp_path / "later")  # as if it had stopped before
    train_codec(halves, resume=True)
    one, two = (load_codec(run.out / "model", make_mesh(MeshShape())) for run in (straight, halves))
    jax.tree.map(np.testing.assert_array_equal, one._params, two._params)
    with pytest.raises(UserError, match=r"another codec\.hidden_channels"):
        train_codec(replace(halves, codec=replace(VQGAN, hidden_channels=16)), resume=True)


def test_idle_codes_come_back_to_life(tmp_path):
    run, mesh = run_of(VQGAN, tmp_path), make_mesh(MeshShape(), jax.devices()[:1])
    declaration = declare(VQGAN)
    params = declared.init_sharded(declaration, jax.random.key(0), jnp.float32, mesh)
    far = np.array(params.codebook.at[1:].add(100.0))
    with jax.set_mesh(mesh):
        state = init_state(declaration, run.optimizer, mesh, replace(params, codebook=jnp.array(far)))
        frames = jnp.stack([Blobs()[place][0] for place in range(32)])
        batch = Pictures(frames, jnp.ones(frames.shape[:3]))
        before = reconstruct(state.params, frames, VQGAN).codes
        after = make_revival(run)(state, [batch], jax.random.key(1))
        codes = reconstruct(after.params, frames, VQGAN).codes
    assert len(np.unique(before)) == 1
    assert len(np.unique(codes)) > 20
    np.testing.assert_array_equal(after.params.codebook[0], far[0])  # the one in use stays


def test_what_the_loss_weighs():
    frames = jnp.zeros((1, 16, 16, 3), jnp.uint8)
    params = declared.init(declare(PATCH), jax.random.key(0), jnp.float32)
    made = reconstruct(params, frames, PATCH)
    made = made._replace(pixels=jnp.full_like(made.pixels, -1).at[0, 3, 4].set(0.0))
    weights = jnp.ones((1, 16, 16)).at[0, 3, 4].set(5.0)
    for loss, expected in (
        (ReconstructionLoss(l2=0.0), 5 / 256),
        (ReconstructionLoss(l1=0.0), 5 / 256),
        (ReconstructionLoss(l1=0.0, l2=0.0, edges=1.0), 4 / 240),
    ):
        total, metrics = objective(made, Pictures(frames, weights), loss)
        np.testing.assert_allclose(total, expected, rtol=1e-6)
        np.testing.assert_allclose(metrics["psnr"], -10 * np.log10(0.25 / 256), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warm_start": 1.0}, "warm_start"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch_size": 9}, "not divisible by dp x fsdp = 8"),
    ],
)
def test_what_cannot_work_is_refused_and_nothing_is_left(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        train_codec(run_of(PATCH, tmp_path / "run", **change))
    assert not (tmp_path / "run").exists()
