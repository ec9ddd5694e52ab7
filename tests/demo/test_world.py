"""The tour of a model that sees: everything is tried, and the page holds its pictures and videos."""

import json
import re

import jax
import numpy as np
import pytest

from lwm.core.errors import UserError
from lwm.core.mesh import MeshShape, make_mesh
from lwm.core.params import abstract, init
from lwm.core.vocab import Vocab
from lwm.demo import DemoConfig, run_demo
from lwm.demo.survey import Survey
from lwm.demo.tour import FILM_SHARE, _watchable_frames
from lwm.demo.world import Exhibit, FilmSeen, Found, StoryTold, WorldSeen
from lwm.demo.world_page import world_section
from lwm.model.config import ModelConfig
from lwm.model.transformer import declare
from lwm.nano.train_tokenizer import TOKENIZER_FILE
from lwm.vqgan.codec import declare as declare_codec
from lwm.vqgan.config import PatchCodecConfig
from lwm.vqgan.quantize import Codebook
from lwm.weights.codec_store import save_codec
from lwm.weights.load import load_model, read_config
from lwm.weights.store import save_model

CODEC = PatchCodecConfig(decoder_width=8, fine_widths=(8, 8), quantizer=Codebook(64, 8))
VOCAB = Vocab(read_config("nano").vocab.text_size, vision_size=66, num_codes=64, tokens_per_frame=16)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    config = ModelConfig(VOCAB, 16, 32, 1, 2, 2, 8, tie_word_embeddings=True, max_context=1024)
    path = tmp_path_factory.mktemp("seeing") / "model"
    save_model(path, config, init(declare(config), jax.random.key(0), "float32"), TOKENIZER_FILE)
    rng = np.random.default_rng(0)
    shapes = abstract(declare_codec(CODEC), np.float32)
    save_codec(path, CODEC, jax.tree.map(lambda leaf: np.float32(rng.normal(0, 0.3, leaf.shape)), shapes))
    return path


@pytest.mark.slow
def test_the_tour_of_a_model_that_sees_and_knows_nothing(directory, tmp_path):
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    out = tmp_path / "out"
    report = run_demo(DemoConfig(out, seconds=1, film_frames=8), name=str(directory), mesh=mesh)
    assert report.world is not None
    summary = json.loads((out / "summary.json").read_text())
    world = summary["world"]
    assert [len(world[part]) for part in ("drawn", "filmed", "told")] == [12, 3, 6]
    assert [exhibit["correct"] for exhibit in world["drawn"]] == [exhibit.correct for exhibit in report.world.drawn]
    assert [turn["truth"] != "" for turn in world["film"]["turns"]] == [True, True]
    assert summary["seconds"]["world"] > 0
    page = (out / "report.html").read_text()
    assert page.count("data:video/mp4;base64,") >= 3 and page.count("data:image/png;base64,") >= 12
    assert len(report.renderables()) == 3
    first, second = report.world.film.turns
    assert first.read_tokens > 8 * 17 > second.read_tokens


@pytest.mark.parametrize(("seconds_per_prompt", "frames"), [(30.0, 8), (FILM_SHARE, 56), (0.001, 600)])
def test_a_long_video_has_whole_clips_and_as_many_frames_as_there_is_time_for(directory, seconds_per_prompt, frames):
    model = load_model(str(directory), make_mesh(MeshShape(), jax.devices()[:1]))
    grid = Survey(seconds_per_prompt={1024: seconds_per_prompt})
    assert _watchable_frames(grid, model, DemoConfig(seconds=1, film_frames=600)) == frames


def test_what_was_said_cannot_break_the_page():
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    bad = "<script>&"
    film = FilmSeen(3600, 5, frames, (Found(bad, bad, "a", 3, 1.0), Found("q", "a", "a", 3, 1.0)))
    story = StoryTold(bad, (bad, frames, "end"), 1)
    section = world_section(WorldSeen(*[(Exhibit(bad, frames, True),)] * 3, film, story), 3.0)
    assert "<script>" not in section
    assert "60 minutes" in section and "1 of its 1 pictures" in section
    assert len(re.findall("✓", section)) == 4 and len(re.findall("✗", section)) == 1


def test_a_film_without_a_clip_is_refused(tmp_path):
    with pytest.raises(UserError, match="--film-frames 3"):
        DemoConfig(tmp_path, film_frames=3)
