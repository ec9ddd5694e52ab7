"""What files of strangers make the command line say: one sentence on one line, with code 2, and soon."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from lwm.cli import main
from lwm.cli.terminal import MOST_NOTED, note, on_one_line, progress
from lwm.core.errors import UserError
from lwm.core.mesh import MeshShape, make_mesh
from lwm.infer.templates import turn_ends
from lwm.model.transformer import declare
from lwm.presets import preset
from lwm.train import loop
from lwm.train.lora import require_same_base
from lwm.train.run import Run

GOLDEN = Path(__file__).parent / "golden"
DEEP = "[" * 100_000
#: a pair of the same pair of the same pair ..., to be hashed for ever
PAIRS = b")" + b"2\x86" * 60
BLOCKS = {
    "architecture": "vqgan",
    "resolution": 16,
    "hidden_channels": 32,
    "channel_multipliers": [1],
    "num_res_blocks": 10**9,
    "quantizer": {"kind": "codebook", "num_codes": 16, "width": 4},
}
THEIRS = {
    "_class_name": "VQModel",
    "block_out_channels": [32],
    "layers_per_block": 20_000,
    "mid_block_add_attention": False,
}


def codec(directory: Path, config: str, name: str = "codec") -> Path:
    directory.mkdir()
    (directory / ("codec.json" if name == "codec" else "config.json")).write_text(config)
    save_file({"a": np.zeros(1, np.float32)}, directory / f"{name}.safetensors")
    return directory


def pickled(path: Path, program: bytes) -> Path:
    path.write_bytes(b"\x80\x04" + program + b".")
    return path


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("lwm: ") and shown.err.count("\n") == 1 and shown.err[:-1].isprintable()
    return shown.err


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda at: pickled(at, b"(" + PAIRS + b"\x91"), "it holds a set"),
        (lambda at: pickled(at, b"cos\nsys\x1b[31mtem\n)R"), r"it holds os.sys\x1b[31mtem, which is not"),
        (lambda at: pickled(at, b"\x8d" + struct.pack("<Q", 9_000) + b"a" * 9_000 + b"h\0"), "not a readable pickle"),
        (lambda at: codec(at, json.dumps(BLOCKS)), "num_res_blocks asks for 16000000000 tensors or more"),
        (lambda at: codec(at, json.dumps({"evil\nlwm: all is well": 1})), "its architecture is None"),
        (lambda at: codec(at, DEEP), "too deep"),
        (lambda at: codec(at, json.dumps(THEIRS), "diffusion_pytorch_model"), "layers_per_block asks for 320000"),
        (lambda at: codec(at, DEEP, "diffusion_pytorch_model"), "too deep"),
    ],
)
def test_a_codec_that_cannot_be_converted(make, sentence, capsys, tmp_path) -> None:
    source = make(tmp_path / "source")
    assert sentence in refused(["convert", str(source), str(tmp_path / "made")], capsys)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("source", [["nano"], [str(GOLDEN / "vqgan.pkl"), "--resolution", "64"]])
@pytest.mark.parametrize("to", ["lwm", "hf"])
def test_a_destination_whose_name_is_too_long(source, to, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "x" * 300 in refused(["convert", *source, "x" * 300, "--to", to], capsys)
    assert not list(tmp_path.iterdir())


def test_adapters_and_how_a_turn_ends_are_read_from_json_that_is_not_deep(tmp_path) -> None:
    (tmp_path / "generation_config.json").write_text(DEEP)
    with pytest.raises(UserError, match="too deep"):
        turn_ends(tmp_path)
    (tmp_path / "adapters.json").write_text(DEEP)
    run = replace(preset("tiny"), out=tmp_path)
    with pytest.raises(UserError, match=r"does not tell which model was adapted: .* too deep"):
        require_same_base(run, declare(run.model), make_mesh(MeshShape(), jax.devices()[:1]))


def test_a_note_is_one_line_that_has_an_end(capsys) -> None:
    note("a tensor\n\x1b[2Jlwm: all is well \u202e\ud800\x85 é 帧 " + "z" * 10**6 + " remedy")
    shown = capsys.readouterr().err
    assert shown.startswith(r"lwm: a tensor\n\x1b[2Jlwm: all is well \u202e\ud800\x85 é 帧 zzz")
    assert shown.endswith("z remedy\n") and len(shown) < MOST_NOTED + 50
    assert on_one_line("plain words, ü") == "plain words, ü"


def test_a_name_beside_a_bar_is_no_markup(capsys) -> None:
    with progress("files") as report:
        report(1, 2, "a[/b]\x1b[31m.png")
    assert "\x1b[31m" not in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--init", "nano"], ["--init=nano"], ["--init-from", "nano"]])
def test_the_model_to_start_from_by_either_name(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Run] = []

    def fake(run: Run, resume: bool) -> loop.TrainResult:
        seen.append(run)
        return loop.TrainResult(run.out, run.steps, {}, None)

    monkeypatch.setattr(loop, "train", fake)
    assert main(["train", "tiny", *flags, "--data.path", "x.jsonl"]) == 0
    assert seen[0].init_from == "nano"


def test_a_model_in_one_file_is_to_be_converted_before_it_is_trained(capsys, tmp_path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "records.jsonl").write_text('{"text": "some words"}\n')
    words = ["--data.path", str(tmp_path / "records.jsonl"), "--out", str(tmp_path / "made")]
    for run in ("tiny", "fine-tune"):
        told = refused(["train", run, "--init", str(tmp_path / "model.gguf"), *words], capsys)
        assert "make a model directory of it first: lwm convert" in told
