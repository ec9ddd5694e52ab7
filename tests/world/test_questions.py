"""Answers follow from the scene, and questions name exactly one sprite."""

import numpy as np
import pytest

from lwm.world.questions import NUMBERS, questions
from lwm.world.scene import COLOURS, DIRECTIONS, GROUNDS, SHAPES, random_scene


@pytest.mark.parametrize("num_frames", [1, 8])
def test_answers_are_those_of_the_scene(num_frames):
    kinds = set()
    for seed in range(200):
        scene = random_scene(np.random.default_rng(seed), num_frames, max_sprites=3)
        for kind, text, answer in questions(scene, np.random.default_rng(seed)):
            kinds.add(kind)
            asked = [
                s for s in scene.sprites if f" {s.shape}" in text.rstrip("?.") or f" {s.colour}" in text.rstrip("?.")
            ]
            known = {"ground": scene.ground, "count": NUMBERS[len(scene.sprites)]}
            if kind in known:
                assert not asked and answer == known[kind]
                continue
            (sprite,) = asked
            match kind:
                case "direction":
                    assert answer == sprite.direction in DIRECTIONS
                case "event":
                    assert answer == ("nothing" if sprite.event == "none" else f"it {sprite.event}")
                case "place":
                    assert num_frames == 1 or sprite.direction == "still"
                case _:
                    assert answer == getattr(sprite, kind)
    wanted = {"ground", "count", "colour", "shape", "size", "place"}
    assert kinds == (wanted | {"direction", "event", "into"} if num_frames > 1 else wanted)


def test_the_same_seed_asks_the_same():
    scene = random_scene(np.random.default_rng(0), 8)
    assert questions(scene, np.random.default_rng(1)) == questions(scene, np.random.default_rng(1))
    assert len({questions(scene, np.random.default_rng(seed))[0].text for seed in range(50)}) > 10
    assert {*SHAPES, *COLOURS, *GROUNDS}.isdisjoint(NUMBERS)
