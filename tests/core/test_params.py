from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.core.errors import UserError
from lwm.core.mesh import MeshShape, make_mesh
from lwm.core.params import Parameter, abstract, count, init, init_sharded, normal, ones, shardings


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Block:
    norm: Any
    up: Any
    down: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Model:
    embedding: Any
    block: Block


def declare(embed: int = 16, ffn: int = 8) -> Model:
    return Model(
        embedding=Parameter((32, embed), ("vocab", "embed"), normal(0.5)),
        block=Block(
            norm=Parameter((2, embed), ("layers", None), ones),
            up=Parameter((2, embed, ffn), ("layers", "embed", "ffn"), normal(1.0)),
            down=Parameter((2, ffn, embed), ("layers", "ffn", "embed"), normal(1.0)),
        ),
    )


def test_count_is_the_number_of_scalars() -> None:
    assert count(declare()) == 32 * 16 + 2 * 16 + 2 * (2 * 16 * 8)
    drawn = init(declare(), jax.random.key(0), jnp.float32)
    assert count(declare()) == sum(leaf.size for leaf in jax.tree.leaves(drawn))


def test_rank_and_axes_must_agree() -> None:
    with pytest.raises(ValueError, match="rank"):
        Parameter((2, 3), ("embed",), ones)


def test_initializers_do_what_they_say(rng_key: jax.Array) -> None:
    assert np.all(ones(rng_key, (3,), jnp.bfloat16) == 1)
    drawn = np.asarray(normal(0.5)(rng_key, (200, 200), jnp.float32))
    assert abs(drawn.std() - 0.5) < 0.01
    assert abs(drawn.mean()) < 0.01


@pytest.mark.parametrize("sizes", [(8, 1, 1, 1), (1, 8, 1, 1), (1, 2, 2, 2), (1, 1, 1, 8)])
def test_parameters_do_not_depend_on_the_mesh(sizes: tuple[int, ...], rng_key: jax.Array) -> None:
    plain = jax.jit(lambda key: init(declare(), key, jnp.float32))(rng_key)
    mesh = make_mesh(MeshShape(*sizes))
    sharded = init_sharded(declare(), rng_key, jnp.float32, mesh)
    for ours, other, expected in zip(*map(jax.tree.leaves, (plain, sharded, shardings(declare(), mesh))), strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-6)  # to rounding: a compiler fuses each program its own way
        assert other.sharding.is_equivalent_to(expected, other.ndim)


def test_parameters_do_not_depend_on_their_siblings(rng_key: jax.Array) -> None:
    whole = init(declare(), rng_key, jnp.float32)
    without = Model(embedding=None, block=Block(norm=None, up=None, down=declare().block.down))
    np.testing.assert_array_equal(init(without, rng_key, jnp.float32).block.down, whole.block.down)


def test_parameters_differ_by_path_and_by_key(rng_key: jax.Array) -> None:
    first = init(declare(embed=8), rng_key, jnp.float32)
    other = init(declare(embed=8), jax.random.key(1), jnp.float32)
    assert first.block.up.shape == first.block.down.shape
    assert not np.any(np.asarray(first.block.up == first.block.down))
    assert not np.any(np.asarray(first.block.up == other.block.up))


def test_abstract_has_shapes_and_shardings_without_memory() -> None:
    mesh = make_mesh(MeshShape(1, 2, 2, 2))
    described = abstract(declare(), jnp.bfloat16, mesh)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(described))
    assert (described.block.up.shape, described.block.up.dtype) == ((2, 16, 8), jnp.bfloat16)
    assert described.block.up.sharding.shard_shape((2, 16, 8)) == (2, 4, 4)
    assert abstract(declare(), jnp.float32).embedding.sharding is None


def test_an_axis_the_mesh_cannot_split_is_refused_by_path() -> None:
    mesh = make_mesh(MeshShape(1, 1, 4, 2))
    with pytest.raises(UserError, match=r"block\.up: its ffn axis of 6 is not divisible by 4, the mesh's tp"):
        shardings(declare(ffn=6), mesh)
    with pytest.raises(UserError, match=r"embedding: its embed axis of 15 .* by 2, the mesh's fsdp x sp"):
        shardings(declare(embed=15), mesh)
