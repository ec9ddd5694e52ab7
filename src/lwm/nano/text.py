"""How the embedded model learned to read: stages of growing length, each from the one before.

LWM lengthened its text models the same way (paper, table 11). Finding is learned on rows of 256 tokens; the later
stages stretch it, with fewer steps each and short records always in the mix. Their positions skip, so that distances
are learned that are far longer than the rows. The rotary base rises with the distance, so that features which compare
contents turn no further over a long text than they did over a short one.

All stages want the tokenizer that `python -m lwm.nano.train_tokenizer` makes, and the first one weights to begin from:
`python -m lwm.nano.recipe` makes everything in its order.
"""

from collections.abc import Callable
from dataclasses import replace

from lwm.model.config import SIZES, Compute, lengthen
from lwm.nano import RUNS
from lwm.nano.tasks import TaskData
from lwm.nano.train_tokenizer import TEXT_TOKENIZER
from lwm.train.optimizer import OptimizerConfig
from lwm.train.run import Run

#: what the first weights are set for
FIRST_ROPE_THETA = 1e10

_TASKS = TaskData(
    facts=0.78,
    quotes=0.18,
    text=0.04,
    other_facts=0.15,
    line_questions=0.08,
    requests=0.5,
    few_symbols=0.6,
    few_digits=0.15,
)


def nano_256() -> Run:
    """Two to five facts to tell apart, from weights that can copy.

    lwm train nano-256
    """
    data = replace(_TASKS, lengths=(256, 128), length_shares=(0.75, 0.25), max_facts=5, max_questions=5)
    return _stage(
        "nano-256", data, theta=FIRST_ROPE_THETA, batch_size=24, steps=400, learning_rate=2e-3, after="nano-start"
    )


def nano_2k() -> Run:
    """Eight times as many words, distances to 16,384.

    lwm train nano-2k
    """
    data = replace(
        _TASKS,
        lengths=(2048, 1024, 512, 256),
        length_shares=(0.3, 0.3, 0.2, 0.2),
        other_facts=0.25,
        max_facts=10,
        max_questions=14,
        span=16_384,
    )
    return _stage("nano-2k", data, theta=1e13, batch_size=4, steps=250, learning_rate=2e-3, after="nano-256")


LONG = replace(
    _TASKS,
    lengths=(8192, 4096, 2048, 1024),
    length_shares=(0.3, 0.3, 0.2, 0.2),
    quotes=0.1,
    text=0.0,
    other_facts=0.2,
    span=131_072,
)


def nano_8k() -> Run:
    """Four times as many again, distances to 131,072.

    lwm train nano-8k
    """
    data = replace(LONG, max_facts=12, max_questions=20)
    return _stage("nano-8k", data, theta=1e16, batch_size=1, steps=300, learning_rate=1.5e-3, after="nano-2k")


def nano_many() -> Run:
    """Forty facts to tell apart instead of twelve, and as many questions.

    lwm train nano-many
    """
    data = replace(LONG, max_facts=40, max_questions=40)
    return _stage("nano-many", data, theta=1e16, batch_size=1, steps=300, learning_rate=1.5e-3, after="nano-8k")


def nano_16k() -> Run:
    """Rows of 16,384 tokens, most of them one record.

    lwm train nano-16k
    """
    data = replace(LONG, lengths=(16_384, 8192, 2048), length_shares=(0.6, 0.2, 0.2), quotes=0.05)
    data = replace(data, max_facts=40, max_questions=60)
    return _stage("nano-16k", data, theta=1e16, batch_size=1, steps=80, learning_rate=1e-3, after="nano-many")


def nano_confused() -> Run:
    """Pieces of the statements lie about everywhere, as they do in texts that are many times longer.

    lwm train nano-confused
    """
    data = replace(LONG, max_facts=40, max_questions=40, confusers=0.1, quotes=0.05)
    return _stage(
        "nano-confused", data, theta=1e16, batch_size=1, steps=200, learning_rate=1e-3, after="nano-16k", context=16_384
    )


def nano_short() -> Run:
    """Short texts again, with few facts and few such pieces.

    lwm train nano-short
    """
    data = replace(LONG, lengths=(8192, 2048, 1024, 512), length_shares=(0.2, 0.2, 0.3, 0.3), quotes=0.05)
    data = replace(data, max_facts=12, max_questions=20, confusers=0.03)
    return _stage(
        "nano-short",
        data,
        theta=1e16,
        batch_size=1,
        steps=100,
        learning_rate=7e-4,
        after="nano-confused",
        context=16_384,
    )


STAGES: dict[str, Callable[[], Run]] = {
    "nano-256": nano_256,
    "nano-2k": nano_2k,
    "nano-8k": nano_8k,
    "nano-many": nano_many,
    "nano-16k": nano_16k,
    "nano-confused": nano_confused,
    "nano-short": nano_short,
}


def _stage(
    name: str,
    data: TaskData,
    *,
    theta: float,
    batch_size: int,
    steps: int,
    learning_rate: float,
    after: str,
    context: int = 0,
) -> Run:
    """A run whose held-out accuracy is that of answers about unseen text, with names never planted in training.

    The model's context is a row, or the longest of an earlier stage: distances beyond it are learned, but not to find
    one among so many tokens.
    """
    length = max(data.lengths)
    return Run(
        name=name,
        model=lengthen(SIZES["nano"], context or length, theta),
        data=data,
        tokenizer=str(TEXT_TOKENIZER),
        steps=steps,
        batch_size=batch_size,
        seq_len=length,
        optimizer=OptimizerConfig(
            learning_rate=learning_rate,
            end_learning_rate=learning_rate / 10,
            schedule="cosine",
            warmup_steps=steps // 20,
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
        held_out_batches=max(1, min(32 // batch_size, 4096 * 4 // (batch_size * length))),
        log_every=max(1, steps // 100),
        eval_every=max(1, steps // 20),
        checkpoint_every=max(1, steps // 20),
        init_from=str(RUNS / after),
        out=RUNS / name,
    )
