"""Where a benchmark's table goes, and what it was measured on."""

import datetime
import os
import platform
from collections.abc import Sequence
from pathlib import Path

HARDWARE = f"{os.cpu_count()} x {platform.machine()}"


def save(name: str, lines: Sequence[str]) -> None:
    """Write `results/<name>_<hardware>_<date>.md` beside this file."""
    path = Path(__file__).parent / "results" / f"{name}_{HARDWARE.replace(' ', '')}_{datetime.date.today()}.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    print(f"saved {path}")
