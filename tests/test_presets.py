import json
import shutil
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

from lwm.core.errors import UserError
from lwm.core.mesh import MeshShape
from lwm.data.examples import RecordData
from lwm.presets import PRESETS, preset, presets
from lwm.train.base import BaseRun
from lwm.train.loop import train
from lwm.weights.load import EMBEDDED, read_config

#: paper, table 11: context, rope_theta, tokens, steps, warm-up, mesh
STAGES = {
    "text-32k": (2**15, 1e6, 4.8e9, 1200, 100, "dp=1,fsdp=-1,tp=4,sp=1"),
    "text-128k": (2**17, 1e7, 12e9, 3000, 200, "dp=1,fsdp=-1,tp=8,sp=1"),
    "text-256k": (2**18, 1e7, 12e9, 3000, 200, "dp=1,fsdp=-1,tp=16,sp=1"),
    "text-512k": (2**19, 2.5e7, 3e9, 720, 50, "dp=1,fsdp=-1,tp=16,sp=2"),
    "text-1m": (2**20, 5e7, 1.8e9, 450, 25, "dp=1,fsdp=-1,tp=16,sp=4"),
}

#: paper, table 13: context, tokens, steps, warm-up, schedule, learning rate, most frames of a video, mesh
VISION_STAGES = {
    "vision-1k": (2**10, 363e9, 45_000, 1000, "cosine", 6e-4, 0, "dp=1,fsdp=-1,tp=1,sp=1"),
    "vision-8k": (2**13, 107e9, 14_000, 500, "cosine", 6e-4, 30, "dp=1,fsdp=-1,tp=1,sp=1"),
    "vision-chat-32k": (2**15, 10e9, 1200, 100, "constant", 8e-5, 30, "dp=1,fsdp=-1,tp=4,sp=1"),
    "vision-chat-128k": (2**17, 3.5e9, 450, 50, "constant", 8e-5, 450, "dp=1,fsdp=-1,tp=8,sp=1"),
    "vision-chat-1m": (2**20, 0.4e9, 50, 5, "constant", 8e-5, 4000, "dp=1,fsdp=-1,tp=16,sp=4"),
}


@pytest.mark.parametrize("name", STAGES)
def test_text_stages_are_those_of_the_paper(name: str):
    run = preset(name)
    context, theta, tokens, steps, warmup, mesh = STAGES[name]
    assert (run.seq_len, run.model.max_context, run.model.rope_theta) == (context, context, theta)
    assert run.steps * run.batch_size * run.seq_len == pytest.approx(tokens, rel=0.06)
    assert (run.steps, run.optimizer.warmup_steps, str(run.mesh)) == (steps, warmup, mesh)
    assert (run.optimizer.schedule, run.optimizer.learning_rate) == ("constant", 4e-5)


@pytest.mark.parametrize("name", VISION_STAGES)
def test_vision_stages_are_those_of_the_paper(name: str):
    run = preset(name)
    context, tokens, steps, warmup, schedule, rate, max_frames, mesh = VISION_STAGES[name]
    assert (run.seq_len, run.model.max_context, run.model.rope_theta) == (context, context, 5e7)
    assert run.steps * run.batch_size * run.seq_len == pytest.approx(tokens, rel=0.1)
    assert (run.steps, run.optimizer.warmup_steps, str(run.mesh)) == (steps, warmup, mesh)
    assert (run.optimizer.schedule, run.optimizer.learning_rate) == (schedule, rate)
    assert run.model.vocab.size == 40_448 and run.vision_share == 0.5
    assert run.data.parts[-2].max_frames == max_frames
    assert run.data.shares == ((0.25,) * 4 if "chat" in name else (0.84, 0.16))


def test_each_stage_starts_where_the_one_before_ended():
    runs = [preset(name) for name in [*STAGES, *VISION_STAGES]]
    assert [run.init_from for run in runs[1:]] == [str(run.out) for run in runs[:-1]]


def test_the_first_text_stage_asks_for_the_model_that_it_starts_from(tmp_path: Path):
    (tmp_path / "book.txt").write_text("Once.")
    tokenizer, out = resources.files("lwm").joinpath("nano", "weights"), tmp_path / "run"
    run = replace(preset("text-32k"), tokenizer=str(tokenizer), data=RecordData(str(tmp_path)), out=out)
    with pytest.raises(UserError, match=r"text-32k starts from a model.*--init-from"):
        train(replace(run, mesh=MeshShape(1, -1, 1, 1)))
    assert not out.exists()


@pytest.mark.parametrize("name", ["fine-tune", "fine-tune-lora"])
def test_fine_tuning_takes_model_and_tokenizer_from_where_it_starts(name: str, tmp_path: Path):
    nano = read_config("nano")
    short = nano.to_json() | {"model_type": "lwm", "max_context": 512}
    for directory in (tmp_path / "model", tmp_path / "run" / "model"):
        directory.mkdir(parents=True)
        (directory / "config.json").write_text(json.dumps(short))
    shutil.copy(EMBEDDED["nano"] / "tokenizer.json", tmp_path / "model")
    run, after_run, default = (preset(name, start) for start in (str(tmp_path / "model"), str(tmp_path / "run"), None))
    assert run.model == after_run.model == replace(nano, max_context=512)
    assert (run.seq_len, run.tokenizer, run.init_from) == (512, str(tmp_path / "model"), str(tmp_path / "model"))
    assert (after_run.tokenizer, after_run.init_from) == ("", str(tmp_path / "run"))
    assert (default.model, default.seq_len, default.init_from) == (nano, 2048, "nano")
    assert (run.lora.rank, run.optimizer.learning_rate) == ((0, 2e-5) if name == "fine-tune" else (16, 2e-4))


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_a_run_whose_docstring_holds_its_command(name: str):
    run = presets()[name]()
    assert isinstance(run, BaseRun) and run.name == name and run.out == Path("runs") / name
    assert f"lwm train {name}" in (presets()[name].__doc__ or "")


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match=r"text-1m") as refusal:
        preset("text-2m")
    assert all(name in str(refusal.value) for name in PRESETS)
