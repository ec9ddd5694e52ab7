"""Pictures and videos out of words: LWM's prompts, guidance, frames as they are finished.

A video that does not fit the model's context can be drawn through a window: when the context is full, its last frames
are read again behind the prompt, at the positions where the first ones were, and drawing goes on. What happened before
them is then forgotten.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
from jaxtyping import Float32, Int32
from tyro.conf import Positional, arg

from lwm.core.errors import UserError
from lwm.core.mesh import axis_size
from lwm.core.vocab import Vocab
from lwm.data.media_out import require_writable, save_frames
from lwm.data.vision import OPENING
from lwm.infer import prompts
from lwm.infer.draw_sampling import DrawSampling, sampling_of
from lwm.infer.engine import Engine
from lwm.infer.likelihood import log_likelihoods
from lwm.infer.sampling import FrameSampling, Sampling
from lwm.infer.session import require_tokenizer
from lwm.vqgan.codec import FrameCodec
from lwm.weights.codec_store import require_same_codes
from lwm.weights.load import LoadedModel

#: called with how many frames of all are finished, and how many there will be; looking at a drawing counts as one
Progress = Callable[[int, int], None]
#: called with how many frames of each drawing came before, and with those that each has finished since
OnFrames = Callable[[int, Sequence[Int32[np.ndarray, "frames P"]]], None]
#: what each frame before a window adds to its seed, so that no two windows draw alike
WINDOW_SEED = 7_919
#: how a model is asked what it drew
LOOK = "What do you see?"
#: pictures smaller than this are written larger, each pixel repeated
LEAST_SIDE = 256
#: drawings at once, those included that others are chosen over
MOST_DRAWN = 2048


@dataclass(frozen=True)
class DrawConfig:
    """What pictures and videos are asked for with."""

    #: what is to be seen
    prompt: Positional[str]
    #: a file to write; several are numbered: cat-1.png, cat-2.png
    out: Path
    #: a model directory, or a name: nano
    model: str = "nano"
    #: how many to draw at once, each another one
    count: int = 1
    #: another seed draws others
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST_DRAWN:
            raise UserError(f"count {self.count}: ask for 1 to {MOST_DRAWN}")
        if not self.prompt.strip():
            raise UserError("the prompt is empty: say what is to be seen")


@dataclass(frozen=True)
class ImageConfig(DrawConfig):
    """Draw a picture of what a text says."""

    num_frames = 1
    frames_per_second = 1.0


@dataclass(frozen=True)
class VideoConfig(DrawConfig):
    """Draw a video of what a text says."""

    #: how many frames
    num_frames: Annotated[int, arg(name="frames")] = 8
    #: how many of them are shown in a second
    frames_per_second: float = 4.0
    #: frames that are read again when the context is full, to draw on beyond it; 0: a longer video is refused
    window: int = 0
    #: a directory that gets each frame as a picture as soon as it is drawn
    frames_out: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_frames < 1 or not 0 < self.frames_per_second < math.inf:
            raise UserError(f"{self.num_frames} frames at {self.frames_per_second} a second cannot be drawn")


def files_to_write(config: ImageConfig | VideoConfig) -> list[Path]:
    """Where the drawings go: to `config.out`, which gets numbers where there are several.

    Raises:
        UserError: such a file cannot be written, or does not hold what is drawn.
    """
    files = [config.out]
    if config.count > 1 and config.out.name:
        files = [config.out.with_stem(f"{config.out.stem}-{number}") for number in range(1, config.count + 1)]
    for file in files:
        require_writable(file, config.num_frames, config.frames_per_second)
        if isinstance(config, VideoConfig) and config.frames_out is not None:
            require_writable(_frame_file(config.frames_out, file, 1), 1)
    return files


def _frame_file(directory: Path, file: Path, number: int) -> Path:
    return directory / f"{file.stem}-{number:04d}.png"


def draw(
    config: ImageConfig | VideoConfig,
    model: LoadedModel,
    engine: Engine,
    codec: FrameCodec,
    sampling: DrawSampling | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Draw `config.count` pictures or videos and write them; return their paths. Without `sampling`, the model's own.

    Raises:
        UserError: a model that does not draw, a prompt or a video that is too long, a file that cannot be written.
    """
    files = files_to_write(config)
    require_same_codes(model.config.vocab, codec.config)
    sampling = sampling_of(model.directory) if sampling is None else sampling
    window, on_frames = 0, None
    asked = prompts.draw_image(config.prompt)
    if isinstance(config, VideoConfig):
        asked, window = prompts.draw_video(config.prompt), config.window
        if config.frames_out is not None:
            on_frames = _frame_writer(config.frames_out, files, codec)
    task = DrawTask([asked] * config.count, config.num_frames, sampling.plain(), sampling.cfg, config.seed, window)
    words = [config.prompt] * config.count
    codes = draw_best(task, words, sampling.best_of, model, engine, progress, on_frames)
    for file, own in zip(files, codes, strict=True):
        write_frames(file, own, codec, config.frames_per_second)
    return files


