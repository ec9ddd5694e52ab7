"""`lwm convert`: the same model in every form, bit for bit; what it cannot do it refuses, and leaves nothing behind."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models

from lwm.cli import main
from lwm.core.errors import UserError
from lwm.core.mesh import MeshShape, make_mesh
from lwm.core.params import init_sharded, shapes_by_name
from lwm.core.vocab import Vocab
from lwm.infer.draw_sampling import sampling_of
from lwm.model.config import Compute, ModelConfig
from lwm.model.rope import LinearScaling
from lwm.model.transformer import declare, head_weights, hidden_states, logits
from lwm.vqgan.codec import declare as declare_codec
from lwm.vqgan.config import VQGANConfig
from lwm.vqgan.quantize import Codebook
from lwm.weights.codec_store import load_codec, save_codec
from lwm.weights.convert import ConvertConfig, convert
from lwm.weights.hub import PATTERNS, fetch
from lwm.weights.load import load_model, open_source
from lwm.weights.lwm_stream import write_stream
from lwm.weights.released import RELEASED, released
from lwm.weights.store import save_model
from lwm.weights.tensors import TensorSpec, whole

from . import flax_stream

GOLDEN = Path(__file__).parent.parent / "golden"
LWM_CONFIG = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
    "rms_norm_eps": 1e-6, "max_sequence_length": 1024, "theta": 10_000, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CODEC = VQGANConfig(16, 8, (1, 2), 1, 4, Codebook(16, 4), norm_groups=4)
SEEING = ModelConfig(Vocab(24, 24, 16, 64), 16, 24, 2, 2, 2, 8, rope_theta=5e4, max_context=128)


def mesh() -> jax.sharding.Mesh:
    return make_mesh(MeshShape(), jax.devices()[:1])


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    opened = open_source(path).tensors()
    return {name: opened.read(name, whole(spec.shape)) for name, spec in opened.specs.items()}


def assert_same(left: Path, right: Path) -> None:
    ours, theirs = tensors_of(left), tensors_of(right)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype
        np.testing.assert_array_equal(
            np.ascontiguousarray(array).view(np.uint8), np.ascontiguousarray(theirs[name]).view(np.uint8)
        )


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that sees, with tokenizer and codec."""
    tmp_path = tmp_path_factory.mktemp("models")
    file = tmp_path / "tokenizer.json"
    Tokenizer(models.WordLevel({f"word{i}": i for i in range(24)}, unk_token="word0")).save(str(file))
    params = init_sharded(declare(SEEING), jax.random.key(0), jnp.dtype("float32"), mesh())
    directory = save_model(tmp_path / "seeing", SEEING, params, file, "float32")
    codec = init_sharded(declare_codec(CODEC), jax.random.key(1), jnp.dtype("float32"), mesh())
    save_codec(directory, CODEC, codec)
    return directory


def test_there_and_back_by_every_form(seeing: Path, tmp_path: Path) -> None:
    """ours -> Hugging Face -> ours -> stream -> ours -> Hugging Face."""
    steps = [seeing]
    for number, to in enumerate(("hf", "lwm", "stream", "lwm", "hf")):
        done = convert(ConvertConfig(str(steps[-1]), tmp_path / f"step{number}", to=to, verify=True))
        assert done.difference is not None and done.difference[0] == 0 < done.difference[1]
        assert_same(seeing, done.directory)
        assert open_source(done.directory).config == SEEING
        assert (done.directory / "tokenizer.json").exists()
        steps.append(done.directory)
    frames = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    codes = [load_codec(directory, mesh()).encode(frames) for directory in (seeing, steps[2])]
    np.testing.assert_array_equal(*codes)
    assert (steps[1] / "vqgan" / "config.json").exists()
    assert "The decoder of the codes is in `vqgan/`" in (steps[1] / "README.md").read_text()
    assert {"config.json", "params", "tokenizer.json"} <= {path.name for path in steps[3].iterdir()}


