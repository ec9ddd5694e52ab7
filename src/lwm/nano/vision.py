"""How the embedded model learned to see, draw and film: LWM's order of stages, pictures, then clips, then long videos.

Between clips and long videos come stages for directions, which clips alone do not teach; long texts come last.

Of the last stages two are averaged (`nano/average.py`).

Every stage goes on with text, or the model forgets where numbers are hidden: with 5% it did. LWM mixed 16% of text
into its vision stages for the same reason (paper, section 4.1).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lwm.attention.config import AttentionConfig
from lwm.core.mesh import MeshShape
from lwm.core.vocab import Vocab
from lwm.data.examples import RecordData
from lwm.data.mixture import MixedData
from lwm.model.config import SIZES, Compute, lengthen
from lwm.nano import RUNS
from lwm.nano.films import FilmData
from lwm.nano.shown import SHOWN
from lwm.nano.tasks import TaskData
from lwm.nano.text import LONG
from lwm.nano.train_tokenizer import SIZE_WITH_WORDS, WORLD_TOKENIZER
from lwm.nano.world_records import DRAW, LOOK, LOOK_ON, STORY, TELL, UNASKED
from lwm.train.optimizer import OptimizerConfig
from lwm.train.run import Run
from lwm.vqgan.config import PatchCodecConfig

RECORDS, CODEC = RUNS / "world", RUNS / "nano-codec" / "model"
_CODES = PatchCodecConfig().quantizer.num_codes
VOCAB = Vocab(
    text_size=SIZE_WITH_WORDS,
    vision_size=_CODES + 2,
    num_codes=_CODES,
    tokens_per_frame=PatchCodecConfig().tokens_per_frame,
)
#: little: it has not been seen to help (docs/log.md)
WEIGHT_DECAY = 0.01
#: steps are so short that the usual 0.95 forgets how large the gradient of a code that is seldom drawn was
B2 = 0.995
CONTEXT, ROPE_THETA = 16_384, 1e16
#: before which of its four layers the model gets new ones, halfway
NEW_LAYERS, DEEPER_START = (2, 3), "nano-deeper-start"
#: nothing but captions, so that no question gives away what is to be seen
_CAPTIONS = (DRAW,) * 5 + (TELL,) * 4 + (UNASKED,)
#: what is drawn takes longer to learn than what is told. Some is drawn unasked, for guidance to draw away from
_ORDERS = (DRAW,) * 6 + (TELL, LOOK, LOOK_ON, UNASKED)
_FILM_ORDERS = (DRAW,) * 8 + (TELL, UNASKED)
#: records to be asked about, where there are pictures alone so far
_PICTURES = "held_out_pictures"
_SHORT_TEXTS = replace(LONG, lengths=(512, 256), length_shares=(0.6, 0.4), max_facts=8, max_questions=10)
_TEXTS_TO_1K = replace(_SHORT_TEXTS, lengths=(1024, 512, 256), length_shares=(0.6, 0.2, 0.2))
_TEXTS_TO_2K = replace(_SHORT_TEXTS, lengths=(2048, 1024, 512), length_shares=(0.5, 0.3, 0.2))
_LONG_TEXTS = replace(LONG, max_facts=40, max_questions=40, confusers=0.1)
_LONGEST_TEXTS = replace(_LONG_TEXTS, lengths=(16_384, 8192, 2048), length_shares=(0.6, 0.2, 0.2))
_MANY_QUESTIONS = replace(_LONGEST_TEXTS, max_facts=60, max_questions=80)
_MIXED_TEXTS = replace(
    LONG,
    lengths=(8192, 2048, 1024, 512),
    length_shares=(0.2, 0.2, 0.3, 0.3),
    max_facts=12,
    max_questions=20,
    confusers=0.03,
)


def nano_single() -> Run:
    """Pictures of one shape, to be drawn and told.

    lwm train nano-single --cpu-devices 2
    """
    parts = ((_records("single", _CAPTIONS), 0.9), (_SHORT_TEXTS, 0.1))
    return _stage(
        "nano-single", parts, row=512, steps=3000, learning_rate=2.5e-3, after="nano-short", held_out=_PICTURES
    )


def nano_pictures() -> Run:
    """Pictures of up to three, and questions about them.

    lwm train nano-pictures --cpu-devices 2
    """
    parts = ((_records("single"), 0.3), (_records("pictures"), 0.56), (_SHORT_TEXTS, 0.14))
    return _stage(
        "nano-pictures", parts, row=512, steps=10_000, learning_rate=2.5e-3, after="nano-single", held_out=_PICTURES
    )


def nano_clips() -> Run:
    """Clips of four and eight frames besides, and up to three of them one after another.

    lwm train nano-clips --cpu-devices 2
    """
    parts = (
        (_records("pictures"), 0.26),
        (_records("stories", (STORY,)), 0.05),
        (_records("clips_4"), 0.14),
        (_records("clips_8"), 0.33),
        (_films(max_clips=3), 0.06),
        (_TEXTS_TO_1K, 0.16),
    )
    return _stage("nano-clips", parts, row=1024, steps=4000, learning_rate=2e-3, after="nano-pictures")


def nano_moves() -> Run:
    """Four frames of one shape, to be filmed: among all that a clip shows its direction is too little to be learned.

    lwm train nano-moves --cpu-devices 2
    """
    parts = ((_records("moves", _FILM_ORDERS), 0.75), (_records("pictures"), 0.12), (_SHORT_TEXTS, 0.13))
    return _stage("nano-moves", parts, row=512, steps=2000, learning_rate=2e-3, after="nano-clips")


def nano_directions() -> Run:
    """The same among clips of up to two shapes.

    lwm train nano-directions --cpu-devices 2
    """
    parts = (
        (_records("pictures"), 0.14),
        (_records("stories", (STORY,)), 0.04),
        (_records("moves", _FILM_ORDERS), 0.24),
        (_records("clips_4"), 0.16),
        (_records("clips_8"), 0.26),
        (_films(max_clips=3), 0.06),
        (_TEXTS_TO_1K, 0.1),
    )
    return _stage("nano-directions", parts, row=1024, steps=3500, learning_rate=2e-3, after="nano-moves")


def nano_two_shapes() -> Run:
    """Clips of up to two shapes most of all, without those of one alone.

    lwm train nano-two-shapes --cpu-devices 2
    """
    parts = (
        (_records("pictures"), 0.17),
        (_records("stories", (STORY,)), 0.04),
        (_records("clips_4", _FILM_ORDERS), 0.2),
        (_records("clips_8"), 0.4),
        (_films(max_clips=3), 0.07),
        (_TEXTS_TO_1K, 0.12),
    )
    return _stage("nano-two-shapes", parts, row=1024, steps=4000, learning_rate=2e-3, after="nano-directions")


def nano_films() -> Run:
    """Long videos with a frame to be found in them: up to 464 frames, with positions as if there were ten times more.

    lwm train nano-films --cpu-devices 2
    """
    parts = (
        (_records("pictures"), 0.16),
        (_records("stories", (STORY,)), 0.04),
        (_records("clips_4"), 0.08),
        (_records("clips_8"), 0.22),
        (_films(max_clips=58), 0.16),
        (_LONG_TEXTS, 0.22),
        (_MIXED_TEXTS, 0.12),
    )
    return _stage("nano-films", parts, row=8192, steps=200, learning_rate=1e-3, after="nano-two-shapes")


def nano_long_texts() -> Run:
    """Long texts most of all, in rows of 16,384 tokens: of what was learned before it saw, they are lost first.

    lwm train nano-long-texts --cpu-devices 2
    """
    parts = (
        (_records("pictures"), 0.1),
        (_records("stories", (STORY,)), 0.03),
        (_records("clips_4"), 0.04),
        (_records("clips_8"), 0.13),
        (_films(max_clips=58), 0.12),
        (replace(_LONG_TEXTS, lengths=(16_384, 8192, 2048), length_shares=(0.5, 0.25, 0.25)), 0.4),
        (_MIXED_TEXTS, 0.18),
    )
    return _stage("nano-long-texts", parts, row=16_384, steps=45, learning_rate=7e-4, after="nano-films")


def nano_deeper() -> Run:
    """Two layers more (`nano/deeper.py`), and several shapes at once: which words belong to which of them.

    lwm train nano-deeper --cpu-devices 2
    """
    parts = (
        (_records("pictures"), 0.44),
        (_records("stories", (STORY,)), 0.04),
        (_records("moves", _FILM_ORDERS), 0.06),
        (_records("clips_4"), 0.14),
        (_records("clips_8"), 0.18),
        (_SHORT_TEXTS, 0.14),
    )
    run = _stage("nano-deeper", parts, row=512, steps=6000, learning_rate=2e-3, after=DEEPER_START)
    return _deeper(run)


def nano_far() -> Run:
    """Long texts and long videos again, in rows of 8,192 tokens, which cut the longest texts: it was not enough.

    lwm train nano-far --cpu-devices 2
    """
    parts = (
        (_records("pictures"), 0.14),
        (_records("stories", (STORY,)), 0.03),
        (_records("clips_4"), 0.05),
        (_records("clips_8"), 0.12),
        (_films(max_clips=58), 0.12),
        (replace(_LONG_TEXTS, lengths=(16_384, 8192, 2048), length_shares=(0.5, 0.25, 0.25)), 0.36),
        (_MIXED_TEXTS, 0.18),
    )
    return _deeper(_stage("nano-far", parts, row=8192, steps=100, learning_rate=1e-3, after="nano-deeper"))


def nano_farther() -> Run:
    """Rows of 16,384 tokens, one a step, its halves on two devices: more steps, and no record is cut.

    lwm train nano-farther --cpu-devices 2
    """
    parts = (
        (_records("pictures"), 0.12),
        (_records("clips_4"), 0.05),
        (_records("clips_8"), 0.15),
        (_films(max_clips=58), 0.1),
        (_LONGEST_TEXTS, 0.42),
        (_MIXED_TEXTS, 0.16),
    )
    return _longest("nano-farther", parts, steps=64, after="nano-far")


def nano_farthest() -> Run:
    """The same once more, of other records.

    lwm train nano-farthest --cpu-devices 2
    """
    earlier, name = nano_farther(), "nano-farthest"
    return replace(earlier, name=name, steps=50, seed=1, init_from=str(earlier.out), out=RUNS / name)


def nano_seek() -> Run:
    """Short films and short texts: what is found in long ones is learned from many of these, of which it hears little.

    lwm train nano-seek --cpu-devices 2
    """
    parts = (
        (_records("pictures"), 0.16),
        (_records("stories", (STORY,)), 0.03),
        (_records("clips_8"), 0.2),
        (_films(max_clips=14), 0.32),
        (replace(_TEXTS_TO_2K, max_facts=16, max_questions=24), 0.29),
    )
    return _deeper(_stage("nano-seek", parts, row=2048, steps=500, learning_rate=1.5e-3, after="nano-farthest"))


def nano_seek_far() -> Run:
    """Rows of 16,384 tokens again, with twice as many questions a text, and films as long as a row.

    lwm train nano-seek-far --cpu-devices 2
    """
    parts = (
        (_records("pictures"), 0.1),
        (_records("clips_8"), 0.15),
        (_films(max_clips=110), 0.22),
        (_MANY_QUESTIONS, 0.43),
        (_MIXED_TEXTS, 0.1),
    )
    return _longest("nano-seek-far", parts, steps=110, after="nano-seek", seed=2)


def nano_marks() -> Run:
    """Films of three clips at most, in rows of 512 tokens: to find a marked frame takes thousands of films to learn.

    lwm train nano-marks --cpu-devices 2
    """
    parts = (
        (_records("pictures"), 0.18),
        (_records("clips_8"), 0.12),
        (_films(max_clips=3), 0.55),
        (_SHORT_TEXTS, 0.15),
    )
    return _deeper(_stage("nano-marks", parts, row=512, steps=1500, learning_rate=1.5e-3, after="nano-seek-far"))


def nano_marks_far() -> Run:
    """Long films and long texts once more, in rows of 16,384 tokens.

    lwm train nano-marks-far --cpu-devices 2
    """
    parts = (
        (_records("pictures"), 0.1),
        (_records("clips_8"), 0.12),
        (_films(max_clips=110), 0.3),
        (_MANY_QUESTIONS, 0.38),
        (_MIXED_TEXTS, 0.1),
    )
    return _longest("nano-marks-far", parts, steps=60, after="nano-marks", seed=3)


STAGES: dict[str, Callable[[], Run]] = {
    "nano-single": nano_single,
    "nano-pictures": nano_pictures,
    "nano-clips": nano_clips,
    "nano-moves": nano_moves,
    "nano-directions": nano_directions,
    "nano-two-shapes": nano_two_shapes,
    "nano-films": nano_films,
    "nano-long-texts": nano_long_texts,
}
LAST_OF_FOUR = "nano-long-texts"
#: the model that finds far things in text, and the one that went on from it to films: their mean does both
AVERAGED = ("nano-seek-far", "nano-marks-far")
#: from here on with two layers more
DEEPER_STAGES: dict[str, Callable[[], Run]] = {
    "nano-deeper": nano_deeper,
    "nano-far": nano_far,
    "nano-farther": nano_farther,
    "nano-farthest": nano_farthest,
    "nano-seek": nano_seek,
    "nano-seek-far": nano_seek_far,
    "nano-marks": nano_marks,
    "nano-marks-far": nano_marks_far,
}


def _deeper(run: Run) -> Run:
    return replace(run, model=replace(run.model, num_layers=run.model.num_layers + len(NEW_LAYERS)))


def _longest(
    name: str, parts: Sequence[tuple[RecordData | TaskData | FilmData, float]], *, steps: int, after: str, seed: int = 0
) -> Run:
    """One row of 16,384 tokens a step, shared by the devices. `seed`: other records than the stages before."""
    run = _deeper(_stage(name, parts, row=16_384, steps=steps, learning_rate=1e-3, after=after))
    return replace(run, seed=seed, batch_size=1, mesh=MeshShape(dp=1, fsdp=1, tp=1, sp=-1))


def _records(name: str, orders: tuple[str, ...] = _ORDERS) -> RecordData:
    return RecordData(path=str(RECORDS / f"{name}.parquet"), fields=orders, separator="")


def _films(max_clips: int) -> FilmData:
    return FilmData(str(RECORDS), max_clips=max_clips, span=131_072)


def _stage(
    name: str,
    parts: Sequence[tuple[RecordData | TaskData | FilmData, float]],
    *,
    row: int,
    steps: int,
    learning_rate: float,
    after: str,
    held_out: str = "held_out",
) -> Run:
    """Two rows a step: of the same tokens a model this small learns the more, the more steps they make.

    Two devices with a core each are a quarter faster than one with both (`--cpu-devices 2`): its matrices are small.
    """
    data: tuple[Any, ...] = tuple(part for part, _ in parts)
    return Run(
        name=name,
        model=replace(lengthen(SIZES["nano"], CONTEXT, ROPE_THETA), vocab=VOCAB),
        data=MixedData(data, tuple(share for _, share in parts)),
        tokenizer=str(WORLD_TOKENIZER),
        steps=steps,
        batch_size=2,
        seq_len=row,
        optimizer=OptimizerConfig(
            learning_rate=learning_rate,
            end_learning_rate=learning_rate / 20,
            schedule="cosine",
            warmup_steps=steps // 20,
            b2=B2,
            weight_decay=WEIGHT_DECAY,
        ),
        compute=Compute(remat="none", attention=AttentionConfig(query_block=128, key_block=128), loss_chunk=128),
        weighting="tokens",
        held_out=RecordData(path=str(RECORDS / f"{held_out}.parquet"), fields=(DRAW, TELL), separator=""),
        held_out_batches=16_384 // row,
        log_every=max(1, steps // 100),
        eval_every=max(1, steps // 20),
        checkpoint_every=max(1, steps // 20),
        init_from=str(RUNS / after),
        codec=str(CODEC),
        code_features=str(RECORDS / SHOWN),
        out=RUNS / name,
    )
