import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from lwm.core.errors import UserError
from lwm.evals.haystack import read_haystack
from lwm.evals.needle import MultiNeedleConfig, NeedleConfig, NeedleTask, run_needle
from lwm.evals.needle_report import NeedleReport
from lwm.evals.trial import Cell
from lwm.infer.engine import Engine

LWM_FIELDS = ("context_length", "depth_percent", "response", "answer", "correct", "seed")
FILES = ("results.json", "summary.json", "heat_map.png", "cells.jsonl", "config.json")


@pytest.fixture
def config(tmp_path, haystack_file, model):
    return NeedleConfig(
        model=str(model.directory),
        haystack=(haystack_file,),
        out=tmp_path / "out",
        context_lengths="240,256",  # two lengths, one compiled shape
        depths=3,
        rounds=2,
        answer_tokens=16,
        batch_tokens=512,
    )


class Reader(Engine):
    """Answers from the prompt's text, so that a found needle can be told from a lost one."""

    def generate(self, prompts, max_new_tokens, *args, **options):
        return [self.tokenizer.encode(self.answer(self.tokenizer.decode(prompt))) for prompt in prompts]

    def answer(self, text):
        hidden = dict(re.findall(r"The special magic ([\w ]+) number is: (\d{7})", text))
        question = text[text.rindex("What ") :]
        return ", ".join(number for city, number in hidden.items() if city in question)


@pytest.fixture
def reader(engine, tokenizer):
    reader = Reader(engine.params, engine.config, engine.compute, engine.mesh)
    object.__setattr__(reader, "tokenizer", tokenizer)
    return reader


def test_the_grid():
    grid = NeedleConfig("m", (), Path(), context_lengths="1k,2k", depths=3, rounds=2)
    assert [tuple(vars(cell).values()) for cell in grid.cells[:7]] == [
        (1024, 0, 0), (1024, 0, 1), (1024, 50, 0), (1024, 50, 1), (1024, 100, 0), (1024, 100, 1), (2048, 0, 0),
    ]  # fmt: skip
    assert len(grid.cells) == 12
    assert replace(grid, depths=7).depth_percents == (0, 17, 33, 50, 67, 83, 100)
    assert replace(grid, depths=1).depth_percents == (50,)


def test_random_weights_find_nothing_and_every_file_says_so(config, model, engine):
    told = []
    report = run_needle(
        config, model, engine, lambda done, total, row: told.append((done, total, row["context_length"]))
    )
    assert told == [(n, 12, 240 if n <= 6 else 256) for n in range(1, 13)]
    results = json.loads((config.out / "results.json").read_text())
    assert results == report.results
    assert [tuple(row)[:6] for row in results] == [LWM_FIELDS] * 12
    for row in results:
        assert 0 <= row["context_length"] - config.answer_tokens - row["prompt_tokens"] <= 8
        assert len(row["answer"]) == 7 and row["answer"] not in row["response"] and row["correct"] is False
    summary = json.loads((config.out / "summary.json").read_text())
    assert summary["overall"] | {"low": 0, "high": 0} == {
        "correct": 0, "total": 12, "accuracy": 0.0, "low": 0, "high": 0, "fraction_found": 0.0,
    }  # fmt: skip
    assert summary["by_context_length"][0]["high"] == pytest.approx(0.3903, abs=1e-4)
    assert sorted(path.name for path in config.out.iterdir()) == sorted(FILES)


def test_a_reader_that_finds_needles_scores_full_marks(config, model, reader):
    report = run_needle(config, model, reader)
    assert report.accuracy == {(length, depth): 1.0 for length in (240, 256) for depth in (0, 50, 100)}
    multi = MultiNeedleConfig(**{**vars(config), "needles": 4, "retrieve": 2, "out": config.out / "multi"})
    found = run_needle(multi, model, reader).summary()["overall"]
    assert (found["accuracy"], found["fraction_found"]) == (1.0, 1.0)


def test_one_of_two_is_half_found_and_not_correct(config, model, reader):
    object.__setattr__(reader, "answer", lambda text: Reader.answer(reader, text).split(", ")[0])
    multi = replace(config, needles=3, retrieve=2, depths=1, rounds=3)
    found = run_needle(multi, model, reader).summary()["overall"]
    assert (found["accuracy"], found["fraction_found"]) == (0.0, 0.5)


def test_an_interrupted_run_goes_on_and_ends_with_the_same_files(config, model, engine):
    whole = replace(config, out=config.out / "whole")
    run_needle(whole, model, engine)

    def interrupt(done, total, row):
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_needle(config, model, engine, interrupt)
    assert not (config.out / "results.json").exists()
    told = []
    run_needle(config, model, engine, lambda done, total, row: told.append(done))
    assert 0 < len(told) <= 12 - 7 and told[-1] == 12
    for name in ("results.json", "summary.json", "cells.jsonl"):
        assert (config.out / name).read_bytes() == (whole.out / name).read_bytes()
    run_needle(config, model, engine, lambda *_: pytest.fail("a finished run has nothing left to ask"))


