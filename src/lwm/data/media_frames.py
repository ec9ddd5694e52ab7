"""Single frames out of pictures and videos on this disk, for a codec to learn."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32, UInt8

from lwm.core.errors import UserError
from lwm.data.media import Choice, media_files, read_frames

#: of a video's frames, the last part kept apart; of the pictures of a directory, every so manieth
HELD_OUT_SHARE, HELD_OUT_EVERY = 0.1, 10


@dataclass(frozen=True)
class MediaFrames:
    """Frames of files; all are read at once and kept, scaled a little larger than the codec's pictures."""

    #: a file, or a directory of files
    path: str = ""
    #: of videos, so many frames a second; none: all
    frames_per_second: float | None = None
    #: of a frame's side, the part that a crop by lot leaves out; half of the crops are mirrored
    margin: float = 0.125
    #: the ends of videos and some of the pictures are held out
    split: Literal["training", "held_out"] = "training"

    def open(self, resolution: int) -> "MediaFrameSource":
        """Read the files.

        Raises:
            UserError: nothing there, or a file that cannot be read.
        """
        path = Path(self.path)
        files = media_files(path) if os.path.isdir(path) else [path]
        if not self.path or not files:
            flag = "--data.path" if self.split == "training" else "--held-out.path"
            raise UserError(f"no pictures or videos at {self.path!r}: name a file or a directory with {flag}")
        if not 0 <= self.margin < 1:
            raise UserError(f"margin {self.margin} must be 0 or more and less than 1")
        held_out = self.split == "held_out"
        margin = 0.0 if held_out else self.margin
        choice, size = Choice(frames_per_second=self.frames_per_second), round(resolution * (1 + margin))
        kept: list[np.ndarray] = []
        for number, file in enumerate(files):
            pixels = read_frames(file, size, choice).pixels
            if len(pixels) > 1:
                end = len(pixels) - max(1, round(HELD_OUT_SHARE * len(pixels)))
                kept.append(pixels[end:] if held_out else pixels[:end])
            elif ((number + 1) % HELD_OUT_EVERY == 0) == held_out:
                kept.append(pixels)
        if not kept:
            raise UserError(
                f"{self.path} has too few pictures to hold any out, which is one in {HELD_OUT_EVERY}: add pictures, "
                "or a video, of which the end is held out"
            )
        return MediaFrameSource(np.concatenate(kept), resolution, augmented=not held_out)


class MediaFrameSource:
    """Frames by place: as they are, or each time another part of them."""

    #: crops of each frame
    CROPS = 64

    def __init__(self, pixels: UInt8[np.ndarray, "N size size 3"], resolution: int, augmented: bool) -> None:
        self._pixels, self._resolution, self._augmented = pixels, resolution, augmented
        self._weights = np.ones((resolution, resolution), np.float32)

    def __len__(self) -> int:
        return len(self._pixels) * (self.CROPS if self._augmented else 1)

    def __getitem__(self, place: int) -> tuple[UInt8[np.ndarray, "side side 3"], Float32[np.ndarray, "side side"]]:
        crop, number = divmod(place, len(self._pixels))
        frame, side = self._pixels[number], self._resolution
        if not self._augmented:
            return frame, self._weights
        rng = np.random.default_rng((number, crop))
        top, left = rng.integers(len(frame) - side + 1, size=2)
        frame = frame[top : top + side, left : left + side]
        return frame[:, ::-1] if rng.random() < 0.5 else frame, self._weights
