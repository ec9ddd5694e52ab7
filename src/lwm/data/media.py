"""Pictures and videos as frames: whatever the file, square uint8 frames and the times they are shown at.

What a file is, its content tells, not its name. Frames are upright, transparency lies on white, the shorter side is
scaled to the square's and the middle is kept, as LWM did.
"""

import itertools
import math
import os
import struct
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import Float64, UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from lwm.core.errors import UserError

#: the largest picture or frame that is opened: 64 million pixels, 8192 x 8192
MAX_PIXELS = 2**26
#: the most frames that a rate may ask of one file
MAX_FRAMES = 100_000
#: seconds by which a time may be missed and still be the same time
TIME_SLACK = 1e-4
#: seconds by which a file may end before the time it promises: some only estimate it
DURATION_SLACK = 0.5
#: how long a frame of an animation is shown that does not say it
DEFAULT_SECONDS = 0.1

Image.init()
#: what pictures are read from; other formats of the library start programs (EPS) or hold something else
FORMATS: list[str] = [
    name for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF") if name in Image.OPEN
]
#: those whose frames follow each other in time; the pages of others are not shown one after another
ANIMATED = ("PNG", "WEBP", "GIF", "AVIF")
#: what the library raises at a broken file
BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, AssertionError, struct.error,
)  # fmt: skip
#: what an orientation tag asks for
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: what videos are read from: forms that hold their frames themselves. Others name further files, on this disk or
#: beyond it, that would be opened in their place (playlists), or draw plain text as frames.
CONTAINERS = (
    "mov", "matroska", "avi", "mpegts", "mpeg", "flv", "ogg", "asf", "mxf", "nut", "dv", "gif", "ivf", "obu",
    "yuv4mpegpipe", "mpegvideo", "m4v", "h264", "hevc",
)  # fmt: skip
#: no more than this file is opened, whatever stands in it
CLOSED = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"}
#: up to PyAV 18, which Python 3.11 is left with, a tag that is not UTF-8 ends everything but for this
LENIENT: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}

Image.MAX_IMAGE_PIXELS = None  # the limit above is checked before anything is decoded, and for video too


@dataclass(frozen=True)
class Frames:
    """Frames of one file, and when each is first shown, in seconds from the beginning."""

    pixels: UInt8[np.ndarray, "N size size 3"]
    times: Float64[np.ndarray, "N"]


@dataclass(frozen=True)
class Choice:
    """Which frames of a video: a number of them evenly over its time, so many a second, or (neither) all."""

    num_frames: int | None = None
    frames_per_second: float | None = None

    def __post_init__(self) -> None:
        if self.num_frames is not None and self.frames_per_second is not None:
            raise UserError("choose frames by their number or by their rate, not by both")
        if self.num_frames is not None and self.num_frames < 1:
            raise UserError(f"{self.num_frames} frames: ask for 1 or more")
        if self.frames_per_second is not None and not 0 < self.frames_per_second < math.inf:
            raise UserError(f"{self.frames_per_second} frames a second: ask for a positive rate")

    def times(self, path: Path, count: int, duration: float) -> list[float] | None:
        """The times at which to look at a video of `count` frames; None: at all of them.

        Raises:
            UserError: the rate asks for more than `MAX_FRAMES`.
        """
        if self.num_frames is not None:
            wanted = min(self.num_frames, count)
            return [place * duration / wanted for place in range(wanted)]
        if self.frames_per_second is not None:
            if duration * self.frames_per_second > MAX_FRAMES:
                raise UserError(
                    f"{path} lasts {duration:,.1f} s, which at {self.frames_per_second:,g} frames a second are more "
                    f"than {MAX_FRAMES:,} frames: ask for fewer a second"
                )
            wanted = max(1, math.ceil((duration - TIME_SLACK) * self.frames_per_second))
            return [place / self.frames_per_second for place in range(wanted)]
        return None


