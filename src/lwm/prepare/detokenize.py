"""`lwm detokenize`: records of codes back to pictures and videos."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tyro.conf import Positional

from lwm.core.errors import UserError
from lwm.data.media_out import save_frames
from lwm.data.records import BadRecordError
from lwm.data.sources import open_records
from lwm.data.vision import frames_in
from lwm.prepare.items import TIMES, VISION
from lwm.vqgan.codec import FrameCodec

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class DetokenizeConfig:
    """Turn records of codes back into pictures (PNG) and videos (MP4), to see what a codec keeps."""

    #: a JSONL or Parquet file of records
    records: Positional[str]
    #: the model whose codec made them
    model: str
    #: a directory to write to
    out: Path
    #: the field that holds the codes
    field: str = VISION
    #: of videos whose records do not say when a frame is shown
    frames_per_second: float = 4.0


def detokenize(config: DetokenizeConfig, codec: FrameCodec, progress: Progress | None = None) -> list[Path]:
    """Write a file for each record, named by its number; return their paths.

    Raises:
        UserError: records that cannot be read, hold no such codes, or a place that cannot be written.
    """
    if not 0 < config.frames_per_second < math.inf:
        raise UserError(f"{config.frames_per_second} frames a second: ask for a positive rate")
    source = open_records(config.records, "auto")
    written: list[Path] = []
    for index in range(len(source)):
        try:
            record = source[index]
            value = record.values.get(config.field)
            codes = frames_in(value, codec.tokens_per_frame, codec.num_codes, config.field, record.record_id)
        except BadRecordError as bad:
            raise UserError(f"{bad.record_id}: {bad.reason}") from None
        times = _times(record.values.get(TIMES), len(codes))
        name = f"{index + 1:06}.{'png' if len(codes) == 1 else 'mp4'}"
        written.append(save_frames(config.out / name, codec.decode(codes), config.frames_per_second, times))
        if progress is not None:
            progress(index + 1, len(source), name)
    return written


def _times(times: object, count: int) -> list[float] | None:
    """When each frame is shown, if a record says so."""
    if not isinstance(times, list) or len(times) != count:
        return None
    if not all(isinstance(time, int | float) and abs(time) <= sys.float_info.max for time in times):
        return None
    return [float(time) for time in times] if all(before <= after for before, after in pairwise(times)) else None
