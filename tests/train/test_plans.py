"""Facts of the compiled training step: what it gathers, and how its memory grows."""

import re

import jax
import pytest

from lwm.attention import AttentionConfig
from lwm.core.mesh import MeshShape, make_mesh
from lwm.core.vocab import Vocab
from lwm.model.config import Compute, ModelConfig
from lwm.model.transformer import declare
from lwm.train.optimizer import OptimizerConfig
from lwm.train.state import abstract_state
from lwm.train.step import abstract_batch, make_train_step

# No tensor of the model has the shape of keys or values: 16 tokens a head appear in none of its sizes.
MODEL = ModelConfig(
    vocab=Vocab(256),
    hidden_size=64,
    intermediate_size=128,
    num_layers=4,
    num_heads=8,
    num_kv_heads=8,
    head_width=16,
    max_context=1 << 20,
)
COMPUTE = Compute(attention=AttentionConfig(query_block=64, key_block=64), ffn_chunk=64, loss_chunk=64)


@pytest.fixture(scope="module")
def compiled() -> dict[tuple[int, int], jax.stages.Compiled]:
    """The step on `devices` along sp at `num_tokens`, compiled once each and never run."""
    programs = {}
    for devices, num_tokens in [(8, 4096), (8, 8192), (2, 4096)]:
        mesh = make_mesh(MeshShape(fsdp=1, sp=devices), jax.devices()[:devices])
        with jax.set_mesh(mesh):
            step = make_train_step(MODEL, COMPUTE, OptimizerConfig(), mesh)
            state = abstract_state(declare(MODEL), OptimizerConfig(), mesh)
            programs[devices, num_tokens] = step.lower(state, abstract_batch(1, num_tokens, mesh)).compile()
    return programs


def temporary_bytes(program: jax.stages.Compiled) -> int:
    return program.memory_analysis().temp_size_in_bytes


def test_keys_and_values_are_passed_on_and_never_gathered(compiled: dict) -> None:
    text = compiled[8, 4096].as_text()
    results = re.findall(r"= (.*?) all-gather(?:-start)?\(", text)
    gathered = [shape for result in results for shape in re.findall(r"\w+\[([\d,]+)\]", result)]
    assert gathered, "stored weights are gathered: the pattern no longer matches"
    parameters = {
        leaf.shape[-3:] for leaf in jax.tree.leaves(abstract_state(declare(MODEL), OptimizerConfig(), _mesh()).params)
    }
    whole = {tuple(sorted(shape[1:] if len(shape) == 3 and shape[0] == 4 else shape)) for shape in parameters}
    assert {tuple(sorted(map(int, shape.split(",")))) for shape in gathered} <= whole
    assert "collective-permute" in text


def test_memory_grows_with_the_tokens_not_their_square(compiled: dict) -> None:
    assert temporary_bytes(compiled[8, 8192]) < 2.2 * temporary_bytes(compiled[8, 4096])


def test_memory_falls_with_the_devices(compiled: dict) -> None:
    assert temporary_bytes(compiled[8, 4096]) < 0.35 * temporary_bytes(compiled[2, 4096])


def _mesh() -> jax.sharding.Mesh:
    return make_mesh(MeshShape(fsdp=1, sp=8))
