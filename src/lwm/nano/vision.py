"""How the embedded model learned to see, draw and film: LWM's order of stages, pictures, then clips, then long videos.

    python -m lwm.nano.world_records --codec runs/nano-codec/model --out runs/world

makes the records. Every stage goes on with text, or the model would forget where numbers are hidden; LWM mixed 16% of
text into its vision stages for the same reason (paper, section 4.1).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lwm.core.vocab import Vocab
from lwm.data.examples import RecordData
from lwm.data.mixture import MixedData
from lwm.model.config import SIZES, Compute, lengthen
from lwm.nano.films import FilmData
from lwm.nano.recipe import LONG, RUNS
from lwm.nano.tasks import TaskData
from lwm.nano.train_tokenizer import TOKENIZER_FILE
from lwm.nano.world_records import DRAW, LOOK, UNASKED
from lwm.train.optimizer import OptimizerConfig
from lwm.train.run import Run
from lwm.vqgan.config import PatchCodecConfig

RECORDS, CODEC = RUNS / "world", RUNS / "nano-codec" / "model"
_CODES = PatchCodecConfig().quantizer.num_codes
VOCAB = Vocab(
    text_size=SIZES["nano"].vocab.text_size,
    vision_size=_CODES + 2,
    num_codes=_CODES,
    tokens_per_frame=PatchCodecConfig().tokens_per_frame,
)
CONTEXT, ROPE_THETA = 16_384, 1e16
#: half of the records are drawn, four of ten looked at; the others are drawn unasked, for guidance to draw away from
_ORDERS = (DRAW,) * 5 + (LOOK,) * 4 + (UNASKED,)

_SHORT = replace(LONG, lengths=(1024, 512, 256), length_shares=(0.4, 0.3, 0.3), max_facts=12, max_questions=20)


def nano_pictures() -> Run:
    """Pictures, to be drawn and told.

    lwm train nano-pictures
    """
    text = replace(_SHORT, lengths=(1024, 512, 256))
    parts = ((_records("pictures"), 0.97), (text, 0.03))
    return _stage(
        "nano-pictures", parts, seq_len=1024, batch_size=8, steps=1500, learning_rate=2e-3, after="nano-short"
    )


def nano_clips() -> Run:
    """Clips of four and eight frames besides.

    lwm train nano-clips
    """
    text = replace(_SHORT, lengths=(2048, 1024, 512))
    parts = (
        (_records("pictures"), 0.5),
        (_records("clips_4"), 0.2),
        (_records("clips_8"), 0.25),
        (text, 0.05),
    )
    return _stage(
        "nano-clips", parts, seq_len=2048, batch_size=4, steps=2000, learning_rate=2e-3, after="nano-pictures"
    )


def nano_films() -> Run:
    """Long videos with a frame to be found in them, up to 464 frames, with positions as if they were ten times longer.

    lwm train nano-films
    """
    text = replace(LONG, max_facts=40, max_questions=40, confusers=0.1)
    parts = (
        (_records("pictures"), 0.3),
        (_records("clips_4"), 0.2),
        (_records("clips_8"), 0.38),
        (FilmData(str(RECORDS), max_clips=58, span=131_072), 0.08),
        (text, 0.04),
    )
    return _stage("nano-films", parts, seq_len=8192, batch_size=1, steps=1500, learning_rate=1e-3, after="nano-clips")


STAGES: dict[str, Callable[[], Run]] = {
    "nano-pictures": nano_pictures,
    "nano-clips": nano_clips,
    "nano-films": nano_films,
}


def _records(name: str) -> RecordData:
    return RecordData(path=str(RECORDS / f"{name}.parquet"), fields=_ORDERS, separator="", add_eos=True)


def _stage(
    name: str,
    parts: Sequence[tuple[RecordData | TaskData | FilmData, float]],
    *,
    seq_len: int,
    batch_size: int,
    steps: int,
    learning_rate: float,
    after: str,
) -> Run:
    data: tuple[Any, ...] = tuple(part for part, _ in parts)
    return Run(
        name=name,
        model=replace(lengthen(SIZES["nano"], CONTEXT, ROPE_THETA), vocab=VOCAB),
        data=MixedData(data, tuple(share for _, share in parts)),
        tokenizer=str(TOKENIZER_FILE),
        steps=steps,
        batch_size=batch_size,
        seq_len=seq_len,
        optimizer=OptimizerConfig(
            learning_rate=learning_rate,
            end_learning_rate=learning_rate / 20,
            schedule="cosine",
            warmup_steps=steps // 20,
        ),
        compute=Compute(remat="none"),
        weighting="tokens",
        held_out=RecordData(path=str(RECORDS / "held_out.parquet"), fields=(DRAW, LOOK), separator=""),
        held_out_batches=max(1, 32_768 // (batch_size * seq_len)),
        log_every=max(1, steps // 100),
        eval_every=max(1, steps // 20),
        checkpoint_every=max(1, steps // 20),
        init_from=str(RUNS / after),
        codec=str(CODEC),
        out=RUNS / name,
    )
