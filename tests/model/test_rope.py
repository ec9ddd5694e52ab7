"""Rotary angles against NumPy in float64; how they are scaled, and that packing, meshes and caches keep to it."""

import dataclasses
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.attention.mask import AttentionMask
from lwm.core import params as parameters
from lwm.core.errors import UserError
from lwm.core.layout import order
from lwm.core.mesh import MeshShape, make_mesh, sharding
from lwm.model.cache import allocate
from lwm.model.config import Compute, ModelConfig, lengthen
from lwm.model.rope import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
    YarnScaling,
    attention_factor,
    rotary_angles,
    rotary_frequencies,
    rotate,
    scaling_from_json,
)
from lwm.model.transformer import Transformer, declare, extend, hidden_states

STATIC = [LinearScaling(4.0), Llama3Scaling(8.0, 1.0, 4.0, 16), YarnScaling(4.0, 16)]
DYNAMIC = DynamicScaling(2.0, 16)
FAR = [0, 1, 255, 514, 65_537, 999_999, 1_000_000, 1_048_575]


def kind(scaling: RopeScaling) -> str:
    return scaling.rope_type


def alone(positions: list[int]) -> AttentionMask:
    """One sequence's tokens at these positions."""
    return AttentionMask.self_attention(jnp.ones((1, len(positions)), jnp.int32), jnp.array([positions], jnp.int32))


def scaled(config: ModelConfig, scaling: RopeScaling | None) -> ModelConfig:
    return dataclasses.replace(config, rope_scaling=scaling)


@pytest.mark.parametrize("theta", [1e4, 1e6, 5e7])
def test_angles_are_exact_at_a_million(theta: float) -> None:
    exact = np.array([FAR])[..., None] * theta ** (-np.arange(0, 64, 2) / 64)
    angles = np.asarray(rotary_angles(alone(FAR), 64, theta), np.float64)
    np.testing.assert_allclose(np.cos(angles), np.cos(exact), atol=1e-6)
    np.testing.assert_allclose(np.sin(angles), np.sin(exact), atol=1e-6)


@pytest.mark.parametrize(
    "scaling",
    [LinearScaling(3.0), Llama3Scaling(8.0, 1.0, 4.0, 8192), YarnScaling(32.0, 32_768), DynamicScaling(4.0, 2**20)],
    ids=kind,
)
def test_scaled_angles_are_exact_at_a_million(scaling: RopeScaling) -> None:
    exact = np.array([FAR])[..., None] * rotary_frequencies(64, 5e5, scaling)
    angles = np.asarray(rotary_angles(alone(FAR), 64, 5e5, scaling), np.float64)
    np.testing.assert_allclose(np.cos(angles), np.cos(exact), atol=1e-6)
    np.testing.assert_allclose(np.sin(angles), np.sin(exact), atol=1e-6)


def test_small_angles_keep_their_relative_precision() -> None:
    angles = np.asarray(rotary_angles(alone([3]), 64, 5e7), np.float64)[0, 0]
    np.testing.assert_allclose(angles, 3 * 5e7 ** (-np.arange(0, 64, 2) / 64), rtol=3e-7)


def test_bfloat16_features_are_turned_by_exact_angles() -> None:
    x = jnp.ones((1, 1, 1, 64), jnp.bfloat16)
    turned = rotate(x, rotary_angles(alone([1_000_000]), 64, 5e7))
    exact = 1_000_000 * 5e7 ** (-np.arange(0, 64, 2) / 64)
    np.testing.assert_allclose(np.asarray(turned[0, 0, 0, 0::2], np.float64), np.cos(exact) - np.sin(exact), atol=8e-3)
    assert turned.dtype == jnp.bfloat16


@pytest.mark.parametrize("scaling", [None, DynamicScaling(4.0, 4096)])
def test_scores_depend_on_distance_only(scaling: RopeScaling | None) -> None:
    """Of one sequence of a million tokens, beyond what dynamic scaling was trained for."""
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 64))
    angles = rotary_angles(alone([1_000_000, 999_000, 1_000, 0]), 64, 1e7, scaling)

    def score(query_place: int, key_place: int) -> float:
        a, b = (rotate(x, angles[:, at][:, None]) for x, at in ((q, query_place), (k, key_place)))
        return float(jnp.sum(a * b))

    assert score(0, 1) == pytest.approx(score(2, 3), abs=2e-5)


