"""A model directory with random weights and a tokenizer of single bytes."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from lwm.core.mesh import MeshShape, make_mesh
from lwm.core.params import init_sharded
from lwm.core.vocab import Vocab
from lwm.infer.engine import Engine
from lwm.model.config import Compute, ModelConfig
from lwm.model.transformer import declare
from lwm.weights.store import LoadedModel, load_model, save_model

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
