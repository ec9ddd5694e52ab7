"""How the embedded model was made, from nothing to the files in the package.

    python -m lwm.nano.recipe          runs or resumes every stage in runs/, then embeds what came of them

LWM's order: text of growing length, a codec, pictures, clips, long videos; then long texts once more. At last the model
gets two layers more, for scenes of several shapes; the mean of two of its stages is taken, and what it was never shown
is put together from what it was.
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict

from lwm.core.files import write_json
from lwm.infer.draw_sampling import DrawSampling
from lwm.model.config import SIZES, lengthen
from lwm.nano import RUNS, text, train_tokenizer, vision, world_records
from lwm.nano.average import write_mean
from lwm.nano.codec import nano_codec
from lwm.nano.deeper import write_deeper
from lwm.nano.start import write_start
from lwm.nano.unseen import put_together
from lwm.train.base import saved_steps
from lwm.train.codec import train_codec
from lwm.train.codec_run import CodecRun
from lwm.train.loop import train
from lwm.train.run import Run
from lwm.weights.store import DRAWING

STAGES: dict[str, Callable[[], Run | CodecRun]] = {
    **text.STAGES,
    "nano-codec": nano_codec,
    **vision.STAGES,
    **vision.DEEPER_STAGES,
}


#: how it draws best: chosen by attributes right on held-out scenes (docs/log.md)
DRAWS_BEST = DrawSampling(best_of=8)


def finish(runs: Iterable[Run | CodecRun]) -> None:
    """Train what is not yet trained and resume what was interrupted; ends the program if it is interrupted again."""
    for run in runs:
        if not run.finished.is_dir():
            resume = bool(saved_steps(run.checkpoints))
            result = train_codec(run, resume) if isinstance(run, CodecRun) else train(run, resume)
            if result.stopped_by is not None:
                sys.exit(128 + result.stopped_by)


def main() -> None:
    """Everything, one after the other; a stage that is finished is not run again."""
    train_tokenizer.main()
    write_start(lengthen(SIZES["nano"], 256, text.FIRST_ROPE_THETA), RUNS / "nano-start")
    finish([*(stage() for stage in text.STAGES.values()), nano_codec()])
    world_records.main(vision.CODEC, vision.RECORDS)
    finish(stage() for stage in vision.STAGES.values())
    write_deeper(RUNS / vision.LAST_OF_FOUR / "model", vision.NEW_LAYERS, RUNS / vision.DEEPER_START)
    finish(stage() for stage in vision.DEEPER_STAGES.values())
    mean = RUNS / "nano-mean"
    write_mean([RUNS / name / "model" for name in vision.AVERAGED], mean)
    write_json(mean / DRAWING, asdict(DRAWS_BEST))
    put_together(mean, vision.RECORDS, train_tokenizer.TOKENIZER_FILE.parent)


if __name__ == "__main__":
    main()
