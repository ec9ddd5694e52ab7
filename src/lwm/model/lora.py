"""Low-rank adapters (LoRA, Hu et al. 2021): a model stays as it is, and factors of changes of its matrices are learned.

A matrix `W` from `in` to `out` becomes `W + alpha / rank * A B`, with `A` of `in x rank` and `B` of `rank x out`. `A`
starts as the model's own matrices do and `B` at 0, so that nothing is changed before the first step.
"""

from dataclasses import dataclass, replace
from math import inf, prod
from typing import Any, Literal, get_args

import jax

from lwm.core.errors import UserError
from lwm.core.low_rank import Adapted, merge
from lwm.core.params import Parameter, normal, zeros
from lwm.core.pytree import pytree
from lwm.model.config import ModelConfig
from lwm.model.layers import declare_layers
from lwm.model.transformer import Transformer, declare

Target = Literal["query", "key", "value", "output", "gate", "up", "down"]

#: how many axes of a matrix are its input, where that is not one: `output` reads heads times head width
_INPUT_AXES = {"output": 2}


@dataclass(frozen=True)
class LoraConfig:
    """Which changes of a model are learned. Memory for gradients and moments falls to what the factors need."""

    #: of the learned changes; 0: no adapters, all of the model is trained
    rank: int = 0
    #: the change is alpha / rank times the product of the factors, so that one learning rate serves several ranks
    alpha: float = 32.0
    #: matrices of every layer that are adapted; embedding, norms and head stay as they are
    targets: tuple[Target, ...] = get_args(Target)

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise UserError(f"lora.rank is {self.rank}: give 1 or more, or 0 to train all of the model")
        if not 0 < self.alpha < inf:
            raise UserError(f"lora.alpha is {self.alpha}: it must be positive and finite")
        if not self.targets or len({*self.targets}) < len(self.targets):
            raise UserError(f"lora.targets are {self.targets}: name at least one matrix, and each once")

    @property
    def enabled(self) -> bool:
        return self.rank > 0

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@pytree
@dataclass(frozen=True)
class Adapter:
    """The factors of one matrix of all layers, or their declarations."""

    A: Any  # L *in r
    B: Any  # L r *out


def declare_adapters(config: ModelConfig, lora: LoraConfig) -> dict[str, Adapter]:
    """The factors of each target, split over the mesh as the matrix that they change."""
    layers = declare_layers(config)
    return {name: _declare_adapter(getattr(layers, name), _INPUT_AXES.get(name, 1), lora.rank) for name in lora.targets}


def _declare_adapter(matrix: Parameter, input_axes: int, rank: int) -> Adapter:
    num_layers, end = matrix.shape[0], 1 + input_axes
    fan_in = prod(matrix.shape[1:end])
    return Adapter(
        A=Parameter((*matrix.shape[:end], rank), (*matrix.axes[:end], None), normal(fan_in**-0.5)),
        B=Parameter((num_layers, rank, *matrix.shape[end:]), ("layers", None, *matrix.axes[end:]), zeros),
    )


def declare_trained(config: ModelConfig, lora: LoraConfig) -> Any:
    """The tensors that training changes: those of the model, or with LoRA those of the adapters."""
    return declare_adapters(config, lora) if lora.enabled else declare(config)


def whole_model(params: Any, base: Transformer | None, lora: LoraConfig) -> Transformer:
    """The model that `declare_trained` tensors make, with LoRA together with the frozen `base`."""
    return params if base is None else adapt(base, params, lora)


def adapt(base: Transformer, adapters: dict[str, Adapter], lora: LoraConfig) -> Transformer:
    """The base with its adapters beside its matrices; gradients with respect to the adapters leave the base alone."""
    adapted = {
        name: Adapted(getattr(base.layers, name), adapter.A, adapter.B, lora.scale)
        for name, adapter in adapters.items()
    }
    return replace(base, layers=replace(base.layers, **adapted))


def merge_adapters(base: Transformer, adapters: dict[str, Adapter], lora: LoraConfig) -> Transformer:
    """A model like any other, as if all of it had been trained; the base is used up, its memory taken."""

    def merge_layers(frozen: jax.Array, factors: Adapted) -> jax.Array:
        return jax.vmap(merge)(replace(factors, frozen=frozen))

    def leaf(stored: jax.Array | Adapted) -> jax.Array:
        if not isinstance(stored, Adapted):
            return stored
        in_place = jax.jit(merge_layers, donate_argnums=0, out_shardings=stored.frozen.sharding)
        return in_place(stored.frozen, replace(stored, frozen=None))

    return jax.tree.map(leaf, adapt(base, adapters, lora), is_leaf=lambda node: isinstance(node, Adapted))
