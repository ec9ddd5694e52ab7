"""`Run`: everything that decides what a training does, as one frozen value, and what must hold before it starts."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import jax

from lwm.core.errors import UserError
from lwm.core.files import write_json
from lwm.core.layout import Layout, order
from lwm.core.mesh import MeshShape, axis_size
from lwm.data.examples import ExampleSource, ExampleStream
from lwm.data.packing import LongDocuments, Weighting
from lwm.data.tokenizer import Tokenizer, tokenizer_file
from lwm.model.config import Compute, ModelConfig
from lwm.train.optimizer import OptimizerConfig
from lwm.weights.store import EMBEDDED

CONFIG = "config.json"

#: of the data, what may change while a run pauses: the loader knows the records by file names and number
_MAY_CHANGE = ("path", "max_bad_records")


@runtime_checkable
class Data(Protocol):
    """A frozen dataclass that says where examples come from."""

    def open(self, tokenizer: Tokenizer) -> ExampleSource | ExampleStream: ...


@dataclass(frozen=True)
class Run:
    """One training run. Presets are functions that return one; the command line overrides its fields."""

    name: str
    model: ModelConfig
    data: Data
    #: a tokenizer file, or a directory that holds one
    tokenizer: str
    #: updates of the parameters, in all
    steps: int
    #: rows of a step, over all devices and all parts of an accumulated gradient
    batch_size: int
    #: tokens of a row
    seq_len: int
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    compute: Compute = field(default_factory=Compute)
    #: devices along each axis: dp=1,fsdp=-1,tp=1,sp=1 or 1,-1,1,1; one may be -1, for those that remain
    mesh: MeshShape = field(default_factory=MeshShape)
    #: how a row is laid over the devices of sp; zigzag balances the causal mask's work
    layout: Layout = "zigzag"
    #: "examples": each example weighs the same, however long; "tokens": each learned token does
    weighting: Weighting = "examples"
    #: documents longer than a row
    long_documents: LongDocuments = "split"
    #: parts a batch is cut into to need less memory; results do not change
    gradient_accumulation: int = 1
    #: never trained on; its mean loss is reported
    held_out: Data | None = None
    held_out_batches: int = 8
    seed: int = 0
    log_every: int = 10
    eval_every: int = 500
    checkpoint_every: int = 500
    #: checkpoints that stay, the newest ones
    keep_checkpoints: int = 2
    #: parameters to start from: another run's directory, a model directory, or the name of an embedded model;
    #: empty: one that is still to be named
    init_from: str | None = None
    #: the run's directory
    out: Path = Path("runs/unnamed")
    #: precision of the model directory written at the end
    save_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    #: report to Weights & Biases too
    wandb: bool = False
    #: several hosts: join them with `jax.distributed.initialize()`, which finds SLURM, GKE, TPU pods and MPI by itself
    distributed: bool = False

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "seq_len", "gradient_accumulation", "held_out_batches", "keep_checkpoints")
        for name in (*counts, "log_every", "eval_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")

    @property
    def checkpoints(self) -> Path:
        return self.out / "checkpoints"

    def to_json(self) -> dict[str, Any]:
        """Every field, resolved, as JSON values."""
        values = json.loads(json.dumps(dataclasses.asdict(self), default=str))
        return values | {"data": {"kind": type(self.data).__name__} | values["data"]}


def require_runnable(run: Run, tokenizer: Tokenizer) -> None:
    """Refuse, before anything is computed, what could not work. Call it with the run's mesh in force.

    Raises:
        UserError: names the numbers that do not fit together.
    """
    run.model.require_fits()
    ways = axis_size("batch") * run.gradient_accumulation
    if run.batch_size % ways:
        raise UserError(
            f"batch_size {run.batch_size} is not divisible by {ways}: dp x fsdp = {axis_size('batch')} share it "
            f"in gradient_accumulation = {run.gradient_accumulation} parts"
        )
    order(run.layout, run.seq_len, axis_size("tokens"))
    if run.seq_len > run.model.max_context:
        raise UserError(f"seq_len {run.seq_len} exceeds the model's max_context {run.model.max_context}: change one")
    if tokenizer.size > run.model.vocab.text_size:
        raise UserError(
            f"the tokenizer {run.tokenizer} does not match the model: it has {tokenizer.size} ids, "
            f"the model {run.model.vocab.text_size} text ids"
        )


def require_beginning(run: Run) -> None:
    """Refuse parameters to start from that are not there.

    Raises:
        UserError: says what to name.
    """
    if run.init_from == "":
        raise UserError(f"{run.name} starts from a model: name the directory of a run or of a model with --init-from")
    if run.init_from is not None and run.init_from not in EMBEDDED and not os.path.isdir(run.init_from):
        raise UserError(
            f"nothing to start from at {run.init_from}: give a run's or a model's directory, or {', '.join(EMBEDDED)}"
        )


def require_directory(run: Run, resume: bool) -> None:
    """Refuse to start over a run that has checkpoints, and to resume one that has none or was another.

    Raises:
        UserError: says which, and what to do.
    """
    saved = saved_steps(run.checkpoints)
    if saved and not resume:
        raise UserError(f"{run.out} already holds step {max(saved)} of a run: add --resume, or choose another --out")
    if resume and not saved:
        raise UserError(f"{run.out} holds no checkpoint to resume from: leave --resume out")
    if resume and (config := run.out / CONFIG).exists():
        try:
            stored = json.loads(config.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise UserError(f"{config} does not tell which run this is: {error}; restore it or delete it") from None
        require_same_run(run, stored)


def saved_steps(directory: Path) -> list[int]:
    """The steps of which a directory holds whole checkpoints."""
    return [int(path.name) for path in directory.iterdir() if path.name.isdigit()] if os.path.isdir(directory) else []


def require_same_run(run: Run, stored: Mapping[str, Any]) -> None:
    """Refuse to resume a run whose data or model changed meanwhile; mesh, optimizer and steps may.

    Raises:
        UserError: names the first field that differs.
    """
    now, then = _identity(described(run)), _identity(stored)
    for name in sorted({*now, *then}):
        if now.get(name) != then.get(name):
            raise UserError(
                f"{run.out} was started with another {name} ({then.get(name)}; now {now.get(name)}): "
                "resume it as it was, or start a run in another directory with --init-from"
            )


def _identity(values: Mapping[str, Any]) -> dict[str, Any]:
    """What must stay the same for a resumed run to be the same run; the loader compares the settings of its own."""
    model = {f"model.{name}": value for name, value in values.get("model", {}).items()}
    data = {f"data.{name}": value for name, value in values.get("data", {}).items() if name not in _MAY_CHANGE}
    return model | data | {"tokenizer": values.get("tokenizer_sha256")}


def described(run: Run) -> dict[str, Any]:
    """A run's fields, and its tokenizer by what the file holds, wherever it lies."""
    digest = hashlib.sha256(tokenizer_file(run.tokenizer).read_bytes()).hexdigest()
    return run.to_json() | {"tokenizer_sha256": digest}


def open_directory(run: Run) -> None:
    """Create the run's directory and write its resolved `config.json`.

    Raises:
        UserError: the directory cannot be written.
    """
    try:
        run.out.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            write_json(run.out / CONFIG, described(run))
    except OSError as error:
        raise UserError(f"cannot write to the run's directory {run.out}: {error.strerror or error}") from None
