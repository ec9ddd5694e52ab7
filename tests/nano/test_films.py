"""Records of the small world and films made of them hold what their scenes show."""

import jax
import numpy as np
import pytest

from lwm.core.errors import UserError
from lwm.core.mesh import MeshShape, make_mesh
from lwm.core.params import abstract
from lwm.core.vocab import Vocab
from lwm.data.examples import RecordData
from lwm.data.tokenizer import load_tokenizer
from lwm.data.vision import films_in
from lwm.nano import films, world_records
from lwm.nano.films import FilmData
from lwm.nano.train_tokenizer import TOKENIZER_FILE
from lwm.nano.world_records import DRAW, LOOK, Records, write_records
from lwm.vqgan.codec import FrameCodec, declare
from lwm.vqgan.config import PatchCodecConfig
from lwm.vqgan.quantize import Codebook
from lwm.weights.load import read_config
from lwm.world.draw import draw
from lwm.world.language import understand

CODEC = PatchCodecConfig(decoder_width=8, fine_widths=(8, 8), quantizer=Codebook(64, 8))
TEXT_SIZE = read_config("nano").vocab.text_size
VOCAB = Vocab(text_size=TEXT_SIZE, vision_size=66, num_codes=64, tokens_per_frame=16)
FILES = {
    "pictures": Records(6, seed=1),
    "clips_8": Records(5, num_frames=8, max_sprites=2, seed=3),
    "marked": Records(4, max_sprites=1, marked=True, seed=4),
}


@pytest.fixture(scope="module")
def codec() -> FrameCodec:
    rng = np.random.default_rng(0)
    shapes = abstract(declare(CODEC), np.float32)
    params = jax.tree.map(lambda leaf: np.float32(rng.normal(0, 0.3, leaf.shape)), shapes)
    return FrameCodec(params, CODEC, make_mesh(MeshShape(), jax.devices()[:1]))


@pytest.fixture(scope="module")
def records(codec, tmp_path_factory):
    directory = tmp_path_factory.mktemp("world")
    for name, config in FILES.items():
        write_records(directory / f"{name}.parquet", config, codec)
    return directory


@pytest.fixture
def small_files(monkeypatch):
    for module in (films, world_records):
        monkeypatch.setattr(module, "FILES", FILES)


def test_a_record_shows_the_scene_it_tells(records, codec):
    tokenizer = load_tokenizer(TOKENIZER_FILE)
    for name in ("pictures", "clips_8"):
        path = str(records / f"{name}.parquet")
        drawn, looked = (RecordData(path, fields=field, separator="").open(tokenizer, VOCAB) for field in (DRAW, LOOK))
        for place in range(len(drawn)):
            scene, _ = FILES[name].scene(place)
            for example in (drawn[place], looked[place]):
                (film,) = films_in(example.tokens.tolist(), VOCAB)
                np.testing.assert_array_equal(film, codec.encode(draw(scene)))
            text = tokenizer.decode([token for token in drawn[place].tokens.tolist() if token < TEXT_SIZE])
            asked = text.split("Generate a")[1].split(" of ", 1)[1].split(" ASSISTANT:")[0]
            assert understand(asked).holds_of(scene), asked
            assert all(each[place].loss_weights[each[place].tokens >= TEXT_SIZE].all() for each in (drawn, looked))


def test_a_film_is_its_clips_and_one_marked_frame(records, small_files):
    tokenizer = load_tokenizer(TOKENIZER_FILE)
    source = FilmData(str(records), min_clips=2, max_clips=4).open(tokenizer, VOCAB)
    marked = {tuple(film[0]) for film in source._marked.tolist()}
    clips = [clip for clip in source._clips]
    sizes = set()
    for index in range(12):
        example = source[index]
        (film,) = films_in(example.tokens.tolist(), VOCAB)
        sizes.add(len(film))
        odd = [place for place in range(len(film)) if tuple(film[place]) in marked]
        assert len(odd) == 1 and odd[0] % 8
        for first in range(0, len(film), 8):
            same = [(clip == film[first : first + 8]).all(1).sum() for clip in clips]
            assert max(same) >= 7
        assert (example.tokens == source[index].tokens).all()
    assert sizes == {16, 24, 32}


def test_positions_skip_between_frames_only(records, small_files):
    tokenizer = load_tokenizer(TOKENIZER_FILE)
    source = FilmData(str(records), max_clips=3, span=5000).open(tokenizer, VOCAB)
    reached = 0
    for index in range(8):
        example = source[index]
        skipped = np.flatnonzero(np.diff(example.positions) > 1) + 1
        assert (example.tokens[skipped - 1] == VOCAB.end_of_frame).all()
        reached = max(reached, example.positions[-1])
    assert 500 < reached < 5000


def test_records_of_another_world_are_refused(records):
    with pytest.raises(UserError, match="make it anew"):
        FilmData(str(records)).open(load_tokenizer(TOKENIZER_FILE), VOCAB)
    with pytest.raises(UserError, match="make it with python"):
        FilmData(str(records / "nowhere")).open(load_tokenizer(TOKENIZER_FILE), VOCAB)
