"""How the embedded model was trained: stages of growing length and rotary base, each from the one before.

    python -m lwm.nano.recipe          runs or resumes every stage in runs/, then embeds the model of the last

LWM lengthened its text models the same way (paper, table 11). Copying and finding are learned on rows of 128 and 256
tokens; the later stages stretch them, with fewer steps each and short records always in the mix.
"""

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lwm.model.config import SIZES, Compute, lengthen
from lwm.nano.tasks import TaskData
from lwm.nano.train_tokenizer import TOKENIZER_FILE
from lwm.train.loop import train
from lwm.train.optimizer import OptimizerConfig
from lwm.train.run import Run, saved_steps

RUNS = Path("runs")

_MAGIC = TaskData(facts=0.9, quotes=0.06, text=0.04, other_facts=0.06, requests=0.7)


def nano_128() -> Run:
    """From nothing: bare numbers, whose digits are learned before the names they belong to.

    lwm train nano-128

    Expected: a held-out accuracy of 0.77 after 7 million tokens.
    """
    return _stage("nano-128", TaskData(bare_answers=True), theta=1e4, rows=24, steps=2400, learning_rate=3e-3)


def nano_256() -> Run:
    """Five numbers to tell apart instead of two.

    lwm train nano-256

    Expected: 0.86, which is six digits of seven: from the second digit on, the digits before say how to go on.
    """
    data = TaskData((256, 128), (0.8, 0.2), facts=0.7, quotes=0.3, max_facts=5, max_questions=7, bare_answers=True)
    return _stage("nano-256", data, theta=1e4, rows=16, steps=1000, learning_rate=3e-3, after="nano-128")


def nano_said() -> Run:
    """Answers in whole sentences: the name, once said, leads to its number.

    lwm train nano-said

    Expected: nine needles of ten at 256 tokens, from step 120 on.
    """
    data = TaskData((256, 128), (0.8, 0.2), facts=0.8, quotes=0.2, requests=0.3, max_facts=5, max_questions=5)
    return _stage("nano-said", data, theta=1e4, rows=16, steps=1200, learning_rate=3e-3, after="nano-256")


def nano_1k() -> Run:
    """Four times as far, with LWM's long requests between question and answer, and facts of other kinds to mistake.

    lwm train nano-1k

    Expected: eight needles of ten at 1,024 tokens.
    """
    data = replace(
        _MAGIC,
        lengths=(1024, 512, 256),
        length_shares=(0.4, 0.3, 0.3),
        facts=0.8,
        quotes=0.15,
        other_facts=0.2,
        line_questions=0.06,
        max_facts=8,
        max_questions=10,
    )
    return _stage("nano-1k", data, theta=1e6, rows=8, steps=660, learning_rate=3e-3, after="nano-said")


def nano_2k() -> Run:
    """Twice as far with a rotary base for much longer: what is found at 2K is found at 4K too.

    lwm train nano-2k
    """
    data = replace(_MAGIC, lengths=(2048, 1024, 512), length_shares=(0.4, 0.3, 0.3), max_facts=8, max_questions=12)
    return _stage("nano-2k", data, theta=1e7, rows=4, steps=300, learning_rate=3e-3, after="nano-1k")


def nano_8k() -> Run:
    """The last stretch.

    lwm train nano-8k
    """
    data = replace(
        _MAGIC,
        lengths=(8192, 4096, 2048, 512),
        length_shares=(0.4, 0.3, 0.2, 0.1),
        max_facts=12,
        max_questions=16,
    )
    return _stage("nano-8k", data, theta=1e7, rows=1, steps=90, learning_rate=1.5e-3, after="nano-2k")


STAGES: dict[str, Callable[[], Run]] = {
    "nano-128": nano_128,
    "nano-256": nano_256,
    "nano-said": nano_said,
    "nano-1k": nano_1k,
    "nano-2k": nano_2k,
    "nano-8k": nano_8k,
}


def _stage(
    name: str, data: TaskData, *, theta: float, rows: int, steps: int, learning_rate: float, after: str | None = None
) -> Run:
    """A run whose held-out accuracy is that of answers about unseen text, with names never planted in training."""
    length = max(data.lengths)
    return Run(
        name=name,
        model=lengthen(SIZES["nano"], length, theta),
        data=data,
        tokenizer=str(TOKENIZER_FILE),
        steps=steps,
        batch_size=rows,
        seq_len=length,
        optimizer=OptimizerConfig(
            learning_rate=learning_rate,
            end_learning_rate=learning_rate / 10,
            schedule="cosine",
            warmup_steps=steps // 20,
            decay_steps=steps,
        ),
        compute=Compute(remat="none"),
        weighting="tokens",
        held_out=replace(
            data,
            lengths=(length,),
            length_shares=(1.0,),
            facts=1.0,
            quotes=0.0,
            text=0.0,
            line_questions=0.0,
            split="held_out",
        ),
        held_out_batches=max(1, min(32 // rows, 4096 * 4 // (rows * length))),
        log_every=max(1, steps // 100),
        eval_every=max(1, steps // 20),
        checkpoint_every=max(1, steps // 20),
        init_from=str(RUNS / after) if after else None,
        out=RUNS / name,
    )


def main() -> None:
    """Train what is not yet trained, resume what was interrupted, then put the last model into the package."""
    runs = [stage() for stage in STAGES.values()]
    for run in runs:
        if not (run.out / "model").is_dir():
            result = train(run, resume=bool(saved_steps(run.checkpoints)))
            if result.stopped_by is not None:
                sys.exit(128 + result.stopped_by)
    shutil.copytree(runs[-1].out / "model", TOKENIZER_FILE.parent, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
