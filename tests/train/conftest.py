"""A small world to train in: a byte tokenizer, records of very different lengths, a model of a few thousand numbers."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from lwm.core import params as declared
from lwm.core.mesh import MeshShape, make_mesh
from lwm.core.vocab import Vocab
from lwm.data.examples import RecordData
from lwm.data.mixture import MixedData
from lwm.model.config import ModelConfig
from lwm.model.transformer import declare
from lwm.train.optimizer import OptimizerConfig
from lwm.train.run import Run
from lwm.weights.store import save_model

MODEL = ModelConfig(
    vocab=Vocab(text_size=264, bos_id=256, eos_id=257),
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=8,
    num_kv_heads=8,
    head_width=8,
    max_context=64,
)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=2)


@pytest.fixture(scope="session", autouse=True)
def compile_once(tmp_path_factory: pytest.TempPathFactory):
    """Runs of one shape compile the same step again and again: let them share it."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    yield
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `tokenizer.json` and `records.jsonl`."""
    directory = tmp_path_factory.mktemp("world")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    ids = {piece: index for index, piece in enumerate(alphabet)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(ids, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    draw = np.random.default_rng(0)
    with (directory / "records.jsonl").open("w") as file:
        for _ in range(200):
            word = "".join(draw.choice(list("abcdef"), draw.integers(2, 5)))
            file.write(json.dumps({"text": f"{word} " * int(draw.integers(1, 7))}) + "\n")
    return directory


@pytest.fixture(scope="session")
def shared_run(world: Path) -> Run:
    """A run of six steps, for tests that do not start it."""
    return Run(
        name="test",
        model=MODEL,
        data=RecordData(str(world / "records.jsonl")),
        tokenizer=str(world / "tokenizer.json"),
        steps=6,
        batch_size=8,
        seq_len=64,
        optimizer=OPTIMIZER,
        log_every=1,
        eval_every=3,
        checkpoint_every=3,
    )


@pytest.fixture(scope="session")
def base(shared_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory to begin from, of random fp32 numbers. Not to be changed."""
    directory = tmp_path_factory.mktemp("base") / "model"
    with jax.set_mesh(mesh := make_mesh(MeshShape(), jax.devices()[:1])):
        params = declared.init_sharded(declare(shared_run.model), jax.random.key(3), jnp.float32, mesh)
        return save_model(directory, shared_run.model, params, Path(shared_run.tokenizer), "float32")


@pytest.fixture(scope="session")
def mixed_run(world: Path, shared_run: Run) -> Run:
    """The same of a model that sees: texts, pictures and videos, told or to be drawn."""
    draw = np.random.default_rng(1)
    for name, most in (("pictures", 1), ("videos", 3)):
        with (world / f"{name}.jsonl").open("w") as file:
            for _ in range(100):
                codes = draw.integers(16, size=4 * int(draw.integers(1, most + 1))).tolist()
                word = "".join(draw.choice(list("abcdef"), draw.integers(1, 9)))
                file.write(json.dumps({"caption": word, "vision": codes}) + "\n")
    texts, *seen = (str(world / f"{name}.jsonl") for name in ("records", "pictures", "videos"))
    orders = ("[caption],vision", "[vision],caption", "caption,vision")
    data = MixedData((RecordData(texts), *(RecordData(path, fields=orders) for path in seen)), (0.3, 0.4, 0.3))
    vocab = replace(MODEL.vocab, vision_size=24, num_codes=16, tokens_per_frame=4)
    return replace(shared_run, data=data, model=replace(MODEL, vocab=vocab))


@pytest.fixture
def make_run(shared_run: Run, tmp_path: Path) -> Callable[..., Run]:
    """The same run in an own directory, with the given fields changed."""
    return lambda **changes: replace(shared_run, **{"out": tmp_path / "run"} | changes)
