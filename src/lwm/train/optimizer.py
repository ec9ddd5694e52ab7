"""AdamW with the paper's schedules, as an optax chain."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import optax

from lwm.core.errors import UserError
from lwm.core.params import Parameter


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019). The defaults are those of LWM's text stages (paper, table 11)."""

    learning_rate: float = 4e-5
    #: where a cosine ends
    end_learning_rate: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    #: steps over which the learning rate rises linearly from 0
    warmup_steps: int = 0
    #: the step, counted from the first one, at which a cosine reaches its end; 0: the run's last
    decay_steps: int = 0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    #: whether the scales of the norms decay as well, as they do in LWM
    decay_norms: bool = False
    #: gradients longer than this, as one vector over all tensors, are shortened to it; inf: none are
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.schedule == "cosine" and 0 < self.decay_steps <= self.warmup_steps:
            raise UserError(
                f"a cosine schedule needs decay_steps ({self.decay_steps}) beyond warmup_steps ({self.warmup_steps})"
            )
        for name in ("learning_rate", "eps", "clip_norm"):
            if not (value := getattr(self, name)) > 0 or (name != "clip_norm" and math.isinf(value)):
                raise UserError(f"{name} {value} must be a positive number")
        for name in ("end_learning_rate", "weight_decay"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise UserError(f"{name} {value} must be a number of 0 or more")
        for name in ("b1", "b2"):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise UserError(f"{name} {value} must be a number from 0 to below 1")

    def ending_at(self, steps: int) -> "OptimizerConfig":
        """The same with the end of the schedule filled in, for a run of so many steps (it may end in the warm-up)."""
        return replace(self, decay_steps=self.decay_steps or max(steps, self.warmup_steps + 1))


def make_schedule(config: OptimizerConfig) -> optax.Schedule:
    """Learning rate of step 0, 1, ...: linear from 0 over the warm-up, then constant or half a cosine."""
    peak = config.learning_rate
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            0.0 if config.warmup_steps else peak,
            peak,
            config.warmup_steps,
            config.decay_steps,
            config.end_learning_rate,
        )
    if config.warmup_steps:
        return optax.warmup_constant_schedule(0.0, peak, config.warmup_steps)
    return optax.constant_schedule(peak)


def make_optimizer(config: OptimizerConfig, declaration: Any) -> optax.GradientTransformation:
    """Clip, AdamW, schedule. Matrices decay; vectors (the norms' scales), stacked over layers or not, by choice."""

    def may_decay(parameter: Parameter) -> bool:
        return config.decay_norms or sum(axis != "layers" for axis in parameter.axes) > 1

    decays = jax.tree.map(may_decay, declaration, is_leaf=lambda leaf: isinstance(leaf, Parameter))
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            make_schedule(config),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decays,
        ),
    )
