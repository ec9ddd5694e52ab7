"""A codec's training, from its first check to the finished `codec.json` and `codec.safetensors`."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from lwm.core import params as declared
from lwm.core.errors import UserError
from lwm.core.files import whole
from lwm.core.mesh import make_mesh, sharding
from lwm.data.loader import require_same
from lwm.train.base import open_directory, require_directory
from lwm.train.checkpoint import Checkpoints
from lwm.train.codec_run import CodecRun, FrameSource, require_codec_runnable
from lwm.train.codec_step import Pictures, make_codec_evaluation, make_codec_step, make_revival
from lwm.train.metrics import import_wandb
from lwm.train.state import TrainState, abstract_state, init_state
from lwm.train.steps import Fed, Moment, TrainResult, TrainStep, Values, as_values, make_hooks, open_sinks, take_steps
from lwm.vqgan.codec import declare
from lwm.vqgan.quantize import Codebook
from lwm.weights.codec_store import save_codec

#: columns of the picture of samples, each an original over its reconstruction
SAMPLES = 8
#: batches whose vectors idle entries of a codebook may be moved to
REVIVAL_BATCHES = 32


def train_codec(run: CodecRun, resume: bool = False) -> TrainResult:
    """Train from fresh weights or (`resume`) from the run's last checkpoint, to the last step.

    Raises:
        UserError: something does not fit together; pictures that cannot be read; a loss that is not finite.
    """
    if run.wandb:
        import_wandb()
    mesh = make_mesh(run.mesh)
    with jax.set_mesh(mesh):
        require_codec_runnable(run)
        require_directory(run, resume)
        if run.finished.exists() and not run.finished.is_dir():
            raise UserError(f"cannot write the codec to {run.finished}: it is a file; choose another --out")
        resolution = run.codec.resolution
        evaluate = _make_evaluation(run, run.held_out.open(resolution), mesh)
        with PictureFeed(run, run.data.open(resolution), mesh) as feed:
            begin = _resumed(run, feed, mesh) if resume else _started(run, feed, mesh)
            open_directory(run)
            with (
                Checkpoints(run.checkpoints, run.keep_checkpoints) as checkpoints,
                open_sinks(run, begin.step) as sinks,
            ):
                hooks = make_hooks(run, evaluate, sinks, checkpoints)
                end, stopped_by = take_steps(run, begin, feed, _make_step(run, feed, mesh), hooks, checkpoints)
        if stopped_by is None and jax.process_index() == 0:
            save_codec(run.finished, run.codec, end.state.params, run.save_dtype)
    return TrainResult(run.out, end.step, end.metrics, stopped_by)


def _started(run: CodecRun, feed: "PictureFeed", mesh: Mesh) -> Moment:
    declaration = declare(run.codec)
    params = declared.init_sharded(declaration, jax.random.key(run.seed), jnp.float32, mesh)
    state = init_state(declaration, run.optimizer.ending_at(run.steps), mesh, params)
    return Moment(0, state, {}, feed.get_state())


def _resumed(run: CodecRun, feed: "PictureFeed", mesh: Mesh) -> Moment:
    with Checkpoints(run.checkpoints) as earlier:
        target = abstract_state(declare(run.codec), run.optimizer.ending_at(run.steps), mesh)
        state, loader_state = earlier.restore(target)
    feed.set_state(loader_state)
    return Moment(int(state.step), state, {}, loader_state)


class PictureFeed:
    """Batches of pictures drawn by lot, each a function of seed and step; the next is made while one is used."""

    def __init__(self, run: CodecRun, source: FrameSource, mesh: Mesh) -> None:
        self._source, self._shape, self._seed = source, (run.batch_size, run.codec.resolution), run.seed
        self._placed = sharding(mesh, "batch")
        self._worker = ThreadPoolExecutor(1)
        self._begin(0)

    def __enter__(self) -> "PictureFeed":
        return self

    def __exit__(self, *error: object) -> None:
        self._worker.shutdown(cancel_futures=True)

    def _begin(self, step: int) -> None:
        self._step = step
        self._ahead: Future[tuple[np.ndarray, ...]] | None = None

    def _draw(self, step: int) -> tuple[np.ndarray, ...]:
        places = np.random.default_rng((self._seed, step)).integers(len(self._source), size=self._shape[0])
        frames, weights = zip(*(self._source[int(place)] for place in places), strict=True)
        return places, np.stack(frames), np.stack(weights)

    def next(self) -> Fed:
        """The next batch.

        Raises:
            UserError: a picture cannot be read.
        """
        ready = self._ahead or self._worker.submit(self._draw, self._step)
        places, frames, weights = ready.result()
        self._begin(self._step + 1)
        self._ahead = self._worker.submit(self._draw, self._step)
        return Fed(self.place(frames, weights), {"0": [str(place) for place in places]}, self.get_state())

    def place(self, frames: np.ndarray, weights: np.ndarray) -> Pictures:
        """Shared out over the devices."""
        return Pictures(jax.device_put(frames, self._placed), jax.device_put(weights, self._placed))

    def batch_of(self, step: int) -> Pictures:
        """Any step's batch."""
        _, frames, weights = self._draw(step)
        return self.place(frames, weights)

    def get_state(self) -> dict[str, Any]:
        """The step it stands at, in the form of a loader's state."""
        return {"identity": self._identity(), "sequences": {"pictures": self._step}}

    def _identity(self) -> dict[str, Any]:
        return {"seed": self._seed, "batch_size": self._shape[0], "pictures": len(self._source)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            UserError: it was of other pictures or settings.
        """
        require_same(state["identity"], self._identity())
        self._begin(int(state["sequences"]["pictures"]))


def _make_step(run: CodecRun, feed: PictureFeed, mesh: Mesh) -> TrainStep:
    """The step, and every so many of them the revival of idle codes; a function of state and step alone."""
    step = make_codec_step(run, mesh)
    if not run.revive_every or not isinstance(run.codec.quantizer, Codebook):
        return step
    revive = make_revival(run)

    def step_and_revive(state: TrainState, batch: Pictures) -> tuple[TrainState, Any]:
        state, metrics = step(state, batch)
        taken = int(state.step)
        due = taken == 1 or (taken % run.revive_every == 0 and taken < run.steps // 2)
        if bool(metrics["finite"]) and due:
            pool = (feed.batch_of(taken + ahead) for ahead in range(REVIVAL_BATCHES))
            state = revive(state, pool, jax.random.fold_in(jax.random.key(run.seed), taken))
        return state, metrics

    return step_and_revive


def _make_evaluation(run: CodecRun, source: FrameSource, mesh: Mesh) -> Callable[[Moment], Values]:
    """Means over the same held-out batches each time; the first pictures go into `samples/STEP.png`."""
    evaluate = make_codec_evaluation(run)
    feed = PictureFeed(run, source, mesh)

    def measure(moment: Moment) -> Values:
        totals: Values = {}
        for number in range(run.held_out_batches):
            batch = feed.batch_of(number)
            metrics, frames = evaluate(moment.state.params, batch)
            for name, value in as_values(metrics).items():
                totals[name] = totals.get(name, 0.0) + value / run.held_out_batches
            if number == 0 and jax.process_index() == 0:
                save_samples(
                    run.out / "samples" / f"{moment.step:06}.png", np.asarray(batch.frames), np.asarray(frames)
                )
        return {f"held_out_{name}": value for name, value in totals.items()}

    return measure


def save_samples(path: Path, originals: np.ndarray, reconstructions: np.ndarray) -> None:
    """A picture of pictures: each original over its reconstruction, `SAMPLES` in a row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns, rows = min(len(originals), SAMPLES), []
    for start in range(0, min(len(originals), 4 * SAMPLES) // columns * columns, columns):
        rows += [np.concatenate(list(frames[start : start + columns]), 1) for frames in (originals, reconstructions)]
    grid = Image.fromarray(np.concatenate(rows))
    scale = max(1, 1024 // grid.width)
    with whole(path) as scratch:
        grid.resize((grid.width * scale, grid.height * scale), Image.Resampling.NEAREST).save(scratch, "png")