def test_yarn_lengthens_what_it_turns() -> None:
    x = jax.random.normal(jax.random.key(0), (1, 2, 3, 8))
    angles = rotary_angles(alone([5, 9]), 8, 1e4)
    np.testing.assert_allclose(rotate(x, angles, 1.25), 1.25 * rotate(x, angles), rtol=1e-6)
    assert [attention_factor(scaling) for scaling in (None, *STATIC[:2], DYNAMIC)] == [1.0] * 4
    assert attention_factor(YarnScaling(np.e, 16)) == pytest.approx(1.1)


def test_within_the_trained_length_dynamic_scaling_changes_nothing() -> None:
    positions = list(range(0, 16, 3))
    np.testing.assert_array_equal(
        rotary_angles(alone(positions), 64, 1e4, DYNAMIC), rotary_angles(alone(positions), 64, 1e4)
    )
    longer = rotary_angles(alone([*positions, 16]), 64, 1e4, DYNAMIC)
    assert np.all(longer[:, 1 : len(positions), 1:] < rotary_angles(alone(positions), 64, 1e4)[:, 1:, 1:])


@pytest.mark.parametrize("text", ["1,1,1,1", "1,2,2,2"])
def test_dynamic_scaling_goes_by_each_examples_own_length(
    params: Transformer, config: ModelConfig, compute: Compute, make_batch: Callable, text: str
) -> None:
    """Packed and in zigzag over the devices, or each in a row: examples within the trained length and beyond it."""
    lengths, config = [21, 9, 1, 26], scaled(config, DYNAMIC)
    stops = np.cumsum(lengths)
    run = jax.jit(lambda p, b: hidden_states(p, b.tokens, b.segment_ids, b.positions, config, compute))
    batch = make_batch(lengths, 64, 2)
    own = np.array([np.arange(stop - length, stop - length + 32) for stop, length in zip(stops, lengths, strict=True)])
    apart = jax.tree.map(lambda array: array[0][np.minimum(own, 63)], batch)
    inside = np.arange(32) < np.array(lengths)[:, None]
    expected = np.asarray(run(params, dataclasses.replace(apart, segment_ids=jnp.asarray(inside, jnp.int32))))
    shape = MeshShape.parse(text)
    mesh = make_mesh(shape, jax.devices()[: int(np.prod(shape.sizes))])
    placing = order("zigzag", 64, mesh.shape["sp"])
    with jax.set_mesh(mesh):
        row = jax.device_put(batch.permute(placing), sharding(mesh, "batch", "tokens"))
        placed = jax.device_put(params, parameters.shardings(declare(config), mesh))
        packed = np.asarray(run(placed, row))[:, np.argsort(placing)]
    np.testing.assert_allclose(packed[0, : stops[-1]], expected[inside], atol=2e-5)


def test_lengths_of_segments_take_memory_that_grows_with_the_tokens() -> None:
    mesh = make_mesh(MeshShape(fsdp=1, sp=8), jax.devices()[:8])

    def bytes_needed(num_tokens: int) -> int:
        marks = jax.ShapeDtypeStruct((1, num_tokens), jnp.int32, sharding=sharding(mesh, "batch", "tokens"))

        def angles(segment_ids: jax.Array, positions: jax.Array) -> jax.Array:
            return rotary_angles(AttentionMask.self_attention(segment_ids, positions), 8, 1e4, DYNAMIC)

        with jax.set_mesh(mesh):
            compiled = jax.jit(angles).lower(marks, marks).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert bytes_needed(65_536) < 2.2 * bytes_needed(32_768)
    assert bytes_needed(65_536) < 64 * 65_536


@pytest.mark.parametrize("scaling", [*STATIC, DynamicScaling(2.0, 64)], ids=kind)
def test_the_cache_equals_the_forward_pass(
    params: Transformer, config: ModelConfig, compute: Compute, scaling: RopeScaling
) -> None:
    """A prompt in two chunks, the second ending in padding, then token by token, far past what static ones knew."""
    config, num_tokens = scaled(config, scaling), 40
    tokens = jax.random.randint(jax.random.key(0), (2, num_tokens), 0, 48)
    positions = jnp.broadcast_to(jnp.arange(num_tokens, dtype=jnp.int32), tokens.shape)
    segments = jnp.ones_like(tokens)
    expected = jax.jit(lambda t, s, i: hidden_states(params, t, s, i, config, compute))(tokens, segments, positions)
    cache, outputs = allocate(config, 2, 64, jnp.float32), []
    step = jax.jit(lambda t, s, i, c: extend(params, t, s, i, c, config, compute))
    for start, stop, real in [(0, 16, 16), (16, 32, 12), *((i, i + 1, 1) for i in range(28, 40))]:
        at = slice(start, stop)
        seen = (jnp.arange(stop - start) < real).astype(jnp.int32) * segments[:, at]
        hidden, cache = step(tokens[:, at], seen, positions[:, at], cache)
        outputs.append(np.asarray(hidden)[:, :real])
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), expected, atol=2e-5)


