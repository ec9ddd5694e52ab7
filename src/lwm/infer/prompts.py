"""The words around a question, as LWM's models learned them. Training data, chat and evals all take them from here.

Each function returns the text up to where the model's answer begins. Every space counts.
"""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from jaxtyping import Int32

from lwm.core.vocab import Vocab
from lwm.data.tokenizer import Tokenizer
from lwm.data.vision import CLOSING, OPENING, FrameIds, films_in

#: texts, and the codes of frames between them
FrameCodes = Int32[np.ndarray, "_ P"]
Prompt = tuple[str | FrameCodes, ...]

SYSTEM = "You are a helpful assistant."
SHORT_ANSWER = (
    "Don't give information outside the document or repeat your findings. Keep your response short and direct."
)
ALL_ANSWERS = "Don't give information outside the document."
#: whose numbers are hidden; the nano model is never trained on them
NEEDLE_CITIES = (
    "Amsterdam", "Athens", "Baghdad", "Bangkok", "Barcelona", "Beijing", "Berlin", "Bogota", "Boston", "Brussels",
    "Budapest", "Cairo", "Chicago", "Copenhagen", "Dallas", "Delhi", "Dublin", "Geneva", "Havana", "Helsinki",
    "Istanbul", "Jakarta", "Karachi", "Lagos", "Lima", "Lisbon", "London", "Los Angeles", "Madrid", "Manila",
    "Melbourne", "Mexico City", "Miami", "Milan", "Montreal", "Moscow", "Mumbai", "Nairobi", "New York", "Oslo",
    "Paris", "Prague", "Rome", "San Francisco", "Santiago", "Seattle", "Seoul", "Shanghai", "Singapore", "Stockholm",
    "Sydney", "Taipei", "Tokyo", "Toronto", "Vancouver", "Vienna", "Warsaw", "Zurich",
)  # fmt: skip


def chat(question: str) -> str:
    """A question by itself."""
    return f"{SYSTEM} USER: {question} ASSISTANT:"


def document(context: str, question: str) -> str:
    """A question about a document that stands before it."""
    return f"{document_head(context)} {question} {SHORT_ANSWER} ASSISTANT:"


def document_head(context: str) -> str:
    """What all questions about one document begin with: a session reads it once."""
    return f"{SYSTEM} USER: {context}"


def draw_image(caption: str) -> str:
    """Ask for a picture; the answer begins with `<vision>`."""
    return f"{SYSTEM} USER: Generate an image of {caption} ASSISTANT:"


def draw_video(caption: str) -> str:
    """Ask for a video."""
    return f"{SYSTEM} USER: Generate a video of {caption} ASSISTANT:"


def about_frames(question: str, media: Sequence[FrameCodes]) -> Prompt:
    """A question about pictures and videos, which stand between it and the answer."""
    return _asked(f"{SYSTEM} USER: {question}", media)


def next_turn(conversation: Prompt, answer: Prompt, question: str, media: Sequence[FrameCodes] = ()) -> Prompt:
    """The next question after `conversation` (the previous prompt) was answered by `answer` (see `in_pieces`)."""
    (*before, last), (first, *others) = conversation, answer
    asked = str(last).rstrip()
    *said, end = f"{asked} {first}" if first else asked, *others
    return *before, *said, *_asked(f"{end} USER: {question}", media)


def in_pieces(ids: Sequence[int], tokenizer: Tokenizer, vocab: Vocab) -> Prompt:
    """An answer as text and films in turn. Text comes first and last, without the marks around films."""
    texts, films = [""], list[FrameCodes]()
    for is_vision, run in groupby(ids, lambda token: token >= vocab.text_size):
        own = list(run)
        if not is_vision:
            texts[-1] += tokenizer.decode(own)
        for film in films_in(own, vocab):
            films.append(film)
            texts[-1] = texts[-1].removesuffix(OPENING)
            texts.append("")
    first, *others = texts[0].lstrip(), *(text.removeprefix(CLOSING) for text in texts[1:])
    *said, last = first, *(piece for pair in zip(films, others, strict=True) for piece in pair)
    return *said, str(last).rstrip()


def _asked(text: str, media: Sequence[FrameCodes]) -> Prompt:
    return (f"{text}\n", *media, " ASSISTANT:") if media else (f"{text} ASSISTANT:",)


def needle(city: str, number: str | int) -> str:
    """The sentence to hide in a haystack."""
    return f"\nThe special magic {city} number is: {number}\n"


def needle_prompt(context: str, cities: Sequence[str], num_needles: int = 1) -> str:
    """Ask for the numbers of `cities` in a context that holds `num_needles`: LWM's single- or multi-needle prompt.

    Both end with a space, which LWM's chat prompts do not.
    """
    return f"{document_head(context)} {needle_question(cities, num_needles)} ASSISTANT: "


def needle_question(cities: Sequence[str], num_needles: int = 1) -> str:
    """What follows the context in `needle_prompt`."""
    if max(len(cities), num_needles) == 1:
        return f"What is the special magic {cities[0]} number? {SHORT_ANSWER}"
    if len(cities) == 1:
        return f"What is the special magic number for {cities[0]}? {ALL_ANSWERS}"
    return f"What are the special magic numbers for {', '.join(cities[:-1])}, and {cities[-1]}? {ALL_ANSWERS}"


def encode(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The ids of a prompt as a model reads it: behind the tokenizer's beginning-of-sequence id, if it has one."""
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return bos + tokenizer.encode(prompt)


def encode_prompt(tokenizer: Tokenizer, vocab: Vocab, prompt: Prompt) -> list[int]:
    """The ids of a prompt with frames in it."""
    ids = encode(tokenizer, "")
    for part in prompt:
        ids += tokenizer.encode(part) if isinstance(part, str) else FrameIds(vocab, tokenizer).of(part)
    return ids


def stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that end an answer; none if the tokenizer has no end-of-sequence id."""
    return () if tokenizer.eos_id is None else (tokenizer.eos_id,)
