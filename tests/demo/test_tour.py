import io
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from lwm.core.errors import UserError
from lwm.core.mesh import MeshShape, make_mesh
from lwm.core.params import init
from lwm.core.vocab import Vocab
from lwm.data.tokenizer import load_tokenizer
from lwm.demo import DemoConfig, run_demo
from lwm.demo.conversation import Conversation, Turn, _facts
from lwm.demo.machine import compile_clock
from lwm.demo.tour import NEEDLE_ANSWER_TOKENS, DemoReport
from lwm.evals.needle_report import NeedleReport
from lwm.infer.prompts import NEEDLE_CITIES, needle
from lwm.model.config import ModelConfig
from lwm.model.transformer import declare
from lwm.nano.facts import training_world
from lwm.nano.train_tokenizer import TOKENIZER_FILE
from lwm.weights.load import read_config
from lwm.weights.store import save_model

TEXT_SIZE = read_config("nano").vocab.text_size


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    config = ModelConfig(Vocab(TEXT_SIZE), 16, 32, 1, 2, 2, 8, tie_word_embeddings=True, max_context=1024)
    path = tmp_path_factory.mktemp("demo") / "model"
    return save_model(path, config, init(declare(config), jax.random.key(0), "float32"), TOKENIZER_FILE)


def test_the_cities_asked_for_were_never_trained_on():
    assert not set(NEEDLE_CITIES) & set(training_world().cities)


def test_one_fact_of_each_kind_with_keys_that_cannot_be_confused():
    facts = _facts(np.random.default_rng(0))
    assert [fact.kind for fact in facts] == ["magic", "magic", "population", "password", "door"]
    assert len({fact.key for fact in facts}) == 5


def test_the_compile_clock_runs_only_while_compiling():
    double = jax.jit(lambda x: 2 * x)
    with compile_clock() as compiled:
        assert compiled() == 0
        double(jnp.ones(3)).block_until_ready()
        first = compiled()
        assert first > 0
        double(jnp.ones(3)).block_until_ready()
        assert compiled() == first
    jax.jit(lambda x: 3 * x)(jnp.ones(3))
    assert compiled() == first


def test_the_tour_of_a_model_that_knows_nothing(directory, tmp_path):
    told = []
    tell = lambda *note: told.append(note)  # noqa: E731
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    report = run_demo(DemoConfig(tmp_path / "out", seconds=1), tell, str(directory), mesh)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "heat_map.png", "report.html", "results.json", "summary.json",
    ]  # fmt: skip
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(row["context_length"], row["depth_percent"]) for row in results] == [
        (1024, d) for d in (0, 25, 50, 75, 100)
    ]
    assert not any(row["correct"] for row in results)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["parameters"] == TEXT_SIZE * 16 + 4 * 16 * 16 + 3 * 16 * 32 + 2 * 16 + 16
    assert summary["needles"]["overall"]["total"] == 5
    assert len(summary["conversation"]["turns"]) == 6
    assert 800 < summary["conversation"]["num_tokens"] < 1024
    assert report.conversation.planted in report.conversation.excerpt
    assert report.conversation.prefill_rate > 0 and report.conversation.decode_rate > 0
    assert told[0][2].startswith("loading") and told[-1][2] == "asking about one document"
    assert "It found 0% of needles up to 1K." in (tmp_path / "out" / "report.html").read_text()


def test_what_the_model_said_is_shown_to_the_letter():
    turn = Turn("Who is [bold]?", "nobody [/x]", ("1",), 0)
    spoken = Conversation("turtle", 1000, "", "", (turn,), 1.0, 1.0)
    row = {"context_length": 1024, "depth_percent": 0, "correct": True, "fraction_found": 1.0}
    about = {"model": "models/[/x]", "needles": 1, "retrieve": 1, "max_context": 1024, "haystack_tokens": 5000}
    console = Console(file=io.StringIO(), width=100)
    console.print(*DemoReport(NeedleReport([row], about), spoken, {}).renderables())
    shown = console.file.getvalue()
    assert "models/[/x]" in shown and "Who is [bold]?" in shown and "nobody [/x]" in shown


def test_a_needles_sentence_fits_into_the_answer():
    tokenizer = load_tokenizer(TOKENIZER_FILE)
    longest = max(len(tokenizer.encode(needle(city, "1234567"))) for city in NEEDLE_CITIES)
    assert longest < NEEDLE_ANSWER_TOKENS


def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the report to"):
        run_demo(DemoConfig(tmp_path / "file" / "out"), name="no such model")


def test_no_time_is_refused():
    with pytest.raises(UserError, match="--seconds 0"):
        replace(DemoConfig(), seconds=0)
