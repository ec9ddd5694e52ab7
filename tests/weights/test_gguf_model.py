"""A GGUF file gives what `transformers` computes with the same weights, and every way to break it has its sentence."""

import json
import math
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lwm.core.errors import UserError
from lwm.core.params import named_leaves
from lwm.model.config import Compute, ModelConfig
from lwm.model.rope import LinearScaling, Llama3Scaling, YarnScaling
from lwm.model.transformer import Transformer, declare, head_weights, hidden_states, logits
from lwm.weights.gguf_file import GgufFile
from lwm.weights.gguf_model import GgufTensors
from lwm.weights.tensors import pieces, whole

gguf = pytest.importorskip("gguf")
GOLDEN = Path(__file__).parent.parent / "golden"

V, D, F, L, H, h = 96, 64, 128, 3, 4, 16
SHAPES = {
    "attn_norm": (D,), "attn_q": (H * h, D), "attn_k": (0, D), "attn_v": (0, D), "attn_output": (D, H * h),
    "ffn_norm": (D,), "ffn_gate": (F, D), "ffn_up": (F, D), "ffn_down": (D, F),
}  # fmt: skip
HUGGING_FACE = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


YARN = {
    "llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
    "llama.rope.scaling.original_context_length": 128,
}  # fmt: skip
YARN_GROWTH = 0.1 * math.log(4.0) + 1


def fields(kv_heads: int = 2) -> dict:
    return {
        "general.architecture": "llama", "llama.block_count": L, "llama.embedding_length": D,
        "llama.feed_forward_length": F, "llama.attention.head_count": H, "llama.attention.head_count_kv": kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.freq_base": 50000.0,
        "llama.rope.dimension_count": h, "llama.context_length": 512, "llama.vocab_size": V,
    }  # fmt: skip


def tensors(kind: str = "F32", kv_heads: int = 2, tied: bool = False) -> dict:
    """Random, with queries and keys in pairs."""
    rng = np.random.default_rng(0)

    def matrix(*shape: int) -> tuple[np.ndarray, str]:
        return rng.normal(0, 0.2, shape).astype(np.float32), kind

    def norm() -> tuple[np.ndarray, str]:
        return rng.uniform(0.5, 1.5, D).astype(np.float32), "F32"

    drawn = {"token_embd.weight": matrix(V, D), "output_norm.weight": norm()}
    for layer in range(L):
        for name, shape in SHAPES.items():
            own = norm() if len(shape) == 1 else matrix(shape[0] or kv_heads * h, shape[1])
            drawn[f"blk.{layer}.{name}.weight"] = own
    return drawn if tied else drawn | {"output.weight": matrix(V, D)}


def as_stored(array: np.ndarray, kind: str) -> np.ndarray:
    stored = gguf.GGMLQuantizationType[kind]
    return gguf.quants.dequantize(gguf.quants.quantize(array, stored), stored)


def in_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """What `transformers` wants of queries and keys."""
    return rows.reshape(heads, h // 2, 2, D).swapaxes(1, 2).reshape(rows.shape)


def forward(tensors: GgufTensors, tokens: np.ndarray) -> np.ndarray:
    config = tensors.config
    leaves = {name: tensors.read(name, whole(spec.shape)) for name, spec in tensors.specs.items()}
    declared = declare(config)
    structure = jax.tree.structure(declared, is_leaf=lambda leaf: hasattr(leaf, "axes"))
    params = jax.tree.unflatten(structure, [leaves[name].astype(np.float32) for name in named_leaves(declared)])

    @jax.jit
    def scores(params: Transformer, tokens: jax.Array, segment_ids: jax.Array, positions: jax.Array) -> jax.Array:
        hidden = hidden_states(params, tokens, segment_ids, positions, config, Compute(remat="none"))
        return logits(hidden, head_weights(params, config, Compute()))

    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return np.asarray(scores(params, tokens, np.ones_like(tokens), positions))


@pytest.mark.parametrize(
    ("kind", "kv_heads", "tied"),
    [("F32", 4, False), ("F32", 2, True), ("F16", 2, False), ("BF16", 1, False), ("Q8_0", 2, False), ("Q4_1", 2, True)],
)
def test_logits_are_those_of_transformers(kind, kv_heads, tied, tmp_path, write_gguf) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    drawn = tensors(kind, kv_heads, tied)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=V, hidden_size=D, intermediate_size=F, num_hidden_layers=L, num_attention_heads=H,
            num_key_value_heads=kv_heads, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=tied,
            rope_parameters={"rope_type": "default", "rope_theta": 5e4},
        )
    ).eval()  # fmt: skip
    plain = {name: as_stored(*stored) for name, stored in drawn.items()}
    state = {"model.embed_tokens.weight": plain["token_embd.weight"], "model.norm.weight": plain["output_norm.weight"]}
    state["lm_head.weight"] = plain["token_embd.weight" if tied else "output.weight"]
    for layer in range(L):
        for name, other in HUGGING_FACE.items():
            array = plain[f"blk.{layer}.{name}.weight"]
            heads = {"attn_q": H, "attn_k": kv_heads}.get(name)
            state[f"model.layers.{layer}.{other}.weight"] = array if heads is None else in_halves(array, heads)
    model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in state.items()})
    tokens = np.random.default_rng(1).integers(0, V, (2, 100), dtype=np.int32)
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens).long()).logits.numpy()
    got = forward(GgufTensors(write_gguf(tmp_path / "model.gguf", fields(kv_heads), drawn)), tokens)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(got, expected, atol=2e-4, rtol=0)


