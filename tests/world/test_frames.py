"""Frames for a codec: the same for the same place, with what a shape covers weighing more."""

import numpy as np
import pytest

from lwm.core.errors import UserError
from lwm.world.checker import read
from lwm.world.frames import WorldFrames


def test_a_place_gives_one_picture_and_other_places_others():
    source = WorldFrames(seed=3).open(32)
    frame, weights = source[7]
    again, _ = WorldFrames(seed=3).open(32)[7]
    np.testing.assert_array_equal(frame, again)
    assert len({source[place][0].tobytes() for place in range(50)}) == 50
    assert weights.min() == 1
    assert weights.max() == 5
    assert read(frame).looks


def test_a_forbidden_pair_is_never_shown():
    source = WorldFrames(max_sprites=1, forbidden=(("circle", "red"),)).open(32)
    shown = {look[:2] for place in range(300) for look in read(source[place][0]).looks}
    assert ("circle", "red") not in shown
    assert ("circle", "blue") in shown


def test_a_codec_of_another_size_is_refused():
    with pytest.raises(UserError, match="32 pixels a side"):
        WorldFrames().open(64)