def test_a_model_whose_numbers_are_none_is_written_and_not_verified(seeing: Path, tmp_path: Path, capsys) -> None:
    broken = shutil.copytree(seeing, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["final_norm"][0] = np.nan
    save_file(tensors, broken / "model.safetensors")
    assert main(["convert", str(broken), str(tmp_path / "copy"), "--verify"]) == 2
    told = capsys.readouterr().err
    assert "copy is written, but it could not be verified: " in told and "broken has logits that are not fin" in told
    assert_same(broken, tmp_path / "copy")


def test_what_is_assumed_of_a_codec_is_among_the_notes(tmp_path: Path) -> None:
    convert(ConvertConfig(str(GOLDEN / "vqgan.pkl"), tmp_path / "told", to="hf", resolution=64))
    assert convert(ConvertConfig(str(tmp_path / "told"), tmp_path / "one")).notes == []
    values = json.loads((tmp_path / "told" / "config.json").read_text())
    del values["_pixel_range"]
    (tmp_path / "told" / "config.json").write_text(json.dumps(values))
    (note,) = convert(ConvertConfig(str(tmp_path / "told"), tmp_path / "two")).notes
    assert note.startswith("pixels are taken to be in [0, 1]")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_dtype_is_the_rounded_model(dtype: str, seeing: Path, tmp_path: Path) -> None:
    done = convert(ConvertConfig(str(seeing), tmp_path / "narrow", dtype=dtype))
    for name, array in load_file(done.directory / "model.safetensors").items():
        np.testing.assert_array_equal(array, tensors_of(seeing)[name].astype(jnp.dtype(dtype)))
    assert {row.written for row in done.rows} == {dtype} and {row.stored for row in done.rows} == {"float32"}


@pytest.mark.parametrize("name", ["lwm_text_stream", "lwm_video_stream"])
def test_lwms_own_streams(name: str, tmp_path: Path) -> None:
    config = tmp_path / "lwm.json"
    config.write_text(json.dumps(LWM_CONFIG))
    ours = convert(ConvertConfig(str(GOLDEN / name), tmp_path / "ours", config=config)).directory
    theirs = convert(ConvertConfig(str(ours), tmp_path / "theirs", to="hf")).directory
    back = convert(ConvertConfig(str(theirs), tmp_path / "back", to="stream")).directory
    assert_same(ours, theirs)
    assert_same(ours, back)
    assert open_source(ours).config.vocab.vision_size == (8448 if "video" in name else 0)


def test_lwms_own_logits_after_the_whole_way(tmp_path: Path) -> None:
    """stream -> Hugging Face -> ours -> stream -> ours -> Hugging Face."""
    source, config = GOLDEN / "lwm_text_stream", tmp_path / "lwm.json"
    config.write_text(json.dumps(LWM_CONFIG))
    for number, to in enumerate(("hf", "lwm", "stream", "lwm", "hf")):
        told = None if number else config
        source = convert(ConvertConfig(str(source), tmp_path / str(number), to=to, config=told)).directory
    model, golden = load_model(str(source), mesh()), np.load(GOLDEN / "lwm_text_forward.npz")
    tokens = golden["short/input_ids"]
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)

    @jax.jit
    def forward(params, tokens, positions):
        hidden = hidden_states(params, tokens, jnp.ones_like(tokens), positions, model.config, Compute())
        return logits(hidden, head_weights(params, model.config, Compute()))

    got = forward(model.params, tokens, positions)[:, golden["short/positions"]]
    np.testing.assert_allclose(got[..., ::4], golden["10000/short/logits"], atol=1e-4, rtol=0)


def test_a_stream_in_float64_is_written_in_float32(tmp_path: Path) -> None:
    config, stored = tmp_path / "lwm.json", flax_stream.read(GOLDEN / "lwm_text_stream")
    config.write_text(json.dumps(LWM_CONFIG))
    wide = flax_stream.write(tmp_path / "stream", {name: array.astype(np.float64) for name, array in stored.items()})
    done = convert(ConvertConfig(str(wide), tmp_path / "ours", config=config))
    assert {(row.stored, row.written) for row in done.rows} == {("float64", "float32")}
    np.testing.assert_array_equal(tensors_of(done.directory)["head"], stored["lm_head/kernel"])


