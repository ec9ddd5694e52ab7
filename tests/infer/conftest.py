"""A model directory with random weights and a tokenizer of single bytes."""

from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from lwm.core.mesh import MeshShape, make_mesh
from lwm.core.params import init, init_sharded
from lwm.core.vocab import Vocab
from lwm.infer.engine import Engine
from lwm.model.config import Compute, ModelConfig
from lwm.model.transformer import declare
from lwm.vqgan import codec as codecs
from lwm.vqgan.codec import FrameCodec
from lwm.vqgan.config import PatchCodecConfig
from lwm.vqgan.quantize import Levels
from lwm.weights.load import LoadedModel, load_model
from lwm.weights.store import save_model

CONFIG = ModelConfig(Vocab(text_size=260), 32, 64, 1, 4, 2, 8, tie_word_embeddings=True, max_context=1024)


def write_byte_tokenizer(path: Path) -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {"<pad>": 0, "<s>": 1, "</s>": 2} | {letter: place for place, letter in enumerate(alphabet, 3)}
    tokenizer = tokenizers.Tokenizer(models.BPE(ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    directory = tmp_path_factory.mktemp("models")
    mesh = make_mesh(MeshShape(fsdp=1), jax.devices()[:1])
    params = init_sharded(declare(CONFIG), jax.random.key(3), jnp.dtype("float32"), mesh)
    tokenizer = write_byte_tokenizer(directory / "tokenizer.json")
    return load_model(save_model(directory / "bytes", CONFIG, params, tokenizer, "float32"), mesh)


@pytest.fixture(scope="session")
def engine(model: LoadedModel) -> Engine:
    return Engine(model.params, model.config, Compute(), model.mesh, prefill_chunk=256)


VOCAB = Vocab(text_size=260, vision_size=96, num_codes=64, tokens_per_frame=16, bos_id=256, eos_id=257)
CODEC = PatchCodecConfig(encoder_width=16, decoder_width=8, fine_widths=(8, 8), quantizer=Levels((4, 4, 4)))
VISION_CONFIG = ModelConfig(
    vocab=VOCAB,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_width=8,
    max_context=256,
)


@dataclass
class Bytes:
    """Ids are bytes, and the three letters of a short `<vision>`, so that tiny contexts hold a frame."""

    size: int = 258
    bos_id: int | None = 256
    eos_id: int | None = 257

    def encode(self, text):
        return list(text.replace("<vision>", "\1\2\3").encode())

    def decode(self, ids):
        return bytes(token_id for token_id in ids if token_id < 256).decode(errors="replace")


@pytest.fixture(scope="session")
def vision_model() -> LoadedModel:
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    params = init_sharded(declare(VISION_CONFIG), jax.random.key(0), jnp.float32, mesh)
    return LoadedModel(VISION_CONFIG, params, Bytes(), Path("tiny"), mesh)


@pytest.fixture(scope="session")
def vision_engine(vision_model: LoadedModel) -> Engine:
    return replace(Engine.of(vision_model), prefill_chunk=64)


@pytest.fixture(scope="session")
def vision_codec(vision_model: LoadedModel) -> FrameCodec:
    params = init(codecs.declare(CODEC), jax.random.key(1), jnp.float32)
    return FrameCodec(params, CODEC, vision_model.mesh)
