"""What every training has in common, whatever it trains: how long, how often, and the directory it leaves behind."""

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from lwm.core.errors import UserError
from lwm.core.files import read_json, write_json
from lwm.core.mesh import MeshShape
from lwm.train.optimizer import OptimizerConfig

#: what a run's directory holds, beside metrics: the resolved run, what it goes on from, and what came of it
CONFIG, CHECKPOINTS, MODEL = "config.json", "checkpoints", "model"
#: what the `config.json` of every run has, and that of a model or an evaluation has not
_OF_A_RUN = ("name", "steps", "data")

#: of the data, what may change while a run pauses: the loader knows the records by file names and number
_MAY_CHANGE = ("path", "max_bad_records")


@dataclass(frozen=True, kw_only=True)
class BaseRun:
    """The fields that all runs share."""

    name: str
    #: updates of the parameters, in all
    steps: int
    #: rows or pictures of a step, over all devices and all parts of an accumulated gradient
    batch_size: int
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    #: devices along each axis: dp=1,fsdp=-1,tp=1,sp=1 or 1,-1,1,1; one may be -1, for those that remain
    mesh: MeshShape = field(default_factory=MeshShape)
    #: batches of held-out data that a report is the mean of
    held_out_batches: int = 8
    seed: int = 0
    log_every: int = 10
    eval_every: int = 500
    checkpoint_every: int = 500
    #: checkpoints that stay, the newest ones
    keep_checkpoints: int = 2
    #: the run's directory
    out: Path = Path("runs/unnamed")
    #: report to Weights & Biases too
    wandb: bool = False

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "held_out_batches", "keep_checkpoints")
        self._require_positive(*counts, "log_every", "eval_every", "checkpoint_every")
        if self.seed < 0:
            raise UserError(f"seed {self.seed} must be 0 or more")

    def _require_positive(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")

    @property
    def checkpoints(self) -> Path:
        return self.out / CHECKPOINTS

    @property
    def finished(self) -> Path:
        """Where the model goes."""
        return self.out / MODEL

    def described(self) -> dict[str, Any]:
        """Every field, resolved, as JSON values."""
        values = json.loads(json.dumps(dataclasses.asdict(self), default=str))
        return values | {"data": {"kind": type(getattr(self, "data", None)).__name__} | values["data"]}


def require_directory(run: BaseRun, resume: bool) -> None:
    """Refuse to start over a run that has checkpoints, and to resume one that has none or was another.

    Either way a directory that is not a run's is left alone: a run would replace its `config.json`.

    Raises:
        UserError: says which, and what to do.
    """
    saved = saved_steps(run.checkpoints)
    if saved and not resume:
        raise UserError(f"{run.out} already holds step {max(saved)} of a run: add --resume, or choose another --out")
    if resume and not saved:
        raise UserError(f"{run.out} holds no checkpoint to resume from: leave --resume out")
    if not resume and os.path.isdir(run.out) and (tensors := sorted(run.out.glob("model*.safetensors"))):
        raise UserError(
            f"{run.out} holds a model, of which {tensors[0].name} is a part: choose another --out for a run"
        )
    if not os.path.isfile(config := run.out / CONFIG):
        return
    try:
        stored = _stored_run(config)
    except UserError as error:
        remedy = "restore it or delete it" if resume else "choose another --out"
        raise UserError(f"{config} does not tell which run this is: {error}; {remedy}") from None
    if resume:
        require_same_run(run, stored)


def _stored_run(config: Path) -> dict[str, Any]:
    values = read_json(config, f"{config.parent} is not a run's directory")
    if missing := [name for name in _OF_A_RUN if name not in values]:
        raise UserError(f"it has no {missing[0]!r}, which that of every run has")
    return values


def saved_steps(directory: Path) -> list[int]:
    """The steps of which a directory holds whole checkpoints."""
    return [int(path.name) for path in directory.iterdir() if path.name.isdigit()] if os.path.isdir(directory) else []


def require_same_run(run: BaseRun, stored: Mapping[str, Any]) -> None:
    """Refuse to resume a run whose data or model changed meanwhile; mesh, optimizer and steps may.

    Raises:
        UserError: names the first field that differs.
    """
    now, then = _identity(run.described()), _identity(stored)
    for name in sorted({*now, *then}):
        if now.get(name) != then.get(name):
            raise UserError(
                f"{run.out} was started with another {name} ({then.get(name)}; now {now.get(name)}): "
                "resume it as it was, or start a run in another directory with --init-from"
            )


def _identity(values: Mapping[str, Any]) -> dict[str, Any]:
    """What must stay the same for a resumed run to be the same run; the loader compares the settings of its own."""
    identity = {"tokenizer": values.get("tokenizer_sha256")}
    for block in ("model", "codec", "data", "lora"):
        held = values.get(block)
        fields = held.items() if isinstance(held, Mapping) else [("", held)]
        identity |= {f"{block}.{name}".rstrip("."): _without_places(value, name) for name, value in fields}
    return identity


def _without_places(value: Any, name: str = "") -> Any:
    """What may change of data, alone or in a mixture, is left out."""
    if name in _MAY_CHANGE:
        return None
    if isinstance(value, Mapping):
        return {key: _without_places(part, key) for key, part in value.items()}
    return [_without_places(part) for part in value] if isinstance(value, list | tuple) else value


def open_directory(run: BaseRun) -> None:
    """Create the run's directory, see that checkpoints can be written there, and write its resolved `config.json`.

    Raises:
        UserError: the directory cannot be written.
    """
    try:
        run.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to the run's directory {run.out}: {error.strerror or error}") from None
    require_room(run.checkpoints)
    try:
        if jax.process_index() == 0:
            write_json(run.out / CONFIG, run.described())
    except OSError as error:
        raise UserError(f"cannot write to the run's directory {run.out}: {error.strerror or error}") from None


def require_room(checkpoints: Path) -> None:
    """Create a directory of checkpoints and write to it, a little and for the moment.

    Orbax, where it cannot even make a step's directory, waits for it to appear, and the process never ends.

    Raises:
        UserError: it is a file, or may not be written, or the disk is full.
    """
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=checkpoints) as probe:
            probe.write(bytes(1 << 16))
    except OSError as error:
        raise UserError(
            f"cannot write checkpoints to {checkpoints}: {error.strerror or error}; make room for them there, or "
            "choose another --out"
        ) from None