def write_frames(file: Path, codes: Int32[np.ndarray, "frames P"], codec: FrameCodec, frames_per_second: float) -> None:
    """Write a picture or a video out of its codes, large enough to be looked at.

    Raises:
        UserError: it cannot be written.
    """
    save_frames(file, codec.decode(codes), frames_per_second, scale=-(-LEAST_SIDE // codec.resolution))


def _frame_writer(directory: Path, files: Sequence[Path], codec: FrameCodec) -> OnFrames:
    """Writes the frames of `cat.mp4` as cat-0001.png, cat-0002.png, ... below a directory."""

    def write(before: int, new: Sequence[Int32[np.ndarray, "frames P"]]) -> None:
        for file, codes in zip(files, new, strict=True):
            for number, one in enumerate(codes, before + 1):
                write_frames(_frame_file(directory, file, number), one[None], codec, 1.0)

    return write


@dataclass(frozen=True)
class DrawTask:
    """Prompts that end where the model is to begin, and how it is to draw."""

    prompts: Sequence[str]
    num_frames: int
    sampling: Sampling
    guidance: tuple[float, ...] = (1.0,)
    seed: int = 0
    window: int = 0


def draw_codes(
    task: DrawTask,
    model: LoadedModel,
    engine: Engine,
    progress: Progress | None = None,
    on_frames: OnFrames | None = None,
) -> list[Int32[np.ndarray, "frames P"]]:
    """The codes of each prompt's frames, all prompts drawn together.

    Raises:
        UserError: a model that does not draw, a prompt that is too long, more frames than fit without a window.
    """
    vocab, tokenizer = model.config.vocab, require_tokenizer(model)
    if not vocab.vision_size:
        raise UserError(f"the model in {model.directory} is one of text alone: it does not draw")
    opening = tokenizer.encode(OPENING)
    asked = [prompts.encode(tokenizer, prompt) + opening for prompt in task.prompts]
    unasked = prompts.encode(tokenizer, "") + opening
    at_once = _frames_at_once(task, max(map(len, asked)), model)
    done: list[np.ndarray] = [np.zeros((0, vocab.tokens_per_frame), np.int32) for _ in asked]
    while len(done[0]) < task.num_frames:
        shown = min(task.window, len(done[0]))
        count = min(task.num_frames - len(done[0]), at_once - shown)
        given = [_framed(codes[len(codes) - shown :], vocab) for codes in done]
        guidance = task.guidance[min(len(done[0]), len(task.guidance) - 1) :]

        def report(start: int, new: Sequence[np.ndarray], before: int = len(done[0])) -> None:
            if on_frames is not None:
                on_frames(before + start, new)
            if progress is not None:
                progress((before + start + len(new[0])) * len(asked), task.num_frames * len(asked))

        rows = [ids + frames for ids, frames in zip(asked, given, strict=True)]
        if any(guide != 1 for guide in guidance):
            _require_pairs(engine)
            rows = [row for pair in zip(rows, (unasked + frames for frames in given), strict=True) for row in pair]
        window = replace(task, guidance=guidance, seed=task.seed + WINDOW_SEED * len(done[0]))
        new = _draw_frames(engine, rows, count, window, report)
        done = [np.concatenate([codes, more]) for codes, more in zip(done, new, strict=True)]
    return done


def draw_best(
    task: DrawTask,
    words: Sequence[str],
    best_of: int,
    model: LoadedModel,
    engine: Engine,
    progress: Progress | None = None,
    on_frames: OnFrames | None = None,
) -> list[Int32[np.ndarray, "frames P"]]:
    """For each prompt the best of so many drawings: the one that the model, when it looks at it, finds best told by
    the `words` that it was asked for with. (Ramesh et al. 2021 let another model choose; this one reads, too.)

    Raises:
        UserError: as `draw_codes`; too many at once, or frames that are to be seen before the best is known.
    """
    if len(task.prompts) * best_of > MOST_DRAWN:
        raise UserError(
            f"{len(task.prompts)} drawings, each the best of {best_of}, are more than the {MOST_DRAWN} that are drawn "
            "together: ask for fewer at once"
        )
    if best_of == 1:
        return draw_codes(task, model, engine, progress, on_frames)
    if on_frames is not None:
        raise UserError(
            f"frames are to be seen as they are drawn, and of {best_of} drawings the best is known at the end: give "
            "--best-of 1"
        )
    several = replace(task, prompts=[prompt for prompt in task.prompts for _ in range(best_of)])
    looks = len(several.prompts)

    def while_drawing(done: int, total: int) -> None:
        if progress is not None:
            progress(done, total + looks)

    drawn = draw_codes(several, model, engine, while_drawing)
    told = [own for own in words for _ in range(best_of)]
    likely = _likelihood_of_words(drawn, told, model, engine).reshape(-1, best_of)
    if progress is not None:
        progress(looks * (task.num_frames + 1), looks * (task.num_frames + 1))
    return [drawn[place * best_of + int(best)] for place, best in enumerate(likely.argmax(axis=1))]


def _likelihood_of_words(
    drawn: Sequence[Int32[np.ndarray, "frames P"]], words: Sequence[str], model: LoadedModel, engine: Engine
) -> Float32[np.ndarray, "n"]:
    """How likely a model tells drawings by these words. Of a video beyond its context it sees the beginning."""
    vocab, tokenizer = model.config.vocab, require_tokenizer(model)
    look = prompts.about_frames(LOOK, [drawn[0][:1]])
    end = str(look[-1])
    # Encoded with what they follow: by itself a text may begin otherwise.
    answers = [tokenizer.encode(f"{end} {own.strip()}")[len(tokenizer.encode(end)) :] for own in words]
    of_one = len(prompts.encode_prompt(tokenizer, vocab, look))
    rooms = (model.config.max_context - len(answer) - of_one for answer in answers)
    fits = (1 + max(0, room // (vocab.tokens_per_frame + 1)) for room in rooms)
    asked = [prompts.about_frames(LOOK, [codes[:most]]) for codes, most in zip(drawn, fits, strict=True)]
    return log_likelihoods(engine, [prompts.encode_prompt(tokenizer, vocab, each) for each in asked], answers)


def _frames_at_once(task: DrawTask, prompt_tokens: int, model: LoadedModel) -> int:
    """How many frames the context holds behind the longest prompt."""
    room, per_frame = model.config.max_context - prompt_tokens, model.config.vocab.tokens_per_frame + 1
    fits = room // per_frame
    if fits < 1:
        raise UserError(f"the prompt is {prompt_tokens} tokens long and leaves no room for a frame: shorten it")
    if task.num_frames <= fits:
        return task.num_frames
    if not task.window:
        raise UserError(
            f"{task.num_frames} frames of {per_frame} tokens are more than the {fits} that the model's context of "
            f"{model.config.max_context} holds: draw fewer, or go on through a --window, which forgets what came before"
        )
    if not 0 < task.window < fits:
        raise UserError(f"a window of {task.window} frames: give 1 to {fits - 1}, as the context holds {fits}")
    return fits


def _require_pairs(engine: Engine) -> None:
    with jax.set_mesh(engine.mesh):
        ways = axis_size("batch")
    if ways > 1 and ways % 2:
        raise UserError(
            f"guidance draws in pairs, and dp x fsdp = {ways} does not split into them: choose an even mesh"
        )


def _framed(codes: Int32[np.ndarray, "frames P"], vocab: Vocab) -> list[int]:
    """Ids of frames that others follow."""
    marks = np.full((len(codes), 1), vocab.end_of_frame, np.int32)
    return np.concatenate([codes + np.int32(vocab.text_size), marks], axis=1).ravel().tolist()


def _draw_frames(
    engine: Engine, rows: list[list[int]], count: int, task: DrawTask, report: OnFrames
) -> list[Int32[np.ndarray, "frames P"]]:
    """`count` more frames of each row, or of each pair of rows where there is guidance."""
    vocab, each = engine.config.vocab, len(rows) // len(task.prompts)
    per_frame = vocab.tokens_per_frame + 1
    most = count * per_frame
    guidance = task.guidance if each == 2 else ()
    drawn: list[list[int]] = [[] for _ in task.prompts]
    told = 0

    def frames_of(ids: list[int]) -> Int32[np.ndarray, "frames P"]:
        return np.array(ids, np.int32).reshape(-1, per_frame)[:, :-1] - np.int32(vocab.text_size)

    def on_tokens(new: list[list[int]]) -> None:
        nonlocal told
        for own, more in zip(drawn, new[::each], strict=True):
            own.extend(more)
        if (finished := len(drawn[0]) // per_frame) > told:
            report(told, [frames_of(own[told * per_frame : finished * per_frame]) for own in drawn])
            told = finished

    state = engine.start(rows, engine.slots(max(map(len, rows))) + most)
    report(0, [frames_of([]) for _ in drawn])  # a first frame may take long
    frames = FrameSampling(count=count, sampling=task.sampling, guidance=guidance)
    engine.decode(state, most, task.sampling, seed=task.seed, on_tokens=on_tokens, frames=frames)
    return [frames_of(own) for own in drawn]
