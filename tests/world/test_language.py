"""Whatever the wording, the meaning is that of the scene, and of no other."""

from dataclasses import replace

import numpy as np
import pytest

from lwm.world.language import caption, place_of, understand
from lwm.world.scene import PLACES, random_scene


def scene(seed: int, num_frames: int):
    return random_scene(np.random.default_rng(seed), num_frames, max_sprites=3)


@pytest.mark.parametrize("num_frames", [1, 8])
def test_captions_are_understood_as_they_were_meant(num_frames):
    wordings = set()
    for seed in range(300):
        told = scene(seed, num_frames)
        text = caption(told, np.random.default_rng(seed))
        meaning = understand(text)
        assert meaning is not None and meaning.holds_of(told), text
        wordings.add(text)
    assert len(wordings) > 290


@pytest.mark.parametrize("num_frames", [1, 8])
def test_captions_of_another_scene_do_not_hold(num_frames):
    wrong = 0
    for seed in range(300):
        told, other = scene(seed, num_frames), scene(seed + 1, num_frames)
        wrong += understand(caption(told, np.random.default_rng(seed))).holds_of(other)
    assert wrong <= 1


def test_one_scene_has_many_captions():
    told = scene(5, 8)
    assert len({caption(told, np.random.default_rng(seed)) for seed in range(100)}) > 50


def test_every_wrong_word_is_noticed():
    told = scene(1, 8)
    (first, *others) = told.sprites
    for change in (
        {"shape": next(s for s in ("circle", "cross") if s != first.shape)},
        {"colour": next(c for c in ("red", "blue") if c != first.colour)},
        {"event": "vanishes" if first.event != "vanishes" else "appears"},
    ):
        changed = replace(told, sprites=(replace(first, **change), *others))
        assert not understand(caption(changed, np.random.default_rng(0))).holds_of(told)


@pytest.mark.parametrize("text", ["", "a dog on grass.", "a red blue circle.", "on sand on snow a red circle."])
def test_what_is_no_caption_of_this_world(text):
    assert understand(text) is None


def test_places_have_nine_names():
    names = {place_of(x, y) for x in range(PLACES) for y in range(PLACES)}
    assert len(names) == 9 and {"middle", "top", "bottom right"} <= names