def test_what_is_known_of_tensors_before_they_are_read(tmp_path, write_gguf) -> None:
    drawn = tensors("F16")
    for layer, kind in enumerate(("Q4_1", "Q8_0", "Q8_0")):
        name = f"blk.{layer}.ffn_down.weight"
        drawn[name] = (drawn[name][0], kind)
    drawn["output.weight"] = (drawn["output.weight"][0], "BF16")
    read = GgufTensors(write_gguf(tmp_path / "model.gguf", fields(), drawn))
    specs = read.specs
    assert [specs[name].dtype.name for name in ("embedding", "final_norm", "layers.query", "layers.down", "head")] == [
        "float16", "float32", "float16", "float32", "bfloat16",
    ]  # fmt: skip
    assert specs["layers.down"].change == "dequantized from Q4_1 and Q8_0, transposed"
    assert (specs["layers.key"].origin, specs["layers.key"].change) == ("blk.*.attn_k.weight", "transposed")
    assert (specs["layers.key"].shape, specs["embedding"].change) == ((L, D, 2, h), "")
    assert read.config.rms_norm_eps == 1e-5
    for name, spec in specs.items():
        assert read.read(name, whole(spec.shape)).dtype == spec.dtype
        together = np.concatenate(list(pieces(read, name)))
        np.testing.assert_array_equal(together.reshape(spec.shape), read.read(name, whole(spec.shape)))


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_any_part_is_that_part_of_the_whole(kind, tmp_path, write_gguf) -> None:
    read = GgufTensors(write_gguf(tmp_path / "model.gguf", fields(), tensors(kind)))
    rng = np.random.default_rng(0)
    for name, spec in read.specs.items():
        full = read.read(name, whole(spec.shape))
        for _ in range(5):
            bounds = [sorted(rng.choice(size + 1, 2, replace=False)) for size in spec.shape]
            index = tuple(slice(int(start), int(stop)) for start, stop in bounds)
            np.testing.assert_array_equal(read.read(name, index), full[index])
        np.testing.assert_array_equal(read.read(name, (slice(None),) * full.ndim), full)


def test_only_the_layers_asked_for_are_read(tmp_path, write_gguf, monkeypatch) -> None:
    read = GgufTensors(write_gguf(tmp_path / "model.gguf", fields(), tensors("Q8_0")))
    dequantize, rows = gguf.quants.dequantize, []
    monkeypatch.setattr(gguf.quants, "dequantize", lambda raw, kind: rows.append(len(raw)) or dequantize(raw, kind))
    read.read("layers.query", (slice(1, 2), slice(0, D), slice(1, 3), slice(0, h)))
    assert rows == [2 * h]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"general.architecture": "qwen2"}, "holds a model of the architecture 'qwen2'"),
        ({"llama.expert_count": 8}, r"not a plain Llama: it has llama\.expert_count = 8"),
        ({"llama.attention.sliding_window": 64}, r"it has llama\.attention\.sliding_window = 64"),
        ({"llama.rope.dimension_count": 8}, r"its llama\.rope\.dimension_count is 8 and its heads are 16 wide"),
        ({"llama.attention.value_length": 8}, r"its llama\.attention\.value_length is 8"),
        ({"llama.rope.scaling.type": "longrope"}, "'longrope': known are none, linear and yarn"),
        (
            {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0},
            "has no .*original_context_len",
        ),
        (YARN | {"llama.rope.scaling.yarn_beta_fast": 16.0}, r"yarn_beta_fast is 16, and only 32 is read"),
        (YARN | {"llama.rope.scaling.factor": 0.5}, "factor of yarn rope_scaling is 0.5"),
        ({"llama.rope.scaling.factor": 0.5}, "factor of linear rope_scaling is 0.5"),
        ({"llama.block_count": 4}, "blk.3.attn_k.weight is missing"),
        ({"llama.block_count": 2}, "blk.2.attn_k.weight is not a tensor of this model"),
        ({"llama.block_count": 2**32 - 1}, "tells of 4294967295 layers, and it has 30 tensors"),
        ({"llama.embedding_length": "much"}, r"its llama\.embedding_length is 'much' and should be a whole number"),
        ({"llama.attention.head_count": [4, 4, 4]}, r"head_count is a list and should be a whole number"),
        ({"llama.attention.head_count": 0}, r"head_count is 0"),
        ({"llama.attention.head_count_kv": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"),
        ({"llama.vocab_size": 95}, r"output\.weight has shape \(96, 64\) and should have \(95, 64\)"),
        ({"split.count": 3}, "one part of several"),
    ],
)
def test_another_model_is_refused(change, complaint, tmp_path, write_gguf) -> None:
    file = write_gguf(tmp_path / "model.gguf", fields() | change, tensors())
    with pytest.raises(UserError, match=complaint) as raised:
        GgufTensors(file)
    assert str(file) in str(raised.value)


