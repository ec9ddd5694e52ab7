"""`lwm tokenize`: pictures and videos to records of codes.

What is to be done is listed first, in an order that depends on names alone. Records are collected in a journal beside
the output, which appears at the end by one rename. A run that was killed goes on behind the last whole group of files
in the journal; groups end where enough frames came together, so that the same frames are encoded together again.
"""

import base64
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tyro.conf import Positional

from lwm.core.errors import UserError
from lwm.data.media import Choice, Frames, read_frames
from lwm.data.vision import MOST_CODES, pack
from lwm.prepare.items import MEDIA, TIMES, Item, list_items
from lwm.prepare.journal import Journal
from lwm.prepare.writers import WRITERS
from lwm.vqgan.codec import FrameCodec

Progress = Callable[[int, int, str], None]

#: frames that end a group
GROUP_FRAMES = 64
#: files that are read ahead of the codec
READ_AHEAD = 4
#: of files of which none can be read, so many are named
NAMED_BAD = 3


@dataclass(frozen=True)
class TokenizeConfig:
    """Turn pictures and videos into records of codes, in LWM's format, with the times of the frames."""

    #: files, directories, patterns, or a JSONL whose records name a file each in the field `media`
    media: Positional[tuple[str, ...]]
    #: the model whose codec is used: a directory with a codec.json
    model: str
    #: what to write: .jsonl lists codes as LWM does, .parquet packs them, two bytes a code
    out: Path
    #: of each video, so many frames evenly over its time
    num_frames: int | None = None
    #: of each video, so many frames a second; neither: all
    frames_per_second: float | None = None


@dataclass(frozen=True)
class Tokenized:
    """What came of it."""

    out: Path
    num_records: int
    num_frames: int
    #: name and reason of each file that could not be read
    bad: list[tuple[str, str]]
    #: files that an earlier run had done
    resumed: int


def tokenize(config: TokenizeConfig, codec: FrameCodec, progress: Progress | None = None) -> Tokenized:
    """Encode every file once, in order; files that cannot be read are reported and left out.

    Raises:
        UserError: nothing to read or none of it readable, an output that exists or cannot be written, a journal of
            another run.
    """
    if config.out.suffix not in WRITERS:
        raise UserError(f"{config.out}: give it an ending out of {', '.join(WRITERS)}")
    if os.path.exists(config.out):
        raise UserError(f"{config.out} already exists: choose another --out, or delete it")
    if codec.num_codes > MOST_CODES:
        raise UserError(f"records hold codes of two bytes, up to {MOST_CODES}, and the codec has {codec.num_codes}")
    choice = Choice(config.num_frames, config.frames_per_second)
    items = list_items(config.media)
    shape = [codec.num_codes, codec.tokens_per_frame, codec.resolution]
    identity = {"codec": [*shape, codec.digest()], "choice": [config.num_frames, config.frames_per_second]}
    journal = Journal(config.out, identity | {"files": [[os.path.abspath(item.path), item.values] for item in items]})
    resumed = journal.open()
    try:
        for group in _groups(items[resumed:], codec.resolution, choice):
            journal.add(_encode(group, codec))
            if progress is not None:
                progress(journal.num_done, len(items), f"{journal.num_frames:,} frames")
    finally:
        journal.close()
    bad = journal.bad()
    if len(bad) == len(items):  # the journal goes too: another run is to look again
        journal.delete()
        first = "; ".join(f"{name}: {reason}" for name, reason in bad[:NAMED_BAD])
        raise UserError(f"none of the {len(items):,} files can be used, so nothing is written; first {first}")
    num_records = WRITERS[config.out.suffix](config.out, journal)
    journal.delete()
    return Tokenized(config.out, num_records, journal.num_frames, bad, resumed)


Read = tuple[Item, Frames | UserError]


def _groups(items: list[Item], resolution: int, choice: Choice) -> Iterator[list[Read]]:
    """Files with at least `GROUP_FRAMES` frames together, read some files ahead."""

    def read(item: Item) -> Read:
        try:
            if item.problem:
                raise UserError(item.problem)
            _require_unicode(item)
            return item, read_frames(item.path, resolution, choice)
        except UserError as error:
            return item, error

    waiting = iter(items)
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        ahead: list[Future[Read]] = [pool.submit(read, item) for item in islice(waiting, READ_AHEAD)]
        group: list[Read] = []
        while ahead:
            group.append(ahead.pop(0).result())
            ahead += [pool.submit(read, item) for item in islice(waiting, 1)]
            if (
                sum(len(frames.pixels) for _, frames in group if isinstance(frames, Frames)) >= GROUP_FRAMES
                or not ahead
            ):
                yield group
                group = []


def _require_unicode(item: Item) -> None:
    """Records are UTF-8, which names of files and JSON need not be.

    Raises:
        UserError: its name or a text beside it is not Unicode.
    """
    for what, text in (("its name", item.name), *((f"field {key!r}", key + item.values[key]) for key in item.values)):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"{item.path}: {what} is not valid Unicode, which a record must be: change it") from None


def _printable(text: str) -> str:
    """With what is not Unicode in it escaped."""
    return text.encode(errors="backslashreplace").decode()


def _encode(group: list[Read], codec: FrameCodec) -> list[dict[str, Any]]:
    """A line of the journal for each file."""
    pixels = [frames.pixels for _, frames in group if isinstance(frames, Frames)]
    codes = codec.encode(np.concatenate(pixels)) if pixels else np.zeros((0, codec.tokens_per_frame), np.int32)
    lines: list[dict[str, Any]] = []
    for item, frames in group:
        if isinstance(frames, UserError):
            lines.append({"bad": _printable(item.name), "reason": _printable(str(frames))})
            continue
        own, codes = codes[: len(frames.times)], codes[len(frames.times) :]
        times = [round(time, 6) for time in frames.times.tolist()]
        packed = base64.b64encode(pack(own.ravel())).decode()
        lines.append({"record": {**item.values, MEDIA: item.name, TIMES: times}, "codes": packed})
    return lines
