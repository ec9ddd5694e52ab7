"""What each code of the small world shows: a part of which shape, a colour, a ground.

A square of a picture is one of some hundred parts of shapes in one of eight colours on one of five grounds. Thousands
of codes are products of these few, and a small model learns the few sooner than the products (`train.code_rows`). Pairs
of shape and colour that are kept from the model are counted too: it never reads one, but a part and a colour that a
code shows are those of other codes as well.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from lwm.core.files import whole
from lwm.vqgan.codec import FrameCodec
from lwm.world.draw import SIDE, STEP, TEXTURE, coverage, draw_frame
from lwm.world.frames import WorldFrames
from lwm.world.scene import DIRECTIONS, Scene

SHOWN = "shown.npy"
NUM_FRAMES, FRAMES_AT_ONCE = 24_000, 400
#: a shape that covers less than this of every pixel of a square is not on it
LEAST_COVERAGE = 0.02


def count_shown(codec: FrameCodec, num_frames: int = NUM_FRAMES) -> Float32[np.ndarray, "codes features"]:
    """Of the squares that have a code, the share that shows each shape, part, colour and ground, or no shape at all.

    Codes that were not seen have rows of zeros. Squares on which two shapes meet are left out.
    """
    source, side = WorldFrames().open(codec.resolution), codec.config.pixels_per_code
    columns: dict[Hashable, int] = defaultdict(lambda: len(columns))
    pairs: list[tuple[int, int]] = []
    seen = np.zeros(codec.num_codes)
    for first in range(0, num_frames, FRAMES_AT_ONCE):
        some = [source.scene(place) for place in range(first, min(first + FRAMES_AT_ONCE, num_frames))]
        codes = codec.encode(np.stack([draw_frame(*each) for each in some]))
        for (scene, frame), own in zip(some, codes, strict=True):
            for code, features in zip(own.tolist(), squares(scene, frame, side), strict=True):
                if features:
                    seen[code] += 1
                    pairs += [(code, columns[feature]) for feature in features]
    table = np.zeros((codec.num_codes, len(columns)), np.float32)
    np.add.at(table, tuple(np.array(pairs).T), 1)
    return table / np.maximum(seen, 1)[:, None].astype(np.float32)


def squares(scene: Scene, frame: int, side: int) -> Iterator[list[Hashable]]:
    """What each square of a frame shows, row by row; nothing where two shapes meet."""
    step_x, _ = DIRECTIONS[scene.pan]
    ground = [("ground", scene.ground), ("phase", STEP * frame * step_x % TEXTURE)]
    looks = [(look, coverage(look.shape, look.size, look.x, look.y)) for look in scene.looks(frame)]
    for top in range(0, SIDE, side):
        for left in range(0, SIDE, side):
            cut = np.s_[top : top + side, left : left + side]
            here = [(look, covered[cut]) for look, covered in looks if covered[cut].max() > LEAST_COVERAGE]
            if not here:
                yield [*ground, "bare"]
            elif len(here) == 1:
                ((look, covered),) = here
                middle = (STEP * (look.x + 1) - left, STEP * (look.y + 1) - top)
                whole_shape = [("shape", look.shape), ("size", look.size), ("colour", look.colour)]
                yield [*ground, *whole_shape, ("middle", middle), ("part", covered.round(2).tobytes())]
            else:
                yield []


def write_shown(file: Path, codec: FrameCodec) -> None:
    """Write the table."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole(file) as scratch, scratch.open("wb") as opened:
        np.save(opened, count_shown(codec))
