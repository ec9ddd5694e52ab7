"""What a codec keeps of the small world: pictures go through it and are read back."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from lwm.vqgan.codec import FrameCodec
from lwm.world.checker import read
from lwm.world.draw import draw_frame
from lwm.world.scene import MAX_SPRITES, Look, Scene, random_scene

#: scenes nobody trains on: training draws from seeds below this
SEED = 1 << 40


@dataclass(frozen=True)
class CodecScore:
    """Shares of what was drawn that is read back from reconstructions."""

    #: of the sprites, whose shape is right where they stand; whose shape, colour, size and place are right
    shapes: float
    sprites: float
    grounds: float
    #: of the pictures, in which all is right and nothing is added
    pictures: float
    psnr: float
    #: different codes among all of them, and as how many equally frequent ones they count
    codes_used: int
    code_perplexity: float
    num_pictures: int


def held_out_scenes(count: int, seed: int = SEED) -> list[Scene]:
    """Single pictures of one to three sprites."""
    return [random_scene(np.random.default_rng((seed, place, 1)), 1, MAX_SPRITES) for place in range(count)]


def score_codec(codec: FrameCodec, scenes: list[Scene]) -> tuple[CodecScore, UInt8[np.ndarray, "N side side 3"]]:
    """The score, and the reconstructions it is of."""
    frames = np.stack([draw_frame(scene, 0) for scene in scenes])
    codes = codec.encode(frames)
    again = codec.decode(codes)
    readings = [read(frame) for frame in again]
    looks = [(look, reading.looks) for scene, reading in zip(scenes, readings, strict=True) for look in scene.looks(0)]
    shares = np.unique(codes, return_counts=True)[1] / codes.size
    pairs = list(zip(scenes, readings, strict=True))
    return CodecScore(
        shapes=float(np.mean([_has_shape(look, found) for look, found in looks])),
        sprites=float(np.mean([look in found for look, found in looks])),
        grounds=float(np.mean([scene.ground == reading.ground for scene, reading in pairs])),
        pictures=float(np.mean([set(scene.looks(0)) == set(reading.looks) for scene, reading in pairs])),
        psnr=float(-10 * np.log10(np.mean(np.square((again.astype(float) - frames) / 255)))),
        codes_used=len(shares),
        code_perplexity=float(np.exp(-(shares * np.log(shares)).sum())),
        num_pictures=len(scenes),
    ), again


def _has_shape(look: Look, found: tuple[Look, ...]) -> bool:
    """Whether that shape was found at its place or the next one."""
    return any(other.shape == look.shape and abs(other.x - look.x) + abs(other.y - look.y) <= 1 for other in found)
