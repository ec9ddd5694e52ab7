"""A model directory gives back what was saved, on any mesh, and every way to break it has its own sentence."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models

from lwm.core.errors import UserError
from lwm.core.mesh import MeshShape, make_mesh
from lwm.core.params import init_sharded
from lwm.core.vocab import Vocab
from lwm.model.config import ModelConfig
from lwm.model.transformer import Transformer, declare
from lwm.weights import tensor_files
from lwm.weights.load import load_model
from lwm.weights.store import save_model

CONFIG = ModelConfig(Vocab(text_size=16), 8, 16, 2, 2, 1, 4, tie_word_embeddings=True, rope_theta=5e4)


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return make_mesh(MeshShape(fsdp=1), jax.devices()[:1])


@pytest.fixture(scope="module")
def params(mesh: Mesh) -> Transformer:
    return init_sharded(declare(CONFIG), jax.random.key(0), jnp.dtype("float32"), mesh)


def write_tokenizer(path: Path, size: int) -> Path:
    Tokenizer(models.WordLevel({f"word{i}": i for i in range(size)}, unk_token="word0")).save(str(path))
    return path


@pytest.fixture
def saved(tmp_path: Path, params: Transformer) -> Path:
    tokenizer = write_tokenizer(tmp_path / "any name.json", 16)
    return save_model(tmp_path / "deep" / "model", CONFIG, params, tokenizer, "float32")


def assert_equal(left: Transformer, right: Transformer) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), left, right)


def change_config(directory: Path, **values: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_round_trip(saved: Path, params: Transformer, mesh: Mesh) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert [path.name for path in saved.parent.iterdir()] == ["model"]
    loaded = load_model(saved, mesh)
    assert loaded.config == CONFIG
    assert loaded.tokenizer is not None and loaded.tokenizer.encode("word3") == [3]
    assert_equal(loaded.params, params)


def test_whoever_may_read_the_configuration_may_read_the_tensors(saved: Path) -> None:
    assert len({path.stat().st_mode for path in saved.iterdir() if path.name != "tokenizer.json"}) == 1


def test_the_files_that_name_special_tokens_are_saved_with_the_tokenizer(
    tmp_path: Path, params: Transformer, mesh: Mesh
) -> None:
    given = write_tokenizer(tmp_path / "tokenizer.json", 16)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "word4", "eos_token": {"content": "word5"}}')
    saved = save_model(tmp_path / "model", CONFIG, params, given)
    tokenizer = load_model(saved, mesh).tokenizer
    assert tokenizer is not None and (tokenizer.bos_id, tokenizer.eos_id) == (4, 5)
    (tmp_path / "tokenizer_config.json").unlink()
    save_model(saved, CONFIG, params, given)
    assert not (saved / "tokenizer_config.json").exists()


def test_bfloat16_on_disk_is_the_rounded_model(tmp_path: Path, params: Transformer, mesh: Mesh) -> None:
    directory = save_model(tmp_path / "model", CONFIG, params, None, "bfloat16")
    num_scalars = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert (directory / "model.safetensors").stat().st_size < 2 * num_scalars + 2048
    loaded = load_model(directory, mesh, "float32")
    assert loaded.tokenizer is None
    assert_equal(loaded.params, jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params))
    narrow = load_model(directory, mesh, "bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow.params)} == {jnp.dtype("bfloat16")}


def test_each_device_holds_its_share(saved: Path, params: Transformer) -> None:
    wide = make_mesh(MeshShape(fsdp=2, tp=1, sp=4))
    loaded = load_model(saved, wide)
    assert_equal(loaded.params, params)
    assert {shard.data.shape for shard in loaded.params.embedding.addressable_shards} == {(16, 1)}


def test_shards_beyond_the_limit(
    tmp_path: Path, params: Transformer, mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files, "MAX_SHARD_BYTES", 1500)
    directory = save_model(tmp_path / "model", CONFIG, params, None, "float32")
    files = sorted(path.name for path in directory.glob("*.safetensors"))
    assert len(files) > 1 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == files
    assert_equal(load_model(directory, mesh).params, params)
    (directory / files[-1]).unlink()
    with pytest.raises(UserError, match=files[-1]):
        load_model(directory, mesh)


def test_a_newer_model_replaces_an_older_one_and_nothing_else(saved: Path, params: Transformer, mesh: Mesh) -> None:
    (saved / "curve.json").write_text("kept")
    longer = dataclasses.replace(CONFIG, max_context=9999)
    save_model(saved, longer, params, None, "bfloat16")
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "curve.json", "model.safetensors"]
    assert load_model(saved, mesh).config == longer


def test_another_projects_model_is_never_overwritten(tmp_path: Path, params: Transformer) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match=r"config\.json, which is not part of a model of ours"):
        save_model(tmp_path, CONFIG, params, None)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_failed_save_leaves_nothing(tmp_path: Path, params: Transformer) -> None:
    with pytest.raises(UserError, match=r"cannot read .*no tokenizer\.json: No such file"):
        save_model(tmp_path / "model", CONFIG, params, tmp_path / "no tokenizer.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the model"):
        save_model(tmp_path / "file" / "model", CONFIG, params, None)
    with pytest.raises(UserError, match="it is a file"):
        save_model(tmp_path / "file", CONFIG, params, None)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def break_tensors(directory: Path, **changes: np.ndarray | None) -> None:
    tensors = {**load_file(directory / "model.safetensors"), **changes}
    save_file({name: array for name, array in tensors.items() if array is not None}, directory / "model.safetensors")


BREAKAGES = {
    "no directory": (lambda path: path.rename(path.parent / "moved"), r"no model at .*model: give a model directory"),
    "no config": (lambda path: (path / "config.json").unlink(), r"not a model directory: it has no config\.json"),
    "broken config": (lambda path: (path / "config.json").write_text("{"), r"cannot read .*config\.json"),
    "a list as config": (lambda path: (path / "config.json").write_text("[]"), "not a JSON object"),
    "another project": (
        lambda path: change_config(path, model_type="bert"),
        "model_type is 'bert': known are llama, mistral, and lwm",
    ),
    "unknown field": (lambda path: change_config(path, colour=1), r"config\.json: .*unknown field 'colour'"),
    "wrong field": (lambda path: change_config(path, num_layers="two"), r"config\.json: .*num_layers='two'"),
    "no tensors": (lambda path: (path / "model.safetensors").unlink(), r"has no model\.safetensors"),
    "broken tensors": (lambda path: (path / "model.safetensors").write_bytes(b"x" * 99), "cannot read the tensors"),
    "missing": (lambda path: break_tensors(path, final_norm=None), "final_norm is missing"),
    "extra": (lambda path: break_tensors(path, head=np.ones(3, np.float32)), "head is not a tensor of this model"),
    "misshapen": (
        lambda path: break_tensors(path, final_norm=np.ones(9, np.float32)),
        r"final_norm has shape \(9,\) and should have \(8,\)",
    ),
    "tokenizer": (
        lambda path: write_tokenizer(path / "tokenizer.json", 17),
        "does not match its model: it has 17 ids, the model 16",
    ),
}


@pytest.mark.parametrize("how", BREAKAGES)
def test_what_is_wrong_is_said(how: str, saved: Path, mesh: Mesh) -> None:
    break_it, sentence = BREAKAGES[how]
    break_it(saved)
    with pytest.raises(UserError, match=sentence):
        load_model(saved, mesh)


def test_a_mesh_that_does_not_divide_the_model(saved: Path) -> None:
    with pytest.raises(UserError, match="not divisible by 4"):
        load_model(saved, make_mesh(MeshShape(fsdp=1, tp=4, sp=2)))
