"""What is drawn has the right form, depends on prompt and seed alone, and goes on through a window."""

from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.core import params as declared
from lwm.core.errors import UserError
from lwm.core.mesh import MeshShape, make_mesh
from lwm.core.vocab import Vocab
from lwm.data.media import read_frames
from lwm.infer.engine import Engine
from lwm.infer.pictures import DrawTask, ImageConfig, VideoConfig, draw, draw_codes
from lwm.infer.sampling import Sampling
from lwm.model.config import Compute, ModelConfig
from lwm.model.transformer import declare
from lwm.vqgan import codec as codecs
from lwm.vqgan.codec import FrameCodec
from lwm.vqgan.config import PatchCodecConfig
from lwm.vqgan.quantize import Levels
from lwm.weights.store import LoadedModel

VOCAB = Vocab(text_size=260, vision_size=96, num_codes=64, tokens_per_frame=16, bos_id=256, eos_id=257)
CODEC = PatchCodecConfig(encoder_width=16, decoder_width=8, fine_widths=(8, 8), quantizer=Levels((4, 4, 4)))
CONFIG = ModelConfig(
    vocab=VOCAB,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_width=8,
    max_context=256,
)
WARM = Sampling(temperature=1.0)


@dataclass
class Bytes:
    """Ids are bytes, and the three letters of a short `<vision>`, so that tiny contexts hold a frame."""

    size: int = 258
    bos_id: int | None = 256
    eos_id: int | None = 257

    def encode(self, text):
        return list(text.replace("<vision>", "\1\2\3").encode())

    def decode(self, ids):
        return bytes(token_id for token_id in ids if token_id < 256).decode(errors="replace")


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    params = declared.init_sharded(declare(CONFIG), jax.random.key(0), jnp.float32, mesh)
    return LoadedModel(CONFIG, params, Bytes(), Path("tiny"), mesh)


@pytest.fixture(scope="module")
def engine(model) -> Engine:
    return replace(Engine.of(model), prefill_chunk=64, compute=Compute())


@pytest.fixture(scope="module")
def codec(model) -> FrameCodec:
    params = declared.init(codecs.declare(CODEC), jax.random.key(1), jnp.float32)
    return FrameCodec(params, CODEC, model.mesh)


def test_rows_do_not_depend_on_their_neighbours(model, engine):
    together = draw_codes(DrawTask(["one", "another", "third"], 2, WARM, seed=5), model, engine)
    assert [codes.shape for codes in together] == [(2, 16)] * 3
    assert all(0 <= codes.min() <= codes.max() < 64 for codes in together)
    alone = draw_codes(DrawTask(["one"], 2, WARM, seed=5), model, engine)
    np.testing.assert_array_equal(together[0], alone[0])
    other = draw_codes(DrawTask(["one"], 2, WARM, seed=6), model, engine)
    assert (other[0] != alone[0]).any()


def test_guidance_of_one_changes_nothing_and_more_does(model, engine):
    plain, unguided, guided, later = (
        draw_codes(DrawTask(["a cat", "a dog"], 3, Sampling(), guidance), model, engine)
        for guidance in ((1.0,), (1.0, 1.0), (4.0,), (1.0, 4.0))
    )
    for one, other, strong, mixed in zip(plain, unguided, guided, later, strict=True):
        np.testing.assert_array_equal(one, other)
        assert (one[0] != strong[0]).any()
        np.testing.assert_array_equal(one[0], mixed[0])
        assert (one[1:] != mixed[1:]).any()


def test_a_window_goes_on_where_the_context_ends(model, engine):
    task = DrawTask(["a cat"], 20, Sampling())
    with pytest.raises(UserError, match="20 frames of 17 tokens are more than the 14"):
        draw_codes(task, model, engine)
    seen: list[tuple[int, int]] = []
    (codes,) = draw_codes(replace(task, window=4), model, engine, lambda done, total: seen.append((done, total)))
    assert codes.shape == (20, 16)
    assert seen[-1] == (20, 20)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    (first,) = draw_codes(replace(task, num_frames=14), model, engine)
    np.testing.assert_array_equal(codes[:14], first)
    with pytest.raises(UserError, match="a window of 14 frames"):
        draw_codes(replace(task, window=14), model, engine)


def test_pictures_and_a_film_as_files(model, engine, codec, tmp_path):
    files = draw(ImageConfig("a cat", tmp_path / "cat.png", count=2), model, engine, codec, WARM)
    assert [file.name for file in files] == ["cat-1.png", "cat-2.png"]
    first, second = (read_frames(file, 256).pixels for file in files)
    assert first.shape == (1, 256, 256, 3)
    assert (first != second).any()
    (film,) = draw(VideoConfig("a cat", tmp_path / "cat.gif", num_frames=3), model, engine, codec)
    assert len(read_frames(film, 256).times) == 3


def test_what_cannot_be_drawn_is_refused(model, engine, codec, tmp_path):
    with pytest.raises(UserError, match=r"3 frames go into \.gif"):
        draw(VideoConfig("a cat", tmp_path / "cat.png", num_frames=3), model, engine, codec)
    with pytest.raises(UserError, match="leaves no room for a frame"):
        draw(ImageConfig("cat " * 80, tmp_path / "cat.png"), model, engine, codec)
    text_only = replace(model, config=replace(CONFIG, vocab=Vocab(260)))
    with pytest.raises(UserError, match="does not draw"):
        draw(ImageConfig("a cat", tmp_path / "cat.png"), text_only, engine, codec)
    with pytest.raises(UserError, match="prompt is empty"):
        ImageConfig(" ", tmp_path / "cat.png")
    assert not list(tmp_path.iterdir())
