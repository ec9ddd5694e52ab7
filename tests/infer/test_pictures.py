"""What is drawn has the right form, depends on prompt and seed alone, and goes on through a window."""

from dataclasses import replace

import numpy as np
import pytest

from lwm.core.errors import UserError
from lwm.core.vocab import Vocab
from lwm.data.media import read_frames
from lwm.infer.pictures import DrawSampling, DrawTask, ImageConfig, VideoConfig, draw, draw_codes
from lwm.infer.sampling import Sampling

WARM = DrawSampling()


def test_rows_do_not_depend_on_their_neighbours(vision_model, vision_engine):
    together = draw_codes(DrawTask(["one", "another", "third"], 2, WARM, seed=5), vision_model, vision_engine)
    assert [codes.shape for codes in together] == [(2, 16)] * 3
    assert all(0 <= codes.min() <= codes.max() < 64 for codes in together)
    alone = draw_codes(DrawTask(["one"], 2, WARM, seed=5), vision_model, vision_engine)
    np.testing.assert_array_equal(together[0], alone[0])
    other = draw_codes(DrawTask(["one"], 2, WARM, seed=6), vision_model, vision_engine)
    assert (other[0] != alone[0]).any()


def test_guidance_of_one_changes_nothing_and_more_does(vision_model, vision_engine):
    plain, unguided, guided, later = (
        draw_codes(DrawTask(["a cat", "a dog"], 3, Sampling(), guidance), vision_model, vision_engine)
        for guidance in ((1.0,), (1.0, 1.0), (4.0,), (1.0, 4.0))
    )
    for one, other, strong, mixed in zip(plain, unguided, guided, later, strict=True):
        np.testing.assert_array_equal(one, other)
        assert (one[0] != strong[0]).any()
        np.testing.assert_array_equal(one[0], mixed[0])
        assert (one[1:] != mixed[1:]).any()


def test_a_window_goes_on_where_the_context_ends(vision_model, vision_engine):
    task = DrawTask(["a cat"], 20, Sampling())
    with pytest.raises(UserError, match="20 frames of 17 tokens are more than the 14"):
        draw_codes(task, vision_model, vision_engine)
    seen: list[tuple[int, int]] = []
    (codes,) = draw_codes(
        replace(task, window=4), vision_model, vision_engine, lambda done, total: seen.append((done, total))
    )
    assert codes.shape == (20, 16)
    assert seen[-1] == (20, 20)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    (first,) = draw_codes(replace(task, num_frames=14), vision_model, vision_engine)
    np.testing.assert_array_equal(codes[:14], first)
    with pytest.raises(UserError, match="a window of 14 frames"):
        draw_codes(replace(task, window=14), vision_model, vision_engine)


def test_pictures_and_a_film_as_files(vision_model, vision_engine, vision_codec, tmp_path):
    files = draw(ImageConfig("a cat", tmp_path / "cat.png", count=2), vision_model, vision_engine, vision_codec, WARM)
    assert [file.name for file in files] == ["cat-1.png", "cat-2.png"]
    first, second = (read_frames(file, 256).pixels for file in files)
    assert first.shape == (1, 256, 256, 3)
    assert (first != second).any()
    (film,) = draw(VideoConfig("a cat", tmp_path / "cat.gif", num_frames=3), vision_model, vision_engine, vision_codec)
    assert len(read_frames(film, 256).times) == 3


def test_what_cannot_be_drawn_is_refused(vision_model, vision_engine, vision_codec, tmp_path):
    with pytest.raises(UserError, match=r"3 frames go into \.gif"):
        draw(VideoConfig("a cat", tmp_path / "cat.png", num_frames=3), vision_model, vision_engine, vision_codec)
    with pytest.raises(UserError, match="leaves no room for a frame"):
        draw(ImageConfig("cat " * 80, tmp_path / "cat.png"), vision_model, vision_engine, vision_codec)
    text_only = replace(vision_model, config=replace(vision_model.config, vocab=Vocab(260)))
    with pytest.raises(UserError, match="does not draw"):
        draw(ImageConfig("a cat", tmp_path / "cat.png"), text_only, vision_engine, vision_codec)
    with pytest.raises(UserError, match="prompt is empty"):
        ImageConfig(" ", tmp_path / "cat.png")
    assert not list(tmp_path.iterdir())
