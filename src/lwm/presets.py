"""Named runs: functions that return a `Run`, to be started as they are or with fields changed on the command line.

LWM's text curriculum (paper, table 11) lengthens Llama-2 7B in five stages, each from the one before, 4M tokens a
batch; its vision curriculum (table 13) goes on from there in five more, 8M tokens a batch. `lwm train NAME --help`
lists what can be changed.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lwm.core.errors import UserError
from lwm.core.mesh import MeshShape
from lwm.core.vocab import Vocab
from lwm.data.examples import RecordData
from lwm.data.media_frames import MediaFrames
from lwm.data.mixture import MixedData
from lwm.model.config import SIZES, ModelConfig, lengthen
from lwm.model.lora import LoraConfig
from lwm.nano.recipe import STAGES
from lwm.train.begin import start_of
from lwm.train.codec_run import CodecRun, ReconstructionLoss
from lwm.train.optimizer import OptimizerConfig
from lwm.train.run import Run
from lwm.vqgan.config import VQGANConfig
from lwm.vqgan.quantize import Codebook
from lwm.weights.load import EMBEDDED, read_config

Preset = Callable[[], Run | CodecRun]

_TOKENS_A_BATCH, _VISION_TOKENS_A_BATCH = 2**22, 2**23


def tiny() -> Run:
    """A quarter of a million parameters on your own texts, in about a minute on a laptop: to see all parts move.

    lwm train tiny --data.path my_texts/ --out runs/tiny

    The loss falls from about 7.7 (a blind guess among 2,181 pieces) to below 6; the model learns common words.
    """
    model = ModelConfig(
        vocab=Vocab(text_size=read_config("nano").vocab.text_size),
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

    The loss on your records falls; keep some of them apart with --held-out-path to see what that is worth. Pictures
    among them are read and not learned, unless --vision-share says what they weigh (0.5: as much as text).
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
        vision_share=0.0,
        out=Path("runs/nano-text"),
    )


def fine_tune(init_from: str = "nano") -> Run:
    """A model of yours goes on learning from your own records; its config and tokenizer are taken from it.

    lwm train fine-tune --init-from MODEL --data.path my.jsonl --data.fields '[question],answer' --out runs/mine

    All of the model is trained, in fp32: weights, gradients and two moments are 16 bytes a parameter. The loss on your
    records falls; --held-out-path tells what that is worth on others.
    """
    return _fine_tune("fine-tune", init_from, learning_rate=2e-5)


def fine_tune_lora(init_from: str = "nano") -> Run:
    """The same with low-rank adapters: a quarter of the memory, and the model stays as it is beneath them.

    lwm train fine-tune-lora --init-from MODEL --data.path my.jsonl --data.fields '[question],answer' --out runs/mine

    The adapters are merged into the finished model. `--lora.rank` and `--lora.targets` say how much may change.
    """
    return replace(_fine_tune("fine-tune-lora", init_from, learning_rate=2e-4), lora=LoraConfig(rank=16))


def _fine_tune(name: str, init_from: str, learning_rate: float) -> Run:
    model, tokenizer = start_of(init_from)
    return Run(
        name=name,
        model=model,
        data=RecordData(path=""),
        tokenizer=tokenizer,
        steps=200,
        batch_size=8,
        seq_len=min(2048, model.max_context),
        optimizer=OptimizerConfig(learning_rate=learning_rate, schedule="cosine", warmup_steps=10, weight_decay=0.0),
        log_every=10,
        eval_every=50,
        checkpoint_every=100,
        init_from=init_from,
        out=Path("runs") / name,
    )


def vqgan() -> CodecRun:
    """A codec of your own pictures and videos: LWM's VQGAN with a thirtieth of its numbers, for a laptop.

    lwm train vqgan --data.path media/ --held-out.path media/

    256 codes a frame of 128 x 128 pixels. The ends of videos and every tenth picture are kept apart; their
    reconstructions and PSNR are in the run's directory.
    """
    return CodecRun(
        name="vqgan",
        codec=VQGANConfig(
            resolution=128,
            hidden_channels=32,
            channel_multipliers=(1, 2, 4, 4),
            num_res_blocks=1,
            quantizer=Codebook(num_codes=1024, width=64),
        ),
        data=MediaFrames(),
        held_out=MediaFrames(split="held_out"),
        loss=ReconstructionLoss(edges=0.5),
        steps=1000,
        batch_size=8,
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            end_learning_rate=1e-5,
            schedule="cosine",
            warmup_steps=50,
            b2=0.99,
            weight_decay=1e-4,
        ),
        revive_every=50,
        warm_start=0.2,
        log_every=10,
        eval_every=100,
        checkpoint_every=100,
        out=Path("runs/vqgan"),
    )


def text_32k() -> Run:
    """Llama-2 7B to 32K tokens: 4.8B tokens of books, in fp32 on a TPU v4-512.

    lwm train text-32k --data.path books.jsonl --init-from llama-2-7b --tokenizer llama-2-7b

    `llama-2-7b` is the directory that the weights were published in, or what `lwm convert` made of it.
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


def vision_1k() -> Run:
    """The text model learns to see and draw: 363B tokens of pictures and their captions, in either order.

    lwm train vision-1k --data.parts.0.path pictures.jsonl --data.parts.1.path books.jsonl --tokenizer llama-2-7b

    Records have `caption` and `vision` (made by `lwm tokenize`), and texts `text`, cut to about a row each, for shares
    are of records; `vqgan` is the directory of the
    codec (--codec names another). Expected: LWM-1K.
    """
    data = _with_text(RecordData(path="", fields=_EITHER_ORDER))
    return _vision_stage("vision-1k", data, 1024, 45_000, 1000, MeshShape(1, -1, 1, 1), _PRETRAINED, after="text-1m")


