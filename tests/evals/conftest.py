import random
from pathlib import Path

import jax
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from lwm.core.mesh import MeshShape, make_mesh
from lwm.core.params import init
from lwm.core.vocab import Vocab
from lwm.data.tokenizer import load_tokenizer
from lwm.infer.engine import Engine
from lwm.infer.prompts import NEEDLE_CITIES, needle, needle_prompt
from lwm.model.config import Compute, ModelConfig
from lwm.model.transformer import declare
from lwm.weights.load import LoadedModel, load_model
from lwm.weights.store import save_model

WORDS = ("the", "model", "reads", "a", "long", "text", "and", "keeps", "what", "it", "was", "told", "until", "asked")


def sentences(count: int) -> str:
    """Numbered sentences, some of them ending a line."""
    rng = random.Random(0)
    drawn = (" ".join(rng.choices(WORDS, k=rng.randint(4, 14))) for _ in range(count))
    return "".join(f"{i}: {words}.{rng.choice([' ', chr(10)])}" for i, words in enumerate(drawn))


@pytest.fixture(scope="session")
def haystack_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("haystack") / "haystack.txt"
    file.write_text(sentences(1000))
    return file


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory, haystack_file) -> Path:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder, bpe.post_processor = decoders.ByteLevel(), processors.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    prompts = [needle_prompt(needle(city, "1234567"), [city, city]) for city in NEEDLE_CITIES]
    bpe.train_from_iterator([haystack_file.read_text(), *prompts], trainer)
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    bpe.save(str(file))
    return file


@pytest.fixture(scope="session")
def tokenizer(tokenizer_file):
    return load_tokenizer(tokenizer_file)


@pytest.fixture(scope="session")
def model(tmp_path_factory, tokenizer_file) -> LoadedModel:
    """Random weights in a model directory like any other."""
    config = ModelConfig(Vocab(640), 16, 32, 1, 2, 2, 8, tie_word_embeddings=True, max_context=1024)
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    directory = tmp_path_factory.mktemp("model") / "tiny"
    save_model(directory, config, init(declare(config), jax.random.key(0), "float32"), tokenizer_file)
    return load_model(directory, mesh)


@pytest.fixture(scope="session")
def engine(model) -> Engine:
    return Engine(model.params, model.config, Compute(), model.mesh, prefill_chunk=256)
