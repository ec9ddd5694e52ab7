"""`Run`: everything that decides what a training does, as one frozen value, and what must hold before it starts."""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from tyro.conf import arg

from lwm.core.errors import UserError
from lwm.core.layout import Layout, order
from lwm.core.mesh import axis_size
from lwm.core.vocab import Vocab
from lwm.data.examples import ExampleSource, ExampleStream
from lwm.data.packing import LongDocuments, Weighting
from lwm.data.tokenizer import Tokenizer, tokenizer_file
from lwm.model.config import Compute, ModelConfig
from lwm.model.lora import LoraConfig
from lwm.train.base import MODEL, BaseRun
from lwm.train.code_rows import read_features
from lwm.weights.codec_store import has_codec, read_codec_config, require_same_codes
from lwm.weights.load import EMBEDDED, INSTALLED


@runtime_checkable
class Data(Protocol):
    """A frozen dataclass that says where examples come from."""

    def open(self, tokenizer: Tokenizer, vocab: Vocab) -> ExampleSource | ExampleStream: ...


@dataclass(frozen=True, kw_only=True)
class Run(BaseRun):
    """One training of a model. Presets are functions that return one; the command line overrides its fields."""

    model: ModelConfig
    data: Data
    #: a tokenizer file, or a directory that holds one
    tokenizer: str
    #: tokens of a row
    seq_len: int
    compute: Compute = field(default_factory=Compute)
    #: how a row is laid over the devices of sp; zigzag balances the causal mask's work
    layout: Layout = "zigzag"
    #: "examples": each example weighs the same, however long; "tokens": each learned token does
    weighting: Weighting = "examples"
    #: what codes and frame marks weigh in the loss of a model that sees; the rest is text's
    vision_share: float = 0.5
    #: documents longer than a row
    long_documents: LongDocuments = "split"
    #: parts a batch is cut into to need less memory; results do not change
    gradient_accumulation: int = 1
    #: never trained on; its mean loss is reported
    held_out: Data | None = None
    #: parameters to start from: another run's directory, a model directory, or the name of an embedded model;
    #: empty: one that is still to be named
    init_from: Annotated[str | None, arg(aliases=("--init",))] = None
    #: train low-rank adapters of the model to start from instead of all of it: give a rank
    lora: LoraConfig = field(default_factory=LoraConfig)
    #: a directory with the codec of the records' frames, or the name of an embedded model: it goes into the finished
    #: model; left out, that of the model to start from
    codec: str | None = None
    #: a .npy file with a row of features for each code, of which the rows of codes are to be sums (`train.code_rows`)
    code_features: str | None = None
    #: precision of the model directory written at the end
    save_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    #: several hosts: join them with `jax.distributed.initialize()`, which finds SLURM, GKE, TPU pods and MPI by itself
    distributed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("seq_len", "gradient_accumulation")
        if not 0 <= self.vision_share <= 1:
            raise UserError(f"vision_share {self.vision_share} is a part of the loss: give 0 to 1")

    def described(self) -> dict[str, Any]:
        """Every field, resolved, and the tokenizer by what its file holds, wherever it lies."""
        digest = hashlib.sha256(tokenizer_file(self.tokenizer).read_bytes()).hexdigest()
        values = super().described()
        return values | {"tokenizer_sha256": digest, "lora": values["lora"] if self.lora.enabled else None}


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
    _require_adaptable(run)
    features_of(run)
    if (codec := codec_of(run)) is not None:
        require_same_codes(run.model.vocab, read_codec_config(codec))
        if not has_codec(codec):
            raise UserError(
                f"the codec in {codec} has no tensors: name a directory that holds a whole one with --codec"
            )


def _require_adaptable(run: Run) -> None:
    if not run.lora.enabled:
        return
    if run.init_from is None:
        raise UserError(f"lora.rank {run.lora.rank} adapts a model that is there: name it with --init-from")
    if run.code_features is not None:
        raise UserError("code_features move the rows of the embedding, which adapters leave alone: drop one of the two")


def features_of(run: Run) -> Float[np.ndarray, "codes features"] | None:
    """What is said of each code, where anything is."""
    return None if run.code_features is None else read_features(run.code_features, run.model.vocab.num_codes)


def codec_of(run: Run) -> Path | None:
    """Where the codec is that goes into the finished model: the one that is named, or that of what it begins from."""
    if run.codec is not None:
        return EMBEDDED.get(run.codec, Path(run.codec))
    if not run.model.vocab.vision_size or not run.init_from:
        return None
    beginnings = (EMBEDDED.get(run.init_from, Path(run.init_from)), Path(run.init_from) / MODEL)
    return next((directory for directory in beginnings if has_codec(directory)), None)


def require_beginning(run: Run) -> None:
    """Refuse parameters to start from that are not there.

    Raises:
        UserError: says what to name.
    """
    if run.init_from == "":
        raise UserError(f"{run.name} starts from a model: name the directory of a run or of a model with --init-from")
    if run.init_from is None or run.init_from in EMBEDDED:
        return
    if os.path.isdir(run.init_from):
        return
    if run.init_from in INSTALLED or os.path.isfile(run.init_from):
        raise one_file(run.init_from)
    raise UserError(
        f"nothing to start from at {run.init_from}: give a run's or a model's directory, or {', '.join(EMBEDDED)}"
    )


def one_file(init_from: str) -> UserError:
    """What to say of a model that is one file, as GGUF's are."""
    return UserError(f"{init_from} is one file: make a model directory of it first: lwm convert {init_from} NEW_DIR")
