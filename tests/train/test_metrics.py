import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from lwm.core.errors import UserError
from lwm.train.metrics import METRICS, JsonLines, Screen, Sinks, TensorBoard, WeightsAndBiases


def lines(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / METRICS).read_text().splitlines()]


def test_each_line_is_on_disk_as_soon_as_it_is_written(tmp_path: Path):
    sink = JsonLines(tmp_path, start=0)
    sink.write(1, {"loss": 2.5, "held_out_loss": float("nan")})
    assert lines(tmp_path) == [{"step": 1, "loss": 2.5, "held_out_loss": None}]
    sink.close()


def test_resuming_cuts_what_came_after_the_checkpoint(tmp_path: Path):
    whole = [json.dumps({"step": step, "loss": 1.0}) for step in (10, 20, 30)]
    (tmp_path / METRICS).write_text("\n".join([*whole, '{"step": 15, "lo']))
    with Sinks(JsonLines(tmp_path, start=20)) as sinks:
        sinks.write(25, {"loss": 0.5})
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 25]


def test_screen_writes_a_line_a_report_where_there_is_no_terminal(capsys: pytest.CaptureFixture):
    with Sinks(Screen("nano", start=0, steps=40)) as sinks:
        sinks.write(10, {"loss": 2.5, "tokens_per_second": 1234.0, "learning_rate": 1e-3})
    shown = capsys.readouterr().err
    for part in ("nano", "10/40", "loss 2.5000", "tokens/s 1,234", "lr 1.00e-03", "ETA"):
        assert part in shown


def test_tensorboard_writes_event_files(tmp_path: Path):
    with Sinks(TensorBoard(tmp_path, start=0)) as sinks:
        sinks.write(1, {"loss": 2.5})
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes()


def test_asking_for_weights_and_biases_without_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"lwm\[wandb\]"):
        WeightsAndBiases("nano", tmp_path, {}, start=0)


def test_a_resumed_run_goes_on_in_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def init(**given: object) -> SimpleNamespace:
        asked.append(given["id"])
        return SimpleNamespace(id=given["id"] or f"run-{len(asked)}")

    wandb = ModuleType("wandb")
    wandb.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for start in (0, 20, 40, 0):
        WeightsAndBiases("nano", tmp_path, {}, start)
    assert asked == [None, "run-1", "run-1", None]
