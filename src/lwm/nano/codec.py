"""How the embedded codec was trained: squares of 8 pixels of the small world, sixteen codes a frame."""

from pathlib import Path

from lwm.train.codec_run import CodecRun
from lwm.train.optimizer import OptimizerConfig
from lwm.vqgan.config import PatchCodecConfig
from lwm.world.frames import WorldFrames

HELD_OUT_SEED = 1 << 32


def nano_codec() -> CodecRun:
    """A codec of the small world, 16 codes a frame of 32 x 32 pixels, in about ten minutes on two cores.

    lwm train nano-codec

    The PSNR is not what to look at, but the shapes that are read right (`evals.world_codec`).
    """
    steps = 3_000
    return CodecRun(
        name="nano-codec",
        codec=PatchCodecConfig(),
        data=WorldFrames(),
        held_out=WorldFrames(seed=HELD_OUT_SEED),
        steps=steps,
        batch_size=64,
        optimizer=OptimizerConfig(
            learning_rate=3e-3,
            end_learning_rate=3e-5,
            schedule="cosine",
            warmup_steps=100,
            b2=0.99,
            weight_decay=1e-4,
        ),
        revive_every=50,
        save_dtype="float16",
        log_every=50,
        eval_every=500,
        checkpoint_every=1000,
        out=Path("runs/nano-codec"),
    )
