"""What a model is (`ModelConfig`), how it is computed (`Compute`), and the sizes LWM defined."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import jax.numpy as jnp

from lwm.attention import AttentionConfig
from lwm.core.config import from_json
from lwm.core.errors import UserError
from lwm.core.mesh import require_divisible
from lwm.core.vocab import Vocab
from lwm.model.rope import RopeScaling, scaling_from_json

Remat = Literal["none", "attention", "full"]

#: sizes and positions are int32, and numbers fp32; rotary bases go furthest
MOST_OF_SIZES, MOST_OF_NUMBERS = 2**31 - 1, 1e30


@dataclass(frozen=True)
class ModelConfig:
    """A Llama-style decoder. Everything here changes what the model computes; nothing here says how or where."""

    vocab: Vocab
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    rope_theta: float = 10_000.0
    #: how rotary frequencies are changed for contexts beyond those that `rope_theta` was trained for
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    #: the longest sequence, in tokens, that the model was trained to read
    max_context: int = 4096

    def __post_init__(self) -> None:
        _require_sizes(self, "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads")
        _require_sizes(self, "head_width", "max_context")
        _require_positive(self, MOST_OF_NUMBERS, "rope_theta", "rms_norm_eps")
        if self.num_heads % self.num_kv_heads:
            raise UserError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.head_width % 2:
            raise UserError(f"head_width {self.head_width} is odd: rotary positions turn pairs of features")
        if self.rope_scaling is not None and not (self.rope_theta > 1 and self.head_width > 2):
            raise UserError(
                f"rope_theta {self.rope_theta} and head_width {self.head_width} leave nothing to scale: with "
                "rope_scaling they must be greater than 1 and 2"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for `config.json`; vocabulary and scaling are blocks of their own."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ModelConfig":
        """Inverse of `to_json`.

        Raises:
            UserError: names the field that is missing or unknown.
        """
        vocab = from_json(Vocab, values.get("vocab"), "the vocab block of the model's config")
        blocks: dict[str, Any] = {"vocab": vocab}
        if (scaling := values.get("rope_scaling")) is not None:
            blocks["rope_scaling"] = scaling_from_json(scaling, "the rope_scaling block of the model's config")
        return from_json(cls, {**values, **blocks}, "the model block of the model's config")

    def require_fits(self) -> None:
        """Refuse a mesh (the one in force) that cannot split this model evenly.

        Raises:
            UserError: names the first quantity that does not divide.
        """
        require_divisible("num_heads", self.num_heads, "heads")
        require_divisible("num_kv_heads", self.num_kv_heads, "kv_heads")
        require_divisible("intermediate_size", self.intermediate_size, "ffn")
        require_divisible("hidden_size", self.hidden_size, "embed")


def _require_sizes(config: Any, *names: str) -> None:
    _require_positive(config, MOST_OF_SIZES, *names)


def _require_positive(config: Any, most: int | float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not value > 0:
            raise UserError(f"{name} is {value}: it must be positive")
        if value > most:
            raise UserError(f"{name} is {value}: it must not be greater than {most}")


@dataclass(frozen=True)
class Compute:
    """How a model is computed: precision, attention backend, chunk lengths, what is recomputed in the backward pass."""

    #: of activations and of the weights in use; master weights, statistics and angles are always fp32. Accelerators
    #: may still multiply fp32 in fewer bits: `jax.config.update("jax_default_matmul_precision", "highest")` forbids it
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    #: tokens of a device that pass the feed-forward layer at a time: memory falls with it, results do not change
    ffn_chunk: int = 2048
    #: the same for the loss, whose logits are [chunk, V]
    loss_chunk: int = 1024
    #: what the backward pass recomputes: "none" of the layer, all but "attention", or the "full" layer
    remat: Remat = "full"

    def __post_init__(self) -> None:
        _require_sizes(self, "ffn_chunk", "loss_chunk")

    @property
    def jax_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.dtype)


def _llama(hidden_size: int, intermediate_size: int, num_layers: int, num_heads: int, eps: float = 1e-6) -> ModelConfig:
    return ModelConfig(
        vocab=Vocab(text_size=32_000),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_width=hidden_size // num_heads,
        rms_norm_eps=eps,
    )


#: LWM's sizes (its released configuration file), and the one this package carries.
SIZES: dict[str, ModelConfig] = {
    "debug": _llama(256, 256, 2, 2),
    "200m": _llama(1024, 2048, 14, 8),
    "1b": _llama(2048, 5504, 22, 16),
    "3b": _llama(3200, 8640, 26, 32),
    "7b": _llama(4096, 11008, 32, 32),
    "13b": _llama(5120, 13824, 40, 40),
    "30b": _llama(6656, 17920, 60, 52),
    "65b": _llama(8192, 22016, 80, 64, eps=1e-5),
    "nano": ModelConfig(
        vocab=Vocab(text_size=2048),
        hidden_size=128,
        intermediate_size=352,
        num_layers=4,
        num_heads=4,
        num_kv_heads=4,
        head_width=32,
        tie_word_embeddings=True,
    ),
}

#: Rotary base per context length, as LWM lengthened its text models (paper, table 11).
ROPE_THETA: dict[int, float] = {32_768: 1e6, 131_072: 1e7, 262_144: 1e7, 524_288: 2.5e7, 1_048_576: 5e7}


def lengthen(config: ModelConfig, max_context: int, rope_theta: float | None = None) -> ModelConfig:
    """The same model for a longer context, with the rotary base that LWM used there (or the one given).

    A scaling is dropped: it was made for the old base, and the new one does its work.

    Raises:
        UserError: the length has no base in the table and none is given.
    """
    theta = ROPE_THETA.get(max_context) if rope_theta is None else rope_theta
    if theta is None:
        raise UserError(f"no rope_theta is known for a context of {max_context}: give one (known: {ROPE_THETA})")
    return dataclasses.replace(config, max_context=max_context, rope_theta=theta, rope_scaling=None)


def text_only(config: ModelConfig, text_size: int) -> ModelConfig:
    """The same model without its ids of codes and marks, and with so many of text."""
    vocab = dataclasses.replace(config.vocab, text_size=text_size, vision_size=0, num_codes=0, tokens_per_frame=0)
    return dataclasses.replace(config, vocab=vocab)
