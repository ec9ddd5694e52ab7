"""Single frames of the small world, for a codec to learn: still pictures, and frames out of the middle of clips."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, UInt8

from lwm.core.errors import UserError
from lwm.world.draw import SIDE, coverage, draw_frame
from lwm.world.scene import MARKED, MAX_SPRITES, Colour, Scene, Shape, random_scene

CLIP_SHARE, CLIP_FRAMES = 0.5, 8
#: of the frames, those that lie on the ground of marked ones
MARKED_SHARE = 0.1
#: the last word of each seed: numpy takes zeros at the end for nothing, and place 0 of one seed for that of another
FRAMES = 1


@dataclass(frozen=True)
class WorldFrames:
    """As many frames as there are places. What a shape covers counts more, or small ones would be overlooked."""

    seed: int = 0
    num_frames: int = 1 << 24
    max_sprites: int = MAX_SPRITES
    #: how much more a pixel of a shape counts than one of the ground
    shape_weight: float = 4.0
    #: shapes in colours that are never shown
    forbidden: tuple[tuple[Shape, Colour], ...] = ()

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.seed < 0:
            raise UserError(f"{self.num_frames} frames from seed {self.seed}: give 1 or more, and a seed of 0 or more")

    def open(self, resolution: int) -> "WorldFrameSource":
        """The source of these frames.

        Raises:
            UserError: the codec is made for pictures of another size.
        """
        if resolution != SIDE:
            raise UserError(f"the small world is drawn at {SIDE} pixels a side: a codec of {resolution} cannot read it")
        return WorldFrameSource(self)


class WorldFrameSource:
    """Random access to drawn frames and the weights of their pixels."""

    def __init__(self, config: WorldFrames) -> None:
        self._config, self._forbidden = config, frozenset(config.forbidden)

    def __len__(self) -> int:
        return self._config.num_frames

    def scene(self, place: int) -> tuple[Scene, int]:
        """What is drawn there: a scene, and which of its frames."""
        rng = np.random.default_rng((self._config.seed, place, FRAMES))
        num_frames = CLIP_FRAMES if rng.random() < CLIP_SHARE else 1
        scene = random_scene(rng, num_frames, self._config.max_sprites, self._forbidden)
        if rng.random() < MARKED_SHARE:
            scene = replace(scene, ground=MARKED)
        return scene, int(rng.integers(num_frames))

    def __getitem__(self, place: int) -> tuple[UInt8[np.ndarray, "side side 3"], Float32[np.ndarray, "side side"]]:
        scene, frame = self.scene(place)
        covered = np.zeros((SIDE, SIDE), np.float32)
        for look in scene.looks(frame):
            covered = np.maximum(covered, coverage(look.shape, look.size, look.x, look.y))
        return draw_frame(scene, frame), 1 + np.float32(self._config.shape_weight) * covered
