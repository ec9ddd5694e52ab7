"""What cannot be split evenly is refused by name and number, before anything runs."""

import jax
import jax.numpy as jnp
import pytest

from lwm.attention import AttentionConfig, AttentionMask, attention
from lwm.core.errors import UserError
from lwm.core.mesh import MeshShape, make_mesh


def trace(
    sizes: tuple[int, ...], context: str, heads: tuple[int, int], shape: tuple[int, int], degree: int = 2
) -> None:
    q, k, v = (jax.ShapeDtypeStruct((*shape, n, 8), jnp.float32) for n in (heads[0], heads[1], heads[1]))
    ids = jax.ShapeDtypeStruct(shape, jnp.int32)
    config = AttentionConfig(context=context, all_to_all_degree=degree)
    with jax.set_mesh(make_mesh(MeshShape(*sizes))):
        jax.eval_shape(lambda q, k, v, ids: attention(q, k, v, AttentionMask(ids, ids, ids, ids), config), q, k, v, ids)


@pytest.mark.parametrize(
    ("sizes", "context", "heads", "shape", "sentence"),
    [
        ((2, 4, 1, 1), "ring", (4, 4), (4, 16), "batch size 4 is not divisible by 8"),
        ((1, 1, 8, 1), "ring", (4, 4), (1, 16), "number of attention heads 4 is not divisible by 8"),
        ((1, 1, 8, 1), "ring", (8, 4), (1, 16), "number of key-value heads 4 is not divisible by 8"),
        ((1, 1, 1, 8), "all_to_all", (4, 4), (1, 16), "4 heads and 4 key-value heads .* among 8 devices"),
        ((1, 1, 2, 4), "all_to_all", (24, 6), (1, 16), "12 heads and 3 key-value heads .* among 4 devices"),
    ],
)
def test_uneven_shares_are_refused(sizes, context, heads, shape, sentence):
    with pytest.raises(UserError, match=sentence):
        trace(sizes, context, heads, shape)


def test_a_degree_that_does_not_divide_sp_is_refused():
    with pytest.raises(UserError, match="all_to_all_degree 3 does not divide sp=8"):
        trace((1, 1, 1, 8), "hybrid", (24, 24), (1, 16), degree=3)


@pytest.mark.parametrize("field", ["query_block", "key_block", "all_to_all_degree"])
def test_sizes_must_be_positive(field):
    with pytest.raises(UserError, match=field):
        AttentionConfig(**{field: 0})