def vision_8k() -> Run:
    """Clips of up to 30 frames, four a second: 107B tokens.

    lwm train vision-8k --data.parts.0.path clips.jsonl --data.parts.1.path books.jsonl --tokenizer llama-2-7b

    Expected: LWM-8K.
    """
    data = _with_text(RecordData(path="", fields=_EITHER_ORDER, max_frames=30))
    return _vision_stage("vision-8k", data, 8192, 14_000, 500, MeshShape(1, -1, 1, 1), _PRETRAINED, after="vision-1k")


def vision_chat_32k() -> Run:
    """Instructions to draw, film, tell pictures and videos of up to 30 frames, a quarter each: 10B tokens.

    lwm train vision-chat-32k --data.parts.0.path draw.jsonl --data.parts.1.path look.jsonl \\
        --data.parts.2.path film.jsonl --data.parts.3.path watch.jsonl --tokenizer llama-2-7b

    Records have `instruction` and `vision`, or `instruction`, `vision` and `output`. Expected: LWM-Chat-32K.
    """
    return _vision_stage(
        "vision-chat-32k", _instructions(30), 32_768, 1200, 100, MeshShape(1, -1, 4, 1), _CHAT, after="vision-8k"
    )


def vision_chat_128k() -> Run:
    """The same with videos of up to 450 frames: 3.5B tokens.

    lwm train vision-chat-128k --data.parts.0.path draw.jsonl ... --tokenizer llama-2-7b

    Expected: LWM-Chat-128K.
    """
    return _vision_stage(
        "vision-chat-128k", _instructions(450), 131_072, 450, 50, MeshShape(1, -1, 8, 1), _CHAT, after="vision-chat-32k"
    )


def vision_chat_1m() -> Run:
    """The same with videos of up to 4000 frames, an hour at one a second: 0.4B tokens.

    lwm train vision-chat-1m --data.parts.0.path draw.jsonl ... --tokenizer llama-2-7b

    Expected: LWM-Chat-1M.
    """
    return _vision_stage(
        "vision-chat-1m", _instructions(4000), 2**20, 50, 5, MeshShape(1, -1, 16, 4), _CHAT, after="vision-chat-128k"
    )


#: LWM's: 8192 codes, two marks and spare ids; a frame is 16 x 16 codes
_VISION = {"vision_size": 8448, "num_codes": 8192, "tokens_per_frame": 256}
_VISION_THETA = 5e7
_EITHER_ORDER = ("[caption],vision", "vision,caption")
_PRETRAINED = OptimizerConfig(learning_rate=6e-4, end_learning_rate=6e-5, schedule="cosine", decay_norms=True)
_CHAT = OptimizerConfig(learning_rate=8e-5, schedule="constant", decay_norms=True)


def _with_text(data: RecordData) -> MixedData:
    return MixedData((data, RecordData(path="")), (0.84, 0.16))


def _instructions(max_frames: int) -> MixedData:
    draw, look = "[instruction],vision", "[instruction+vision],output"
    kinds = tuple(RecordData(path="", fields=fields, max_frames=max_frames) for fields in (draw, look, draw, look))
    return MixedData(kinds, (0.25,) * len(kinds))


def _vision_stage(
    name: str,
    data: MixedData,
    context: int,
    steps: int,
    warmup_steps: int,
    mesh: MeshShape,
    optimizer: OptimizerConfig,
    *,
    after: str,
) -> Run:
    text = lengthen(SIZES["7b"], context, _VISION_THETA)
    return Run(
        name=name,
        model=replace(text, vocab=replace(text.vocab, **_VISION)),
        data=data,
        tokenizer="",
        steps=steps,
        batch_size=max(_VISION_TOKENS_A_BATCH // context, 1),
        seq_len=context,
        optimizer=replace(optimizer, warmup_steps=warmup_steps),
        mesh=mesh,
        log_every=1,
        eval_every=100,
        checkpoint_every=100,
        init_from=f"runs/{after}",
        codec="vqgan",
        out=Path("runs") / name,
    )


#: runs whose model is taken from the one to start from
FINE_TUNING: dict[str, Callable[..., Run]] = {"fine-tune": fine_tune, "fine-tune-lora": fine_tune_lora}

PRESETS: dict[str, Preset] = {
    "tiny": tiny,
    "nano-text": nano_text,
    **FINE_TUNING,
    "vqgan": vqgan,
    "text-32k": text_32k,
    "text-128k": text_128k,
    "text-256k": text_256k,
    "text-512k": text_512k,
    "text-1m": text_1m,
    "vision-1k": vision_1k,
    "vision-8k": vision_8k,
    "vision-chat-32k": vision_chat_32k,
    "vision-chat-128k": vision_chat_128k,
    "vision-chat-1m": vision_chat_1m,
}


def presets() -> dict[str, Preset]:
    """Every named run, those of the embedded model included."""
    return PRESETS | STAGES


def preset(name: str, init_from: str | None = None) -> Run | CodecRun:
    """The run of that name; fine-tuning is told by `init_from` which model it is of.

    Raises:
        UserError: there is no such run, and which there are; no such model.
    """
    if init_from and name in FINE_TUNING:
        return FINE_TUNING[name](init_from)
    known = presets()
    if name not in known:
        raise UserError(f"no run is called {name!r}; there are {', '.join(known)}")
    return known[name]()
