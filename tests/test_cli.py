"""The command line: what it promises before any room is entered, and how it ends."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lwm.cli import main
from lwm.cli.verb import VERBS, Arguments, Verb
from lwm.core.errors import UserError
from lwm.core.mesh import MeshShape
from lwm.data.examples import RecordData
from lwm.model.lora import LoraConfig
from lwm.train import loop
from lwm.train.run import Run
from lwm.weights.load import read_config


def test_help_names_every_verb_and_needs_no_jax() -> None:
    program = (
        "import sys; from lwm.cli import main; code = main(['--help']); "
        "sys.exit(code or sorted({'jax', 'numpy', 'tyro', 'rich'} & sys.modules.keys()) or 0)"
    )
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert all(name in outcome.stdout and verb.example in outcome.stdout for name, verb in VERBS.items())


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*verb.split(), *(["tiny"] if verb == "train" else []), "--help"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert VERBS[verb].says in shown
    assert VERBS[verb].example in shown


@pytest.mark.parametrize("words", [[], ["eval"], ["train"]])
def test_an_unfinished_line_is_answered_with_what_may_follow(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    refused = capsys.readouterr()
    assert refused.out == ""
    assert main([*words, "--help"]) == 0
    assert capsys.readouterr().out == refused.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["evl"], "there is no verb 'evl': did you mean 'eval'?"),
        (["eval", "nedle"], "did you mean 'eval needle'?"),
        (["qqq"], "the verbs are demo, chat"),
        (["train", "tinny"], "no run is called 'tinny'"),
        (["train", "tiny", "--mesh", "1,2"], "mesh '1,2'"),
        (["train", "tiny", "--mesh", "pp=2"], "'pp=2'"),
        (["train", "tiny", "--steps", "0"], "steps must be at least 1"),
        (["train", "tiny", "--cpu-devices", "0"], "--cpu-devices 0"),
        (["train", "fine-tune", "--init-from", "absent", "--data.path", "record.jsonl"], "no model at absent"),
        (["train", "fine-tune-lora", "--data.path", "record.jsonl", "--lora.rank", "-1"], "lora.rank is -1"),
        (["train", "nano-256", "--held-out-path", "record.jsonl"], "nano-256 makes its own"),
        (["train", "tiny", "--data.path", "absent.jsonl", "--out", "made"], "absent.jsonl"),
        (["train", "tiny", "--data.path", "empty.jsonl", "--out", "made"], "empty.jsonl"),
        (["train", "tiny", "--data.path", "record.jsonl", "--data.fields", "body", "--out", "made"], "'body'"),
        (["train", "tiny", "--data.path", "record.jsonl", "--tokenizer", "absent", "--out", "made"], "absent"),
        (["train", "tiny", "--data.path", "record.jsonl", "--seq-len", "512", "--out", "made"], "512"),
        (["train", "tiny", "--data.path", "record.jsonl", "--mesh", "tp=3", "--out", "made"], "8 devices"),
        (["train", "tiny", "--data.path", "record.jsonl", "--mesh", "tp=4,sp=2", "--out", "made"], "num_heads 2"),
        (
            ["train", "tiny", "--data.path", "record.jsonl", "--mesh", "sp=8", "--seq-len", "250", "--out", "made"],
            "250",
        ),
        (["train", "tiny", "--data.path", "record.jsonl", "--out", "record.jsonl/made"], "record.jsonl/made"),
        (["train", "tiny", "--data.path", "broken.jsonl", "--out", "made"], "broken.jsonl:"),
        (["train", "tiny", "--out", "made"], "--data.path"),
        (["train", "tiny", "--data.path", "record.jsonl", "--tokenizer", "", "--out", "made"], "--tokenizer"),
        (["train", "tiny", "--data.path", "record.jsonl", "--init-from", "x" * 300, "--out", "made"], "xxx"),
        (["train", "tiny", "--data.path", "record.jsonl", "--distributed", "--out", "made"], "--distributed"),
        (["chat", "--model", "x" * 300, "Why?"], "xxx"),
        (["train", "tiny", "--data.path", "record.jsonl", "--held-out-path", "absent", "--out", "made"], "absent"),
        (["train", "tiny", "--data.path", "record.jsonl", "--wandb", "--out", "made"], "lwm[wandb]"),
        (["train", "tiny", "--data.path", "record.jsonl", "--init-from", "absent", "--out", "made"], "absent"),
        (["check", "absent.jsonl"], "absent.jsonl"),
        (["check", "empty.jsonl"], "empty.jsonl"),
        (["check", "record.jsonl", "--fields", "[text"], "'[text'"),
        (["check", "record.jsonl", "--fields", "body"], "'body'"),
        (["chat", "--model", "absent", "Why?"], "absent"),
        (["generate", "text", "Once", "--model", "absent"], "absent"),
        (["eval", "world", "--model", "nano", "--out", "made", "--pictures", "0"], "0 pictures"),
        (["eval", "world", "--model", "absent", "--out", "made"], "absent"),
        (["generate", "image", "a cat", "--out", "made.png", "--cfg", "nan"], "cfg nan"),
        (["generate", "video", "a cat", "--out", "made.mp4", "--cfg", "-1"], "cfg -1"),
        (["eval", "needle", "--model", "absent", "--haystack", "record.jsonl", "--out", "made"], "absent"),
        (
            ["eval", "needle", "--model", "m", "--haystack", "h", "--out", "made", "--context-lengths", "4k..1k"],
            "goes down",
        ),
        (
            ["eval", "multi-needle", "--model", "m", "--haystack", "h", "--out", "made", "--retrieve", "9"],
            "--retrieve 9",
        ),
        (["demo", "--seconds", "0"], "--seconds 0"),
        (["demo", "--seed", "-1"], "--seed -1"),
    ],
)
def test_bad_input_ends_with_one_sentence_and_leaves_nothing(
    words: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("record.jsonl").write_text(json.dumps({"text": "some words " * 50}) + "\n")
    Path("empty.jsonl").touch()
    Path("broken.jsonl").write_text("{broken\n" * 3)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert sentence in shown.err
    assert shown.err.startswith("lwm: ")
    assert shown.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.jsonl", "empty.jsonl", "record.jsonl"]


@pytest.mark.parametrize("words", [["train", "tiny", "--stps", "3"], ["check"], ["demo", "--seconds", "soon"]])
def test_flags_that_are_wrong_end_with_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err


def test_a_malformed_record_makes_check_fail(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    records.write_text('{"text": "fine"}\n')
    assert main(["check", str(records)]) == 0
    records.write_text('{"text": "fine"}\n{"text": \n')
    assert main(["check", str(records)]) == 1
    assert "records.jsonl:2" in capsys.readouterr().out


@pytest.mark.parametrize("mesh", ["dp=2,fsdp=1,tp=1,sp=4", "2,1,1,4"])
def test_train_hands_the_changed_preset_on(mesh: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Run, bool]] = []

    def fake(run: Run, resume: bool) -> loop.TrainResult:
        seen.append((run, resume))
        return loop.TrainResult(run.out, run.steps, {}, None)

    monkeypatch.setattr(loop, "train", fake)
    flags = ["--steps", "7", "--mesh", mesh, "--optimizer.learning-rate", "1e-3", "--data.path", "x.jsonl", "--resume"]
    assert main(["train", "tiny", *flags]) == 0
    run, resume = seen[0]
    assert (run.name, run.steps, run.mesh, resume) == ("tiny", 7, MeshShape(2, 1, 1, 4), True)
    assert run.optimizer.learning_rate == 1e-3
    assert (run.data, run.held_out) == (RecordData("x.jsonl"), None)
    assert main(["train", "tiny", "--held-out-path", "y.jsonl", "--data.fields", "[a]", "b"]) == 0
    assert seen[1][0].held_out == RecordData("y.jsonl", fields=("[a]", "b"))


@pytest.mark.parametrize("flags", [["--init-from", "model"], ["--init_from=model"]])
def test_the_model_to_start_from_says_what_is_trained(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Run] = []

    def fake(run: Run, resume: bool) -> loop.TrainResult:
        seen.append(run)
        return loop.TrainResult(run.out, run.steps, {}, None)

    monkeypatch.setattr(loop, "train", fake)
    monkeypatch.chdir(tmp_path)
    shorter = replace(read_config("nano"), max_context=300)
    Path("model").mkdir()
    Path("model", "config.json").write_text(json.dumps({"model_type": "lwm", **shorter.to_json()}))
    words = [
        "train",
        "fine-tune",
        *flags,
        "--data.path",
        "x.jsonl",
        "--lora.rank",
        "8",
        "--lora.targets",
        "query",
        "up",
    ]
    assert main(words) == 0
    run = seen[0]
    assert (run.model, run.seq_len, run.init_from) == (shorter, 300, "model")
    assert run.lora == LoraConfig(rank=8, targets=("query", "up"))


def test_a_run_that_was_stopped_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "train", lambda run, resume: loop.TrainResult(run.out, 5, {}, signal.SIGTERM))
    assert main(["train", "tiny", "--out", "my runs", "--data.fields", "[question],answer"]) == 143
    again = "lwm train tiny --out 'my runs' --data.fields '[question],answer' --resume"
    assert capsys.readouterr().out == f"stopped after step 5; go on with: {again}\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_full_disk_ends_in_one_sentence() -> None:
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-c", "from lwm.cli import main; raise SystemExit(main(['--help']))"]
        outcome = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert outcome.returncode == 2
    assert outcome.stderr == "lwm: cannot write any more: No space left on device\n"


def raises(error: BaseException) -> Verb:
    def call(arguments: Arguments) -> int:
        raise error

    return Verb(call, "Fails.", "lwm fail")


def test_how_a_verb_may_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(VERBS, "fail", raises(UserError("line 3 is empty: fill it")))
    assert main(["fail"]) == 2
    assert capsys.readouterr().err == "lwm: line 3 is empty: fill it\n"
    monkeypatch.setitem(VERBS, "fail", raises(KeyboardInterrupt()))
    assert main(["fail"]) == 130
    monkeypatch.setitem(VERBS, "fail", raises(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main(["fail"])
