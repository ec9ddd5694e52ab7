"""Rows of codes that share features move together, and a little by themselves."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.core.errors import UserError
from lwm.core.mesh import MeshShape, make_mesh
from lwm.core.params import init, shardings
from lwm.core.vocab import Vocab
from lwm.model.config import ModelConfig
from lwm.model.transformer import Transformer, declare
from lwm.train.begin import starting_params
from lwm.train.code_rows import OWN, make_shared_update, read_features
from lwm.train.loop import train
from lwm.train.run import Run
from lwm.weights.store import save_model

#: six codes, each a shape and a colour, two of them the same
SHOWN = np.array([[1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 0, 0, 0]], np.float32)
VOCAB = Vocab(10, vision_size=10, num_codes=6, tokens_per_frame=4)


def tensors(tied: bool) -> Transformer:
    config = ModelConfig(VOCAB, 8, 16, 1, 2, 2, 4, tie_word_embeddings=tied)
    return init(declare(config), jax.random.key(0), jnp.float32)


@pytest.mark.parametrize("tied", [True, False])
def test_an_update_of_one_code_reaches_those_like_it(tied: bool) -> None:
    update = jax.tree.map(jnp.zeros_like, tensors(tied))
    update = replace(update, embedding=update.embedding.at[10].set(1.0))
    moved = np.asarray(make_shared_update(SHOWN, VOCAB)(update).embedding)
    rows = moved[10:16, 0]
    assert rows[0] > rows[1] > 0 and rows[0] > rows[2] > 0 > rows[3]  # alike in both, in one, in none
    np.testing.assert_allclose(rows[4], rows[0] - OWN, atol=1e-6)
    assert not moved[:10].any() and not moved[16:].any()


@pytest.mark.parametrize("tied", [True, False])
def test_sums_of_features_pass_and_what_is_left_over_counts_little(tied: bool) -> None:
    update = tensors(tied)
    shared = make_shared_update(SHOWN, VOCAB)
    once, before = shared(update), np.asarray(update.embedding)[10:16]
    kept = np.asarray(once.embedding)[10:16]
    sums = (kept - OWN * before) / (1 - OWN)
    again = shared(replace(update, embedding=update.embedding.at[10:16].set(sums)))
    np.testing.assert_allclose(np.asarray(again.embedding)[10:16], sums, atol=1e-5)
    with_constant = np.concatenate([SHOWN, np.ones((6, 1))], axis=1)
    fitted = with_constant @ np.linalg.lstsq(with_constant, before, rcond=None)[0]
    np.testing.assert_allclose(sums, fitted, atol=1e-5)
    if not tied:
        both = replace(update, embedding=update.head.T)
        np.testing.assert_array_equal(shared(both).embedding, once.head.T)


@pytest.mark.parametrize("mesh", [MeshShape(1, 8, 1, 1), MeshShape(1, 2, 2, 2)])
def test_it_is_the_same_on_every_mesh(mesh: MeshShape) -> None:
    config = ModelConfig(replace(VOCAB, text_size=14), 8, 16, 1, 2, 2, 4)
    update = init(declare(config), jax.random.key(0), jnp.float32)
    shared = make_shared_update(SHOWN, config.vocab)
    with jax.set_mesh(placed := make_mesh(mesh)):
        spread = jax.device_put(update, shardings(declare(config), placed))
        got = jax.jit(shared)(spread)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, shared(update))


def test_codes_that_show_the_same_begin_alike(make_run: Callable[..., Run], tmp_path: Path) -> None:
    np.save(tmp_path / "shown.npy", SHOWN)
    run = make_run()
    vocab = replace(run.model.vocab, vision_size=10, num_codes=6, tokens_per_frame=4)
    sees = replace(run, model=replace(run.model, vocab=vocab), code_features=str(tmp_path / "shown.npy"))
    with jax.set_mesh(mesh := make_mesh(MeshShape(), jax.devices()[:1])):
        save_model(tmp_path / "text", run.model, starting_params(run, mesh), None, "float32")
        rows = np.asarray(starting_params(replace(sees, init_from=str(tmp_path / "text")), mesh).embedding)[264:270]
    np.testing.assert_allclose(rows[0], rows[4], atol=1e-6)
    np.testing.assert_allclose(rows[0] - rows[1], rows[2] - rows[3], atol=1e-5)
    assert np.abs(rows[0] - rows[1]).max() > 0.01


def test_features_of_another_codec_are_refused_before_anything_is_done(make_run: Callable[..., Run], tmp_path) -> None:
    np.save(tmp_path / "shown.npy", SHOWN)
    run = replace(make_run(), code_features=str(tmp_path / "shown.npy"))
    with pytest.raises(UserError, match="6 rows of 4 features for 0 codes"):
        train(run)
    assert not run.out.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not a readable .npy file"),
        (b"nonsense", "not a readable .npy file"),
        (np.array(["a"]), "does not hold a table of numbers"),
        (np.array([{}], object), "not a readable .npy file"),
        (SHOWN[:3], "3 rows of 4 features for 6 codes"),
        (SHOWN * np.nan, "give finite numbers"),
        (SHOWN * 0, "not all of them 0"),
    ],
)
def test_features_that_cannot_be_used_are_refused(content, message: str, tmp_path: Path) -> None:
    file = tmp_path / "shown.npy"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        np.save(file, content)
    with pytest.raises(UserError, match=message):
        read_features(file, 6)
