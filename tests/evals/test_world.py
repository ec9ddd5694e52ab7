"""A world evaluation asks what it says, reads drawings back, and goes on where it stopped."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from lwm.core.errors import UserError
from lwm.core.mesh import MeshShape, make_mesh
from lwm.core.params import abstract, init
from lwm.core.vocab import Vocab
from lwm.evals.world import WorldConfig, run_world
from lwm.evals.world_tasks import Asking, Drawing, Finding, Subject, Telling, attributes
from lwm.infer.draw_sampling import DrawSampling
from lwm.infer.engine import Engine
from lwm.model.config import ModelConfig
from lwm.model.transformer import declare
from lwm.vqgan.codec import FrameCodec
from lwm.vqgan.codec import declare as declare_codec
from lwm.vqgan.config import PatchCodecConfig
from lwm.vqgan.quantize import Codebook
from lwm.weights.load import load_model
from lwm.weights.store import save_model
from lwm.world.checker import read
from lwm.world.draw import draw
from lwm.world.language import caption
from lwm.world.scene import HELD_OUT_PAIRS, is_held_out

CODEC = PatchCodecConfig(decoder_width=8, fine_widths=(8, 8), quantizer=Codebook(64, 8))
VOCAB = Vocab(text_size=600, vision_size=66, num_codes=64, tokens_per_frame=16)
CONFIG = ModelConfig(VOCAB, 32, 64, 1, 4, 2, 8, tie_word_embeddings=True, max_context=1024)


@pytest.fixture(scope="module")
def subject(tmp_path_factory, tokenizer_file) -> Subject:
    mesh, rng = make_mesh(MeshShape(), jax.devices()[:1]), np.random.default_rng(0)
    shapes = abstract(declare_codec(CODEC), np.float32)
    drawn = jax.tree.map(lambda leaf: np.float32(rng.normal(0, 0.3, leaf.shape)), shapes)
    params = init(declare(CONFIG), jax.random.key(0), "float32")
    directory = save_model(tmp_path_factory.mktemp("seeing") / "model", CONFIG, params, tokenizer_file)
    model = load_model(directory, mesh)
    return Subject(model, Engine.of(model), FrameCodec(drawn, CODEC, mesh), DrawSampling(cfg=(2.0,)))


@pytest.mark.parametrize("task", [Drawing("a", 60), Drawing("b", 60, new=True), Drawing("c", 60, num_frames=8)])
def test_a_true_drawing_has_all_that_was_asked(task):
    asked = set()
    for number in range(task.count):
        scene, words = task.scene(number)
        found = attributes(words, [read(frame) for frame in draw(scene)])
        assert all(right for _, right in found), (words, found)
        asked |= {name for name, _ in found}
        pairs = {(sprite.shape, sprite.colour) for sprite in scene.sprites}
        assert pairs <= {*HELD_OUT_PAIRS} if task.new else not pairs & {*HELD_OUT_PAIRS}
        assert task.new or is_held_out(scene)
    assert asked >= {"shape", "colour", "size", "place", "ground", "count"}
    assert ({"direction", "event"} <= asked) == (task.num_frames > 1)


def test_a_film_that_stands_still_or_lets_nothing_happen_is_found_out():
    for number in range(60):
        scene, words = Drawing("c", 60, num_frames=8).scene(number)
        if {sprite.event for sprite in scene.sprites} == {"none"}:
            continue
        still = [read(draw(scene)[0])] * 8
        assert not all(right for _, right in attributes(words, still))


def test_a_false_drawing_is_found_out():
    words = "a big red circle at the top left and a blue square on snow."
    scene, _ = Drawing("a", 1).scene(0)
    readings = [read(frame) for frame in draw(replace(scene, ground="grass"))]
    right = [was for name, was in attributes(words, readings) if name in ("ground", "shape", "colour")]
    assert not all(right)
    assert not any(was for _, was in attributes(words, [replace(readings[0], looks=(), ground="sand")]))


def test_what_is_asked_can_be_answered(subject, monkeypatch):
    """The right answers, put in the model's place, are all counted right; others are not."""
    films = (Finding("x", 3, 24, "what"), Finding("x", 3, 24, "when"))
    for task in (Asking("x", 6), Asking("x", 6, num_frames=8), *films):
        rows = task.run(range(task.count), subject)
        assert all(row["correct"] == (row["response"] == row["answer"]) for row in rows)
        known = iter([row["answer"] for row in rows])
        with monkeypatch.context() as patched:
            patched.setattr(Subject, "answer", lambda self, asked, known=known: [next(known) for _ in asked])
            assert all(row["correct"] for row in task.run(range(task.count), subject))


def test_captions_are_judged_by_their_meaning(subject, monkeypatch):
    task = Telling("x", 6, num_frames=8)
    words = [caption(task.scene(number), np.random.default_rng(number)) for number in range(task.count)]
    for said, right in ((words, True), (words[1:] + words[:1], False), (["nonsense"] * 6, False)):
        monkeypatch.setattr(Subject, "answer", lambda self, asked, said=said: said)
        assert all(row["correct"] == right for row in task.run(range(task.count), subject))


def test_the_whole_of_it_and_going_on(subject, tmp_path):
    config = WorldConfig("tiny", tmp_path / "out", pictures=2, clips=1, films=1, film_frames=(16,))
    seen: list[tuple[int, int]] = []
    report = run_world(config, subject, lambda done, total, _: seen.append((done, total)))
    assert seen[-1] == (13, 13)
    summary = json.loads((config.out / "summary.json").read_text())
    drawn = summary["by_task"]["pictures drawn"]
    assert drawn["total"] == 2
    assert {"shape", "colour", "all attributes"} <= set(drawn["attributes"])
    assert sum(part["total"] for part in drawn["by_number"].values()) == 2
    for name in ("drawn.png", "filmed.png"):
        assert (config.out / name).read_bytes().startswith(b"\x89PNG")
    lines = (config.out / "cells.jsonl").read_text().splitlines(keepends=True)
    (config.out / "cells.jsonl").write_text("".join(lines[:5]))
    again = run_world(config, subject)
    assert [row for row in again.results if row["task"].startswith("q")] == [
        row for row in report.results if row["task"].startswith("q")
    ]
    with pytest.raises(UserError, match="with cfg="):
        run_world(config, replace(subject, sampling=DrawSampling(cfg=(3.0,))))


def test_odd_wishes_are_refused():
    with pytest.raises(UserError, match="0 pictures"):
        WorldConfig("tiny", Path("out"), pictures=0)
    for lengths in ((4,), (), (16, 16), (20,)):
        with pytest.raises(UserError, match="different multiples of 8"):
            WorldConfig("tiny", Path("out"), film_frames=lengths)


def test_a_codec_of_another_model_is_refused_before_anything_is_written(subject, tmp_path):
    codec = FrameCodec(subject.codec._params, replace(CODEC, quantizer=Codebook(32, 8)), subject.codec.mesh)
    with pytest.raises(UserError, match="the codec is not the model's"):
        run_world(WorldConfig("tiny", tmp_path / "out"), replace(subject, codec=codec))
    assert not (tmp_path / "out").exists()
