"""Frames as files: PNG, JPEG and WebP pictures, GIF and WebP animations, MP4 videos, by the ending of the name."""

import itertools
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from lwm.core.errors import UserError
from lwm.core.files import whole

PICTURES, ANIMATIONS, VIDEOS = (".png", ".jpg", ".jpeg", ".webp"), (".gif", ".webp"), (".mp4",)
#: the most seconds that a frame can be shown
LONGEST = {".gif": 655.0, ".webp": 16_000.0, ".mp4": 20_000.0}
#: ticks a second of a video's clock
CLOCK = 90_000
#: quality of videos, from 0 (lossless) to 51
QUALITY = 16


def save_frames(
    path: Path,
    frames: UInt8[np.ndarray, "N height width 3"],
    frames_per_second: float = 4.0,
    times: Sequence[float] | None = None,
    scale: int = 1,
) -> Path:
    """Write frames into one file, whole or not at all; return its path.

    `times` says when each is first shown, in seconds from the first, in place of an even rate; frames shown at the same
    time as the next are left out. The last is shown as long as an even rate has it. `scale` repeats pixels.

    Raises:
        UserError: an ending that is not known or cannot hold so many frames, or so long ones; a place that cannot be
            written.
    """
    suffix = path.suffix.lower()
    require_writable(path, len(frames), frames_per_second if times is None else None)
    shown = [place / frames_per_second for place in range(len(frames))] if times is None else list(times)
    kept = [place for place, time in enumerate(shown) if place + 1 == len(shown) or shown[place + 1] > time]
    starts = [shown[place] - shown[kept[0]] for place in kept] + [shown[-1] - shown[kept[0]] + 1 / frames_per_second]
    if len(kept) > 1 or suffix in VIDEOS:
        _require_short_frames(path, starts, LONGEST[suffix])
    larger = frames[kept].repeat(scale, axis=1).repeat(scale, axis=2)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as scratch:
            if suffix in VIDEOS:
                _save_video(scratch, larger, starts)
            else:
                _save_picture(scratch, larger, starts, {".jpg": "jpeg"}.get(suffix, suffix[1:]))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def require_writable(path: Path, num_frames: int, frames_per_second: float | None = None) -> None:
    """Refuse an ending, a place or an even rate before anything is computed; nothing is made there yet.

    Raises:
        UserError: the ending is not known, holds one picture only, or no frames that are shown so long; the place
            cannot be written.
    """
    suffix = path.suffix.lower()
    if num_frames > 1 and suffix not in ANIMATIONS + VIDEOS:
        raise UserError(f"{path}: {num_frames} frames go into {', '.join(ANIMATIONS + VIDEOS)}")
    if suffix not in PICTURES + ANIMATIONS + VIDEOS:
        known = ", ".join(dict.fromkeys(PICTURES + ANIMATIONS + VIDEOS))
        raise UserError(f"{path}: give the file an ending out of {known}")
    if frames_per_second is not None and (num_frames > 1 or suffix in VIDEOS):
        _require_short_frames(path, [0.0, 1 / frames_per_second], LONGEST[suffix])
    _require_place(path)


def _require_place(path: Path) -> None:
    try:
        if path.is_dir():
            raise UserError(f"cannot write {path}: it is a directory; name a file")
        path.parent.stat()
        above = path.parent
    except FileNotFoundError:  # it will be made
        above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    if not above.is_dir():
        raise UserError(f"cannot write {path}: {above} is not a directory")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {path}: {above} may not be written to")


def _require_short_frames(path: Path, starts: list[float], longest: float) -> None:
    for number, (before, after) in enumerate(itertools.pairwise(starts), 1):
        if not after - before <= longest:
            raise UserError(
                f"cannot write {path}: frame {number} would be shown for {after - before:,.0f} s, and such a file "
                f"holds up to {longest:,.0f} s; give it other times"
            )


def _save_picture(path: Path, frames: np.ndarray, starts: list[float], form: str) -> None:
    first, *rest = (Image.fromarray(frame) for frame in frames)
    if not rest:
        first.save(path, form, **({"lossless": True} if form == "webp" else {}))
        return
    milliseconds = [max(1, round(1000 * (after - before))) for before, after in itertools.pairwise(starts)]
    first.save(path, form, save_all=True, append_images=rest, duration=milliseconds, loop=0)


def _save_video(path: Path, frames: np.ndarray, starts: list[float]) -> None:
    even = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    ticks = list(itertools.accumulate((round(start * CLOCK) for start in starts), _after))
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=_rate(starts), options={"crf": str(QUALITY)})
        stream.height, stream.width, stream.pix_fmt = even.shape[1], even.shape[2], "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, CLOCK)
        for pixels, start, end in zip(even, ticks, ticks[1:], strict=False):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
            frame.pts, frame.duration, frame.time_base = start, end - start, Fraction(1, CLOCK)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _after(before: int, tick: int) -> int:
    """A tick that lies behind the one before: frames closer than the clock tells apart keep their order."""
    return max(tick, before + 1)


def _rate(starts: list[float]) -> Fraction:
    """Frames a second, on average, as players want to know it."""
    return Fraction((len(starts) - 1) / max(starts[-1], 1e-3)).limit_denominator(1001)
