"""Long videos: clips one after another, and in the midst of one of them a single marked frame to be asked about."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8

from lwm.world.draw import draw
from lwm.world.questions import Question
from lwm.world.scene import MARKED, Colour, Scene, Shape, choose, random_scene, scene_for

#: frames of a clip
CLIP = 8
_WORDINGS = {
    "what": ("What lies on blossom?", "What is to be seen on blossom?", "Which shape in which colour lies on blossom?"),
    "colour": ("What colour is the shape on blossom?", "Which colour is there on blossom?"),
    "shape": ("Which shape lies on blossom?", "Name the shape on blossom."),
    "when": (
        "When does blossom come?",
        "Which ground comes before blossom?",
        "What is the ground before blossom?",
    ),
}


@dataclass(frozen=True)
class Film:
    """Clips of `CLIP` frames; the marked scene takes the place of one frame of them, never of the first."""

    clips: tuple[Scene, ...]
    marked: Scene
    place: int

    @property
    def num_frames(self) -> int:
        return CLIP * len(self.clips)

    def frames(self) -> Iterator[UInt8[np.ndarray, "N side side 3"]]:
        """All of them, clip by clip."""
        for number, clip in enumerate(self.clips):
            drawn = draw(clip)
            if number == self.place // CLIP:
                drawn[self.place % CLIP] = draw(self.marked)[0]
            yield drawn


def random_place(rng: np.random.Generator, num_clips: int) -> int:
    """A frame that may be marked: any but a clip's first, so that it is known what comes before."""
    return CLIP * int(rng.integers(num_clips)) + int(rng.integers(1, CLIP))


def mark(scene: Scene) -> Scene:
    """The picture, on the ground of marked frames."""
    return replace(scene, ground=MARKED)


def random_film(
    rng: np.random.Generator, num_frames: int, forbidden: frozenset[tuple[Shape, Colour]] = frozenset()
) -> Film:
    """As many whole clips as there is room for, and a marked picture of one sprite that no training shows."""
    clips = tuple(random_scene(rng, CLIP, 2, forbidden) for _ in range(max(1, num_frames // CLIP)))
    return Film(clips, mark(scene_for(True, rng, 1, 1, forbidden)), random_place(rng, len(clips)))


def film_questions(film: Film, rng: np.random.Generator) -> list[Question]:
    """One of each kind, in any order and wording: what the marked frame shows, and when it comes."""
    (sprite,) = film.marked.sprites
    answers = {
        "what": f"a {sprite.colour} {sprite.shape}",
        "colour": sprite.colour,
        "shape": sprite.shape,
        "when": f"after {film.clips[film.place // CLIP].ground}",
    }
    asked = [Question(kind, choose(rng, _WORDINGS[kind]), answer) for kind, answer in answers.items()]
    return [asked[which] for which in rng.permutation(len(asked))]
