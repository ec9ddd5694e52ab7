"""How a Llama in a GGUF file scales its rotary positions: its fields say it, or a tensor of factors does."""

import math
from typing import Any, TypeVar

import numpy as np

from lwm.core.errors import UserError
from lwm.model.rope import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling, rotary_frequencies
from lwm.weights.gguf_file import GgufFile

Scaling = TypeVar("Scaling", bound=RopeScaling)
#: divisors of each pair's frequency: how llama.cpp writes the scaling of Llama 3.1 and later
ROPE_FACTORS = "rope_freqs.weight"
#: those of other architectures
_OTHER_FACTORS = ("rope_factors_long.weight", "rope_factors_short.weight")
#: what all of Llama 3 has, and a file does not say: only the greatest factor differs
_LLAMA_3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_FLOAT32 = 0
#: fields of YaRN at which it is what its paper has
_YARN = {"yarn_ext_factor": (-1.0, 1.0), "yarn_beta_fast": (32.0,), "yarn_beta_slow": (1.0,)}


def read_scaling(file: GgufFile, prefix: str, head_width: int, theta: float) -> RopeScaling | None:
    """The scaling of a model's rotary positions; `prefix` is that of its fields, `llama.rope.`.

    Raises:
        UserError: a kind that is not known, or factors that are not those of Llama 3.
    """
    for name in _OTHER_FACTORS:
        if name in file.tensors:
            raise UserError(f"{file.path} scales its rotary positions by the tensor {name}, which is not read")
    stated = _stated(file, f"{prefix}scaling.", file.number(f"{prefix}scale_linear", 1.0))
    if ROPE_FACTORS not in file.tensors:
        return stated
    if stated is not None:
        raise UserError(f"{file.path} scales its rotary positions twice: by {stated.rope_type} and by {ROPE_FACTORS}")
    return _llama3(file, head_width, theta)


def _stated(file: GgufFile, prefix: str, linear: float) -> RopeScaling | None:
    """By its fields. llama.cpp takes a factor without a type as linear, and 0 or 1 as none."""
    kind, factor = file.text(f"{prefix}type", "linear"), file.number(f"{prefix}factor", linear)
    match kind:
        case "none":
            return None
        case "linear":
            return None if factor in (0, 1) else _make(file, LinearScaling, factor=factor)
        case "yarn":
            return _yarn(file, prefix, factor)
    raise UserError(f"{file.path}: its {prefix}type is {kind[:60]!r}: known are none, linear and yarn")


def _make(file: GgufFile, kind: type[Scaling], **fields: Any) -> Scaling:
    try:
        return kind(**fields)
    except UserError as error:
        raise UserError(f"{file.path}: {error}") from None


def _yarn(file: GgufFile, prefix: str, factor: float) -> YarnScaling:
    for name, known in _YARN.items():
        if (value := file.number(f"{prefix}{name}", known[0])) not in known:
            raise UserError(f"{file.path}: its {prefix}{name} is {value:g}, and only {known[-1]:g} is read")
    lengthened = file.number(f"{prefix}attn_factor", 1.0)
    return _make(
        file,
        YarnScaling,
        factor=factor,
        original_max_position_embeddings=file.integer(f"{prefix}original_context_length"),
        attention_factor=None if lengthened == 1 else lengthened * (0.1 * math.log(max(factor, 1)) + 1),
    )


def _llama3(file: GgufFile, head_width: int, theta: float) -> Llama3Scaling | None:
    """The scaling whose factors are those of the tensor."""
    tensor, size = file.tensors[ROPE_FACTORS], head_width // 2
    if not theta > 1:
        raise UserError(f"{file.path}: the base of its rotary positions is {theta:g} and should be greater than 1")
    if tensor.shape != (size,) or tensor.kind != _FLOAT32:
        raise UserError(f"{file.path}: its {ROPE_FACTORS} is not {size} numbers of float32")
    stored = file.content[tensor.offset : tensor.offset + 4 * size]
    if len(stored) < 4 * size:
        raise UserError(f"{file.path} is cut short or corrupt: {ROPE_FACTORS} is not all there")
    factors = np.frombuffer(stored, "<f4").astype(np.float64)
    if np.all(factors == 1):
        return None
    scaling = _make(file, Llama3Scaling, factor=float(factors.max()), **_LLAMA_3)
    expected = rotary_frequencies(head_width, theta) / rotary_frequencies(head_width, theta, scaling)
    if not np.allclose(factors, expected, rtol=1e-4):
        raise UserError(f"{file.path}: its {ROPE_FACTORS} has other factors than Llama 3, and only its are read")
    return scaling