def test_a_cell_by_itself_is_answered_as_in_the_grid(config, model, engine):
    report = run_needle(config, model, engine)
    row, other = report.results[7], report.results[2]
    haystack = read_haystack(config.haystack, model.tokenizer.encode)
    task = NeedleTask(haystack, model.tokenizer, engine, config.seed, config.answer_tokens)
    cells = [Cell(row["context_length"], row["depth_percent"], row["round"]) for row in (row, other)]
    assert task.run(cells) == [row, other]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"context_lengths": "64,1k"}, "context length 64 is too short"),
        ({"context_lengths": "many"}, "'many' is not a length"),
        ({"depths": 0}, "--depths 0"),
        ({"rounds": 0}, "--rounds 0"),
        ({"answer_tokens": 0}, "--answer-tokens 0"),
        ({"needles": 2, "retrieve": 3}, "--needles 2 --retrieve 3"),
        ({"needles": 1000}, "--needles 1000"),
    ],
)
def test_what_cannot_be_is_refused(config, model, engine, change, complaint):
    with pytest.raises(UserError, match=complaint):
        run_needle(replace(config, **change), model, engine)
    assert not config.out.exists()


def test_lengths_beyond_the_context_are_tried_and_marked(config, model, reader):
    report = run_needle(replace(config, context_lengths="1k..2k", depths=1, rounds=1), model, reader)
    assert report.lengths == [1024, 2048]
    assert "lengths beyond 1,024 are longer than it was trained for" in report.table().caption


def test_another_seed_and_other_weights_are_refused_in_the_same_directory(config, model, reader, tmp_path):
    run_needle(config, model, reader)
    with pytest.raises(UserError, match="seed=1234, and now it is 5"):
        run_needle(replace(config, seed=5), model, reader)
    bfloat16 = replace(reader, compute=replace(reader.compute, dtype="bfloat16"))
    with pytest.raises(UserError, match="dtype='float32', and now it is 'bfloat16'"):
        run_needle(config, model, bfloat16)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        changed = shutil.copytree(model.directory, tmp_path / name)
        with open(changed / name, "ab") as file:
            file.write(b" ")
        with pytest.raises(UserError, match="model_digest="):
            run_needle(config, replace(model, directory=changed), reader)


def test_a_run_goes_on_where_the_same_files_are_named_otherwise(config, model, reader, tmp_path, monkeypatch):
    run_needle(config, model, reader)
    moved = shutil.copytree(model.directory, tmp_path / "moved")
    monkeypatch.chdir(config.haystack[0].parent)
    renamed = replace(config, model=str(moved), haystack=(Path(config.haystack[0].name),))
    run_needle(renamed, replace(model, directory=moved), reader, lambda *_: pytest.fail("nothing is left to ask"))


def test_a_model_without_tokenizer_is_refused(config, model, engine):
    with pytest.raises(UserError, match="has no tokenizer"):
        run_needle(config, replace(model, tokenizer=None), engine)


def rows(length, depth, *correct):
    cell = {"context_length": length, "depth_percent": depth}
    return [cell | {"correct": right, "fraction_found": float(right)} for right in correct]


FACTS = {"model": "nano", "needles": 1, "retrieve": 1, "max_context": 1024, "haystack_tokens": 1500}


def test_table_and_picture_show_what_was_found_and_leave_out_what_was_not_tried():
    results = rows(1024, 0, True, True, False) + rows(1024, 100, True) + rows(2048, 0, False)
    report = NeedleReport(results, FACTS)
    assert report.accuracy == {(1024, 0): 2 / 3, (1024, 100): 1.0, (2048, 0): 0.0}
    console = Console(file=io.StringIO(), width=100)
    console.print(report.table())
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in console.file.getvalue().splitlines()]
    assert ["0%", "67", "0"] in lines and ["100%", "100", "-"] in lines
    assert ["all", "75", "0"] in lines and ["95%", "30-95", "0-79"] in lines and ["trials", "4", "1"] in lines
    assert "1,500 tokens are repeated" in " ".join(console.file.getvalue().split())
    picture = imread(io.BytesIO(report.heat_map()))
    colours = picture[::3, ::3, :3].reshape(-1, 3)
    for name, colour in {"wrong": (0, 34, 78), "right": (254, 232, 56), "not tried": (217, 217, 217)}.items():
        assert (np.abs(255 * colours - colour).max(axis=1) < 2).sum() > 100, f"no cell is coloured as {name}"
