"""Scenes are functions of their seed, and what is drawn is read back without a fault."""

import numpy as np
import pytest

from lwm.world.checker import direction_of, read
from lwm.world.draw import draw, draw_frame, paint
from lwm.world.scene import PLACES, SHAPES, Look, Sprite, is_held_out, random_scene, scene_for


def scene(seed: int, num_frames: int = 1, max_sprites: int = 3, **options):
    return random_scene(np.random.default_rng(seed), num_frames, max_sprites, **options)


def test_a_scene_and_its_pictures_follow_from_the_seed():
    assert scene(7, 8) == scene(7, 8) != scene(8, 8)
    np.testing.assert_array_equal(draw(scene(7, 8)), draw(scene(7, 8)))
    assert draw(scene(7, 8)).shape == (8, 32, 32, 3)


@pytest.mark.parametrize("seed", range(40))
def test_pictures_are_read_back(seed):
    drawn = scene(seed)
    reading = read(draw_frame(drawn, 0))
    assert reading.ground == drawn.ground
    assert set(reading.looks) == set(drawn.looks(0))
    assert reading.residual < 1e-3


@pytest.mark.parametrize("seed", range(10))
def test_clips_are_read_back_with_their_directions(seed):
    drawn = scene(seed, num_frames=8)
    readings = [read(picture) for picture in draw(drawn)]
    for frame, reading in enumerate(readings):
        assert set(reading.looks) == set(drawn.looks(frame))
    for sprite in drawn.sprites:
        assert direction_of(readings, sprite.shape, sprite.colour) == sprite.direction


def test_a_blurred_picture_gets_the_nearest_reading():
    drawn = scene(3)
    picture = draw_frame(drawn, 0).astype(float)
    blurred = (picture + sum(np.roll(picture, shift, axis) for shift in (-1, 1) for axis in (0, 1))) / 5
    assert {look[:2] for look in read(np.uint8(blurred)).looks} == {look[:2] for look in drawn.looks(0)}


def test_scenes_for_training_and_those_kept_out_of_it_have_nothing_in_common():
    drawn = {
        held_out: {repr(scene_for(held_out, np.random.default_rng(seed), 1, 1)) for seed in range(300)}
        for held_out in (True, False)
    }
    assert len(drawn[True]) > 200 and not drawn[True] & drawn[False]
    assert 0.05 < np.mean([is_held_out(scene(seed, 8)) for seed in range(500)]) < 0.15


def test_an_empty_ground_has_nothing_on_it():
    empty = random_scene(np.random.default_rng(0))
    for ground in ("grass", "sand", "water", "snow"):
        picture = draw_frame(type(empty)(ground, ()), 0)
        assert read(picture).looks == () and read(picture).ground == ground


def test_what_befalls_a_sprite():
    walker = Sprite("circle", "red", "small", x=5, y=0, direction="right")
    assert [walker.at(frame).x for frame in range(10)] == [5, 6, 5, 4, 3, 2, 1, 0, 1, 2]
    late = Sprite("cross", "blue", "big", 1, 0, "right", event="appears", when=2)
    assert [look and look.x for look in map(late.at, range(4))] == [None, None, 1, 2]
    gone = Sprite("cross", "blue", "big", 0, 0, event="vanishes", when=2)
    assert [gone.at(frame) is None for frame in range(4)] == [False, False, True, True]
    turned = Sprite("cross", "blue", "big", 0, 0, event="changes", when=2, into="green")
    assert [turned.at(frame).colour for frame in range(4)] == ["blue", "blue", "green", "green"]


def test_forbidden_pairs_are_never_drawn_or_become():
    forbidden = frozenset((shape, "red") for shape in SHAPES)
    for seed in range(100):
        for sprite in scene(seed, 8, forbidden=forbidden).sprites:
            assert "red" not in (sprite.colour, sprite.into)
            assert 0 <= sprite.x < PLACES and 0 <= sprite.y < PLACES


def test_painting_covers_what_is_behind():
    behind, front = Look("square", "red", "big", 3, 3), Look("square", "blue", "big", 3, 3)
    plain = np.zeros((32, 32, 3), np.float32)
    np.testing.assert_allclose(paint(paint(plain, behind), front)[16, 16], [40, 80, 255])
