"""The rule that picks the next token from the model's scores."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from lwm.core.errors import UserError
from lwm.infer.grammar import UNLIMITED

#: a temperature below this would be 0 in fp32
SHARPEST = 1e-30


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: scores are tempered, cut to `top_k`, then cut to `top_p`.

    Raises:
        UserError: a value out of range.
    """

    #: 0 takes the likeliest token; 1 draws from the model's distribution; in between sharpens it
    temperature: float = 0.0
    #: draw among this many likeliest tokens only; 0 = all
    top_k: int = 0
    #: draw among the fewest likeliest tokens that together have this probability; 1 = all
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise UserError(f"temperature {self.temperature} must be 0 (greedy) or a positive number")
        if self.top_k < 0:
            raise UserError(f"top_k {self.top_k} must be 0 (all tokens) or a positive integer")
        if not 0.0 < self.top_p <= 1.0:
            raise UserError(f"top_p {self.top_p} must be above 0 and at most 1 (all tokens)")


@dataclass(frozen=True)
class FrameSampling:
    """Which frames are to be drawn, and how."""

    #: how many; None: as many as the model wants
    count: int | None = None
    #: how their codes are drawn; None: as text is
    sampling: Sampling | None = None
    #: classifier-free guidance of the first frame, the second, ..., the last one for all that follow; none: unguided.
    #: 1 draws what was asked for as it is, more draws away from what would have come unasked (Ho & Salimans 2022)
    guidance: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 0:
            raise UserError(f"{self.count} frames cannot be drawn: ask for 0 or more")

    @property
    def total(self) -> int:
        """The number that `grammar.expect` counts down from."""
        return UNLIMITED if self.count is None else self.count


def sample(logits: Float[Array, "B V"], keys: Key[Array, "B"], sampling: Sampling) -> Int[Array, "B"]:
    """One token id per row, drawn with the row's own key: a row's token does not depend on the other rows."""
    if sampling.temperature == 0.0:
        return jnp.argmax(logits, axis=-1)
    return jax.vmap(jax.random.categorical)(keys, restrict(logits, sampling))


def restrict(logits: Float[Array, "B V"], sampling: Sampling) -> Float[Array, "B V"]:
    """Tempered scores in which the tokens that may not be drawn are at minus infinity.

    Tokens that tie with the last one allowed are allowed too. top_p as in Holtzman et al. 2020, section 3.1.
    """
    # The likeliest stays at 0, and the others fall below it, however near to 0 the temperature is.
    logits = (logits - logits.max(axis=-1, keepdims=True)) / max(sampling.temperature, SHARPEST)
    if 0 < sampling.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    if sampling.top_p < 1.0:
        ranked = -jnp.sort(-logits, axis=-1)
        probabilities = jax.nn.softmax(ranked, axis=-1)
        likelier = jnp.cumsum(probabilities, axis=-1) - probabilities
        least = jnp.min(jnp.where(likelier < sampling.top_p, ranked, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return logits