#: frames in order: when each is first shown, and how to come by its picture, which costs more than to pass it over
Shown = Iterator[tuple[float, Callable[[], Image.Image]]]


def read_frames(path: Path | str, size: int, choice: Choice = Choice()) -> Frames:
    """The chosen frames of a picture, an animation or a video.

    A frame that was asked for at some time is the one shown at that time; `times` says when it was first shown.

    Raises:
        UserError: no such file, neither picture nor video, too large, or broken (says at which frame, and why).
    """
    path = Path(path)
    if not os.path.isfile(path):  # also where the file system refuses the name
        raise UserError(f"no picture or video at {path}")
    try:
        picture = Image.open(path, formats=FORMATS)
    except UnidentifiedImageError:
        return _read_video(path, size, choice)
    except BROKEN as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    with picture:
        return _read_picture(picture, path, size, choice)


def media_files(directory: Path) -> list[Path]:
    """The files below a directory by name, but hidden ones and texts, which are captions."""
    found = ((path, path.relative_to(directory)) for path in directory.rglob("*"))
    return sorted(path for path, name in found if path.is_file() and is_media(name))


def is_media(name: Path) -> bool:
    """Whether a file of that name may be a picture or a video: it is neither hidden nor a caption."""
    return name.suffix != ".txt" and not any(part.startswith(".") for part in name.parts)


