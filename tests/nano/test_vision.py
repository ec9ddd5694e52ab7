from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from lwm.core.params import count
from lwm.model.transformer import declare
from lwm.nano import RUNS, text
from lwm.nano.train_tokenizer import SIZE_WITH_WORDS
from lwm.nano.vision import AVERAGED, CODEC, DEEPER_STAGES, DEEPER_START, LAST_OF_FOUR, NEW_LAYERS, STAGES
from lwm.nano.world_records import FILES, TEXTS


def test_each_stage_starts_from_the_one_before_and_the_first_from_text():
    runs = [stage() for stage in STAGES.values()]
    assert [run.name for run in runs] == list(STAGES)
    assert runs[0].init_from == str(RUNS / list(text.STAGES)[-1])
    for before, run in pairwise(runs):
        assert run.init_from == str(before.out)


def test_the_last_stages_go_on_from_the_model_that_was_deepened():
    runs = [stage() for stage in DEEPER_STAGES.values()]
    assert list(STAGES)[-1] == LAST_OF_FOUR
    assert [run.name for run in runs] == list(DEEPER_STAGES)
    assert [run.init_from for run in runs] == [str(RUNS / DEEPER_START), *(str(run.out) for run in runs[:-1])]
    assert set(AVERAGED) < set(DEEPER_STAGES) and AVERAGED[-1] == runs[-1].name


@pytest.mark.parametrize("name", [*STAGES, *DEEPER_STAGES])
def test_a_stage_mixes_text_with_records_that_are_made(name):
    run = (STAGES | DEEPER_STAGES)[name]()
    assert run.model.vocab.text_size == SIZE_WITH_WORDS and run.codec == str(CODEC)
    layers = STAGES["nano-single"]().model.num_layers + (len(NEW_LAYERS) if name in DEEPER_STAGES else 0)
    assert run.model == replace(STAGES["nano-single"]().model, num_layers=layers)
    assert run.seq_len <= run.model.max_context
    assert sum(run.data.shares) == pytest.approx(1)
    assert count(declare(run.model)) * 2 < 6_000_000  # bytes in bf16
    known = {*TEXTS, "vision"}
    for part in (*run.data.parts, run.held_out):
        if hasattr(part, "fields") and "stories" not in part.path:
            assert part.path.split("/")[-1].removesuffix(".parquet") in FILES
            for order in part.fields:
                names = order.replace("[", "").replace("]", "").replace("<|eos|>", "").split(",")
                assert {name for name in names if name} <= known
    assert FILES[Path(run.held_out.path).stem].held_out
    trained_on = {Path(part.path).stem for part in run.data.parts if hasattr(part, "path")}
    assert not any(FILES[name].held_out for name in trained_on & FILES.keys())
