"""Dense attention in float32: slow, quadratic in memory, and the truth every other path is tested against."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lwm.attention.mask import AttentionMask
from lwm.attention.merge import NOTHING


def attend(
    q: Float[Array, "B T H h"], k: Float[Array, "B S K h"], v: Float[Array, "B S K h"], mask: AttentionMask
) -> tuple[Float[Array, "B T H h"], Float[Array, "B T H"]]:
    """Softmax attention with scale 1/sqrt(h), query head i reading key-value head i // (H / K).

    Returns:
        The output in the dtype of `q`, and the float32 log-sum-exp of each query's scores. A query that sees no key
        gets zeros and `NOTHING`.
    """
    batch, num_queries, _, width = q.shape
    grouped = q.astype(jnp.float32).reshape(batch, num_queries, k.shape[2], -1, width)
    seen = mask.dense()[:, None, None]
    scores = jnp.einsum("BTKGh,BSKh->BKGTS", grouped, k.astype(jnp.float32)) / width**0.5
    scores = jnp.where(seen, scores, NOTHING)
    highest = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.where(seen, jnp.exp(scores - highest), 0.0)
    total = weights.sum(-1, keepdims=True)
    some = total > 0
    total = jnp.where(some, total, 1.0)
    out = jnp.einsum("BKGTS,BSKh->BTKGh", weights / total, v.astype(jnp.float32))
    log_sum_exp = jnp.where(some, highest + jnp.log(total), NOTHING)[..., 0]
    return out.reshape(q.shape).astype(q.dtype), jnp.moveaxis(log_sum_exp, 3, 1).reshape(q.shape[:3])
