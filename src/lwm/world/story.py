"""Stories of one shape in three pictures: text and pictures in turn, and each picture shows what was just told."""

from dataclasses import dataclass, replace

import numpy as np

from lwm.world.scene import (
    COLOURS,
    DIRECTIONS,
    GROUNDS,
    PLACES,
    SHAPES,
    SIZES,
    Colour,
    Direction,
    Scene,
    Shape,
    Sprite,
    choose,
)

#: places that the shape goes, so that it is seen to have gone
STRIDE = 3
_END = "The end."


@dataclass(frozen=True)
class Story:
    """What was asked for; each sentence but the last is followed by its picture."""

    asked: str
    sentences: tuple[str, ...]
    pictures: tuple[Scene, ...]


def random_story(rng: np.random.Generator, forbidden: frozenset[tuple[Shape, Colour]] = frozenset()) -> Story:
    """A shape is there, goes somewhere, and changes its colour."""
    shape = choose(rng, SHAPES)
    colours = [colour for colour in COLOURS if (shape, colour) not in forbidden]
    first, later = (colours[place] for place in rng.permutation(len(colours))[:2])
    way, ground = choose(rng, [name for name in DIRECTIONS if name != "still"]), choose(rng, GROUNDS)
    start = _start(rng, way)
    begins = Sprite(shape, first, choose(rng, SIZES), *start)
    step_x, step_y = DIRECTIONS[way]
    gone = replace(begins, x=start[0] + STRIDE * step_x, y=start[1] + STRIDE * step_y)
    return Story(
        asked=f"Tell a story of a {first} {shape}, with pictures.",
        sentences=(f"Once a {first} {shape} was on {ground}.", f"It went {way}.", f"Then it became {later}.", _END),
        pictures=tuple(Scene(ground, (sprite,)) for sprite in (begins, gone, replace(gone, colour=later))),
    )


def _start(rng: np.random.Generator, way: Direction) -> tuple[int, int]:
    """A place from which it is `STRIDE` places to the edge or more."""
    places = [int(rng.integers(PLACES)) for _ in range(2)]
    for axis, step in enumerate(DIRECTIONS[way]):
        if step:
            along = int(rng.integers(PLACES - STRIDE))
            places[axis] = along if step > 0 else PLACES - 1 - along
    return places[0], places[1]
