"""The model this package carries: what it reads, what it is taught, and how it was trained."""

from pathlib import Path

#: where its trainings go
RUNS = Path("runs")
