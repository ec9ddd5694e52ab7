"""One step of a codec's training, its evaluation, and new life for idle entries of a codebook."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8

from lwm.core.mesh import sharding
from lwm.train.codec_run import CodecRun, ReconstructionLoss
from lwm.train.state import Metrics, TrainState, abstract_state, make_update, shardings_of
from lwm.vqgan.codec import architecture, declare, to_frames, to_pixels
from lwm.vqgan.config import CodecConfig
from lwm.vqgan.quantize import codes_of, quantize, vectors_of


class Pictures(NamedTuple):
    """A batch: frames, and how much each pixel counts."""

    frames: UInt8[Array, "N side side 3"]
    weights: Float[Array, "N side side"]


class Reconstruction(NamedTuple):
    """What a codec makes of a batch."""

    pixels: Float[Array, "N side side 3"]
    codes: Int[Array, "N rows columns"]
    codebook_error: Float[Array, ""]
    commitment_error: Float[Array, ""]


def reconstruct(params: Any, frames: Array, config: CodecConfig, share: float | Array = 1.0) -> Reconstruction:
    """There and back; `share` is how far the vectors are moved to their codes."""
    coder = architecture(config)
    vectors, codes, *errors = quantize(
        coder.encode(params, to_pixels(frames), config), params.codebook, config.quantizer, share
    )
    return Reconstruction(coder.decode(params, vectors, config), codes, *errors)


def objective(made: Reconstruction, batch: Pictures, loss: ReconstructionLoss) -> tuple[Float[Array, ""], Metrics]:
    """The weighted sum of all errors, and the peak signal-to-noise ratio of the clipped pictures in decibels."""
    wanted, weights = to_pixels(batch.frames), batch.weights[..., None]
    difference = made.pixels - wanted
    total = loss.codebook * made.codebook_error + loss.commitment * made.commitment_error
    total += (weights * (loss.l1 * jnp.abs(difference) + loss.l2 * jnp.square(difference))).mean()
    if loss.edges:
        across, down = (jnp.abs(jnp.diff(difference, axis=axis)).mean() for axis in (2, 1))
        total += loss.edges * (across + down)
    squared = jnp.square((jnp.clip(made.pixels, -1, 1) - wanted) / 2).mean()
    return total, {"loss": total, "psnr": -10 * jnp.log10(jnp.maximum(squared, 1e-10))}


def make_codec_step(run: CodecRun, mesh: Mesh) -> Callable[[TrainState, Pictures], tuple[TrainState, Metrics]]:
    """The jitted step; it consumes (donates) the state it is given."""
    declaration, optimizer = declare(run.codec), run.optimizer.ending_at(run.steps)
    update = make_update(declaration, optimizer)

    def step(state: TrainState, batch: Pictures) -> tuple[TrainState, Metrics]:
        def error(params: Any) -> tuple[Float[Array, ""], Metrics]:
            share = _quantized_share(state.step, run)
            return objective(reconstruct(params, batch.frames, run.codec, share), batch, run.loss)

        gradients, metrics = jax.grad(error, has_aux=True)(state.params)
        new, updated = update(state, gradients, metrics["loss"])
        tokens = jnp.int32(len(batch.frames) * run.codec.tokens_per_frame)
        return new, metrics | updated | {"tokens": tokens}

    placed = shardings_of(abstract_state(declaration, optimizer, mesh))
    return jax.jit(step, donate_argnums=0, out_shardings=(placed, sharding(mesh)))


def _quantized_share(step: Int[Array, ""], run: CodecRun) -> Float[Array, ""]:
    if not run.warm_start:
        return jnp.float32(1)
    return jnp.minimum(step.astype(jnp.float32) / (run.warm_start * run.steps), 1)


def make_codec_evaluation(run: CodecRun) -> Callable[[Any, Pictures], tuple[Metrics, UInt8[Array, "N side side 3"]]]:
    """The jitted errors of a batch, how many codes it takes as if all came equally often, and its reconstruction."""

    def evaluate(params: Any, batch: Pictures) -> tuple[Metrics, Array]:
        made = reconstruct(params, batch.frames, run.codec)
        _, metrics = objective(made, batch, run.loss)
        share = jnp.bincount(made.codes.ravel(), length=run.codec.quantizer.num_codes) / made.codes.size
        entropy = -jnp.where(share > 0, share * jnp.log(jnp.maximum(share, 1e-10)), 0).sum()
        return metrics | {"code_perplexity": jnp.exp(entropy)}, to_frames(made.pixels)

    return jax.jit(evaluate)


def make_revival(run: CodecRun) -> Callable[[TrainState, Iterable[Pictures], jax.Array], TrainState]:
    """Moves the entries of a codebook that no vector of some batches is nearest to onto vectors of those batches.

    They are drawn by the square of their distance from what stands for them now (k-means++, Arthur & Vassilvitskii
    2007): drawn alike, most would fall on the ground, of which there is enough already.
    """

    @jax.jit
    def look(params: Any, batch: Pictures) -> tuple[Array, Array, Array]:
        """The vectors of a batch, the square of what each is missed by, and which entries are used."""
        vectors = architecture(run.codec).encode(params, to_pixels(batch.frames), run.codec)
        codes = codes_of(vectors, params.codebook, run.codec.quantizer)
        missed = jnp.square(vectors - vectors_of(codes, params.codebook, run.codec.quantizer)).sum(-1)
        used = jnp.zeros(len(params.codebook), bool).at[codes.ravel()].set(True)
        return vectors.reshape(-1, vectors.shape[-1]), missed.ravel(), used

    @partial(jax.jit, donate_argnums=0)
    def move(state: TrainState, vectors: Array, missed: Array, used: Array, key: jax.Array) -> TrainState:
        params = state.params
        shares = missed / jnp.maximum(missed.sum(), 1e-30)
        drawn = jax.random.choice(key, vectors, (len(params.codebook),), p=shares)
        codebook = jnp.where(used[:, None], params.codebook, drawn)
        return replace(state, params=replace(params, codebook=codebook))

    def revive(state: TrainState, batches: Iterable[Pictures], key: jax.Array) -> TrainState:
        vectors, missed, used = zip(*(look(state.params, batch) for batch in batches), strict=True)
        return move(state, jnp.concatenate(vectors), jnp.concatenate(missed), jnp.stack(used).any(0), key)

    return revive
