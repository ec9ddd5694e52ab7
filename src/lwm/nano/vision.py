"""How the embedded model learned to see, draw and film: LWM's order of stages, pictures, then clips, then long videos.

Every stage goes on with text, or the model would forget where numbers are hidden; LWM mixed 16% of
text into its vision stages for the same reason (paper, section 4.1).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lwm.attention.config import AttentionConfig
from lwm.core.vocab import Vocab
from lwm.data.examples import RecordData
from lwm.data.mixture import MixedData
from lwm.model.config import SIZES, Compute, lengthen
from lwm.nano.films import FilmData
from lwm.nano.tasks import TaskData
from lwm.nano.text import LONG, RUNS
from lwm.nano.train_tokenizer import TOKENIZER_FILE
from lwm.nano.world_records import DRAW, LOOK, LOOK_ON, STORY, UNASKED
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
ROW = 8192
#: half of the records are drawn, four of ten looked at; the others are drawn unasked, for guidance to draw away from
_ORDERS = (DRAW,) * 5 + (LOOK,) * 3 + (LOOK_ON, UNASKED)

_SHORT = replace(LONG, lengths=(1024, 512, 256), length_shares=(0.4, 0.3, 0.3), max_facts=12, max_questions=20)


def nano_pictures() -> Run:
    """Pictures, to be drawn and told.

    lwm train nano-pictures
    """
    parts = ((_records("pictures"), 0.97), (_SHORT, 0.03))
    return _stage("nano-pictures", parts, steps=400, learning_rate=2e-3, after="nano-short")


def nano_clips() -> Run:
    """Clips of four and eight frames besides, and up to eight of them one after another.

    lwm train nano-clips
    """
    text = replace(_SHORT, lengths=(2048, 1024, 512))
    parts = (
        (_records("pictures"), 0.36),
        (_records("stories", (STORY,)), 0.05),
        (_records("clips_4"), 0.2),
        (_records("clips_8"), 0.3),
        (_films(max_clips=8), 0.06),
        (text, 0.03),
    )
    return _stage("nano-clips", parts, steps=1200, learning_rate=2e-3, after="nano-pictures")


def nano_films() -> Run:
    """Long videos with a frame to be found in them: up to 464 frames, with positions as if there were ten times more.

    lwm train nano-films
    """
    long = replace(LONG, max_facts=40, max_questions=40, confusers=0.1)
    short = replace(LONG, lengths=(8192, 2048, 1024, 512), length_shares=(0.2, 0.2, 0.3, 0.3), confusers=0.03)
    parts = (
        (_records("pictures"), 0.255),
        (_records("stories", (STORY,)), 0.05),
        (_records("clips_4"), 0.2),
        (_records("clips_8"), 0.4),
        (_films(max_clips=58), 0.06),
        (long, 0.015),
        (replace(short, max_facts=12, max_questions=20), 0.02),
    )
    return _stage("nano-films", parts, steps=500, learning_rate=1e-3, after="nano-clips")


STAGES: dict[str, Callable[[], Run]] = {
    "nano-pictures": nano_pictures,
    "nano-clips": nano_clips,
    "nano-films": nano_films,
}


def _records(name: str, orders: tuple[str, ...] = _ORDERS) -> RecordData:
    return RecordData(path=str(RECORDS / f"{name}.parquet"), fields=orders, separator="")


def _films(max_clips: int) -> FilmData:
    return FilmData(str(RECORDS), max_clips=max_clips, span=131_072)


def _stage(
    name: str,
    parts: Sequence[tuple[RecordData | TaskData | FilmData, float]],
    *,
    steps: int,
    learning_rate: float,
    after: str,
) -> Run:
    """One row a step, however short its records: so a tile of attention is skipped wherever no record fills it."""
    data: tuple[Any, ...] = tuple(part for part, _ in parts)
    return Run(
        name=name,
        model=replace(lengthen(SIZES["nano"], CONTEXT, ROPE_THETA), vocab=VOCAB),
        data=MixedData(data, tuple(share for _, share in parts)),
        tokenizer=str(TOKENIZER_FILE),
        steps=steps,
        batch_size=1,
        seq_len=ROW,
        optimizer=OptimizerConfig(
            learning_rate=learning_rate,
            end_learning_rate=learning_rate / 20,
            schedule="cosine",
            warmup_steps=steps // 20,
        ),
        compute=Compute(remat="none", attention=AttentionConfig(query_block=128, key_block=128)),
        weighting="tokens",
        held_out=RecordData(path=str(RECORDS / "held_out.parquet"), fields=(DRAW, LOOK), separator=""),
        held_out_batches=4,
        log_every=max(1, steps // 100),
        eval_every=max(1, steps // 20),
        checkpoint_every=max(1, steps // 20),
        init_from=str(RUNS / after),
        codec=str(CODEC),
        out=RUNS / name,
    )
