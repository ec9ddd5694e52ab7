"""The picture everyone knows: depth of the needle against length of the context, a colour and a number in each cell."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from lwm.evals.lengths import short

#: dark to bright in lightness as well as in hue, so that it reads in grey and to every eye
COLOUR_MAP = "cividis"


def heat_map(
    accuracy: Mapping[tuple[int, int], float],
    lengths: Sequence[int],
    depths: Sequence[int],
    title: str,
    trained_to: int,
) -> bytes:
    """A PNG of the accuracy (0 to 1) of each (context length, depth); cells without one are left grey.

    Lengths beyond `trained_to`, the longest the model was trained on, stand behind a black line.
    """
    shares = np.array([[accuracy.get((length, depth), np.nan) for length in lengths] for depth in depths])
    figure = Figure(figsize=(max(6, 2.4 + 0.85 * len(lengths)), 2.2 + 0.5 * len(depths)), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.85")
    picture = axes.imshow(shares, cmap=COLOUR_MAP, vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        if not np.isnan(share):
            colour = "black" if share > 0.5 else "white"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=11)
    axes.set_xticks(range(len(lengths)), [short(length) for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth}%" for depth in depths])
    axes.set_xticks(np.arange(len(lengths) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(depths) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("context length (tokens)")
    axes.set_ylabel("depth of the needle")
    axes.set_title(title, fontsize=11, pad=22, loc="left")
    within = sum(length <= trained_to for length in lengths)
    if within < len(lengths):
        axes.axvline(within - 0.5, color="black", linewidth=3)
        axes.annotate(
            "longer than it was trained for", (within - 0.46, 1.02), xycoords=("data", "axes fraction"), size=9
        )
    figure.colorbar(
        picture, ax=axes, ticks=[0, 0.5, 1], format=lambda share, _: f"{100 * share:.0f}%", label="answers right"
    )
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()
