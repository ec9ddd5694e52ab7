"""Keep and draw how the stages went: `python -m lwm.nano.curves` reads runs/nano-* and writes into docs/nano/.

metrics_nano-256.jsonl ...    every held-out evaluation, and the training loss thinned to some hundred rows
curve.png          loss and held-out accuracy over the tokens seen, of the stages of text
vision_curve.png   the same, of the stages of vision
deeper_curve.png   the same, of the stages with two layers more
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lwm.nano import text, vision

FIGURES = Path("docs/nano")
KEPT_ROWS = 150

Row = dict[str, Any]


def keep(metrics: Path, thinned: Path) -> list[Row]:
    """Copy a run's metrics, leaving out all but some of the training steps."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    training = [row for row in rows if "loss" in row]
    every = max(1, len(training) // KEPT_ROWS)
    kept = [row for row in rows if "loss" not in row] + training[::-1][::every]
    kept.sort(key=lambda row: row["step"])
    thinned.write_text("".join(json.dumps(_rounded(row)) + "\n" for row in kept))
    return kept


def draw(stages: Sequence[tuple[str, int, list[Row]]], picture: Path, title: str) -> None:
    """Draw stages given as (name, tokens a step, rows), one after another along the axis of tokens."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    loss, accuracy = figure.subplots(2, 1, sharex=True)
    seen = 0.0
    for name, tokens, rows in stages:
        for axes, key, style in (
            (loss, "loss", {"color": "0.75", "linewidth": 1}),
            (loss, "held_out_loss", {"color": "C0", "marker": "."}),
            (accuracy, "held_out_text_accuracy", {"color": "C0", "marker": "."}),
            (accuracy, "held_out_vision_accuracy", {"color": "C1", "marker": "."}),
        ):
            points = [(seen + row["step"] * tokens / 1e6, row[key]) for row in rows if key in row]
            axes.plot([place for place, _ in points], [value for _, value in points], **style)
        loss.annotate(name, (seen, 1), xycoords=("data", "axes fraction"), rotation=90, va="top", fontsize=8)
        seen += rows[-1]["step"] * tokens / 1e6
        for axes in (loss, accuracy):
            axes.axvline(seen, color="0.9", zorder=0)
    loss.set(ylabel="loss", title=title)
    accuracy.set(ylabel="right tokens, by loss weight", xlabel="million tokens", ylim=(0, 1.02))
    figure.savefig(picture, dpi=110)


def main() -> None:
    """Keep and draw every stage that has run here."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    for presets, picture, told in (
        (text.STAGES, "curve.png", "training (grey), held-out text and answers (blue)"),
        (vision.STAGES, "vision_curve.png", "training (grey), held-out clips: text (blue), codes (orange)"),
        (vision.DEEPER_STAGES, "deeper_curve.png", "training (grey), held-out clips: text (blue), codes (orange)"),
    ):
        stages = []
        for name, stage in presets.items():
            run = stage()
            if (metrics := run.out / "metrics.jsonl").exists():
                rows = keep(metrics, FIGURES / f"metrics_{name}.jsonl")
                stages.append((name, run.batch_size * run.seq_len, rows))
        if stages:
            draw(stages, FIGURES / picture, f"The nano model's stages: {told}")


def _rounded(row: Row) -> Row:
    return {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in row.items()}


if __name__ == "__main__":
    main()
