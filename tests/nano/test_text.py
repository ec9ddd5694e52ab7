from itertools import pairwise
from pathlib import Path

import pytest

from lwm.core.params import count
from lwm.model.transformer import declare
from lwm.nano import RUNS
from lwm.nano.text import STAGES
from lwm.nano.train_tokenizer import SIZE, TEXT_TOKENIZER


def test_each_stage_starts_from_the_one_before_and_the_rotary_base_only_rises():
    runs = [stage() for stage in STAGES.values()]
    assert [run.name for run in runs] == list(STAGES)
    assert runs[0].init_from == str(RUNS / "nano-start")
    for before, run in pairwise(runs):
        assert run.init_from == str(before.out)
        assert run.model.rope_theta >= before.model.rope_theta


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_a_run_of_the_embedded_model(name):
    run = STAGES[name]()
    assert run.data.split == "training" and run.held_out.split == "held_out"
    assert max(run.data.lengths) == run.seq_len <= run.model.max_context
    assert run.model.vocab.text_size == SIZE and Path(run.tokenizer) == TEXT_TOKENIZER
    assert count(declare(run.model)) * 2 < 6_000_000  # bytes in bf16
