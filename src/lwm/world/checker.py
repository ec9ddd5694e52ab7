"""Reads pictures back: which ground, which shapes of which colour and size, where, and which way they go.

Analysis by synthesis: what would take most of the difference between the picture and what was found so far is found
next, until nothing takes enough. So a blurred or half-wrong picture gets the nearest reading, and whatever is drawn
here is read exactly.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from lwm.world.draw import GROUND_RGB, RGB, STEP, TEXTURE, coverage, ground, paint
from lwm.world.scene import COLOURS, DIRECTIONS, PLACES, SHAPES, SIZES, Direction, Ground, Look

#: of the squared difference that a shape makes, what it must take away to be believed; and how much that is at least:
#: a hundred pixels off by a tenth
BELIEVED, LEAST = 0.3, 100 * 3 * 25.5**2
MAX_FOUND = 4


@dataclass(frozen=True)
class Reading:
    """What a picture shows, from the most to the least telling; `residual`: mean squared difference left, 0..1."""

    ground: Ground
    looks: tuple[Look, ...]
    residual: float


class _Templates(NamedTuple):
    covered: Float32[np.ndarray, "templates pixels"]
    squared: Float32[np.ndarray, "templates pixels"]
    names: list[tuple]
    colours: Float32[np.ndarray, "colours 3"]


@functools.cache
def _templates() -> _Templates:
    names = list(product(SHAPES, SIZES, range(PLACES), range(PLACES)))
    covered = np.stack([coverage(*name).ravel() for name in names])
    return _Templates(covered, covered**2, names, np.array([RGB[colour] for colour in COLOURS], np.float32))


@functools.cache
def _grounds() -> tuple[list[Ground], Float32[np.ndarray, "grounds side side 3"]]:
    """Every ground, at every place that a pan may move it to."""
    shifts = [(name, x) for name in GROUND_RGB for x in range(0, TEXTURE, STEP)]
    return [name for name, _ in shifts], np.stack([ground(name, x) for name, x in shifts])


def read(picture: UInt8[np.ndarray, "side side 3"]) -> Reading:
    """The nearest scene of a single picture."""
    target = picture.astype(np.float32)
    names, grounds = _grounds()
    # Shapes cover less than half of a picture: the median is the ground's.
    nearest = np.median(np.abs(target - grounds).sum(-1).reshape(len(names), -1), axis=1)
    which = int(np.argmin(nearest + 1e-3 * np.abs(target - grounds).mean(axis=(1, 2, 3))))
    shown = grounds[which]
    looks: list[Look] = []
    while len(looks) < MAX_FOUND:
        gain, look = _best(target, shown)
        if gain < max(LEAST, BELIEVED * _made(look, shown)):
            break
        shown = paint(shown, look)
        looks.append(look)
    return Reading(names[which], tuple(looks), float(np.mean(np.square((target - shown) / 255))))


def _best(target: Float32[np.ndarray, "side side 3"], shown: Float32[np.ndarray, "side side 3"]) -> tuple[float, Look]:
    """The shape whose painting takes most of the squared difference, and how much it takes."""
    covered, squared, names, colours = _templates()
    missing = (target - shown).reshape(-1, 3)
    painted = colours[:, None] - shown.reshape(1, -1, 3)
    gains = 2 * covered @ np.einsum("kpc,pc->pk", painted, missing) - squared @ np.square(painted).sum(-1).T
    template, colour = np.unravel_index(np.argmax(gains), gains.shape)
    shape, size, x, y = names[template]
    return float(gains[template, colour]), Look(shape, COLOURS[colour], size, x, y)


def _made(look: Look, shown: Float32[np.ndarray, "side side 3"]) -> float:
    """What the shape would take away if the picture were exactly it."""
    return float(np.square(paint(shown, look) - shown).sum())


def direction_of(readings: Sequence[Reading], shape: str, colour: str) -> Direction | None:
    """Which way a shape of that colour goes where it is first seen in two frames; None: it is not, or goes no such way.

    Later it may have turned round at an edge.
    """
    places = [found_at(reading, shape, colour) for reading in readings]
    for before, after in pairwise(places):
        if before is not None and after is not None:
            step = (after[0] - before[0], after[1] - before[1])
            return next((name for name, wanted in DIRECTIONS.items() if step == wanted), None)
    return None


def found_at(reading: Reading, shape: str, colour: str) -> tuple[int, int] | None:
    """Where a shape of that colour is in a frame."""
    found = ((look.x, look.y) for look in reading.looks if (look.shape, look.colour) == (shape, colour))
    return next(found, None)
