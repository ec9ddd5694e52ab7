"""Named runs: functions that return a `Run`, to be started as they are or with fields changed on the command line.

LWM's text curriculum (paper, table 11) lengthens Llama-2 7B in five stages, each from the one before, 4M tokens a
batch. `lwm train NAME --help` lists what can be changed.
"""

from collections.abc import Callable
from pathlib import Path

from lwm.core.errors import UserError
from lwm.core.mesh import MeshShape
from lwm.core.vocab import Vocab
from lwm.data.examples import RecordData
from lwm.model.config import SIZES, ModelConfig, lengthen
from lwm.nano import vision
from lwm.nano.codec import nano_codec
from lwm.nano.recipe import STAGES
from lwm.train.codec_run import CodecRun
from lwm.train.optimizer import OptimizerConfig
from lwm.train.run import Run
from lwm.weights.store import EMBEDDED, read_config

Preset = Callable[[], Run | CodecRun]

_TOKENS_A_BATCH = 2**22


def tiny() -> Run:
    """A third of a million parameters on your own texts, in about a minute on a laptop: to see all parts move.

    lwm train tiny --data.path my_texts/ --out runs/tiny

    The loss falls from about 7.6 (a blind guess among 2048 pieces) to below 6; the model learns common words.
    """
    model = ModelConfig(
        vocab=Vocab(text_size=2048),
        hidden_size=64,
        intermediate_size=192,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        head_width=32,
        tie_word_embeddings=True,
        max_context=256,
    )
    return Run(
        name="tiny",
        model=model,
        data=RecordData(path=""),
        tokenizer=str(EMBEDDED["nano"]),
        steps=200,
        batch_size=8,
        seq_len=256,
        optimizer=OptimizerConfig(learning_rate=3e-3, schedule="cosine", warmup_steps=10),
        log_every=10,
        checkpoint_every=100,
        out=Path("runs/tiny"),
    )


def nano_text() -> Run:
    """The embedded model goes on learning from your own texts or records, minutes on a laptop.

    lwm train nano-text --data.path records.jsonl --data.fields '[prompt],answer'

    The loss on your records falls; keep some of them apart with --held-out-path to see what that is worth.
    """
    return Run(
        name="nano-text",
        model=read_config("nano"),
        data=RecordData(path=""),
        tokenizer=str(EMBEDDED["nano"]),
        steps=200,
        batch_size=4,
        seq_len=1024,
        optimizer=OptimizerConfig(learning_rate=3e-4, schedule="constant", warmup_steps=10),
        log_every=10,
        eval_every=50,
        checkpoint_every=100,
        init_from="nano",
        out=Path("runs/nano-text"),
    )


def text_32k() -> Run:
    """Llama-2 7B to 32K tokens: 4.8B tokens of books, in fp32 on a TPU v4-512.

    lwm train text-32k --data.path books.jsonl --init-from llama-2-7b --tokenizer llama-2-7b

    `llama-2-7b` is a model directory of ours: convert the published weights first, in Python, with
    `lwm.weights.hugging_face.from_hugging_face` and `lwm.weights.store.save_model`.
    Expected: LWM-Text's first stage. `--compute.dtype bfloat16` halves activations and keeps fp32 master weights.
    """
    return _text_stage("text-32k", 32_768, 1200, 100, MeshShape(1, -1, 4, 1), init_from="")


def text_128k() -> Run:
    """From 32K to 128K tokens: 12B tokens.

    lwm train text-128k --data.path books.jsonl --tokenizer llama-2-7b

    Expected: single needles found at every depth to 128K.
    """
    return _text_stage("text-128k", 131_072, 3000, 200, MeshShape(1, -1, 8, 1), init_from="runs/text-32k")


def text_256k() -> Run:
    """From 128K to 256K tokens: 12B tokens.

    lwm train text-256k --data.path books.jsonl --tokenizer llama-2-7b

    Expected: single needles found at every depth to 256K.
    """
    return _text_stage("text-256k", 262_144, 3000, 200, MeshShape(1, -1, 16, 1), init_from="runs/text-128k")


def text_512k() -> Run:
    """From 256K to 512K tokens: 3B tokens.

    lwm train text-512k --data.path books.jsonl --tokenizer llama-2-7b

    Expected: single needles found at every depth to 512K.
    """
    return _text_stage("text-512k", 524_288, 720, 50, MeshShape(1, -1, 16, 2), init_from="runs/text-256k")


def text_1m() -> Run:
    """From 512K to 1M tokens: 1.8B tokens.

    lwm train text-1m --data.path books.jsonl --tokenizer llama-2-7b

    Expected: single needles found nearly everywhere to 1M tokens; four needles, one asked for: 0.84 (paper).
    """
    return _text_stage("text-1m", 1_048_576, 450, 25, MeshShape(1, -1, 16, 4), init_from="runs/text-512k")


def _text_stage(name: str, context: int, steps: int, warmup_steps: int, mesh: MeshShape, *, init_from: str) -> Run:
    return Run(
        name=name,
        model=lengthen(SIZES["7b"], context),
        data=RecordData(path=""),
        tokenizer="",
        steps=steps,
        batch_size=_TOKENS_A_BATCH // context,
        seq_len=context,
        weighting="tokens",
        optimizer=OptimizerConfig(learning_rate=4e-5, schedule="constant", warmup_steps=warmup_steps, decay_norms=True),
        mesh=mesh,
        log_every=1,
        eval_every=100,
        checkpoint_every=100,
        init_from=init_from,
        out=Path("runs") / name,
    )


PRESETS: dict[str, Preset] = {
    "tiny": tiny,
    "nano-text": nano_text,
    "text-32k": text_32k,
    "text-128k": text_128k,
    "text-256k": text_256k,
    "text-512k": text_512k,
    "text-1m": text_1m,
}


def presets() -> dict[str, Preset]:
    """Every named run, those of the embedded model included."""
    return PRESETS | STAGES | {"nano-codec": nano_codec} | vision.STAGES


def preset(name: str) -> Run | CodecRun:
    """The run of that name.

    Raises:
        UserError: there is none; lists those there are.
    """
    known = presets()
    if name not in known:
        raise UserError(f"no run is called {name!r}; there are {', '.join(known)}")
    return known[name]()
