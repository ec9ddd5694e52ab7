"""Pictures and clips with the words they were asked for with, as one picture."""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

COLUMNS, WORDS_A_LINE = 6, 26
RIGHT, WRONG = "#2a7a3b", "#b3261e"


@dataclass(frozen=True)
class Shown:
    """Frames, what was asked for, and whether they show it."""

    asked: str
    frames: UInt8[np.ndarray, "N side side 3"]
    correct: bool


def gallery(shown: Sequence[Shown]) -> bytes:
    """PNG: several pictures in a row, or a clip in each. Words are green where the answer counts as right."""
    num_frames = max(len(each.frames) for each in shown)
    columns = COLUMNS if num_frames == 1 else 1
    rows = -(-len(shown) // columns)
    height = 2.3 if num_frames == 1 else 1.75
    figure = Figure(figsize=(11, height * rows), layout="constrained", dpi=100)
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    for each, axes in zip(shown, figure.axes, strict=False):
        axes.imshow(_in_a_row(each.frames), interpolation="nearest")
        width = WORDS_A_LINE if columns > 1 else 120
        axes.set_title(textwrap.fill(each.asked, width), fontsize=8, color=RIGHT if each.correct else WRONG)
    written = io.BytesIO()
    figure.savefig(written, format="png")
    return written.getvalue()


def _in_a_row(frames: UInt8[np.ndarray, "N side side 3"]) -> UInt8[np.ndarray, "side width 3"]:
    """Frames side by side, a white line between two."""
    line = np.full((frames.shape[1], 1, 3), 255, np.uint8)
    pieces = [piece for frame in frames for piece in (line, frame)][1:]
    return np.concatenate(pieces, axis=1)
