"""Frames come back as they went, at the times they were shown, and nothing half-written is left."""

import os

import numpy as np
import pytest
from PIL import Image

from lwm.core.errors import UserError
from lwm.data.media import read_frames
from lwm.data.media_out import require_writable, save_frames


@pytest.fixture
def frames():
    """Grey ones, each a step brighter."""
    return np.stack([np.full((32, 32, 3), 30 + 20 * number, np.uint8) for number in range(6)])


def numbers(pixels):
    return np.rint((pixels.mean(axis=(1, 2, 3)) - 30) / 20).astype(int).tolist()


@pytest.mark.parametrize("name", ["film.mp4", "film.gif", "film.webp"])
def test_a_film_comes_back_with_its_times(name, frames, tmp_path):
    again = read_frames(save_frames(tmp_path / name, frames, 5.0), 32)
    assert numbers(again.pixels) == [0, 1, 2, 3, 4, 5]
    np.testing.assert_allclose(again.times, [0, 0.2, 0.4, 0.6, 0.8, 1.0], atol=2e-3)


@pytest.mark.parametrize("name", ["film.mp4", "film.gif"])
def test_uneven_times_are_kept_and_the_first_begins(name, frames, tmp_path):
    times = [3.0, 3.1, 3.1, 3.5, 4.0, 4.1]
    again = read_frames(save_frames(tmp_path / name, frames, times=times), 32)
    assert numbers(again.pixels) == [0, 2, 3, 4, 5]
    np.testing.assert_allclose(again.times, [0, 0.1, 0.5, 1.0, 1.1], atol=2e-3)


@pytest.mark.parametrize("name", ["one.png", "one.webp", "one.gif", "one.jpg", "one.mp4"])
def test_one_picture_larger(name, frames, tmp_path):
    again = read_frames(save_frames(tmp_path / name, frames[:1], scale=3), 96)
    assert numbers(again.pixels) == [0]
    if name.endswith("png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.size == (96, 96)


def test_frames_of_odd_sides(tmp_path):
    odd = np.full((2, 15, 17, 3), 90, np.uint8)
    assert np.abs(read_frames(save_frames(tmp_path / "odd.mp4", odd), 16).pixels.astype(int) - 90).max() <= 4


def test_what_cannot_be_written_is_refused(frames, tmp_path):
    with pytest.raises(UserError, match=r"6 frames go into \.gif"):
        save_frames(tmp_path / "film.png", frames)
    with pytest.raises(UserError, match="an ending out of"):
        save_frames(tmp_path / "film", frames[:1])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        save_frames(tmp_path / "file" / "film.mp4", frames)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["film.mp4", "film.gif", "film.webp"])
def test_frames_of_absurd_lengths_are_refused(name, frames, tmp_path):
    for times in ([0.0, 1e300], [0.0, 30_000.0], [-1.7e308, 1.7e308]):
        with pytest.raises(UserError, match=rf"{name}: frame 1 would be shown for .* s, and such a file holds up to"):
            save_frames(tmp_path / name, frames[:2], times=times)
    with pytest.raises(UserError, match=r"shown for inf s"):
        save_frames(tmp_path / name, frames[:2], frames_per_second=5e-324)
    assert not list(tmp_path.iterdir())


def test_frames_closer_than_the_clock_tells_apart_keep_their_order(frames, tmp_path):
    path = save_frames(tmp_path / "film.mp4", frames[:3], times=[0.0, 1e-9, 1.0])
    assert numbers(read_frames(path, 32).pixels) == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("file/one.png", "file is not a directory"),
        ("file/sub/one.png", "Not a directory"),
        ("directory.png", "it is a directory"),
        ("x" * 300 + ".png", "File name too long"),
        ("absent/sub/one.png", None),
    ],
)
def test_a_place_is_looked_at_before_anything_is_drawn(name, reason, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "directory.png").mkdir()
    if reason is None:
        require_writable(tmp_path / name, 1)
    else:
        with pytest.raises(UserError, match=f"cannot write .*{reason}"):
            require_writable(tmp_path / name, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "directory.png"}


@pytest.mark.skipif(os.geteuid() == 0, reason="who may do anything is not refused")
def test_a_directory_that_may_not_be_written_to_is_named(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(UserError, match="closed may not be written to"):
        require_writable(tmp_path / "closed" / "one.png", 1)
