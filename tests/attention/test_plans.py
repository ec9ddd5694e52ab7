"""What the compiled programs are: who talks to whom, and how memory grows."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from lwm.attention import AttentionConfig, AttentionMask, attention
from lwm.core.mesh import MeshShape, make_mesh, sharding

RING = AttentionConfig(query_block=64, key_block=64)
ALL_TO_ALL = AttentionConfig(context="all_to_all", query_block=64, key_block=64)
HYBRID = AttentionConfig(context="hybrid", query_block=64, key_block=64)
HEADS, KV_HEADS, WIDTH = 8, 4, 16
COLLECTIVE = re.compile(r"= \(?(\w+)\[.* (all-gather|all-reduce|all-to-all|collective-permute)(?:-start)?\(")


def lower(num_devices: int, num_tokens: int, config: AttentionConfig, dtype: str = "float32", *, layers: int = 0):
    """Loss and gradients of attention, or of a scan over rematerialized layers of it, over sp = `num_devices`."""
    mesh = make_mesh(MeshShape(1, 1, 1, num_devices), jax.devices()[:num_devices])
    heads, ids = sharding(mesh, "batch", "tokens", None, None), sharding(mesh, "batch", "tokens")

    def loss(q, k, v, segment_ids, positions):
        mask = AttentionMask.self_attention(segment_ids, positions)
        step = jax.checkpoint(lambda q, scale: (q + scale * attention(q, k, v, mask, config), None), prevent_cse=False)
        scanned = jax.lax.scan(step, q, jnp.ones(layers, dtype))[0] if layers else attention(q, k, v, mask, config)
        return scanned.astype(jnp.float32).sum()

    shapes = [(1, num_tokens, n, WIDTH) for n in (HEADS, KV_HEADS, KV_HEADS)]
    arrays = [jax.ShapeDtypeStruct(shape, dtype, sharding=heads) for shape in shapes]
    marks = [jax.ShapeDtypeStruct((1, num_tokens), jnp.int32, sharding=ids)] * 2
    with jax.set_mesh(mesh):
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(*arrays, *marks)


def temporary_bytes(*args, **kwargs) -> int:
    return lower(*args, **kwargs).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(("config", "messages"), [
    (RING, {"collective-permute"}),
    (ALL_TO_ALL, {"all-to-all"}),
    (HYBRID, {"collective-permute", "all-to-all"}),
])  # fmt: skip
def test_keys_and_values_are_never_gathered(config, messages):
    text = lower(8, 1024, config).compile().as_text()
    seen = Counter((kind, dtype) for dtype, kind in COLLECTIVE.findall(text))
    floats = {kind for kind, dtype in seen if dtype.startswith(("f", "bf"))}
    assert floats - {"all-reduce"} == messages
    assert {dtype for kind, dtype in seen if kind == "all-gather"} <= {"s32"}
    assert sum("all-reduce(" in line for line in text.splitlines()) <= 1  # the loss itself


def test_memory_grows_like_the_tokens_and_shrinks_like_the_devices():
    few, many, long = (temporary_bytes(n, t, RING) for n, t in ((2, 8192), (8, 8192), (8, 16384)))
    assert many < 0.35 * few
    assert long < 2.2 * many


def test_a_scan_over_layers_keeps_no_masks():
    """Masks depend on no layer's data, so a scan is free to make them for all tiles at once and to keep them."""
    config = AttentionConfig(query_block=32, key_block=32)
    short, long = (temporary_bytes(1, t, config, layers=3) for t in (2048, 4096))
    assert long < 2.2 * short
    dense = temporary_bytes(1, 4096, AttentionConfig(kernel="reference"), layers=3)
    assert long < 4096 * 4096 < dense


def test_a_ring_carries_the_models_dtype_forward_and_float32_gradients_home():
    text = lower(8, 1024, RING, "bfloat16").as_text()
    carried = Counter(re.findall(r"collective_permute.*-> tensor<\w*x(bf16|f32|i32)>", text))
    # forward: k, v; backward: k, v for the first hop and for the rest; dk, dv for the rest and home
    assert carried == {"bf16": 2 + 2 + 2, "f32": 2 + 2, "i32": 2 + 2 + 2}
