"""Frames for a codec out of files: the ends of videos are held out, and every crop is a part of its frame."""

import numpy as np
import pytest

from lwm.core.errors import UserError
from lwm.data.media_frames import MediaFrames
from lwm.data.media_out import save_frames


@pytest.fixture
def folder(tmp_path):
    for number in range(20):
        save_frames(tmp_path / f"{number:02}.png", np.full((1, 40, 40, 3), number, np.uint8))
    save_frames(tmp_path / "film.gif", np.stack([np.full((40, 40, 3), 100 + 5 * n, np.uint8) for n in range(20)]))
    return tmp_path


def shades(source):
    return {int(source[place][0].mean()) for place in range(len(source))}


def test_what_is_held_out_is_not_trained_on(folder):
    training, held_out = (MediaFrames(str(folder), split=split).open(32) for split in ("training", "held_out"))
    assert shades(held_out) == {9, 19, 190, 195}
    assert shades(training) == {*range(20), *range(100, 190, 5)} - {9, 19}
    assert len(held_out) == 4
    frame, weights = training[0]
    assert frame.shape == (32, 32, 3)
    assert weights.min() == weights.max() == 1


def test_crops_move_and_mirror(tmp_path):
    ramp = np.broadcast_to(np.arange(36, dtype=np.uint8)[None, :, None], (36, 36, 3))
    save_frames(tmp_path / "ramp.png", ramp[None])
    source = MediaFrames(str(tmp_path / "ramp.png"), margin=0.125).open(32)
    rows = [source[place][0][0, :, 0].astype(int) for place in range(len(source))]
    assert {int(row[0]) for row in rows if row[1] > row[0]} == set(range(5))
    assert {int(row[-1]) for row in rows if row[1] < row[0]} == set(range(5))
    np.testing.assert_array_equal(source[7][0], source[7][0])


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(UserError, match="name a file or a directory"):
        MediaFrames().open(32)
    with pytest.raises(UserError, match="no pictures or videos"):
        MediaFrames(str(tmp_path)).open(32)
    save_frames(tmp_path / "one.png", np.zeros((1, 40, 40, 3), np.uint8))
    with pytest.raises(UserError, match="too few pictures"):
        MediaFrames(str(tmp_path), split="held_out").open(32)
