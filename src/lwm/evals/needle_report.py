"""What a needle test found: accuracy by length and depth as numbers, as a table and as a picture."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from rich.table import Table
from rich.text import Text

from lwm.evals.heat_map import heat_map
from lwm.evals.journal import Row
from lwm.evals.lengths import short
from lwm.evals.score import wilson_interval


@dataclass(frozen=True)
class NeedleReport:
    """`results`: a row for each cell, in LWM's fields. `facts`: the settings they were found with."""

    results: list[Row]
    facts: Row

    @cached_property
    def lengths(self) -> list[int]:
        return sorted({row["context_length"] for row in self.results})

    @cached_property
    def depths(self) -> list[int]:
        return sorted({row["depth_percent"] for row in self.results})

    @cached_property
    def by_cell(self) -> dict[tuple[int, int], Row]:
        """Right answers, trials, accuracy and its 95% interval for each (context length, depth) that was tried."""
        answers: dict[tuple[int, int], list[Row]] = defaultdict(list)
        for row in self.results:
            answers[row["context_length"], row["depth_percent"]].append(row)
        return {cell: _counted(rows) for cell, rows in sorted(answers.items())}

    @cached_property
    def accuracy(self) -> dict[tuple[int, int], float]:
        """The share of right answers of each cell."""
        return {cell: counted["accuracy"] for cell, counted in self.by_cell.items()}

    @cached_property
    def by_length(self) -> dict[int, Row]:
        """Right answers, trials, accuracy and its 95% interval for each context length."""
        return {
            length: _counted(row for row in self.results if row["context_length"] == length) for length in self.lengths
        }

    @property
    def title(self) -> str:
        needles, retrieve = self.facts["needles"], self.facts["retrieve"]
        task = "a needle in a haystack" if needles == 1 else f"{retrieve} of {needles} needles in a haystack"
        return f"{self.facts['model']}: {task}, % right"

    def summary(self) -> Row:
        """For `summary.json`."""
        return {
            **self.facts,
            "confidence": 0.95,
            "overall": _counted(self.results),
            "by_context_length": [{"context_length": length, **counted} for length, counted in self.by_length.items()],
            "by_cell": [
                {"context_length": length, "depth_percent": depth, **counted}
                for (length, depth), counted in self.by_cell.items()
            ],
        }

    def table(self) -> Table:
        """Depth by length, then each length's accuracy and interval."""
        notes, longest = ["95% intervals (Wilson)"], self.lengths[-1]
        if longest > (limit := self.facts["max_context"]):
            notes.append(f"lengths beyond {limit:,} are longer than it was trained for")
        if longest > (tokens := self.facts["haystack_tokens"]):
            notes.append(f"the haystack's {tokens:,} tokens are repeated beyond that length")
        table = Table(title=Text(self.title), caption="; ".join(notes))
        table.add_column("depth", justify="right")
        for length in self.lengths:
            table.add_column(short(length), justify="right")
        for depth in self.depths:
            shares = [self.accuracy.get((length, depth)) for length in self.lengths]
            table.add_row(f"{depth}%", *(_percent(share) for share in shares), end_section=depth == self.depths[-1])
        counts = self.by_length.values()
        table.add_row("all", *(_percent(counted["accuracy"]) for counted in counts))
        table.add_row("95%", *(f"{100 * counted['low']:.0f}-{100 * counted['high']:.0f}" for counted in counts))
        table.add_row("trials", *(str(counted["total"]) for counted in counts))
        return table

    def heat_map(self) -> bytes:
        """PNG, see `evals.heat_map`."""
        return heat_map(self.accuracy, self.lengths, self.depths, self.title, self.facts["max_context"])


def _counted(rows: Iterable[Row]) -> Row:
    answers = list(rows)
    correct, total = sum(row["correct"] for row in answers), len(answers)
    low, high = wilson_interval(correct, total)
    found = sum(row["fraction_found"] for row in answers) / total
    return {
        "correct": correct,
        "total": total,
        "accuracy": correct / total,
        "low": low,
        "high": high,
        "fraction_found": found,
    }


def _percent(share: float | None) -> Text:
    if share is None:
        return Text("-", style="dim")
    style = "bold" if share >= 0.95 else "dim" if share < 0.5 else ""
    return Text(f"{100 * share:.0f}", style=style)
