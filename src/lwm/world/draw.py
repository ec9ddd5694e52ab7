"""Scenes as pictures: anti-aliased shapes on textured grounds.

A shape is the set of points whose signed distance is negative; how much of a pixel it covers follows from the distance
of the pixel's middle. Grounds repeat every `TEXTURE` pixels, so that a ground looks the same wherever it is cut.
"""

import functools

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from lwm.world.scene import (
    DIRECTIONS,
    Colour,
    Ground,
    Look,
    Scene,
    Shape,
    Size,
)

#: pixels along a side, and between two places
SIDE, STEP = 32, 4
#: pixels after which a ground repeats itself
TEXTURE = 8
RADIUS: dict[Size, float] = {"small": 4.5, "big": 6.5}
RGB: dict[Colour, tuple[int, int, int]] = {
    "red": (220, 30, 40),
    "orange": (255, 140, 0),
    "yellow": (255, 235, 40),
    "green": (20, 200, 60),
    "blue": (40, 80, 255),
    "purple": (160, 40, 200),
    "white": (255, 255, 255),
    "black": (15, 15, 20),
}
#: of each ground: its colour, and that of its pattern
GROUND_RGB: dict[Ground, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "grass": ((70, 110, 60), (88, 130, 70)),
    "sand": ((205, 180, 130), (190, 162, 112)),
    "water": ((50, 110, 140), (72, 132, 160)),
    "snow": ((176, 188, 204), (160, 174, 192)),
    "blossom": ((236, 150, 188), (222, 126, 170)),
}


def draw(scene: Scene) -> UInt8[np.ndarray, "N side side 3"]:
    """Every frame of a scene."""
    return np.stack([draw_frame(scene, frame) for frame in range(scene.num_frames)])


def draw_frame(scene: Scene, frame: int) -> UInt8[np.ndarray, "side side 3"]:
    """One frame of a scene."""
    step_x, step_y = DIRECTIONS[scene.pan]
    picture = ground(scene.ground, STEP * frame * step_x, STEP * frame * step_y)
    for look in scene.looks(frame):
        picture = paint(picture, look)
    return (picture + 0.5).astype(np.uint8)


def paint(picture: Float32[np.ndarray, "side side 3"], look: Look) -> Float32[np.ndarray, "side side 3"]:
    """The picture with one more shape in front."""
    covered = coverage(look.shape, look.size, look.x, look.y)[..., None]
    return picture + covered * (np.array(RGB[look.colour], np.float32) - picture)


@functools.cache
def coverage(shape: Shape, size: Size, x: int, y: int) -> Float32[np.ndarray, "side side"]:
    """How much of each pixel a shape covers, 0..1."""
    middle_x, middle_y = STEP * (x + 1), STEP * (y + 1)
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    distance = _distance(shape, columns - middle_x, rows - middle_y, RADIUS[size])
    return np.clip(0.5 - distance, 0, 1).astype(np.float32)


def _distance(
    shape: Shape, x: Float64[np.ndarray, "side side"], y: Float64[np.ndarray, "side side"], radius: float
) -> Float64[np.ndarray, "side side"]:
    """Signed distance to the outline of a shape around the origin, negative inside; exact near the outline only."""
    match shape:
        case "circle":
            return np.hypot(x, y) - radius
        case "square":
            return np.maximum(abs(x), abs(y)) - 0.86 * radius
        case "triangle":  # its tip is up
            slope = np.hypot(2.0, 1.0)
            return np.maximum((2 * abs(x) - y) / slope - 0.47 * radius, y - 0.85 * radius)
        case "cross":
            arm = 0.36 * radius
            across = np.maximum(abs(x) - radius, abs(y) - arm)
            return np.minimum(across, np.maximum(abs(y) - radius, abs(x) - arm))


@functools.cache
def _texture(name: Ground) -> Float32[np.ndarray, "side side 3"]:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    match name:
        case "grass":
            marked = (columns % 4 == rows // 2 % 4) & (rows % 4 < 3)
        case "sand":
            marked = (rows + 3 * columns) % 8 == 0
        case "water":
            marked = (rows + (columns % 8 > 3)) % 4 == 0
        case "snow":
            marked = (rows % 8 == 2) & (columns % 8 == 5) | (rows % 8 == 6) & (columns % 8 == 1)
        case "blossom":
            marked = (rows + columns) % 8 < 2
    plain, pattern = np.array(GROUND_RGB[name], np.float32)
    return np.where(marked[..., None], pattern, plain)


def ground(name: Ground, x: int = 0, y: int = 0) -> Float32[np.ndarray, "side side 3"]:
    """A ground, moved by some pixels."""
    return np.roll(_texture(name), (y, x), axis=(0, 1))
