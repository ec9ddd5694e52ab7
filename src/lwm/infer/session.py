"""A document and questions about it, or a conversation: text in, text out.

A session keeps what the model has read. The next prompt is compared with it, and only the ids from the first
difference on are read: a second question about a document costs the question's own tokens. (All is read again, into
a larger cache, only when the room made for questions has run out.) Prompts are tokenized whole, so every answer is
the one that the whole prompt would get by itself.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from lwm.core.errors import UserError
from lwm.core.mesh import MeshShape, make_mesh
from lwm.data.tokenizer import Tokenizer
from lwm.data.vision import FrameIds
from lwm.infer import prompts
from lwm.infer.chat_format import Question, Turn, chat_format
from lwm.infer.draw_sampling import sampling_of
from lwm.infer.engine import Engine, State
from lwm.infer.prompts import FrameCodes, Prompt
from lwm.infer.sampling import FrameSampling, Sampling
from lwm.weights.load import LoadedModel, load_model

#: which part of a text that is too long is kept
Truncate = Literal["head", "tail"]
TRUNCATE = "shorten it, or keep a part with --truncate head or tail"
OnText = Callable[[str], None]

#: room a document leaves for a question and the words around it
QUESTION_TOKENS = 256
#: turns of a remembered conversation for which room is made at once
TURNS_AHEAD = 7


@dataclass(frozen=True)
class Answer:
    """What the model said, and what it took."""

    text: str
    #: of the whole prompt, document included
    prompt_tokens: int
    #: of them, how many this question was the first to have read
    read_tokens: int
    answer_tokens: int
    read_seconds: float
    answer_seconds: float
    #: False: the answer was cut at the most tokens allowed
    finished: bool
    #: the same with the codes of what was drawn where it was drawn: text, a film, text, ...
    pieces: Prompt = ()

    @property
    def films(self) -> list[FrameCodes]:
        """Codes of the pictures and videos that were drawn in it."""
        return [piece for piece in self.pieces if not isinstance(piece, str)]


@dataclass(frozen=True)
class Reading:
    """What came of reading a document: tokens the model holds, of how many, and the seconds it took."""

    tokens: int
    document_tokens: int
    seconds: float

    @property
    def truncated(self) -> bool:
        """Whether part of the document was left out."""
        return self.tokens < self.document_tokens


@dataclass
class Session:
    """Ask a model questions, about a document or about nothing.

    Each question stands by itself, after the document; with `remember` it follows the questions and answers before
    it. An answer never depends on what the session happens to have read already.

    Raises:
        UserError: the model has no tokenizer, a chat template or a `drawing.json` that cannot be read, or no room for
            such long answers.
    """

    model: LoadedModel
    #: that runs this model
    engine: Engine
    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int = 128
    remember: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        self.tokenizer = require_tokenizer(self.model)
        self._format = chat_format(self.tokenizer, self.model.config.vocab)
        #: of what is drawn in an answer, unguided: there is one row
        draws = self.model.config.vocab.vision_size > 0
        self._frames = FrameSampling(sampling=sampling_of(self.model.directory).plain() if draws else None)
        #: tokens of the longest prompt
        self._room = prompt_room(self.model, self.max_new_tokens)
        self._document: str | None = None
        #: pictures and videos that the next question is about
        self._media: list[FrameCodes] = []
        #: with `remember`, the conversation so far
        self._turns: list[Turn] = []
        #: what `_kept` has read; the buffers are in `_newest`, which came from it
        self._kept_ids: list[int] = []
        self._kept: State | None = None
        self._newest: State | None = None

    def read(self, document: str, truncate: Truncate | None = None) -> Reading:
        """Take a document in, in place of an earlier one, and forget the conversation.

        Raises:
            UserError: the document is empty, or too long for the model and not to be truncated.
        """
        if not document.strip():
            raise UserError("the document is empty")
        began = time.perf_counter()
        document_tokens = len(self.tokenizer.encode(document))
        room = self._room - QUESTION_TOKENS
        if room < 1:
            raise UserError(
                f"the model's context of {self.model.config.max_context} tokens has no room for a document beside a "
                f"question of {QUESTION_TOKENS} and an answer of {self.max_new_tokens}: give fewer --max-new-tokens"
            )
        if document_tokens > room:
            if truncate is None:
                raise too_long("the document", document_tokens, room, TRUNCATE)
            document = cut(self.tokenizer, document, room, truncate)
        self.forget()
        self._document = document
        self._keep(self._format.encode(self._format.document_head(document)))
        return Reading(min(document_tokens, room), document_tokens, time.perf_counter() - began)

    def look(self, frames: FrameCodes) -> None:
        """Take in a picture or a video, which the next question is about.

        Raises:
            UserError: the model has no eyes, these are not its codes, or a document is being asked about.
        """
        if self._document is not None:
            raise UserError("ask about a document or about pictures and videos, not about both at once: forget first")
        FrameIds(self.model.config.vocab, self.tokenizer).require(frames)
        self._media.append(frames)

    def ask(self, question: str, on_text: OnText | None = None) -> Answer:
        """Answer a question. `on_text` receives pieces of the answer as they are generated.

        Raises:
            UserError: the question is empty, or prompt and answer may be longer than the model's context.
        """
        if not question.strip():
            raise UserError("the question is empty")
        asked = Question(question, None if self._turns else self._document, tuple(self._media))
        ids = self._format.encode(self._format.prompt(asked, self._turns))
        if len(ids) > self._room:
            if self._turns:
                raise too_long("the conversation", len(ids), self._room, "start a new one, or ask without --remember")
            raise too_long("the prompt", len(ids), self._room, "shorten the question")
        # At least the last id is read, for it gives the scores of the first token of the answer.
        shared = min(_common_prefix(self._kept_ids, ids), len(ids) - 1)
        try:
            answer, tokens = self._complete(ids, shared, on_text)
        except BaseException:
            self._kept = self._newest = None  # their buffers may be spent: what was kept is read again when needed
            raise
        self._media = []
        if self.remember:
            self._turns.append((asked, answer.pieces))
            self._kept, self._kept_ids = self._newest, ids + tokens
        return answer

    def chat(self, question: str, document: str | None = None) -> str:
        """The text of an answer; a `document` that is not the one already read is read first.

        Raises:
            UserError: as `read` and `ask`.
        """
        if document is not None and document != self._document:
            self.read(document)
        return self.ask(question).text

    def forget(self) -> None:
        """Drop the document and the conversation."""
        self._document = self._kept = self._newest = None
        self._kept_ids, self._media, self._turns = [], [], []

    def _complete(self, ids: list[int], shared: int, on_text: OnText | None) -> tuple[Answer, list[int]]:
        vocab, began = self.model.config.vocab, time.perf_counter()
        state = self._rewound(self.engine.slots(len(ids) - shared) + self.max_new_tokens)
        state = self.engine.forget(state, [shared])
        state = self.engine.extend(state, [ids[shared:]])
        read_seconds = time.perf_counter() - began
        stream = None if on_text is None else TextStream(self.tokenizer, vocab.text_size, on_text)
        began = time.perf_counter()
        (tokens,), self._newest = self.engine.decode(
            state, self.max_new_tokens, self.sampling, self._format.stop_ids, self.seed, stream, self._frames
        )
        if stream is not None:
            stream.end()
        answer = Answer(
            text=self.tokenizer.decode(text_ids(tokens, vocab.text_size)).strip(),
            pieces=prompts.in_pieces(tokens, self.tokenizer, vocab),
            prompt_tokens=len(ids),
            read_tokens=len(ids) - shared,
            answer_tokens=len(tokens),
            read_seconds=read_seconds,
            answer_seconds=time.perf_counter() - began,
            finished=len(tokens) < self.max_new_tokens,
        )
        return answer, tokens

    def _rewound(self, slots: int) -> State:
        """The kept state with at least `slots` free; without that room its ids are read again into a larger cache."""
        kept, newest = self._kept, self._newest
        if kept is None or newest is None or kept.free < slots:
            kept = newest = self._keep(self._kept_ids, slots)
        return self.engine.rewind(newest, kept)

    def _keep(self, ids: list[int], slots: int = 0) -> State:
        turn = self.engine.slots(QUESTION_TOKENS) + self.max_new_tokens
        room = max(slots, turn) + (TURNS_AHEAD * turn if self.remember else 0)
        self._kept = self._newest = None  # the old buffers go before the new ones come
        state = self.engine.extend(self.engine.allocate(1, self.engine.slots(len(ids)) + room), [ids])
        self._kept, self._newest, self._kept_ids = state, state, ids
        return state


def load(
    name_or_directory: str | Path = "nano",
    mesh: str = "fsdp=1,sp=-1",
    dtype: Literal["float32", "bfloat16"] = "float32",
    sampling: Sampling = Sampling(),  # noqa: B008
    max_new_tokens: int = 128,
    remember: bool = False,
) -> Session:
    """A session with an embedded model ("nano") or one in a directory: `load("nano").chat("...", document=text)`.

    By default the text is split over all devices.

    Raises:
        UserError: no such model, or a mesh that fits neither it nor the devices.
    """
    model = load_model(name_or_directory, make_mesh(MeshShape.parse(mesh)), dtype)
    return Session(model, Engine.of(model, dtype), sampling, max_new_tokens, remember)


class TextStream:
    """Turns ids that arrive in blocks into pieces of text; half a character waits for its other half."""

    def __init__(self, tokenizer: Tokenizer, text_size: int, on_text: OnText) -> None:
        """Ids from `text_size` on are frames, and not passed on."""
        self._tokenizer, self._text_size, self._on_text = tokenizer, text_size, on_text
        self._ids: list[int] = []
        self._sent = ""

    def __call__(self, new: list[list[int]]) -> None:
        """Take the new ids of the only row."""
        self._ids += text_ids(new[0], self._text_size)
        self._send(self._tokenizer.decode(self._ids).rstrip("\ufffd"))

    def end(self) -> None:
        """Send what waited for more and got none."""
        self._send(self._tokenizer.decode(self._ids))

    def _send(self, text: str) -> None:
        if text.startswith(self._sent) and len(text) > len(self._sent):
            self._on_text(text[len(self._sent) :])
            self._sent = text


def text_ids(ids: Sequence[int], text_size: int) -> list[int]:
    """Those of text, without any frames among them."""
    return [token for token in ids if token < text_size]


def require_tokenizer(model: LoadedModel) -> Tokenizer:
    """The tokenizer of a model that is to read text.

    Raises:
        UserError: it has none.
    """
    if model.tokenizer is None:
        raise UserError(f"the model in {model.directory} has no tokenizer: put its tokenizer.json there to read text")
    return model.tokenizer


def prompt_room(model: LoadedModel, max_new_tokens: int) -> int:
    """Tokens a prompt may have, so that with its answer it stays within the context the model was trained for.

    Raises:
        UserError: an answer of no tokens, or one that leaves no room.
    """
    limit = model.config.max_context
    if not 1 <= max_new_tokens < limit:
        raise UserError(
            f"--max-new-tokens {max_new_tokens} must be 1 to {limit - 1}: the model reads at most {limit} tokens, "
            "its answer included"
        )
    return limit - max_new_tokens


def too_long(what: str, num_tokens: int, room: int, remedy: str) -> UserError:
    """The refusal of a text that does not fit."""
    return UserError(
        f"{what} is {num_tokens} tokens long, and beside the answer the model has room for {room}: {remedy}"
    )


def cut(tokenizer: Tokenizer, text: str, num_tokens: int, keep: Truncate) -> str:
    """The first or last `num_tokens` tokens' worth of a text.

    Raises:
        UserError: there is no room at all.
    """
    if num_tokens < 1:
        raise UserError("the model's context has no room for any text beside the question and the answer")
    ids = tokenizer.encode(text)
    kept = tokenizer.decode(ids[:num_tokens] if keep == "head" else ids[-num_tokens:])
    return kept.strip("\ufffd")


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    length = min(len(left), len(right))
    different = np.flatnonzero(np.asarray(left[:length]) != np.asarray(right[:length]))
    return int(different[0]) if len(different) else length