@pytest.mark.parametrize(
    "missing", [key for key in fields() if key not in ("llama.vocab_size", "general.architecture")]
)
def test_a_field_that_is_missing(missing, tmp_path, write_gguf) -> None:
    file = write_gguf(tmp_path / "model.gguf", {k: v for k, v in fields().items() if k != missing}, tensors())
    if missing in ("llama.rope.dimension_count", "llama.rope.freq_base"):
        assert GgufTensors(file).config.rope_theta in (5e4, ModelConfig.rope_theta)
        return
    with pytest.raises(UserError, match=r"has no llama|attn_k"):
        GgufTensors(file)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("blk.1.attn_q.bias", "blk.1.attn_q.bias is not a tensor of this model"),
        ("blk.0.ffn_gate_exps.weight", "ffn_gate_exps.weight is not a tensor of this model"),
        ("rope_factors_long.weight", "scales its rotary positions by the tensor rope_factors_long.weight"),
    ],
)
def test_a_tensor_of_another_model_is_refused(name, complaint, tmp_path, write_gguf) -> None:
    more = tensors() | {name: (np.ones(8, np.float32), "F32")}
    with pytest.raises(UserError, match=complaint):
        GgufTensors(write_gguf(tmp_path / "model.gguf", fields(), more))


def test_scaling_of_no_effect_is_none(tmp_path, write_gguf) -> None:
    for change in ({"llama.rope.scaling.type": "none"}, {"llama.rope.scale_linear": 1.0}, {"llama.expert_count": 0}):
        file = write_gguf(tmp_path / "model.gguf", fields() | change, tensors())
        assert GgufTensors(file).config.rope_scaling is None
    ones = tensors() | {"rope_freqs.weight": (np.ones(h // 2, np.float32), "F32")}
    assert GgufTensors(write_gguf(tmp_path / "ones.gguf", fields(), ones)).config.rope_scaling is None


@pytest.mark.parametrize(
    ("change", "scaling"),
    [
        ({"llama.rope.scaling.factor": 2.0}, LinearScaling(2.0)),
        ({"llama.rope.scale_linear": 4.0}, LinearScaling(4.0)),
        (YARN, YarnScaling(4.0, 128)),
        (YARN | {"llama.rope.scaling.attn_factor": 0.5}, YarnScaling(4.0, 128, attention_factor=0.5 * YARN_GROWTH)),
    ],
)
def test_a_scaling_in_the_fields(change, scaling, tmp_path, write_gguf) -> None:
    file = write_gguf(tmp_path / "model.gguf", fields() | change, tensors())
    assert GgufTensors(file).config.rope_scaling == scaling


def llama_3_factors(factor: float) -> np.ndarray:
    """As llama.cpp writes them: wavelengths against 8,192 tokens."""
    wavelengths = 2 * np.pi * 5e4 ** (np.arange(0, h, 2) / h)
    smooth = np.clip((8192 / wavelengths - 1) / 3, 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_scaling_of_llama_3_is_told_from_its_factors(factor, tmp_path, write_gguf) -> None:
    factors = llama_3_factors(factor)
    assert len({*factors.tolist()}) > 2
    more = tensors() | {"rope_freqs.weight": (factors, "F32")}
    read = GgufTensors(write_gguf(tmp_path / "model.gguf", fields(), more))
    assert read.config.rope_scaling == Llama3Scaling(factor, 1.0, 4.0, 8192)
    tokens = np.arange(40, dtype=np.int32)[None]
    plain = GgufTensors(write_gguf(tmp_path / "plain.gguf", fields(), tensors()))
    assert np.abs(forward(read, tokens) - forward(plain, tokens)).max() > 1e-3


@pytest.mark.parametrize(
    ("factors", "change", "complaint"),
    [
        (llama_3_factors(8.0)[::-1].copy(), {}, "has other factors than Llama 3"),
        (np.full(h // 2, np.nan, np.float32), {}, "factor of llama3 rope_scaling is nan"),
        (np.ones(h, np.float32), {}, "is not 8 numbers of float32"),
        (llama_3_factors(8.0), {"llama.rope.freq_base": 0.0}, "is 0 and should be greater than 1"),
        (llama_3_factors(8.0), {"llama.rope.scaling.factor": 2.0}, "twice: by linear and by rope_freqs.weight"),
    ],
)
def test_factors_of_another_scaling_are_refused(factors, change, complaint, tmp_path, write_gguf) -> None:
    more = tensors() | {"rope_freqs.weight": (factors, "F32")}
    with pytest.raises(UserError, match=complaint):
        GgufTensors(write_gguf(tmp_path / "model.gguf", fields() | change, more))


def test_quantized_tensors_want_a_package(tmp_path, write_gguf, monkeypatch) -> None:
    quantized = write_gguf(tmp_path / "quantized.gguf", fields(), tensors("Q8_0"))
    floats = write_gguf(tmp_path / "floats.gguf", fields(), tensors("F16"))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match="pip install gguf"):
        GgufTensors(quantized)
    assert GgufTensors(floats).config.num_layers == L


@pytest.fixture
def small(tmp_path, write_gguf) -> Path:
    return write_gguf(tmp_path / "small.gguf", fields() | {"list": ["a", "b"], "numbers": [1.0, 2.0]}, tensors("Q8_0"))


def test_a_file_cut_short_anywhere(small, tmp_path) -> None:
    content, cut = small.read_bytes(), tmp_path / "cut.gguf"
    data = min(tensor.offset for tensor in GgufFile(small).tensors.values())
    for size in [*range(0, data + 1, 7), *range(data, len(content), 5000), len(content) - 1]:
        cut.write_bytes(content[:size])
        with pytest.raises(UserError, match=r"cut short or corrupt|is empty|does not begin with GGUF"):
            GgufTensors(cut)


def test_broken_bytes_are_refused_or_change_nothing_but_values(small, tmp_path) -> None:
    content, broken = small.read_bytes(), tmp_path / "broken.gguf"
    data = min(tensor.offset for tensor in GgufFile(small).tensors.values())
    refused = 0
    for place in range(0, data, 5):
        for value in (0xFF, content[place] ^ 0x80):
            broken.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
            try:
                GgufTensors(broken)
            except UserError as error:
                refused += 1
                assert str(broken) in str(error) and "\n" not in str(error)
    assert refused > data / 5


@pytest.mark.parametrize("kind", [*range(13), 99])
def test_lengths_that_would_take_all_memory(kind, tmp_path) -> None:
    file = tmp_path / "bomb.gguf"
    array = struct.pack("<IIQ", 9, kind, 2**60) + bytes(100)
    file.write_bytes(b"GGUF" + struct.pack("<IQQQ", 3, 2**60, 2**60, 4) + b"list" + array)
    with pytest.raises(UserError, match="cut short or corrupt"):
        GgufTensors(file)


def test_other_files(tmp_path) -> None:
    file = tmp_path / "model.gguf"
    for content, complaint in [
        (b"PK\3\4" + bytes(40), "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "of GGUF version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), r"has no general\.architecture"),
    ]:
        file.write_bytes(content)
        with pytest.raises(UserError, match=complaint):
            GgufTensors(file)
    with pytest.raises(UserError, match="No such file"):
        GgufTensors(tmp_path / "missing.gguf")
    with pytest.raises(UserError, match="Is a directory"):
        GgufTensors(tmp_path)


@pytest.mark.slow
def test_a_real_model_says_what_it_says_elsewhere(smollm2) -> None:
    read = GgufTensors(smollm2)
    with np.load(GOLDEN / "smollm2_capital_logits.npz") as golden:
        got = forward(read, golden["ids"][None].astype(np.int32))[0]
        np.testing.assert_allclose(got[-1], golden["last_logits"], atol=1e-2, rtol=0)
        np.testing.assert_array_equal(got.argmax(-1), golden["argmax"])
    for asked in json.loads((GOLDEN / "smollm2_greedy.json").read_text()):
        row = SimpleNamespace(**asked)
        got = forward(read, np.asarray([row.ids + row.greedy[:-1]], np.int32))[0]
        chosen = got[len(row.ids) - 1 :].argmax(-1)
        clear = np.asarray(row.margins) > 0.3
        assert clear.sum() > 3
        np.testing.assert_array_equal(chosen[clear], np.asarray(row.greedy)[clear])