def test_a_stream_that_says_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--config"):
        convert(ConvertConfig(str(GOLDEN / "lwm_text_stream"), tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_the_eleven_released_models() -> None:
    assert len(RELEASED) == 11
    for name in ("LWM-Chat-1M", "LWM-Chat-1M-Jax", "LargeWorldModel/LWM-1M-Jax"):
        model = released(name)
        assert model is not None and model.sees and model.chats and model.config.max_context == 1_048_576
        assert (model.config.rope_theta, model.config.vocab.size) == (5e7, 40_448)
        assert model.files == ("params", "tokenizer.model", "vqgan")
    text = released("LWM-Text-512K-Jax")
    assert text is not None and not text.chats and text.config.rope_theta == 2.5e7 and text.config.vocab.size == 32_000
    assert released("Llama-2-7b") is released("") is None


@pytest.mark.parametrize(
    ("name", "repository", "files"),
    [
        ("LWM-Chat-1M-Jax", "LargeWorldModel/LWM-Chat-1M-Jax", ["params", "tokenizer.model", "vqgan"]),
        ("LargeWorldModel/LWM-Text-1M", "LargeWorldModel/LWM-Text-1M-Jax", ["params", "tokenizer.model"]),
        ("someone/LWM-Text-1M", "someone/LWM-Text-1M", list(PATTERNS)),
    ],
)
def test_what_is_asked_of_the_hub(
    name: str, repository: str, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def snapshot_download(repo_id: str, allow_patterns: list[str]) -> str:
        asked[repo_id] = allow_patterns
        return str(tmp_path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    assert fetch(name) == tmp_path and asked == {repository: files}


def test_what_the_hub_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(repo_id: str, allow_patterns: list[str]) -> str:
        raise ConnectionError("no route to it\nand more")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    with pytest.raises(UserError, match=r"^cannot download someone/model: no route to it$"):
        fetch("someone/model")
    with pytest.raises(UserError, match="give a hub id"):
        fetch("model")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install"):
        fetch("someone/model")


def test_a_released_stream_is_known_by_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name alone says heads, base and context."""
    small = dataclasses.replace(SEEING, vocab=Vocab(512, 8448, 8192, 256), hidden_size=64, intermediate_size=160)
    small = dataclasses.replace(small, num_heads=4, num_kv_heads=4, head_width=16, rope_theta=5e7, max_context=32_768)
    monkeypatch.setattr(type(RELEASED["LWM-Chat-32K"]), "config", small)
    directory = tmp_path / "LWM-Chat-32K-Jax"
    directory.mkdir()
    (directory / "params").symlink_to(GOLDEN / "lwm_video_stream")
    done = convert(ConvertConfig(str(directory), tmp_path / "ours"))
    assert open_source(done.directory).config == small
    assert sampling_of(done.directory).cfg == (5.0, 1.0)
    of_file = convert(ConvertConfig(str(directory / "params"), tmp_path / "of_file"))
    assert sampling_of(of_file.directory) == sampling_of(done.directory)


def test_how_a_model_draws_goes_where_it_goes(seeing: Path, tmp_path: Path) -> None:
    """Whatever its directory is called, and whichever tokenizer it is given."""
    named = shutil.copytree(seeing, tmp_path / "LWM-Chat-1M")
    (named / "drawing.json").write_text('{"best_of": 4}')
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(seeing / "tokenizer.json", other)
    (other / "drawing.json").write_text('{"best_of": 9}')
    told = convert(ConvertConfig(str(named), tmp_path / "told", to="hf", tokenizer=other / "tokenizer.json"))
    back = convert(ConvertConfig(str(told.directory), tmp_path / "back"))
    assert sampling_of(back.directory).best_of == 4
    silent = convert(ConvertConfig(str(seeing), tmp_path / "silent", tokenizer=other / "tokenizer.json"))
    assert not (silent.directory / "drawing.json").exists()


def test_a_codec_alone(tmp_path: Path) -> None:
    ours = convert(ConvertConfig(str(GOLDEN / "vqgan.pkl"), tmp_path / "ours", resolution=64))
    theirs = convert(ConvertConfig(str(ours.directory), tmp_path / "theirs", to="hf"))
    back = convert(ConvertConfig(str(theirs.directory), tmp_path / "back"))
    first, again = (load_file(done.directory / "codec.safetensors") for done in (ours, back))
    assert first.keys() == again.keys() and all(np.array_equal(first[name], again[name]) for name in first)
    with pytest.raises(UserError, match="not as a stream"):
        convert(ConvertConfig(str(ours.directory), tmp_path / "stream", to="stream"))
    with pytest.raises(UserError, match="--dtype, --verify is for models"):
        convert(ConvertConfig(str(ours.directory), tmp_path / "other", dtype="float16", verify=True))


def test_a_codec_that_is_not_the_models(seeing: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the codec is not the model's"):
        convert(ConvertConfig(str(seeing), tmp_path / "out", codec=GOLDEN / "vqgan.pkl", resolution=64))
    assert not (tmp_path / "out").exists()


def test_a_stream_of_shared_heads_says_the_same(tmp_path: Path) -> None:
    grouped = dataclasses.replace(SEEING, num_kv_heads=1)
    params = init_sharded(declare(grouped), jax.random.key(0), jnp.dtype("float32"), mesh())
    source = save_model(tmp_path / "grouped", grouped, params, None)
    done = convert(ConvertConfig(str(source), tmp_path / "out", to="stream", dtype="float32", verify=True))
    assert done.difference is not None and done.difference[0] < 1e-5 < done.difference[1]


def test_what_cannot_be_written_is_said_and_leaves_nothing(seeing: Path, tmp_path: Path) -> None:
    scaled = dataclasses.replace(SEEING, rope_scaling=LinearScaling(2.0))
    params = init_sharded(declare(scaled), jax.random.key(0), jnp.dtype("float32"), mesh())
    source = save_model(tmp_path / "scaled", scaled, params, None)
    with pytest.raises(UserError, match="LWM's code has no place for this model: rope_scaling is"):
        convert(ConvertConfig(str(source), tmp_path / "out", to="stream"))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="name a new directory"):
        convert(ConvertConfig(str(seeing), tmp_path / "taken"))
    with pytest.raises(UserError, match="no model at"):
        convert(ConvertConfig(str(tmp_path / "nowhere"), tmp_path / "out"))
    with pytest.raises(UserError, match=r"there is no LWM-Text-1M-Jax here: .* --download"):
        convert(ConvertConfig("LWM-Text-1M-Jax", tmp_path / "out"))
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_a_kill_in_the_middle_leaves_no_directory(seeing: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal\nfrom lwm.weights import convert as c\nfrom pathlib import Path\n"
        "stop = lambda done, total, what: done > total / 2 and os.kill(os.getpid(), 9)\n"
        "c.convert(c.ConvertConfig({!r}, Path({!r})), stop)"
    ).format(str(seeing), str(tmp_path / "out"))
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == -9
    assert not (tmp_path / "out").exists()


def test_on_the_command_line(seeing: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(seeing), str(tmp_path / "out"), "--to", "hf", "--verify"]) == 0
    said = capfd.readouterr().out
    assert "model.layers.*.self_attn.q_proj.weight" in said and "rotary pairs to halves" in said
    assert "no logit differs by more than 0" in said and "parameters are in" in said
    assert main(["convert", str(tmp_path / "nowhere"), str(tmp_path / "out2")]) == 2
    assert "no model at" in capfd.readouterr().err


def test_a_model_of_another_project_is_used_as_it_is(seeing: Path, tmp_path: Path) -> None:
    theirs = convert(ConvertConfig(str(seeing), tmp_path / "theirs", to="hf")).directory
    eight = make_mesh(MeshShape(fsdp=2, tp=2, sp=2))
    ours, same = load_model(seeing, eight), load_model(theirs, eight)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), ours.params, same.params)
    assert same.tokenizer is not None and same.tokenizer.encode("word3") == [3]


MEMORY = """
import resource, sys
from pathlib import Path
from types import SimpleNamespace
from lwm.weights.convert import ConvertConfig, convert
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert(ConvertConfig(sys.argv[1], Path(sys.argv[2]), to=sys.argv[3], config=Path(sys.argv[4])))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("to", ["lwm", "hf"])
def test_memory_stays_far_below_the_largest_tensor(to: str, tmp_path: Path) -> None:
    """A stream of 1.3 GB whose largest leaves are 344 MB passes through less than one of them."""
    config = ModelConfig(Vocab(2048), 1024, 5504, 32, 8, 8, 128)
    file, values = tmp_path / "params", tmp_path / "lwm.json"

    class Ones:
        def __init__(self) -> None:
            shapes = shapes_by_name(declare(config))
            self.specs = {name: TensorSpec(shape, jnp.dtype("bfloat16"), name) for name, shape in shapes.items()}

        def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
            return np.ones([part.stop - part.start for part in index], jnp.bfloat16)

    write_stream(file, config, Ones(), "bfloat16")
    values.write_text(
        json.dumps(
            LWM_CONFIG
            | {"vocab_size": 2048, "hidden_size": 1024, "intermediate_size": 5504, "num_hidden_layers": 32}
            | {"num_attention_heads": 8}
        )
    )
    command = [sys.executable, "-c", MEMORY, str(file), str(tmp_path / "out"), to, str(values)]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * 1024
    largest = 32 * 1024 * 5504 * 2
    assert file.stat().st_size > 3 * largest
    assert grown < largest
