"""What happens in the small world: shapes on a ground, where they go, what becomes of them.

A scene is a function of a seed. Places are those of a lattice of 7 x 7, so that a picture can be put into words and
the words be checked; whatever moves, moves by one place a frame.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeVar, get_args

import numpy as np

Shape = Literal["circle", "square", "triangle", "cross"]
Colour = Literal["red", "orange", "yellow", "green", "blue", "purple", "white", "black"]
Size = Literal["small", "big"]
Ground = Literal["grass", "sand", "water", "snow", "blossom"]
Event = Literal["none", "appears", "vanishes", "changes"]
Direction = Literal["still", "left", "right", "up", "down"]

EVENTS: tuple[Event, ...] = ("appears", "vanishes", "changes")
SHAPES: tuple[Shape, ...] = get_args(Shape)
COLOURS: tuple[Colour, ...] = get_args(Colour)
SIZES: tuple[Size, ...] = get_args(Size)
#: what the one frame of a long video lies on that is asked for, and no other does
MARKED: Ground = "blossom"
GROUNDS: tuple[Ground, ...] = tuple(ground for ground in get_args(Ground) if ground != MARKED)
DIRECTIONS: dict[Direction, tuple[int, int]] = {
    "still": (0, 0),
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
}
#: shapes in colours that no training shows, for each shape one: what is drawn of them was put together
HELD_OUT_PAIRS: tuple[tuple[Shape, Colour], ...] = (
    ("circle", "purple"),
    ("square", "yellow"),
    ("triangle", "blue"),
    ("cross", "orange"),
)
#: places along a side
PLACES = 7
#: places between two sprites, at least, and how many sprites there is room for
LANE_DISTANCE, MAX_SPRITES = 3, 3
#: of the scenes, the part in which the ground moves under the sprites; of the sprites, those that stay where they are
#: and those that something befalls
PAN_SHARE, STILL_SHARE, EVENT_SHARE = 0.15, 0.2, 0.25

#: steps that a sprite goes before it may turn round
CLEAR = 2
#: one of so many scenes is kept out of training, by what it shows
HELD_OUT_PART = 10

T = TypeVar("T")


class Look(NamedTuple):
    """A shape as it is in one frame; `x` from the left, `y` from above, in places."""

    shape: Shape
    colour: Colour
    size: Size
    x: int
    y: int


@dataclass(frozen=True)
class Sprite:
    """A shape and what becomes of it, from where it is first seen. At an edge it turns round."""

    shape: Shape
    colour: Colour
    size: Size
    x: int
    y: int
    direction: Direction = "still"
    event: Event = "none"
    #: the first frame in which the event has happened
    when: int = 0
    #: the colour it changes into
    into: Colour | None = None

    def at(self, frame: int) -> Look | None:
        """How it looks in a frame; None: it is not there."""
        if (self.event == "appears" and frame < self.when) or (self.event == "vanishes" and frame >= self.when):
            return None
        colour = self.into if self.into is not None and frame >= self.when else self.colour
        step_x, step_y = DIRECTIONS[self.direction]
        gone = frame - self.when if self.event == "appears" else frame
        return Look(self.shape, colour, self.size, _bounced(self.x + gone * step_x), _bounced(self.y + gone * step_y))


def _bounced(place: int) -> int:
    """Where a walk ends up that turns round at both edges."""
    period = 2 * (PLACES - 1)
    return PLACES - 1 - abs(place % period - (PLACES - 1))


@dataclass(frozen=True)
class Scene:
    """Sprites on a ground for some frames; later sprites cover earlier ones. A pan moves the ground under them."""

    ground: Ground
    sprites: tuple[Sprite, ...]
    num_frames: int = 1
    pan: Direction = "still"

    def looks(self, frame: int) -> list[Look]:
        """What is to be seen in a frame, from the back to the front."""
        return [look for sprite in self.sprites if (look := sprite.at(frame)) is not None]


def random_scene(
    rng: np.random.Generator,
    num_frames: int = 1,
    max_sprites: int = 2,
    forbidden: frozenset[tuple[Shape, Colour]] = frozenset(),
) -> Scene:
    """Any scene: sprites of different shapes and colours, each in a lane of its own, none of a forbidden pair."""
    if not 1 <= max_sprites <= MAX_SPRITES:
        raise ValueError(f"max_sprites {max_sprites}: there is room for 1 to {MAX_SPRITES}")
    count = int(rng.integers(1, max_sprites + 1))
    pans: tuple[Direction, ...] = ("left", "right") if num_frames > 1 and rng.random() < PAN_SHARE else ("still",)
    across = bool(rng.random() < 0.5)
    shapes, colours = _distinct(rng, SHAPES, count), _distinct(rng, COLOURS, count)
    while any(pair in forbidden for pair in zip(shapes, colours, strict=True)):
        shapes, colours = _distinct(rng, SHAPES, count), _distinct(rng, COLOURS, count)
    sprites = []
    for shape, colour, lane in zip(shapes, colours, _lanes(rng, count), strict=True):
        along = int(rng.integers(PLACES))
        x, y = (along, lane) if across else (lane, along)
        sprite = Sprite(shape, colour, choose(rng, SIZES), x, y)
        sprites.append(_animated(rng, sprite, across, num_frames, colours, forbidden) if num_frames > 1 else sprite)
    return Scene(choose(rng, GROUNDS), tuple(sprites), num_frames, choose(rng, pans))


def is_held_out(scene: Scene) -> bool:
    """Whether no training shows this very scene. Seeds alone would not do: of single shapes there are few pictures."""
    return zlib.crc32(repr(scene).encode()) % HELD_OUT_PART == 0


def scene_for(
    held_out: bool,
    rng: np.random.Generator,
    num_frames: int = 1,
    max_sprites: int = 2,
    forbidden: frozenset[tuple[Shape, Colour]] = frozenset(HELD_OUT_PAIRS),
) -> Scene:
    """A scene for training, or one that is kept out of it."""
    while is_held_out(scene := random_scene(rng, num_frames, max_sprites, forbidden)) != held_out:
        pass
    return scene


def _animated(
    rng: np.random.Generator,
    sprite: Sprite,
    across: bool,
    num_frames: int,
    taken: Sequence[Colour],
    forbidden: frozenset[tuple[Shape, Colour]],
) -> Sprite:
    """The same sprite on its way, and now and then with something that befalls it in the middle of the scene.

    It does not turn round at once: what is said of its way is to be seen.
    """
    ways: tuple[Direction, ...] = ("left", "right") if across else ("up", "down")
    free = [way for way in ways if _stays_inside(sprite, way)]
    direction = "still" if rng.random() < STILL_SHARE else choose(rng, free)
    sprite = replace(sprite, direction=direction)
    if rng.random() >= EVENT_SHARE:
        return sprite
    event = choose(rng, EVENTS)
    when = int(rng.integers(num_frames // 4 + 1, num_frames - num_frames // 4))
    into = None
    if event == "changes":
        others = [c for c in COLOURS if c not in taken and (sprite.shape, c) not in forbidden]
        into = choose(rng, others)
    return replace(sprite, event=event, when=when, into=into)


def _stays_inside(sprite: Sprite, way: Direction) -> bool:
    step_x, step_y = DIRECTIONS[way]
    return 0 <= sprite.x + CLEAR * step_x < PLACES and 0 <= sprite.y + CLEAR * step_y < PLACES


def choose(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """One of them, each as likely."""
    return choices[int(rng.integers(len(choices)))]


def _distinct(rng: np.random.Generator, choices: Sequence[T], count: int) -> list[T]:
    return [choices[place] for place in rng.permutation(len(choices))[:count]]


def _lanes(rng: np.random.Generator, count: int) -> list[int]:
    """Rows or columns far enough from each other that nothing hides anything."""
    while True:
        lanes = rng.permutation(PLACES)[:count]
        if np.diff(np.sort(lanes)).min(initial=PLACES) >= LANE_DISTANCE:
            return lanes.tolist()
