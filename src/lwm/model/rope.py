"""Rotary positions: by which angle each pair of features is turned, and how that is scaled for longer contexts.

The scalings are those of Hugging Face's Llama family, with its names of fields and its formulas. They change the
frequencies of the pairs (radians a token), and YaRN the length of what is turned as well.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lwm.attention.mask import AttentionMask
from lwm.core.config import from_json
from lwm.core.errors import UserError
from lwm.core.mesh import constrain

#: positions are int32, so no context is longer and none can be stretched by more
_MOST = 2**31 - 1


@dataclass(frozen=True)
class LinearScaling:
    """Every frequency is divided by `factor` (position interpolation, Chen et al. 2023)."""

    rope_type: str = field(default="linear", init=False)
    factor: float

    def __post_init__(self) -> None:
        _require_between(self, 1, _MOST, "factor")


@dataclass(frozen=True)
class DynamicScaling:
    """A sequence longer than the trained length raises the base, the more the longer it is (dynamic NTK)."""

    rope_type: str = field(default="dynamic", init=False)
    factor: float
    #: the trained length; a Hugging Face config has it as its `max_position_embeddings`
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        _require_between(self, 1, _MOST, "factor", "original_max_position_embeddings")


@dataclass(frozen=True)
class Llama3Scaling:
    """Waves that are long for the trained length are slowed by `factor`, short ones kept (Llama 3.1)."""

    rope_type: str = field(default="llama3", init=False)
    factor: float
    #: waves longer than the trained length over this are slowed in full
    low_freq_factor: float
    #: waves shorter than the trained length over this are kept
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        _require_between(self, 1, _MOST, "factor", "original_max_position_embeddings")
        _require_between(self, 1e-9, _MOST, "low_freq_factor", "high_freq_factor")
        if not self.high_freq_factor > self.low_freq_factor:
            raise UserError(
                f"high_freq_factor {self.high_freq_factor} must be greater than low_freq_factor {self.low_freq_factor}"
            )


@dataclass(frozen=True)
class YarnScaling:
    """Pairs that turn often within the trained length are kept, those that turn little slowed (Peng et al. 2023)."""

    rope_type: str = field(default="yarn", init=False)
    factor: float
    original_max_position_embeddings: int
    #: turns within the trained length from which on a pair is kept
    beta_fast: float = 32.0
    #: turns up to which a pair is slowed in full
    beta_slow: float = 1.0
    #: by which queries and keys grow; None: what `factor` implies, by way of both `mscale` if they are given
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    #: whether the pairs between which the frequencies change over are whole numbers
    truncate: bool = True

    def __post_init__(self) -> None:
        _require_between(self, 1, _MOST, "factor", "original_max_position_embeddings")
        _require_between(self, 1e-9, _MOST, "beta_fast", "beta_slow", "attention_factor")
        _require_between(self, 0, _MOST, "mscale", "mscale_all_dim")
        if not self.beta_fast >= self.beta_slow:
            raise UserError(f"beta_fast {self.beta_fast} must not be less than beta_slow {self.beta_slow}")


RopeScaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling

#: under the name that Hugging Face gives them
SCALINGS: dict[str, type] = {kind.rope_type: kind for kind in RopeScaling.__args__}


def _require_between(scaling: Any, low: int | float, high: int | float, *names: str) -> None:
    for name in names:
        value = getattr(scaling, name)
        if value is not None and not low <= value <= high:
            raise UserError(f"{name} of {scaling.rope_type} rope_scaling is {value}: give one from {low} to {high}")


def scaling_from_json(values: object, block: str) -> RopeScaling:
    """The scaling that a JSON object describes, its kind under `rope_type`; `dataclasses.asdict` is the inverse.

    Raises:
        UserError: not an object, an unknown kind, or a field that is missing, unknown or wrong.
    """
    if not isinstance(values, dict):
        raise UserError(f"{block} is not an object")
    fields = dict(values)
    if not isinstance(kind := fields.pop("rope_type", None), str) or kind not in SCALINGS:
        raise UserError(f"{block} has rope_type={kind!r}: known are {', '.join(SCALINGS)}")
    return from_json(SCALINGS[kind], fields, block)


def rotary_frequencies(
    head_width: int, theta: float, scaling: RopeScaling | None = None
) -> Float[np.ndarray, "h_half"]:
    """Radians a token by which each feature pair turns, in float64; of a dynamic scaling, within the trained length."""
    plain = theta ** (-np.arange(0, head_width, 2) / head_width)
    match scaling:
        case LinearScaling():
            return plain / scaling.factor
        case Llama3Scaling():
            return _llama3(plain, scaling)
        case YarnScaling():
            return _yarn(plain, theta, scaling)
        case _:
            return plain


def _llama3(plain: Float[np.ndarray, "h_half"], scaling: Llama3Scaling) -> Float[np.ndarray, "h_half"]:
    turns = scaling.original_max_position_embeddings * plain / (2 * np.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return _mixed(plain, scaling.factor, kept)


def _yarn(plain: Float[np.ndarray, "h_half"], theta: float, scaling: YarnScaling) -> Float[np.ndarray, "h_half"]:
    num_pairs = len(plain)

    def pair_that_turns(times: float) -> float:
        wavelength = scaling.original_max_position_embeddings / times
        return num_pairs * math.log(wavelength / (2 * math.pi)) / math.log(theta)

    first, last = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * num_pairs - 1)
    width = last - first if last != first else 0.001
    return _mixed(plain, scaling.factor, 1 - (np.arange(num_pairs) - first) / width)


def _mixed(
    plain: Float[np.ndarray, "h_half"], factor: float, kept: Float[np.ndarray, "h_half"]
) -> Float[np.ndarray, "h_half"]:
    """From the slowed frequencies, where `kept` is 0 or less, to the plain ones, where it is 1 or more."""
    kept = np.clip(kept, 0.0, 1.0)
    return plain / factor * (1 - kept) + plain * kept


def attention_factor(scaling: RopeScaling | None) -> float:
    """By which a scaling lengthens rotated queries and keys: scores grow by its square."""
    if not isinstance(scaling, YarnScaling):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    growth = 0.1 * math.log(scaling.factor)
    if scaling.mscale and scaling.mscale_all_dim:
        return (scaling.mscale * growth + 1) / (scaling.mscale_all_dim * growth + 1)
    return growth + 1


def rotary_angles(
    mask: AttentionMask, head_width: int, theta: float, scaling: RopeScaling | None = None
) -> Float[Array, "B T h_half"]:
    """Angle in radians, within half a turn of 0, of each feature pair of each query (Su et al. 2021, eq. 15).

    An fp32 product `position * frequency` is off by 0.06 at position 1,000,000, and a bf16 one by whole turns at
    position 300. Here the frequency is a fixed-point fraction of a turn, so that wrapping integer multiplication
    drops the whole turns exactly, and the angle is right to fp32's last digits at any position.

    A dynamic scaling goes by the length of each query's own segment: the greatest position among its keys, plus 1.
    Of a whole sequence, alone or packed, that is its length, as in Hugging Face's model. With a cache it is what has
    been read when a token comes, and keys keep the angle they came with: that, too, is Hugging Face's, which besides
    never goes back to a lower base before a sequence within the trained length comes. So beyond that length reading
    in pieces is not the same as reading at once. The raised base's frequencies are rounded to fp32, alike for all of
    a segment: distances between its tokens stay exact.
    """
    turns = rotary_frequencies(head_width, theta, scaling) / (2 * np.pi) * 2.0**32
    whole = np.floor(turns)
    coarse, remainder = whole.astype(np.uint32), (turns - whole).astype(np.float32)
    if not isinstance(scaling, DynamicScaling):
        return _angles(mask.query_positions, coarse, remainder)
    trained = scaling.original_max_position_embeddings
    excess = jnp.maximum(segment_lengths(mask) - trained, 0)[..., None]
    # theta * (1 + stretch) ** (h / (h - 2)) in the place of theta
    stretch = excess.astype(jnp.float32) * np.float32(scaling.factor / trained)
    exponents = np.arange(0, head_width, 2, dtype=np.float32) / np.float32(head_width - 2)
    raised = turns.astype(np.float32) * jnp.exp(-exponents * jnp.log1p(stretch))
    raised_whole, longer = jnp.floor(raised), excess > 0
    return _angles(
        mask.query_positions,
        jnp.where(longer, raised_whole.astype(jnp.uint32), coarse),
        jnp.where(longer, raised - raised_whole, remainder),
    )


def _angles(positions: Int[Array, "B T"], coarse: Any, remainder: Any) -> Float[Array, "B T h_half"]:
    """Positions times frequencies, which are 2**-32 turns in whole numbers (uint32) and what remains (fp32)."""
    wrapped = positions[..., None].astype(jnp.uint32) * coarse
    rest = positions[..., None].astype(jnp.float32) * remainder
    centred = jax.lax.bitcast_convert_type(wrapped, jnp.int32).astype(jnp.float32)
    return (centred + rest) * np.float32(2 * np.pi / 2.0**32)


def segment_lengths(mask: AttentionMask) -> Int[Array, "B T"]:
    """How long the sequence of each query is so far: the greatest position among the keys of its segment, plus 1.

    Segments are numbered from 1 and a row of S keys has no more than S of them; memory grows with T + S.
    """
    num_keys = mask.key_segment_ids.shape[1]

    def greatest(segment_ids: Array, positions: Array) -> Array:
        return jnp.zeros(num_keys + 1, positions.dtype).at[segment_ids].max(positions)

    by_segment = jax.vmap(greatest)(mask.key_segment_ids, mask.key_positions)
    lengths = jnp.take_along_axis(by_segment, mask.query_segment_ids, axis=1) + 1
    return constrain(lengths, "batch", "tokens")


def rotate(
    x: Float[Array, "B T H h"], angles: Float[Array, "B T h_half"], scale: float = 1.0
) -> Float[Array, "B T H h"]:
    """Turn the interleaved feature pairs (x0, x1), (x2, x3), ... by `angles`, LWM's order, and lengthen by `scale`."""
    cosine, sine = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    if scale != 1:
        cosine, sine = cosine * scale, sine * scale
    wide = x.astype(jnp.float32)
    even, odd = wide[..., 0::2], wide[..., 1::2]
    turned = jnp.stack([even * cosine - odd * sine, even * sine + odd * cosine], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
