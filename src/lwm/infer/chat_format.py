"""How a model is asked: in LWM's words, or through the chat template that its makers published with its tokenizer.

Both turn a question, and the turns before it, into what the model reads up to where its answer begins.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from lwm.core.errors import UserError
from lwm.core.vocab import Vocab
from lwm.data.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer
from lwm.infer import prompts
from lwm.infer.prompts import FrameCodes, Prompt
from lwm.infer.templates import ChatTemplate, read_template, turn_ends


@dataclass(frozen=True)
class Question:
    """What is asked, and what about: a document, or pictures and videos, or nothing."""

    text: str
    document: str | None = None
    media: tuple[FrameCodes, ...] = ()


#: a question and its answer
Turn = tuple[Question, Prompt]


@runtime_checkable
class ChatFormat(Protocol):
    """Questions to what a model reads: of sessions, which keep what was read, and of evals."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end an answer."""
        ...

    def prompt(self, question: Question, before: Sequence[Turn] = ()) -> Prompt:
        """What the model reads, after the turns `before`."""
        ...

    def document_head(self, document: str) -> Prompt:
        """What all questions about one document begin with: a session reads it once."""
        ...

    def needle_prompt(self, context: str, cities: Sequence[str], num_needles: int = 1) -> str:
        """Ask for the numbers of `cities` in a context that holds `num_needles`."""
        ...

    def encode(self, prompt: Prompt) -> list[int]:
        """The ids of a prompt as the model reads it, with all that begins a text."""
        ...


@dataclass(frozen=True)
class LWMChat:
    """LWM's words, on which its models and ours are trained: see `infer.prompts`."""

    tokenizer: Tokenizer
    vocab: Vocab

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return prompts.stop_ids(self.tokenizer)

    def prompt(self, question: Question, before: Sequence[Turn] = ()) -> Prompt:
        first, *others = *(asked for asked, _ in before), question
        prompt = self._first(first)
        for (_, answer), following in zip(before, others, strict=True):
            prompt = prompts.next_turn(prompt, answer, following.text, following.media)
        return prompt

    def document_head(self, document: str) -> Prompt:
        return (prompts.document_head(document),)

    def needle_prompt(self, context: str, cities: Sequence[str], num_needles: int = 1) -> str:
        return prompts.needle_prompt(context, cities, num_needles)

    def encode(self, prompt: Prompt) -> list[int]:
        return prompts.encode_prompt(self.tokenizer, self.vocab, prompt)

    @staticmethod
    def _first(question: Question) -> Prompt:
        if question.media:
            return prompts.about_frames(question.text, question.media)
        if question.document is not None:
            return (prompts.document(question.document, question.text),)
        return (prompts.chat(question.text),)


@dataclass(frozen=True)
class TemplateChat:
    """A chat template, which writes all special tokens itself, those that begin a text included."""

    tokenizer: Tokenizer
    template: ChatTemplate
    stop_ids: tuple[int, ...]

    def prompt(self, question: Question, before: Sequence[Turn] = ()) -> Prompt:
        messages = []
        for asked, answer in before:
            said = "".join(piece for piece in answer if isinstance(piece, str))
            messages += [_by_user(asked), {"role": "assistant", "content": said}]
        return (self.template.render([*messages, _by_user(question)]),)

    def document_head(self, document: str) -> Prompt:
        asked = [str(self.prompt(Question(letter, document))[0]) for letter in "ab"]
        return (os.path.commonprefix(asked),)  # noqa: RUF071 (texts, and no paths)

    def needle_prompt(self, context: str, cities: Sequence[str], num_needles: int = 1) -> str:
        question = prompts.needle_question(cities, num_needles)
        return str(self.prompt(Question(f"{context} {question}"))[0])

    def encode(self, prompt: Prompt) -> list[int]:
        return [token for text in prompt for token in self.tokenizer.encode(str(text))]


def _by_user(question: Question) -> dict[str, str]:
    about = "" if question.document is None else f"{question.document}\n\n"
    return {"role": "user", "content": about + question.text}


def chat_format(tokenizer: Tokenizer, vocab: Vocab) -> ChatFormat:
    """A text model is asked through the chat template beside its tokenizer, all others in LWM's words.

    Raises:
        UserError: the template cannot be read, or its tokenizer cannot spell special tokens.
    """
    if vocab.vision_size or not isinstance(tokenizer, HuggingFaceTokenizer | SentencePieceTokenizer):
        return LWMChat(tokenizer, vocab)
    directory = tokenizer.file.parent
    if (template := read_template(directory)) is None:
        return LWMChat(tokenizer, vocab)
    if isinstance(tokenizer, SentencePieceTokenizer):
        raise UserError(
            f"{directory} has a chat template, whose special tokens {tokenizer.file.name} cannot spell: "
            "put the model's tokenizer.json beside it"
        )
    ends = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    return TemplateChat(tokenizer, template, tuple(dict.fromkeys(ends + turn_ends(directory))))
