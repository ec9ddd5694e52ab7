"""Questions about a scene whose answers are known: many wordings, one or two words for an answer."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lwm.world.language import place_of
from lwm.world.scene import Scene, Sprite, choose


class Question(NamedTuple):
    """`kind` says what is asked for, so that scores can be told apart."""

    kind: str
    text: str
    answer: str


_WORDINGS: dict[str, tuple[str, ...]] = {
    "ground": ("What is the ground?", "What do the shapes lie on?", "Which ground is it?"),
    "count": ("How many shapes are there?", "How many shapes do you see?", "Count the shapes."),
    "colour": ("What colour is the {shape}?", "Which colour does the {shape} have?", "The {shape} has what colour?"),
    "shape": ("Which shape is {colour}?", "What is {colour}?", "Name the {colour} shape."),
    "size": ("How big is the {shape}?", "Is the {shape} small or big?", "What size is the {colour} shape?"),
    "place": ("Where is the {shape}?", "Where is the {colour} shape?", "In which place is the {shape}?"),
    "direction": (
        "Which way does the {shape} move?",
        "Where does the {shape} go?",
        "How does the {colour} shape move?",
    ),
    "event": ("What happens to the {shape}?", "What becomes of the {shape}?", "What happens to the {colour} shape?"),
    "into": ("Which colour does the {shape} turn into?", "The {shape} becomes what colour?"),
}
NUMBERS = ("none", "one", "two", "three")


def questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """One of each kind that the scene has an answer to, about sprites drawn by lot, in any order and wording."""
    found = [Question("ground", _word("ground", None, rng), scene.ground)]
    found.append(Question("count", _word("count", None, rng), NUMBERS[len(scene.sprites)]))
    for kind, answers in (_ANSWERS | _CLIP_ANSWERS if scene.num_frames > 1 else _ANSWERS).items():
        asked = [sprite for sprite in scene.sprites if answers(sprite) is not None]
        if asked:
            sprite = choose(rng, asked)
            found.append(Question(kind, _word(kind, sprite, rng), str(answers(sprite))))
    return [found[place] for place in rng.permutation(len(found))]


#: what each kind asks of a sprite; None: that is not asked of this one
_ANSWERS: dict[str, Callable[[Sprite], str | None]] = {
    "colour": lambda sprite: sprite.colour,
    "shape": lambda sprite: sprite.shape,
    "size": lambda sprite: sprite.size,
    "place": lambda sprite: place_of(sprite.x, sprite.y),
}
_CLIP_ANSWERS: dict[str, Callable[[Sprite], str | None]] = {
    "colour": lambda sprite: sprite.colour if sprite.into is None else None,
    "place": lambda sprite: place_of(sprite.x, sprite.y) if sprite.direction == "still" else None,
    "direction": lambda sprite: sprite.direction,
    "event": lambda sprite: {"none": "nothing"}.get(sprite.event, f"it {sprite.event}"),
    "into": lambda sprite: sprite.into,
}


def _word(kind: str, sprite: Sprite | None, rng: np.random.Generator) -> str:
    wording = choose(rng, _WORDINGS[kind])
    return wording if sprite is None else wording.format(shape=sprite.shape, colour=sprite.colour)
