"""A text model that learns to see keeps what it knows, whatever it is read from."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.core import params as declared
from lwm.core.errors import UserError
from lwm.core.mesh import MeshShape, make_mesh
from lwm.model.config import Compute
from lwm.model.transformer import head_weights, hidden_states, logits
from lwm.train.begin import starting_params
from lwm.train.loop import train
from lwm.train.run import Run
from lwm.train.step import modality_shares
from lwm.vqgan.codec import declare as declare_codec
from lwm.vqgan.config import PatchCodecConfig
from lwm.vqgan.quantize import Codebook, Levels
from lwm.weights.codec_store import load_codec, save_codec
from lwm.weights.store import save_model

CODES = {"vision_size": 24, "num_codes": 16, "tokens_per_frame": 4}


def seeing(run: Run, **changes: object) -> Run:
    vocab = replace(run.model.vocab, **CODES)
    return replace(run, model=replace(run.model, vocab=vocab), **changes)


def scores(params: object, run: Run, tokens: np.ndarray) -> np.ndarray:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = hidden_states(params, jnp.array(tokens), jnp.ones_like(positions), positions, run.model, Compute())
    return np.asarray(logits(hidden, head_weights(params, run.model, Compute())))


@pytest.mark.parametrize("tied", [True, False])
def test_text_is_scored_as_before(make_run: Callable[..., Run], tmp_path, tied: bool):
    run = make_run()
    run = replace(run, model=replace(run.model, tie_word_embeddings=tied))
    tokens = np.arange(160, dtype=np.int32).reshape(4, 40) * 5 % run.model.vocab.text_size
    with jax.set_mesh(mesh := make_mesh(MeshShape(1, 4, 2, 1))):
        before = starting_params(run, mesh)
        save_model(tmp_path / "text", run.model, before, None, "float32")
        grown = seeing(run, init_from=str(tmp_path / "text"))
        after = starting_params(grown, mesh)
        text_size = run.model.vocab.text_size
        assert after.embedding.shape == (text_size + CODES["vision_size"], run.model.hidden_size)
        known = scores(after, grown, tokens)[..., :text_size]
        np.testing.assert_allclose(known, scores(before, run, tokens), atol=1e-5)
        rows, new = np.asarray(before.embedding), np.asarray(after.embedding)[text_size:]
        assert len(np.unique(new, axis=0)) == len(new)
        assert abs(new - rows.mean(0)).mean() < 3 * abs(rows - rows.mean(0)).mean()


@pytest.mark.parametrize("codes", [CODES, {}])
def test_a_text_may_gain_pieces(codes: dict[str, int], make_run: Callable[..., Run], tmp_path):
    run = make_run()
    with jax.set_mesh(mesh := make_mesh(MeshShape(), jax.devices()[:1])):
        before = starting_params(run, mesh)
        save_model(tmp_path / "text", run.model, before, Path(run.tokenizer), "float32")
        more = replace(run.model, vocab=replace(run.model.vocab, text_size=272, **codes))
        grown = replace(run, model=more, init_from=str(tmp_path / "text"))
        after = starting_params(grown, mesh)
        other = json.loads(Path(run.tokenizer).read_text())
        vocab = other["model"]["vocab"]
        vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
        (tmp_path / "tokenizer.json").write_text(json.dumps(other))
        with pytest.raises(UserError, match=r"id \d+ is 'b' and was 'a'"):
            starting_params(replace(grown, tokenizer=str(tmp_path / "tokenizer.json")), mesh)
        (tmp_path / "text" / "tokenizer.json").unlink()
        with pytest.raises(UserError, match="264 text ids and no tokenizer"):
            starting_params(grown, mesh)
    assert after.embedding.shape[0] == 272 + codes.get("vision_size", 0)
    np.testing.assert_array_equal(after.embedding[:264], before.embedding)
    assert len(np.unique(np.asarray(after.embedding), axis=0)) == len(after.embedding)


def test_a_tokenizer_of_the_same_size_must_be_the_models(base: Path, make_run: Callable[..., Run], tmp_path):
    run = make_run(init_from=str(base))
    other = json.loads(Path(run.tokenizer).read_text())
    vocab = other["model"]["vocab"]
    for places in (1, 0):
        vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
        (tmp_path / "tokenizer.json").write_text(json.dumps(other, indent=places))
        renamed = replace(run, tokenizer=str(tmp_path / "tokenizer.json"))
        with jax.set_mesh(mesh := make_mesh(MeshShape(), jax.devices()[:1])):
            if not places:  # the same pieces in another file
                assert starting_params(renamed, mesh).embedding.shape[0] == run.model.vocab.size
                continue
            with pytest.raises(UserError, match=r"id \d+ is 'b' and was 'a'") as refusal:
                starting_params(renamed, mesh)
            assert renamed.tokenizer in str(refusal.value) and str(base) in str(refusal.value)


@pytest.mark.parametrize("quantizer", [Codebook(16, 8), Codebook(16, 48), Levels((4, 4))])
def test_codes_that_look_alike_begin_alike(quantizer, make_run: Callable[..., Run], tmp_path):
    config = PatchCodecConfig(16, decoder_width=8, decoder_layers=1, fine_widths=(4, 4), quantizer=quantizer)
    tensors = declared.init(declare_codec(config), jax.random.key(0), jnp.float32)
    save_codec(tmp_path / "codec", config, tensors)
    run = make_run()
    with jax.set_mesh(mesh := make_mesh(MeshShape(), jax.devices()[:1])):
        save_model(tmp_path / "text", run.model, before := starting_params(run, mesh), None, "float32")
        run = seeing(run, init_from=str(tmp_path / "text"), codec=str(tmp_path / "codec"))
        text_size = run.model.vocab.text_size
        rows = np.asarray(starting_params(run, mesh).embedding)[text_size : text_size + 16]
        vectors = load_codec(tmp_path / "codec", mesh).vectors()
    assert vectors.shape == (16, quantizer.width)
    rows = (rows - np.asarray(before.embedding).mean(0)) / np.asarray(before.embedding).std(0)
    assert 0.8 < rows.std() < 1.2
    apart = [np.linalg.norm(some[:, None] - some, axis=-1)[np.triu_indices(16, 1)] for some in (rows, vectors)]
    assert np.corrcoef(*apart)[0, 1] > (0.7 if quantizer.width > rows.shape[1] else 0.999)


def test_a_small_model_that_sees_is_not_taken_for_one_of_text(make_run: Callable[..., Run], tmp_path):
    run = make_run()
    with jax.set_mesh(mesh := make_mesh(MeshShape(), jax.devices()[:1])):
        small = seeing(run)
        save_model(tmp_path / "sees", small.model, starting_params(small, mesh), Path(run.tokenizer), "float32")
        larger = replace(small.model, vocab=replace(small.model.vocab, text_size=300))
        with pytest.raises(UserError, match="embedding has shape"):
            starting_params(replace(small, model=larger, init_from=str(tmp_path / "sees")), mesh)


def test_a_head_of_its_own_gets_rows_of_its_own(make_run: Callable[..., Run], tmp_path):
    run = make_run()
    run = replace(run, model=replace(run.model, tie_word_embeddings=False))
    with jax.set_mesh(mesh := make_mesh(MeshShape(), jax.devices()[:1])):
        save_model(tmp_path / "text", run.model, starting_params(run, mesh), None, "float32")
        after = starting_params(seeing(run, init_from=str(tmp_path / "text")), mesh)
    rows, columns = (np.asarray(table)[-CODES["vision_size"] :] for table in (after.embedding, after.head.T))
    assert abs(np.corrcoef((rows - rows.mean(0)).ravel(), (columns - columns.mean(0)).ravel())[0, 1]) < 0.2


def test_from_checkpoints_and_the_finished_model_alike(make_run: Callable[..., Run], tmp_path):
    run = make_run(steps=1, save_dtype="float32")
    train(run)
    with jax.set_mesh(mesh := make_mesh(run.mesh)):
        started = [starting_params(seeing(run, init_from=str(place)), mesh) for place in (run.out, run.out / "model")]
        jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, started))
        other = replace(run.model, vocab=replace(run.model.vocab, text_size=260, **CODES))
        with pytest.raises(UserError, match="embedding has shape"):
            starting_params(replace(run, model=other, init_from=str(run.out)), mesh)


def test_a_model_that_sees_is_published_with_its_codec(make_run: Callable[..., Run], tmp_path):
    run = seeing(make_run(steps=1), codec=str(tmp_path / "codec"))
    with pytest.raises(UserError, match="has no codec of pictures"):
        train(run)
    assert not run.out.exists()


@pytest.mark.parametrize(("share", "text", "vision"), [(0.5, 0.5, 0.5), (0.25, 0.75, 0.25)])
def test_the_loss_is_shared_as_asked(share: float, text: float, vision: float, make_run: Callable[..., Run]):
    run = seeing(make_run(), vision_share=share)
    np.testing.assert_allclose(modality_shares(run.model.vocab, run.vision_share), [text, vision])
    np.testing.assert_allclose(modality_shares(make_run().model.vocab, share), [1, 0])
    with pytest.raises(UserError, match="is a part of the loss"):
        replace(run, vision_share=2.0)
