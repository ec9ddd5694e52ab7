"""Rows of codes that are sums of what their codes show, for small models.

A code stands for a combination of few things: a part of a shape, a colour, a ground. With a row of its own each code
learns what it means by itself, from the few times that it is seen; and AdamW moves the row of a code that is never a
target as far as any other, away from every prompt. Rows that are sums of features learn together, and what the
features say of a combination never seen holds for it too (docs/log.md, "Seeing: the whole recipe").
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lwm.core.errors import UserError
from lwm.core.vocab import Vocab
from lwm.model.transformer import Transformer

#: of the part of an update that is no sum of features, what remains: codes with equal features must still come apart
OWN = 0.1
#: singular values below this part of the greatest are rounding
_RANK_TOLERANCE = 1e-5


def read_features(file: str | Path, num_codes: int) -> Float[np.ndarray, "codes features"]:
    """A `.npy` file with a row for each code.

    Raises:
        UserError: there is none, it is no array of numbers, or one of another number of codes.
    """
    try:
        features = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file} is not a readable .npy file of features of codes: {error}") from None
    if not isinstance(features, np.ndarray) or features.dtype.kind not in "fiu" or features.ndim != 2:
        raise UserError(f"{file} does not hold a table of numbers: it must have a row for each code")
    if len(features) != num_codes or not np.isfinite(features).all() or not features.any():
        raise UserError(
            f"{file} has {len(features)} rows of {features.shape[1]} features for {num_codes} codes: "
            "give finite numbers, not all of them 0, in a row for each"
        )
    return features.astype(np.float32)


def make_shared_update(
    features: Float[np.ndarray, "codes features"], vocab: Vocab
) -> Callable[[Transformer], Transformer]:
    """What an update of the tensors becomes: that of the rows of codes is brought nearer to sums of features."""
    constant = np.ones((len(features), 1), np.float32)
    left, values, _ = np.linalg.svd(np.concatenate([features, constant], axis=1), full_matrices=False)
    basis = left[:, values > _RANK_TOLERANCE * values[0]]
    first, end = vocab.text_size, vocab.text_size + vocab.num_codes

    def rows(table: Float[Array, "V D"]) -> Float[Array, "V D"]:
        own = table[first:end]
        shared = jnp.matmul(basis, jnp.matmul(basis.T, own))
        return table.at[first:end].set(shared + OWN * (own - shared))

    def update(tensors: Transformer) -> Transformer:
        head = None if tensors.head is None else rows(tensors.head.T).T
        return replace(tensors, embedding=rows(tensors.embedding), head=head)

    return update
