"""What `lwm generate text` and `lwm chat` take and do; the command line parses and shows."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from tyro.conf import Positional, UseAppendAction

from lwm.core.errors import UserError
from lwm.data.media import Choice, read_frames
from lwm.data.media_out import require_writable
from lwm.infer import prompts
from lwm.infer.engine import Engine, Timings
from lwm.infer.pictures import VideoConfig, write_frames
from lwm.infer.sampling import Sampling
from lwm.infer.session import (
    TRUNCATE,
    Answer,
    Reading,
    Session,
    TextStream,
    Truncate,
    prompt_room,
    require_tokenizer,
    text_ids,
    too_long,
)
from lwm.vqgan.codec import FrameCodec
from lwm.weights.codec_store import require_same_codes
from lwm.weights.load import LoadedModel


@dataclass(frozen=True)
class GenerateTextConfig:
    """Continue a text, as it stands: no words are put around it."""

    #: the text to continue
    prompt: Positional[str]
    #: a model directory, a GGUF file, or a name: nano, smollm2
    model: str = "nano"
    #: the most tokens to generate
    max_new_tokens: int = 128
    #: another seed draws another text
    seed: int = 0
    #: keep the head or the tail of a prompt that, with the answer, is longer than the model's context
    truncate: Truncate | None = None


@dataclass(frozen=True)
class Generation:
    """A prompt's continuation, and what it took."""

    text: str
    prompt_tokens: int
    answer_tokens: int
    timings: Timings


def generate_text(
    config: GenerateTextConfig,
    model: LoadedModel,
    engine: Engine,
    sampling: Sampling = Sampling(),  # noqa: B008
    on_text: Callable[[str], None] | None = None,
) -> Generation:
    """Continue `config.prompt`; `on_text` receives pieces of the text as they are generated.

    Raises:
        UserError: an empty prompt, one that is too long and not to be truncated, or a model without tokenizer.
    """
    tokenizer, room = require_tokenizer(model), prompt_room(model, config.max_new_tokens)
    if not config.prompt:
        raise UserError("the prompt is empty")
    ids = prompts.encode(tokenizer, config.prompt)
    if len(ids) > room:
        if config.truncate is None:
            raise too_long("the prompt", len(ids), room, TRUNCATE)
        num_bos = 0 if tokenizer.bos_id is None else 1
        kept = ids[num_bos:room] if config.truncate == "head" else ids[len(ids) - room + num_bos :]
        ids = ids[:num_bos] + kept
    stream = None if on_text is None else TextStream(tokenizer, model.config.vocab.text_size, on_text)
    state = engine.start([ids], engine.slots(len(ids)) + config.max_new_tokens)
    (tokens,), state = engine.decode(
        state, config.max_new_tokens, sampling, prompts.stop_ids(tokenizer), config.seed, stream
    )
    if stream is not None:
        stream.end()
    text = tokenizer.decode(text_ids(tokens, model.config.vocab.text_size))
    return Generation(text, len(ids), len(tokens), state.timings)


@dataclass(frozen=True)
class ChatConfig:
    """Ask a model about a document, pictures, videos, or nothing. Without a question: a conversation."""

    #: what to ask; left out, questions are read one after the other
    question: Positional[str | None] = None
    #: a model directory, a GGUF file, or a name: nano, smollm2
    model: str = "nano"
    #: a text file to ask about
    document: Path | None = None
    #: a picture to ask about; may be given several times; pictures are shown before videos
    image: UseAppendAction[tuple[Path, ...]] = ()
    #: a video to ask about; may be given several times
    video: UseAppendAction[tuple[Path, ...]] = ()
    #: frames of each video, evenly over its time
    num_frames: int | None = None
    #: frames a second of each video; neither: one
    frames_per_second: float | None = None
    #: the most tokens of an answer
    max_new_tokens: int = 128
    #: another seed draws other answers
    seed: int = 0
    #: keep the head or the tail of a document that is longer than the model's context
    truncate: Truncate | None = None
    #: let each question follow the ones before it; otherwise each stands by itself, after the document. Questions
    #: about pictures and videos always do
    remember: bool = False
    #: print the answer to the question as one JSON object
    json: bool = False
    #: a directory for the pictures and videos that answers hold
    out: Path | None = None

    def __post_init__(self) -> None:
        if (self.image or self.video) and self.document is not None:
            raise UserError("ask about a document or about pictures and videos, not about both at once")
        if self.json and self.question is None:
            raise UserError("--json prints the answer to one question: give a question")
        if self.question is not None and not self.question.strip():
            raise UserError("the question is empty")
        if self.truncate is not None and self.document is None:
            raise UserError("--truncate is for a document that is too long: give --document")
        if not self.video and (self.num_frames is not None or self.frames_per_second is not None):
            raise UserError("--num-frames and --frames-per-second are for videos: give --video")
        if self.out is not None:
            require_writable(self.out / "answer-1.png", 1)

    @property
    def shows(self) -> bool:
        """Whether pictures go in or come out."""
        return bool(self.image or self.video or self.out)


def open_session(
    config: ChatConfig,
    model: LoadedModel,
    engine: Engine,
    sampling: Sampling = Sampling(),  # noqa: B008
    codec: FrameCodec | None = None,
) -> tuple[Session, Reading | None]:
    """A session that has read `config.document` or looked at `config.image` and `config.video`, if there are any.

    Raises:
        UserError: media that cannot be read, or a model without codec to see them; a document that cannot be
            read, is empty, or is too long and not to be truncated; a model without tokenizer.
    """
    media = [*config.image, *config.video]
    remember = config.remember or bool(media)
    session = Session(model, engine, sampling, config.max_new_tokens, remember, config.seed)
    if media and codec is None:
        raise UserError(f"the model in {model.directory} has no codec: it cannot see {media[0]}")
    if codec is not None:
        require_same_codes(model.config.vocab, codec.config)
        for path, choice in [(path, Choice(num_frames=1)) for path in config.image] + [
            (path, _choice(config)) for path in config.video
        ]:
            session.look(codec.encode(read_frames(path, codec.resolution, choice).pixels))
    if config.document is None:
        return session, None
    try:
        document = config.document.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read the document {config.document}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"the document {config.document} is not UTF-8 text (byte {error.start})") from None
    return session, session.read(document, config.truncate)


def keep_frames(answer: Answer, directory: Path, codec: FrameCodec) -> list[Path]:
    """Write the pictures and videos in an answer under names that are not taken there: answer-1.png, answer-2.mp4, ...

    Raises:
        UserError: they cannot be written.
    """
    files: list[Path] = []
    for codes in answer.films:
        numbers = (number for number in count(1) if not any(directory.glob(f"answer-{number}.*")))
        files.append(directory / f"answer-{next(numbers)}{'.png' if len(codes) == 1 else '.mp4'}")
        write_frames(files[-1], codes, codec, VideoConfig.frames_per_second)
    return files


def _choice(config: ChatConfig) -> Choice:
    if config.num_frames is None and config.frames_per_second is None:
        return Choice(frames_per_second=1.0)
    return Choice(config.num_frames, config.frames_per_second)