def square(picture: Image.Image, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Upright, on white, the shorter side scaled to `size`, the middle kept."""
    picture = _on_white(_turned(picture))
    return np.asarray(ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC))


def _turned(picture: Image.Image) -> Image.Image:
    """As its orientation tag has it; one that cannot be read says nothing."""
    try:
        turn = TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except BROKEN:
        return picture
    return picture if turn is None else picture.transpose(turn)


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith(("I", "F")):  # grey of more than 8 bits, which a plain conversion would cut off
        grey = np.asarray(picture, np.float64)
        deepest = 1.0 if picture.mode == "F" and grey.max(initial=0) <= 1 else 65_535.0
        return Image.fromarray(np.uint8(np.clip(grey / deepest, 0, 1) * 255 + 0.5)).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")


def _read_picture(picture: Image.Image, path: Path, size: int, choice: Choice) -> Frames:
    try:
        count = getattr(picture, "n_frames", 1) if picture.format in ANIMATED else 1
    except BROKEN as error:
        raise UserError(f"{path} is broken: {error}") from None

    def at(number: int) -> Image.Image:
        try:
            if number != picture.tell():
                picture.seek(number)
            _require_moderate(path, *picture.size)
            picture.load()
        except BROKEN as error:
            raise UserError(f"{path} is broken at frame {number + 1} of {count}: {error}") from None
        return picture

    lengths = [_seconds(at(number)) for number in range(count)]
    starts = [0.0, *itertools.accumulate(lengths)]
    wanted = choice.times(path, count, starts[-1]) if count > 1 else None
    return _collect(path, ((starts[number], partial(at, number)) for number in range(count)), wanted, size)


def _seconds(picture: Image.Image) -> float:
    """How long a frame is shown."""
    milliseconds = picture.info.get("duration")
    if not isinstance(milliseconds, int | float):  # of a PNG it may also be a text that somebody named so
        return DEFAULT_SECONDS
    return milliseconds / 1000 or DEFAULT_SECONDS


def _read_video(path: Path, size: int, choice: Choice) -> Frames:
    try:
        with _opened(path) as container:
            stream = _film(container, path)
            _require_moderate(path, stream.codec_context.width, stream.codec_context.height)
            starts, count, duration = _measure(container, stream, path)
            wanted = choice.times(path, count, duration)
        with _opened(path) as container:
            return _collect(path, _decode(container, path, starts, count), wanted, size)
    except av.FFmpegError as error:
        raise UserError(f"{path} is neither a picture nor a video that can be read: {error.strerror}") from None


def _opened(path: Path) -> av.container.InputContainer:
    name = str(path.absolute())  # a bare name with a colon in it would be taken for a protocol
    try:
        return av.open(name, container_options=CLOSED, **LENIENT)
    except av.ArgumentError:  # what FFmpeg says of a form that it was not allowed
        raise UserError(f"{path} is neither a picture nor a video of a form that is read") from None


def _film(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    """The video stream; the cover of a song is none, nor is one that nothing here decodes."""
    for stream in container.streams.video:
        if stream.codec_context is not None and av.stream.Disposition.attached_pic not in stream.disposition:
            return stream
    raise UserError(f"{path} is neither a picture nor a video")


def _measure(container: av.container.InputContainer, stream: av.VideoStream, path: Path) -> tuple[float, int, float]:
    """When the first frame is shown, how many there are, and for how long, without decoding any."""
    packets: list[tuple[int, int]] = []
    count, end = 0, 0.0
    for packet in container.demux():
        if not packet.size or packet.is_discard:  # cut away by an edit list, and never shown
            continue
        count += packet.stream is stream
        if packet.pts is None or not packet.time_base:
            continue
        length = packet.duration or 0
        end = max(end, float((packet.pts + length) * packet.time_base))
        if packet.stream is stream:
            packets.append((packet.pts, length))
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    if not count:
        raise UserError(f"{path} holds no frame")
    promised = (container.duration or 0) / av.time_base
    if promised > end + DURATION_SLACK:
        raise UserError(f"{path} is cut short: it ends after frame {count} at {end:.2f} of {promised:.2f} s")
    if len(packets) < count or not stream.time_base:  # not every format says when a frame is shown
        return 0.0, count, count / rate
    first, (last, length) = min(packets)[0], max(packets)
    shown = float((last + length - first) * stream.time_base)
    return float(first * stream.time_base), count, shown + (0.0 if length else 1 / rate)


def _decode(container: av.container.InputContainer, path: Path, start: float, count: int) -> Shown:
    stream = _film(container, path)
    stream.thread_type = "AUTO"
    number, rate = 0, float(stream.average_rate or stream.guessed_rate or 25)
    try:
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise UserError(f"{path} is broken at frame {number + 1} of {count}: its data is damaged")
            _require_moderate(path, frame.width, frame.height)
            yield (number / rate if frame.time is None else frame.time - start), partial(_upright, frame)
            number += 1
    except av.FFmpegError as error:
        raise UserError(f"{path} is broken at frame {number + 1} of {count}: {error.strerror}") from None


def _upright(frame: av.VideoFrame) -> Image.Image:
    picture = frame.to_image()
    return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture


def _collect(path: Path, frames: Shown, wanted: list[float] | None, size: int) -> Frames:
    times: list[float] = []
    pixels: list[np.ndarray] = []
    for time, picture, copies in _at(frames, wanted):
        times += [time] * copies
        try:
            pixels += [square(picture(), size)] * copies
        except BROKEN as error:
            raise UserError(f"{path} is broken, and its frame at {time:.2f} s cannot be shown: {error}") from None
    if not pixels:
        raise UserError(f"{path} holds no frame that can be shown")
    return Frames(np.stack(pixels), np.array(times))


def _at(frames: Shown, wanted: list[float] | None) -> Iterator[tuple[float, Callable[[], Image.Image], int]]:
    """The frames shown at the wanted times, and at how many of them each is."""
    if wanted is None:
        yield from ((*frame, 1) for frame in frames)
        return
    left = deque(wanted)
    shown = next(frames, None)
    while shown is not None and left:
        following = next(frames, None)
        until = math.inf if following is None else following[0] - TIME_SLACK
        copies = 0
        while left and left[0] < until:
            left.popleft()
            copies += 1
        if copies:
            yield *shown, copies
        shown = following


def _require_moderate(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UserError(f"{path} has {width:,} x {height:,} pixels, more than {MAX_PIXELS:,}: scale it down first")
