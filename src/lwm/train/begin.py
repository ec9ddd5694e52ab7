"""The parameters a run begins with: fresh ones, another run's or model's, or a text model's that is to learn to see."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from lwm.core import params as declared
from lwm.model.config import ModelConfig, text_only
from lwm.model.transformer import Transformer, declare
from lwm.train.base import saved_steps
from lwm.train.checkpoint import Checkpoints
from lwm.train.run import Run, codec_of, require_beginning
from lwm.weights.codec_store import load_codec
from lwm.weights.store import EMBEDDED, load_model, read_config


def starting_params(run: Run, mesh: Mesh) -> Transformer:
    """fp32 parameters on the mesh.

    A text model becomes one that sees by new rows for codes and marks in its embedding and head, and its answers to
    text stay what they were. LWM began its vision stages from its text model like this (paper, section 4). Its text
    may gain pieces in the same way.

    Raises:
        UserError: there is nothing to begin from, or it has other shapes.
    """
    require_beginning(run)
    key = jax.random.key(run.seed)
    if run.init_from is None:
        return declared.init_sharded(declare(run.model), key, jnp.float32, mesh)
    source = _resolved(run.init_from)
    vocab = run.model.vocab
    if vocab.vision_size and (earlier := _text_ids(source)) <= vocab.text_size:
        before = _load(source, text_only(run.model, earlier), mesh)
        return _with_rows(before, run.model, mesh, _new_rows(run, mesh, vocab.text_size - earlier, key))
    return _load(source, run.model, mesh)


def _resolved(source: str) -> str | Path:
    """A run's checkpoints, else its finished model; a model's directory or name stays what it is."""
    if source not in EMBEDDED:
        for name in ("checkpoints", "model"):
            directory = Path(source) / name
            if saved_steps(directory) if name == "checkpoints" else os.path.isdir(directory):
                return directory
    return source


def _is_checkpoints(source: str | Path) -> bool:
    return isinstance(source, Path) and source.name == "checkpoints"


def _text_ids(source: str | Path) -> int:
    """Rows of its embedding: all of them are text where no more than that are expected."""
    if not _is_checkpoints(source):
        return read_config(source).vocab.size
    with Checkpoints(Path(source)) as earlier:
        return earlier.shapes().get("embedding", (0,))[0]


def _load(source: str | Path, config: ModelConfig, mesh: Mesh) -> Transformer:
    target = declared.abstract(declare(config), jnp.float32, mesh)
    if _is_checkpoints(source):
        with Checkpoints(Path(source)) as earlier:
            return earlier.restore_params(target)
    params = load_model(source, mesh, "float32").params
    shapes = declared.shapes_by_name(params)
    declared.require_same_shapes(str(source), shapes, "this run", declared.shapes_by_name(target))
    return params


def _new_rows(run: Run, mesh: Mesh, num_pieces: int, key: Key[Array, ""]) -> Float[np.ndarray, "new D"]:
    """Rows of new text pieces, of codes and of marks, every feature of mean 0 and variance 1.

    Codes that look alike begin alike: what a codec says of them is turned into the width of the model. A small model
    learned to draw nearly twice as fast by it (docs/log.md). Other rows, and all where no codec is known, are random.
    """
    vocab, width = run.model.vocab, run.model.hidden_size
    turn, *drawn = jax.random.split(key, 3)
    pieces, vision = (
        np.asarray(jax.random.normal(own, (count, width)))
        for own, count in zip(drawn, (num_pieces, vocab.vision_size), strict=True)
    )
    if (directory := codec_of(run)) is not None:
        vectors = load_codec(directory, mesh).vectors()
        vectors = vectors - vectors.mean(0)
        turned = (
            vectors @ np.asarray(jax.random.orthogonal(turn, max(width, vectors.shape[1])))[: vectors.shape[1], :width]
        )
        vision = np.concatenate([turned / turned.std(), vision[vocab.num_codes :]])
    return np.concatenate([pieces, vision])


def _with_rows(params: Transformer, config: ModelConfig, mesh: Mesh, rows: Float[np.ndarray, "new D"]) -> Transformer:
    """The same model with more rows, alike to those it has: each feature gets their mean and spread.

    They would else lack what all trained ones share, which attention may rely on.
    """

    def longer(table: Float[Array, "earlier D"]) -> Float[Array, "V D"]:
        return jnp.concatenate([table, table.mean(0) + table.std(0) * rows])

    def grow(params: Transformer) -> Transformer:
        head = None if params.head is None else longer(params.head.T).T
        return Transformer(longer(params.embedding), params.layers, params.final_norm, head)

    return jax.jit(grow, out_shardings=declared.shardings(declare(config), mesh))(params)
