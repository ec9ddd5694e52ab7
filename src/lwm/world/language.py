"""The small world in words: captions in many wordings, and their meaning read back.

Words come in different orders and some are left out: with a fixed order a model learns which pairs of words never
follow each other, and cannot draw what it has not seen.
"""

import functools
import re
from dataclasses import dataclass

import numpy as np

from lwm.world.scene import COLOURS, DIRECTIONS, GROUNDS, PLACES, SHAPES, SIZES, Scene, Sprite, choose

_COLUMNS, _ROWS = ("left", "", "right"), ("top", "", "bottom")
#: of a sprite's size and place and of the ground, the part of the captions that mention them
MENTIONED = 0.7
_MOVES = ("moves {}", "goes {}", "travels {}", "is moving {}")
_STAYS = ("stays where it is", "stands still", "does not move")
_EVENTS = {
    "appears": ("appears later", "comes in later"),
    "vanishes": ("then vanishes", "then disappears"),
    "changes": ("then turns {}", "then becomes {}"),
}


@dataclass(frozen=True)
class Told:
    """What a caption says of a sprite; None is what it does not say."""

    shape: str
    colour: str
    size: str | None = None
    place: str | None = None
    direction: str | None = None
    event: str | None = None
    into: str | None = None


@dataclass(frozen=True)
class Meaning:
    """What a caption says, whatever its wording."""

    sprites: frozenset[Told]
    ground: str | None = None

    def holds_of(self, scene: Scene) -> bool:
        """Whether it names every sprite of the scene, and nothing it says is wrong."""
        if self.ground not in (None, scene.ground) or len(self.sprites) != len(scene.sprites):
            return False
        if scene.num_frames > 1 and any(told.direction is None for told in self.sprites):
            return False
        return all(any(_fits(told, sprite, scene) for told in self.sprites) for sprite in scene.sprites)


def _fits(told: Told, sprite: Sprite, scene: Scene) -> bool:
    moving = scene.num_frames > 1
    said = (
        (told.shape, sprite.shape),
        (told.colour, sprite.colour),
        (told.size, sprite.size),
        (told.place, place_of(sprite.x, sprite.y)),
        (told.direction, sprite.direction if moving else None),
        (told.event, sprite.event if sprite.event != "none" else None),
        (told.into, sprite.into),
    )
    return all(says is None or says == true for says, true in said) and not (
        moving and told.event is None and sprite.event != "none"
    )


def place_of(x: int, y: int) -> str:
    """Where in the picture a lattice place is: one of nine, `top left` to `bottom right`, `middle` among them."""
    third = PLACES / 3
    return f"{_ROWS[int(y / third)]} {_COLUMNS[int(x / third)]}".strip() or "middle"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One of many ways to tell a scene."""
    moving = scene.num_frames > 1
    told = [_tell(scene.sprites[place], moving, rng) for place in rng.permutation(len(scene.sprites))]
    text = (". " if moving else " and ").join(told)
    if rng.random() >= MENTIONED:
        return f"{text}."
    if rng.random() < 0.5:
        return f"on {scene.ground} {text}."
    return f"{text}, on {scene.ground}." if moving else f"{text} on {scene.ground}."


def _tell(sprite: Sprite, moving: bool, rng: np.random.Generator) -> str:
    size = sprite.size if rng.random() < MENTIONED else ""
    forms = [f"a {size} {sprite.colour} {sprite.shape}", f"a {sprite.shape} in {sprite.colour}"]
    if size:
        forms = [
            forms[0],
            f"a {sprite.shape} that is {size} and {sprite.colour}",
            f"a {size} {sprite.shape} in {sprite.colour}",
        ]
    words = " ".join(choose(rng, forms).split())
    if rng.random() < MENTIONED:
        where = place_of(sprite.x, sprite.y)
        where = f"in the {where}" if where == "middle" else f"at the {where}"
        words = f"{where} {words}" if rng.random() < 0.3 else f"{words} {where}"
    return f"{words} {_move(sprite, rng)}" if moving else words


def _move(sprite: Sprite, rng: np.random.Generator) -> str:
    words = choose(rng, _STAYS) if sprite.direction == "still" else choose(rng, _MOVES).format(sprite.direction)
    if sprite.event == "none":
        return words
    return f"{words} and {choose(rng, _EVENTS[sprite.event]).format(sprite.into)}"


def understand(text: str) -> Meaning | None:
    """The meaning of a caption; None: it is not one of this world."""
    text = text.lower()
    if not _known_words().issuperset(re.findall(r"[^\s.,]+", text)):
        return None
    told = []
    for clause in re.split(r"\. *|\band (?=an? |at the |in the middle an? )", text.strip().rstrip(".")):
        shapes = re.findall(rf"\b({'|'.join(SHAPES)})\b", clause)
        if len(shapes) != 1:
            return None
        into = re.search(rf"\b(?:turns|becomes) ({'|'.join(COLOURS)})\b", clause)
        before = clause[: into.start()] if into else clause
        colours = re.findall(rf"\b({'|'.join(COLOURS)})\b", before)
        if len(colours) != 1:
            return None
        told.append(_told(clause, shapes[0], colours[0], into.group(1) if into else None))
    grounds = re.findall(rf"\bon ({'|'.join(GROUNDS)})\b", text)
    if len(grounds) > 1 or len(set(told)) < len(told):
        return None
    return Meaning(frozenset(told), grounds[0] if grounds else None)


@functools.cache
def _known_words() -> frozenset[str]:
    """All that captions are made of."""
    wordings = (*_MOVES, *_STAYS, *(words for some in _EVENTS.values() for words in some), *_COLUMNS, *_ROWS)
    names = (*SHAPES, *COLOURS, *SIZES, *GROUNDS, *DIRECTIONS)
    return frozenset(" ".join((*wordings, *names, "a an at the in on and that is middle")).replace("{}", "").split())


def _told(clause: str, shape: str, colour: str, into: str | None) -> Told:
    size = re.search(rf"\b({'|'.join(SIZES)})\b", clause)
    where = re.search(r"\b(?:at|in) the ((?:top|bottom)(?: left| right)?|left|right|middle(?! left| right))\b", clause)
    ways = "|".join(name for name in DIRECTIONS if name != "still")
    way = re.search(rf"\b(?:moves|goes|travels|moving) ({ways})\b", clause)
    stays = re.search(r"stays where it is|stands still|does not move", clause)
    events = {"appears": r"appears later|comes in later", "vanishes": r"vanishes|disappears"}
    event = next((name for name, words in events.items() if re.search(words, clause)), "changes" if into else None)
    return Told(
        shape,
        colour,
        size.group(1) if size else None,
        where.group(1) if where else None,
        "still" if stays else way.group(1) if way else None,
        event,
        into,
    )