@pytest.mark.parametrize("scaling", [None, *STATIC, DYNAMIC], ids=lambda scaling: scaling and kind(scaling))
def test_a_config_keeps_its_scaling(config: ModelConfig, scaling: RopeScaling | None) -> None:
    stored = json.loads(json.dumps(scaled(config, scaling).to_json()))
    assert ModelConfig.from_json(stored) == scaled(config, scaling)


def test_a_config_of_before_has_none(config: ModelConfig) -> None:
    stored = config.to_json()
    del stored["rope_scaling"]
    assert ModelConfig.from_json(stored).rope_scaling is None


def test_a_longer_context_has_a_higher_base_and_no_scaling(config: ModelConfig) -> None:
    longer = lengthen(scaled(config, STATIC[0]), 32_768)
    assert (longer.rope_theta, longer.rope_scaling) == (1e6, None)


LLAMA3 = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
LLAMA3["original_max_position_embeddings"] = 8192
YARN = {"rope_type": "yarn", "factor": 8, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    "values, message",
    [
        (3, "the block is not an object"),
        ({"factor": 2}, "rope_type=None: known are linear, dynamic, llama3, yarn"),
        ({"rope_type": ["yarn"]}, r"rope_type=\['yarn'\]"),
        ({"rope_type": "longrope"}, "rope_type='longrope': known are"),
        ({"rope_type": "linear"}, "the block has missing field 'factor'"),
        ({"rope_type": "linear", "factor": "2"}, "factor='2', which is not float"),
        ({"rope_type": "linear", "factor": 0.5}, "factor of linear rope_scaling is 0.5: give one from 1 to"),
        ({"rope_type": "linear", "factor": float("nan")}, "factor of linear rope_scaling is nan"),
        ({"rope_type": "linear", "factor": 10**400}, "factor=10+, which is too large"),
        ({"rope_type": "dynamic", "factor": 2}, "missing field 'original_max_position_embeddings'"),
        ({**LLAMA3, "original_max_position_embeddings": 0}, "original_max_position_embeddings of llama3"),
        ({**LLAMA3, "original_max_position_embeddings": 8192.5}, "8192.5, which is not int"),
        ({**LLAMA3, "low_freq_factor": 0}, r"low_freq_factor of llama3 rope_scaling is 0\.0"),
        ({**LLAMA3, "low_freq_factor": 4}, "high_freq_factor 4.0 must be greater than low_freq_factor 4.0"),
        ({**LLAMA3, "beta_fast": 32}, "the block has unknown field 'beta_fast'"),
        ({**YARN, "beta_slow": 33}, "beta_fast 32.0 must not be less than beta_slow 33"),
        ({**YARN, "attention_factor": -1}, "attention_factor of yarn rope_scaling is -1"),
        ({**YARN, "attention_factor": "1"}, "attention_factor='1', which is not float"),
        ({**YARN, "mscale": float("inf")}, "mscale of yarn rope_scaling is inf"),
        ({**YARN, "truncate": 1}, "truncate=1, which is not bool"),
    ],
)
def test_what_is_not_a_scaling_is_refused(values: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        scaling_from_json(values, "the block")


def test_a_model_without_anything_to_scale_is_refused(config: ModelConfig) -> None:
    with pytest.raises(UserError, match=r"rope_theta 1\.0 and head_width 8 leave nothing to scale"):
        dataclasses.replace(config, rope_theta=1.0, rope_scaling=STATIC[2])
    with pytest.raises(UserError, match="head_width 2 leave nothing to scale"):
        dataclasses.replace(config, head_width=2, rope_scaling=DYNAMIC)
    with pytest.raises(UserError, match="the rope_scaling block of the model's config has rope_type='su'"):
        ModelConfig.from_json({**config.to_json(), "rope_scaling": {"rope_type": "su"}})
