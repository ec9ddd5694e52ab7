"""`CodecRun`: everything that decides how a codec of pictures is trained, as one frozen value."""

from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from lwm.core.errors import UserError
from lwm.core.mesh import axis_size
from lwm.train.base import BaseRun
from lwm.vqgan.config import CodecConfig


@runtime_checkable
class FrameSource(Protocol):
    """Random access to frames, each with how much its pixels count; the same place always gives the same one."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int) -> tuple[np.ndarray, np.ndarray]: ...


@runtime_checkable
class FrameData(Protocol):
    """A frozen dataclass that says where pictures come from."""

    def open(self, resolution: int) -> FrameSource: ...


@dataclass(frozen=True)
class ReconstructionLoss:
    """What is learned: a weighted sum of errors of the pixels and of the codes."""

    #: of the mean absolute and the mean squared difference between two pictures
    l1: float = 1.0
    l2: float = 1.0
    #: of the mean absolute difference between their edges: what changes from a pixel to the next
    edges: float = 0.0
    #: of the two terms that move a codebook to its vectors and the vectors to it (van den Oord et al. 2017)
    codebook: float = 1.0
    commitment: float = 0.25


@dataclass(frozen=True, kw_only=True)
class CodecRun(BaseRun):
    """One training of a codec."""

    codec: CodecConfig
    data: FrameData
    #: never trained on
    held_out: FrameData
    loss: ReconstructionLoss = field(default_factory=ReconstructionLoss)
    #: of the steps, those over which quantization comes in little by little; 0: it is there from the first
    warm_start: float = 0.0
    #: steps after which entries of a codebook that nothing is near to are moved to where vectors are, after the first
    #: step and until half of them are done; 0: never
    revive_every: int = 100
    #: precision of the codec written at the end
    save_dtype: Literal["float32", "float16"] = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.warm_start < 1:
            raise UserError(f"warm_start {self.warm_start} is a part of the steps: give 0 or more and less than 1")


def require_codec_runnable(run: CodecRun) -> None:
    """Refuse what the mesh in force cannot split.

    Raises:
        UserError: names the numbers that do not fit together.
    """
    if run.batch_size % axis_size("batch"):
        raise UserError(f"batch_size {run.batch_size} is not divisible by dp x fsdp = {axis_size('batch')}")
