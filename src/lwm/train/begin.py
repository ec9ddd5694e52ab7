"""The parameters a run begins with: fresh ones, another run's or model's, or a text model's that is to learn to see."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from lwm.core import params as declared
from lwm.core.errors import UserError
from lwm.data.tokenizer import has_tokenizer, load_tokenizer, tokenizer_file
from lwm.model.config import ModelConfig, text_only
from lwm.model.transformer import Transformer, declare
from lwm.train.base import CHECKPOINTS, MODEL, saved_steps
from lwm.train.checkpoint import Checkpoints
from lwm.train.run import Run, codec_of, features_of, one_file, require_beginning
from lwm.weights.codec_store import load_codec
from lwm.weights.load import EMBEDDED, load_model, locate, read_config


def starting_params(run: Run, mesh: Mesh) -> Transformer:
    """fp32 parameters on the mesh.

    A text model becomes one that sees by new rows for codes and marks in its embedding and head, and its answers to
    text stay what they were. LWM began its vision stages from its text model like this (paper, section 4). Its
    tokenizer may gain pieces in the same way.

    Raises:
        UserError: there is nothing to begin from, it has other shapes, or ids that mean other pieces of text.
    """
    require_beginning(run)
    key = jax.random.key(run.seed)
    if run.init_from is None:
        return declared.init_sharded(declare(run.model), key, jnp.float32, mesh)
    source = _resolved(run.init_from)
    earlier, vocab = _read_earlier(source), run.model.vocab
    _require_same_pieces(earlier, run)
    if earlier.sees or earlier.text_size > vocab.text_size or earlier.text_size == vocab.size:
        return _load(source, run.model, mesh)
    if run.lora.enabled:
        raise UserError(
            f"{run.init_from} has {earlier.text_size} ids and {run.name} {vocab.size}: adapters leave the embedding "
            "alone, and new ids would stay as they are drawn; train all of the model, with --lora.rank 0"
        )
    return _with_rows(_load(source, text_only(run.model, earlier.text_size), mesh), run, mesh, key)


def start_of(init_from: str) -> tuple[ModelConfig, str]:
    """The config of the model that a run starts from, and where its tokenizer is; empty where it has none.

    Raises:
        UserError: there is no model, nor a finished run.
    """
    finished = Path(init_from) / MODEL
    source = finished if init_from not in EMBEDDED and os.path.isdir(finished) else init_from
    if (directory := locate(source)).is_file():
        raise one_file(init_from)
    return read_config(source), str(directory) if has_tokenizer(directory) else ""


@dataclass(frozen=True)
class _Earlier:
    """What is to be known of the model to begin from, before it is read."""

    #: how many ids it has of text, and whether it has others
    text_size: int
    sees: bool
    #: where its tokenizer is and the digest of that file, where they are known
    tokenizer: str | None
    tokenizer_sha256: str | None


def _resolved(source: str) -> str | Path:
    """A run's checkpoints, else its finished model; a model's directory or name stays what it is."""
    checkpoints, model = Path(source) / CHECKPOINTS, Path(source) / MODEL
    if source in EMBEDDED:
        return source
    if has_checkpoints := bool(saved_steps(checkpoints)):
        with Checkpoints(checkpoints) as earlier:
            has_adapters = earlier.config().get("lora") is not None
        if not has_adapters:
            return checkpoints
    if os.path.isdir(model):
        return model
    if has_checkpoints:
        raise UserError(
            f"the run in {source} is not finished, and its checkpoints hold adapters alone: --resume it to its last "
            "step, which makes a model of them"
        )
    return source


def _is_checkpoints(source: str | Path) -> bool:
    return isinstance(source, Path) and source.name == CHECKPOINTS


def _read_earlier(source: str | Path) -> _Earlier:
    if _is_checkpoints(source):
        with Checkpoints(Path(source)) as earlier:
            stored = earlier.config()
        if "model" not in stored:
            raise UserError(f"the run in {Path(source).parent} is not of a model of texts: begin from another")
        vocab, finished = stored["model"]["vocab"], Path(source).with_name(MODEL)
        tokenizer = str(finished) if has_tokenizer(finished) else stored["tokenizer"]
        return _Earlier(vocab["text_size"], vocab["vision_size"] > 0, tokenizer, stored.get("tokenizer_sha256"))
    known, directory = read_config(source).vocab, locate(source)
    if not has_tokenizer(directory):
        return _Earlier(known.text_size, known.vision_size > 0, None, None)
    return _Earlier(known.text_size, known.vision_size > 0, str(directory), _digest(str(directory)))


def _digest(tokenizer: str) -> str:
    return hashlib.sha256(tokenizer_file(tokenizer).read_bytes()).hexdigest()


def _require_same_pieces(earlier: _Earlier, run: Run) -> None:
    """A run's tokenizer must have the earlier one's pieces where they were, or every row would mean another.

    It may have more. What two files of one tokenizer may differ in is let pass: special tokens, of which one may make a
    text and the other none, and spaces at the ends.
    """
    gains_pieces = not earlier.sees and earlier.text_size < run.model.vocab.text_size
    if earlier.tokenizer is None:
        if not gains_pieces:
            return
        raise UserError(
            f"a model of {earlier.text_size} text ids and no tokenizer cannot be given the pieces of {run.tokenizer}: "
            "nothing tells whether its own are among them"
        )
    if earlier.tokenizer_sha256 == _digest(run.tokenizer):
        return
    if not gains_pieces and not os.path.exists(earlier.tokenizer):
        return  # a run's, whose tokenizer has moved since
    before, now = load_tokenizer(earlier.tokenizer), load_tokenizer(run.tokenizer)
    for piece in range(min(before.size, now.size)):
        was, is_now = before.decode([piece]), now.decode([piece])
        if was.strip() and is_now.strip() and was.strip() != is_now.strip():
            raise UserError(
                f"the tokenizer {run.tokenizer} is not that of the model to begin from, {earlier.tokenizer}, nor that "
                f"one with more pieces: id {piece} is {is_now!r} and was {was!r}; name that of the model with "
                "--tokenizer"
            )


def _load(source: str | Path, config: ModelConfig, mesh: Mesh) -> Transformer:
    target = declared.abstract(declare(config), jnp.float32, mesh)
    if _is_checkpoints(source):
        with Checkpoints(Path(source)) as earlier:
            return earlier.restore_params(target)
    params = load_model(source, mesh, "float32").params
    shapes = declared.shapes_by_name(params)
    declared.require_same_shapes(str(source), shapes, "this run", declared.shapes_by_name(target))
    return params


def _with_rows(params: Transformer, run: Run, mesh: Mesh, key: Key[Array, ""]) -> Transformer:
    """The same model with more rows, alike to those it has: all of them share what trained ones have in common.

    Attention may rely on that. An untied head has rows of its own, or each new id would begin by asking for itself.
    """
    vectors = features_of(run)
    if vectors is None and run.model.vocab.vision_size and (directory := codec_of(run)) is not None:
        vectors = load_codec(directory, mesh).vectors()
    num_pieces = run.model.vocab.size - run.model.vocab.vision_size - params.embedding.shape[0]
    own = [_new_rows(run.model, num_pieces, vectors, jax.random.fold_in(key, place)) for place in range(2)]

    def longer(table: Float[Array, "earlier D"], rows: Float[Array, "new D"]) -> Float[Array, "V D"]:
        return jnp.concatenate([table, table.mean(0) + table.std(0) * rows])

    def grow(params: Transformer, own: list[Float[Array, "new D"]]) -> Transformer:
        head = None if params.head is None else longer(params.head.T, own[1]).T
        return Transformer(longer(params.embedding, own[0]), params.layers, params.final_norm, head)

    return jax.jit(grow, out_shardings=declared.shardings(declare(run.model), mesh))(params, own)


def _new_rows(
    config: ModelConfig, num_pieces: int, vectors: Float[np.ndarray, "codes C"] | None, key: Key[Array, ""]
) -> Float[np.ndarray, "new D"]:
    """Rows of new text pieces, of codes and of marks, of mean 0 and variance 1.

    Codes that look alike begin alike: what is said of them, by features or by a codec (`vectors`), is turned into the
    width of the model. A small model learned to draw nearly twice as fast by it (docs/log.md). Other rows, and all
    where nothing is known, are random.
    """
    width = config.hidden_size
    turn, *drawn = jax.random.split(key, 3)
    pieces, vision = (
        np.asarray(jax.random.normal(own, (count, width)))
        for own, count in zip(drawn, (num_pieces, config.vocab.vision_size), strict=True)
    )
    if vectors is not None:
        turned = np.asarray(jax.random.orthogonal(turn, max(width, vectors.shape[1])))[: vectors.shape[1], :width]
        codes = (vectors - vectors.mean(0)) @ turned
        vision = np.concatenate([codes / codes.std(), vision[config.vocab.num_codes :]])
    return np.concatenate([pieces, vision])
