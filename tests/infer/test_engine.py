"""Reading in chunks and generating on the device give what the whole forward pass gives, on every mesh."""

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.core.errors import UserError
from lwm.core.mesh import MeshShape, make_mesh
from lwm.core.params import init, shardings
from lwm.core.vocab import Vocab
from lwm.infer import programs
from lwm.infer.engine import Engine
from lwm.infer.sampling import Sampling
from lwm.model.config import Compute, ModelConfig
from lwm.model.transformer import declare, head_weights, hidden_states, logits

CONFIG = ModelConfig(Vocab(text_size=64), 32, 64, 2, 8, 2, 8)
COMPUTE = Compute()
PROMPTS = [np.random.default_rng(n).integers(3, 64, n).tolist() for n in (59, 7)]
NEW_TOKENS = 20
#: what `generate` takes for these prompts: tests that share it share the compiled programs
CAPACITY = 96

compiled: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **about: compiled.append(about.get("fun_name", "")) if "backend_compile" in event else None
)


def make_engine(shape: str = "sp=1", prefill_chunk: int = 32) -> Engine:
    sizes = MeshShape.parse(shape)
    mesh = make_mesh(sizes, jax.devices()[: int(np.prod([max(size, 1) for size in sizes.sizes]))])
    weights = init(declare(CONFIG), jax.random.key(0), jnp.dtype("float32"))
    return Engine(jax.device_put(weights, shardings(declare(CONFIG), mesh)), CONFIG, COMPUTE, mesh, prefill_chunk)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine()


@jax.jit
def all_logits(params, tokens):
    segment_ids = jnp.ones_like(tokens)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    hidden = hidden_states(params, tokens, segment_ids, positions, CONFIG, COMPUTE)
    return logits(hidden, head_weights(params, CONFIG, COMPUTE))


def next_logits(engine: Engine, ids: Sequence[int]) -> np.ndarray:
    """By the whole forward pass, on a row of fixed length: what follows cannot be seen."""
    row = np.zeros((1, 96), np.int32)
    row[0, : len(ids)] = ids
    with jax.set_mesh(engine.mesh):
        return np.asarray(all_logits(engine.params, row))[0, len(ids) - 1]


@pytest.fixture(scope="module")
def expected(engine: Engine) -> list[list[int]]:
    rows = [list(prompt) for prompt in PROMPTS]
    for row in rows:
        for _ in range(NEW_TOKENS):
            row.append(int(next_logits(engine, row).argmax()))
    return [row[-NEW_TOKENS:] for row in rows]


@pytest.mark.parametrize("shape", ["sp=1", "sp=2", "sp=4", "sp=8", "tp=2", "dp=2,tp=2,sp=2"])
def test_same_tokens_as_the_whole_forward_pass_on_every_mesh(shape: str, expected: list[list[int]]) -> None:
    assert make_engine(shape).generate(PROMPTS, NEW_TOKENS) == expected


def test_same_tokens_alone_and_in_chunks_of_any_size(engine: Engine, expected: list[list[int]]) -> None:
    assert engine.generate(PROMPTS[:1], NEW_TOKENS) == expected[:1]
    assert make_engine(prefill_chunk=16).generate(PROMPTS, NEW_TOKENS) == expected


@pytest.mark.parametrize("shape", ["sp=1", "sp=8"])
def test_reading_on_from_a_kept_cache(shape: str, expected: list[list[int]]) -> None:
    engine = make_engine(shape)
    document = engine.start([PROMPTS[0][:27], PROMPTS[1]], CAPACITY)
    other, state = engine.decode(document, 3)
    assert state.lengths.tolist()[:2] == [30, 10]
    state = engine.extend(engine.rewind(state, document), [PROMPTS[0][27:], []])
    np.testing.assert_allclose(state.logits[0], next_logits(engine, PROMPTS[0]), atol=1e-5)
    answer, state = engine.decode(state, NEW_TOKENS)
    assert answer == expected
    assert engine.decode(engine.rewind(state, document), 3)[0] == other
    assert (state.timings.prefill_tokens, state.timings.decode_tokens) == (59 + 7, 2 * NEW_TOKENS)


def test_what_is_forgotten_leaves_no_trace(engine: Engine, expected: list[list[int]]) -> None:
    state = engine.start([[*PROMPTS[0][:29], 9, 9, 9], [8] * 9], CAPACITY)
    state = engine.forget(state, [29, 0])
    state = engine.extend(state, [PROMPTS[0][29:], PROMPTS[1]])
    assert engine.decode(state, NEW_TOKENS)[0] == expected


def test_stop_ids_end_a_row_and_are_left_out(engine: Engine, expected: list[list[int]]) -> None:
    stop = expected[0][3]
    assert engine.generate(PROMPTS, NEW_TOKENS, stop_ids=(stop, 63)) == [
        row[: min(row.index(s) if s in row else NEW_TOKENS for s in (stop, 63))] for row in expected
    ]


