"""Where a run's numbers go: the screen, `metrics.jsonl`, TensorBoard and, when asked for, Weights & Biases."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from lwm.core.errors import UserError
from lwm.core.files import write_file

METRICS = "metrics.jsonl"
WANDB_ID = "wandb_id"


@runtime_checkable
class Sink(Protocol):
    """Takes the numbers of a step."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Sinks:
    """Several sinks as one, closed on leaving the `with` block."""

    def __init__(self, *sinks: Sink):
        self._sinks = sinks

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for sink in self._sinks:
            sink.write(step, values)

    def __enter__(self) -> "Sinks":
        return self

    def __exit__(self, *error: object) -> None:
        for sink in self._sinks:
            sink.close()


class Screen:
    """A progress bar with the latest numbers; one line per report where there is no terminal."""

    def __init__(self, name: str, start: int, steps: int):
        self._console = Console(stderr=True)
        self._name, self._steps, self._start, self._began = name, steps, start, time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, TextColumn("{task.fields[numbers]}"), console=self._console)
        self._task = self._progress.add_task(name, total=steps, completed=start, numbers="")
        if self._console.is_terminal:
            self._progress.start()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        numbers = "  ".join(f"{label} {values[key]:{form}}" for key, label, form in _SHOWN if key in values)
        if not self._console.is_terminal:
            head = f"{self._name}  step {step}/{self._steps}"
            self._console.print(f"{head}  {numbers}  {self._remaining(step)}", soft_wrap=True)
        elif "held_out_loss" in values:
            self._progress.console.print(f"step {step}  {numbers}")
        else:
            self._progress.update(self._task, completed=step, numbers=numbers)

    def _remaining(self, step: int) -> str:
        seconds = (time.monotonic() - self._began) / max(1, step - self._start) * (self._steps - step)
        return f"ETA {int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"

    def close(self) -> None:
        self._progress.stop()


#: metric, what it is called on the screen, how it is written
_SHOWN = (
    ("loss", "loss", ".4f"),
    ("text_accuracy", "accuracy", ".3f"),
    ("psnr", "PSNR", ".2f"),
    ("held_out_loss", "held-out loss", ".4f"),
    ("held_out_text_accuracy", "held-out accuracy", ".3f"),
    ("held_out_psnr", "held-out PSNR", ".2f"),
    ("held_out_code_perplexity", "codes", ".0f"),
    ("tokens_per_second", "tokens/s", ",.0f"),
    ("learning_rate", "lr", ".2e"),
    ("gradient_norm", "grad", ".3f"),
)


class JsonLines:
    """One JSON object a line, whole at any moment. Lines after `start`, left by a run that went further, are cut."""

    def __init__(self, directory: Path, start: int):
        path = directory / METRICS
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= start]
            write_file(path, "".join(line + "\n" for line in kept).encode())
        self._file = path.open("a", buffering=1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step} | as_json(values)) + "\n")

    def close(self) -> None:
        self._file.close()


def as_json(values: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers that JSON does not know become null."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _step_of(line: str) -> float:
    """The step of a line; a line cut short by a crash belongs to no step and is dropped with those too late."""
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf


class TensorBoard:
    """Event files; on resume TensorBoard forgets what came after `start`."""

    def __init__(self, directory: Path, start: int):
        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=start + 1 if start else None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def import_wandb() -> ModuleType:
    """The Weights & Biases library.

    Raises:
        UserError: the extra is not installed.
    """
    try:
        import wandb  # noqa: PLC0415
    except ImportError:
        raise UserError("Weights & Biases is not installed: pip install 'lwm[wandb]', or run without it") from None
    return wandb


class WeightsAndBiases:
    """An online run with the same name and config; after `start` steps the one whose id the directory keeps goes on."""

    def __init__(self, name: str, directory: Path, config: dict[str, Any], start: int):
        kept = directory / WANDB_ID
        known = kept.read_text().strip() if start and kept.exists() else None
        self._run = import_wandb().init(
            project="lwm", name=name, dir=directory, config=config, id=known, resume="allow"
        )
        write_file(kept, self._run.id.encode())

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class Meter:
    """Tokens per second of training, since it was last read or restarted."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget what was counted, and the time other work took."""
        self._tokens, self._since = 0, time.monotonic()

    def add(self, tokens: int) -> None:
        """Count a step's tokens."""
        self._tokens += tokens

    def read(self) -> float:
        """The rate; counting starts anew."""
        rate = self._tokens / max(time.monotonic() - self._since, 1e-9)
        self.restart()
        return rate
