"""How the embedded model was trained: stages of growing length and rotary base, each from the one before.

    python -m lwm.nano.recipe          runs or resumes every stage in runs/, then embeds the model of the last

LWM lengthened its text models the same way (paper, table 11). Copying and finding are learned on rows of 128 tokens;
the later stages stretch them, with fewer steps each and short records always in the mix.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lwm.model.config import SIZES, Compute, lengthen
from lwm.nano.tasks import TaskData
from lwm.nano.train_tokenizer import TOKENIZER_FILE
from lwm.train.optimizer import OptimizerConfig
from lwm.train.run import Run

RUNS = Path("runs")

_VARIED = TaskData(facts=0.6, quotes=0.3, text=0.1, other_facts=0.3, line_questions=0.2, requests=0.5)


def nano_128() -> Run:
    """From nothing: copying first, then finding snaps in.

    lwm train nano-128

    Expected: the held-out accuracy passes 0.9 between steps 1,000 and 2,000.
    """
    return _stage("nano-128", TaskData(), theta=1e4, rows=24, steps=2400, learning_rate=3e-3)


def nano_256() -> Run:
    """Five facts to tell apart instead of two.

    lwm train nano-256
    """
    data = TaskData(lengths=(256, 128), length_shares=(0.8, 0.2), facts=0.7, quotes=0.3, max_facts=5, max_questions=7)
    return _stage("nano-256", data, theta=1e4, rows=16, steps=1000, learning_rate=3e-3, after="nano-128")


def nano_512() -> Run:
    """More facts of more kinds, LWM's long requests, lines to complete.

    lwm train nano-512
    """
    data = replace(_VARIED, lengths=(512, 256), length_shares=(0.7, 0.3), max_facts=6, max_questions=8)
    return _stage("nano-512", data, theta=5e4, rows=8, steps=500, learning_rate=2e-3, after="nano-256")


def nano_2k() -> Run:
    """Four times as far.

    lwm train nano-2k
    """
    data = replace(_VARIED, lengths=(2048, 1024, 512), length_shares=(0.6, 0.2, 0.2), max_facts=10, max_questions=14)
    return _stage("nano-2k", data, theta=1e6, rows=3, steps=250, learning_rate=1.5e-3, after="nano-512")


def nano_8k() -> Run:
    """Four times as far again.

    lwm train nano-8k
    """
    data = replace(
        _VARIED,
        lengths=(8192, 4096, 2048, 512),
        length_shares=(0.5, 0.2, 0.2, 0.1),
        max_facts=16,
        max_questions=24,
    )
    return _stage("nano-8k", data, theta=1e7, rows=1, steps=150, learning_rate=1e-3, after="nano-2k")


def nano_16k() -> Run:
    """The last stretch, with a low learning rate to end on.

    lwm train nano-16k
    """
    data = replace(
        _VARIED,
        lengths=(16_384, 8192, 4096, 1024),
        length_shares=(0.5, 0.2, 0.2, 0.1),
        max_facts=20,
        max_questions=32,
    )
    return _stage("nano-16k", data, theta=5e7, rows=1, steps=100, learning_rate=6e-4, after="nano-8k")


STAGES: dict[str, Callable[[], Run]] = {
    "nano-128": nano_128,
    "nano-256": nano_256,
    "nano-512": nano_512,
    "nano-2k": nano_2k,
    "nano-8k": nano_8k,
    "nano-16k": nano_16k,
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
        held_out_batches=max(1, 32 // rows if length < 4096 else 4),
        log_every=max(1, steps // 100),
        eval_every=max(1, steps // 20),
        checkpoint_every=max(1, steps // 20),
        init_from=str(RUNS / after) if after else None,
        out=RUNS / name,
    )