def test_a_stopped_row_can_go_on(engine: Engine, expected: list[list[int]]) -> None:
    state = engine.start(PROMPTS, CAPACITY)
    _, state = engine.decode(state, NEW_TOKENS, stop_ids=expected[0][:1])
    assert state.lengths[0] == len(PROMPTS[0])
    assert engine.decode(state, 4)[0][0] == expected[0][:4]


def test_tokens_arrive_in_blocks(engine: Engine, expected: list[list[int]]) -> None:
    blocks: list[list[list[int]]] = []
    engine.generate(PROMPTS, NEW_TOKENS, on_tokens=blocks.append)
    assert [len(block[0]) for block in blocks] == [programs.DECODE_BLOCK, NEW_TOKENS - programs.DECODE_BLOCK]
    assert [first + rest for first, rest in zip(*blocks, strict=True)] == expected


def test_a_rows_draws_depend_on_the_seed_and_the_row_only(engine: Engine) -> None:
    sampling = Sampling(temperature=1.0, top_k=20, top_p=0.9)
    both = engine.generate(PROMPTS, NEW_TOKENS, sampling, seed=5)
    assert engine.generate([PROMPTS[0], PROMPTS[0]], NEW_TOKENS, sampling, seed=5)[0] == both[0]
    assert engine.generate(PROMPTS, NEW_TOKENS, sampling, seed=6) != both


def test_the_same_shapes_are_compiled_once() -> None:
    make_engine().generate(PROMPTS, NEW_TOKENS)
    compiled.clear()
    make_engine().generate([[5] * 60, [6] * 50], NEW_TOKENS - 1, stop_ids=())
    assert not {name for name in compiled if "read_chunk" in name or "decode_block" in name}


@pytest.mark.parametrize(
    ("num_tokens", "prefill_chunk", "chunks"),
    [
        (0, 64, []),
        (1, 64, [16]),
        (16, 64, [16]),
        (17, 64, [16, 16]),
        (33, 64, [32, 16]),
        (49, 64, [64]),
        (64, 64, [64]),
        (129, 64, [64, 64, 16]),
        (129, 100, [64, 64, 16]),
        (40, 1, [16, 16, 16]),
    ],
)
def test_chunks_pad_a_quarter_at_most(num_tokens: int, prefill_chunk: int, chunks: list[int]) -> None:
    assert make_engine("sp=1", prefill_chunk)._chunks(num_tokens) == chunks


def test_bad_prompts_are_refused(engine: Engine) -> None:
    for prompts in ([], [[1], []]):
        with pytest.raises(UserError, match="a prompt is empty"):
            engine.generate(prompts, 4)
    with pytest.raises(UserError, match=r"token id 64 .* outside the model's 64 ids"):
        engine.generate([[1, 64]], 4)
    with pytest.raises(UserError, match="prefill_chunk 0"):
        make_engine(prefill_chunk=0)


def test_a_cache_that_is_too_small_is_refused(engine: Engine) -> None:
    state = engine.allocate(1, capacity=32)
    with pytest.raises(ValueError, match="40 more tokens do not fit"):
        engine.decode(state, 40)
    with pytest.raises(ValueError, match="40 more tokens need 48 slots"):
        engine.extend(state, [[1] * 40])


COLLECTIVE = re.compile(r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)\(")
SHAPE = re.compile(r"(\w\d+)\[([\d,]*)\]")


def decode_program(engine: Engine, capacity: int) -> str:
    """The compiled program that generates a block of tokens."""
    state = engine.allocate(1, capacity)
    zero = np.int32(0)
    with jax.set_mesh(engine.mesh):
        return programs.decode_block.lower(
            engine.params, *programs.split(state.cache), state.lengths, state.logits, state.progress,
            np.zeros(1, bool), zero, np.zeros(0, np.int32), np.uint32(0), zero, np.ones(1, np.float32), zero,
            CONFIG, COMPUTE, programs.Rules(engine.grammar, Sampling(), Sampling(), guided=False),
        ).compile().as_text()  # fmt: skip


def wire_bytes(program: str) -> dict[str, int]:
    """Bytes of the collectives in a program, by kind."""
    total: dict[str, int] = {}
    for shapes, kind in COLLECTIVE.findall(program):
        sizes = [
            int(dtype[1:]) // 8 * int(np.prod([int(n) for n in dims.split(",") if n]))
            for dtype, dims in SHAPE.findall(shapes)
        ]
        total[kind] = total.get(kind, 0) + sum(sizes)
    return total


def test_generating_sends_as_much_for_a_long_context_as_for_a_short_one() -> None:
    engine = make_engine("sp=8")
    short, long = (wire_bytes(decode_program(engine, capacity)) for capacity in (1024, 8192))
    assert short == long
    assert short["all-reduce"] > 0


@pytest.mark.parametrize("capacity", [16, 1024])
def test_generating_copies_no_layers_of_keys_and_values(engine: Engine, capacity: int) -> None:
    layers = rf"{CONFIG.num_layers},1,{CONFIG.num_kv_heads},{capacity},{CONFIG.head_width}"
    assert re.search(rf"\[{layers}\]\S* dynamic-update-slice\(", program := decode_program(engine, capacity))
    assert not re.search(rf"\[{layers}\]\S* copy\(", program)
