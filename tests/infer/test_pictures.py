"""What is drawn has the right form, depends on prompt and seed alone, and goes on through a window."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lwm.core.errors import UserError
from lwm.core.vocab import Vocab
from lwm.data.media import read_frames
from lwm.infer.draw_sampling import DrawSampling, sampling_of
from lwm.infer.pictures import (
    DrawTask,
    ImageConfig,
    VideoConfig,
    _likelihood_of_words,
    draw,
    draw_best,
    draw_codes,
    files_to_write,
)
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


def test_frames_are_seen_as_they_are_drawn(tmp_path, vision_model, vision_engine, vision_codec):
    asked = VideoConfig("a cat", tmp_path / "cat.gif", count=2, num_frames=16, window=4, frames_out=tmp_path / "seen")
    seen: list[list[str]] = []

    def look(done: int, total: int) -> None:
        seen.append(sorted(path.name for path in (tmp_path / "seen").glob("*")))

    files = draw(asked, vision_model, vision_engine, vision_codec, WARM, look)
    assert len(seen[0]) < len(seen[-1])
    assert seen[-1] == [f"cat-{drawing}-{number:04d}.png" for drawing in (1, 2) for number in range(1, 17)]
    for drawing, file in enumerate(files, 1):
        each = [read_frames(tmp_path / "seen" / f"cat-{drawing}-{n:04d}.png", 16).pixels[0] for n in range(1, 17)]
        assert np.abs(read_frames(file, 16).pixels.astype(int) - np.stack(each)).mean() < 8
    with pytest.raises(UserError, match="give --best-of 1"):
        draw(asked, vision_model, vision_engine, vision_codec, replace(WARM, best_of=2))


def test_what_cannot_be_written_is_found_before_anything_is_drawn(tmp_path, vision_model, vision_engine, vision_codec):
    def drawn(done: int, total: int) -> None:
        raise AssertionError("it draws")

    (tmp_path / "cat-2.png").mkdir()
    with pytest.raises(UserError, match=r"cat-2\.png: it is a directory"):
        cats = ImageConfig("a cat", tmp_path / "cat.png", count=2)
        draw(cats, vision_model, vision_engine, vision_codec, DrawSampling(), drawn)
    with pytest.raises(UserError, match=r"\.: give the file an ending"):
        files_to_write(ImageConfig("a cat", Path(), count=2))
    with pytest.raises(UserError, match="would be shown for 1,000 s"):
        slow = VideoConfig("a cat", tmp_path / "cat.gif", num_frames=2, frames_per_second=0.001)
        draw(slow, vision_model, vision_engine, vision_codec, DrawSampling(), drawn)


def test_the_best_of_several_is_the_one_that_its_words_fit_best(vision_model, vision_engine, monkeypatch):
    task, words = DrawTask(["one", "another"], 2, WARM, seed=5), ["one", "another"]
    several = draw_codes(replace(task, prompts=["one"] * 4 + ["another"] * 4), vision_model, vision_engine)
    likely = _likelihood_of_words(several, ["one"] * 4 + ["another"] * 4, vision_model, vision_engine).reshape(2, 4)
    assert len(np.unique(likely)) == 8
    seen: list[tuple[int, int]] = []
    best = draw_best(task, words, 4, vision_model, vision_engine, lambda *counts: seen.append(counts))
    for place, codes in enumerate(best):
        np.testing.assert_array_equal(codes, several[4 * place + int(likely[place].argmax())])
    assert seen[-2:] == [(16, 24), (24, 24)]
    for one, first in zip(
        draw_best(task, words, 1, vision_model, vision_engine),
        draw_codes(task, vision_model, vision_engine),
        strict=True,
    ):
        np.testing.assert_array_equal(one, first)


def test_a_video_longer_than_the_context_is_chosen_by_its_beginning(vision_model, vision_engine):
    (codes,) = draw_best(DrawTask(["a cat"], 16, WARM, window=4), ["a cat"], 2, vision_model, vision_engine)
    assert codes.shape == (16, 16)


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ('{"best_of": 0}', "drawing.json: best_of 0: give 1 to 64"),
        ('{"temperature": "hot"}', "temperature='hot', which is not float"),
        ('{"best_of": 1000000000}', "drawing.json: best_of 1000000000: give 1 to 64"),
        ('{"temperature": -1}', "drawing.json: temperature -1.0 must be"),
        ('{"cfg": []}', "drawing.json: cfg : give one or more"),
        ('{"cfg": 2.0}', "cfg=2.0, which is not a list of float"),
        ('{"cfg": ["two"]}', "cfg with an item='two', which is not float"),
        ('{"guidance": 2}', "unknown field 'guidance'"),
        ("{", "cannot read"),
    ],
)
def test_a_model_says_how_it_draws_best(tmp_path, written, problem):
    assert sampling_of(tmp_path) == DrawSampling()
    (tmp_path / "drawing.json").write_text('{"temperature": 1, "cfg": [5, 1], "top_k": 8192}')
    assert sampling_of(tmp_path) == DrawSampling(temperature=1.0, cfg=(5.0, 1.0), top_k=8192)
    (tmp_path / "drawing.json").write_text(written)
    with pytest.raises(UserError, match=problem):
        sampling_of(tmp_path)
