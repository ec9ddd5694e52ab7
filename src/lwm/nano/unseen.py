"""Rows of codes that training never showed, put together from what the codes show.

Some pairs of shape and colour are kept from the model. Their codes are never a target, so every step of training pushes
them away from whatever is asked: a purple circle is drawn in a colour that circles were seen in. What the codes show
(`nano/shown.py`) says what their rows would be: the rows of all other codes, fitted as sums of features, are carried
over to the codes that were hardly ever seen.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int
from pyarrow import parquet

from lwm.core.mesh import MeshShape, make_mesh
from lwm.data.tokenizer import tokenizer_file
from lwm.data.vision import unpack
from lwm.nano.shown import SHOWN
from lwm.nano.world_records import FILES
from lwm.weights.load import load_model
from lwm.weights.store import save_model

#: a code seen fewer times than this has learned little from being seen, and lost much by not being
RARELY = 20
_RANK_TOLERANCE = 1e-5


def count_codes(files: Iterable[Path], num_codes: int) -> Int[np.ndarray, "codes"]:
    """How often each code stands in records."""
    seen = np.zeros(num_codes, np.int64)
    for file in files:
        for frames in parquet.read_table(file, columns=["vision"]).column("vision").to_pylist():
            seen += np.bincount(unpack(frames), minlength=num_codes)
    return seen


def fit_rows(
    rows: Float[np.ndarray, "codes D"], features: Float[np.ndarray, "codes features"], seen: Bool[np.ndarray, "codes"]
) -> Float[np.ndarray, "codes D"]:
    """The same rows, but for those of codes that were not seen: by least squares, sums of their features.

    Codes without any features stay as they are.
    """
    known = features.any(axis=1)
    table = np.concatenate([features, np.ones((len(features), 1), features.dtype)], axis=1)
    of_features = np.linalg.lstsq(table[known & seen], rows[known & seen], rcond=_RANK_TOLERANCE)[0]
    return np.where((known & ~seen)[:, None], table @ of_features, rows).astype(rows.dtype)


def put_together(model: Path, records: Path, directory: Path) -> None:
    """Save a trained model with the rows of hardly seen codes put together; its codec and `drawing.json` go along."""
    loaded = load_model(model, make_mesh(MeshShape(), jax.devices()[:1]))
    vocab = loaded.config.vocab
    files = [records / f"{name}.parquet" for name, config in FILES.items() if not config.held_out]
    seen = count_codes(files, vocab.num_codes) >= RARELY
    codes = slice(vocab.text_size, vocab.text_size + vocab.num_codes)
    embedding = np.array(loaded.params.embedding)
    embedding[codes] = fit_rows(embedding[codes], np.load(records / SHOWN, allow_pickle=False), seen)
    params = replace(loaded.params, embedding=jnp.asarray(embedding))
    save_model(directory, loaded.config, params, tokenizer_file(model), codec=model)
