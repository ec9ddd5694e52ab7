"""The parameters a run begins with: fresh ones, another run's or model's, or a text model's that is to learn to see."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from lwm.core import params as declared
from lwm.core.vocab import Vocab
from lwm.model.config import ModelConfig, text_only
from lwm.model.transformer import Transformer, declare
from lwm.train.base import saved_steps
from lwm.train.checkpoint import Checkpoints
from lwm.train.run import Run, require_beginning
from lwm.weights.store import EMBEDDED, load_model, read_config


def starting_params(run: Run, mesh: Mesh) -> Transformer:
    """fp32 parameters on the mesh.

    A text model becomes one that sees by new rows for codes and marks in its embedding and head; its answers to text
    stay what they were. LWM began its vision stages from its text model like this (paper, section 4).

    Raises:
        UserError: there is nothing to begin from, or it has other shapes.
    """
    require_beginning(run)
    key = jax.random.key(run.seed)
    if run.init_from is None:
        return declared.init_sharded(declare(run.model), key, jnp.float32, mesh)
    source = _resolved(run.init_from)
    vocab = run.model.vocab
    if vocab.vision_size and _num_ids(source) == vocab.text_size:
        return _with_vision(_load(source, text_only(run.model), mesh), run.model, mesh, key)
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


def _num_ids(source: str | Path) -> int:
    """Rows of its embedding."""
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


def _with_vision(params: Transformer, config: ModelConfig, mesh: Mesh, key: Key[Array, ""]) -> Transformer:
    """The same model with rows for codes and marks, drawn alike to those of text: each feature has its mean and spread.

    Fresh rows would lack what all trained ones share, which attention may rely on.
    """
    declaration = declare(config)

    def grow(params: Transformer) -> Transformer:
        embedding = _with_rows(params.embedding, config.vocab, key)
        head = None if params.head is None else _with_rows(params.head.T, config.vocab, jax.random.fold_in(key, 1)).T
        return Transformer(embedding, params.layers, params.final_norm, head)

    return jax.jit(grow, out_shardings=declared.shardings(declaration, mesh))(params)


def _with_rows(table: Float[Array, "text D"], vocab: Vocab, key: Key[Array, ""]) -> Float[Array, "V D"]:
    drawn = jax.random.normal(key, (vocab.vision_size, table.shape[1]), table.dtype)
    return jnp.concatenate([table, table.mean(0) + table.std(0) * drawn])
