import jax
import jax.numpy as jnp
import numpy as np

from lwm.core.batch import Batch
from lwm.core.layout import inverse, order
from lwm.core.vocab import Vocab


def make_batch() -> Batch:
    tokens = np.arange(16, dtype=np.int32).reshape(2, 8)
    weights = np.linspace(0, 1, 16, dtype=np.float32).reshape(2, 8)
    return Batch(tokens, tokens + 1, weights, np.ones_like(tokens), tokens % 8)


def test_permute_moves_all_fields_together() -> None:
    batch = make_batch()
    moved = batch.permute(order("zigzag", 8, 2))
    assert moved.tokens[0].tolist() == moved.positions[0].tolist() == [0, 1, 6, 7, 2, 3, 4, 5]
    np.testing.assert_array_equal(moved.targets, moved.tokens + 1)
    np.testing.assert_allclose(moved.loss_weights * 15, moved.tokens, rtol=1e-6)


def test_permute_is_undone_by_the_inverse() -> None:
    batch, permutation = make_batch(), order("zigzag", 8, 4)
    restored = batch.permute(permutation).permute(inverse(permutation))
    for ours, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(batch), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_a_batch_passes_through_jit() -> None:
    assert jax.jit(lambda batch: batch.tokens.sum() + batch.positions.sum())(make_batch()) == 120 + 56


def test_vision_ids_follow_text_ids() -> None:
    vocab = Vocab(text_size=32000, vision_size=8448, num_codes=8192, tokens_per_frame=257)
    assert (vocab.size, vocab.end_of_frame, vocab.end_of_vision) == (40448, 40192, 40193)
    assert vocab.is_vision(jnp.array([0, 31999, 32000, 40193])).tolist() == [False, False, True, True]
    assert Vocab(text_size=2048).size == 2048
