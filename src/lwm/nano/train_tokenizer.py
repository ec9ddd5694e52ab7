"""Train the nano model's tokenizers: `python -m lwm.nano.train_tokenizer` writes them into `runs/`.

Byte-level BPE of 2,048 pieces. Numbers are cut into pairs of digits from the left, and every pair is a piece: no
number is harder than another, and few say the same piece twice, after which a copy could go on in two ways. Ids 0, 1, 2
are `<pad>`, `<s>` (begin) and `</s>` (end), where Llama has them.

Before it learns to see, the model is given a second one that has the words of the small world besides. A caption is
half as long with it, and a colour is one token to attend to instead of three.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from lwm.core.files import whole
from lwm.nano import RUNS
from lwm.nano.corpus import training_documents
from lwm.nano.facts import prompts, sentences
from lwm.nano.world_records import Records, words
from lwm.world.film import CLIP, film_questions, random_film
from lwm.world.story import random_story

#: pieces of the text tokenizer, and of the one with the words of the small world
SIZE, SIZE_WITH_WORDS = 2048, 2181
TEXT_TOKENIZER, WORLD_TOKENIZER = (RUNS / name / "tokenizer.json" for name in ("nano-tokenizer", "nano-words"))
#: scenes that are sure to have all words between them
NUM_SCENES = 2000
SPECIAL = ("<pad>", "<s>", "</s>")
#: the embedded model's
TOKENIZER_FILE = Path(__file__).parent / "weights" / "tokenizer.json"
#: how often the fixed wordings count beside 7 MB of documents, so that a word of a prompt is one piece
PROMPT_WEIGHT = 1_000
SENTENCE_WEIGHT = 20
PAIR_WEIGHT = 5_000


def train_tokenizer(texts: Iterator[str]) -> Tokenizer:
    """Learn merges from `texts`."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(Regex(r"[0-9]{1,2}"), "isolated")
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def training_texts() -> Iterator[str]:
    """The training documents and, many times over, the fixed wordings."""
    for document in training_documents():
        yield document.text
    yield from prompts() * PROMPT_WEIGHT
    yield from sentences() * SENTENCE_WEIGHT
    yield from [f"{pair:02d}" for pair in range(100)] * PAIR_WEIGHT


def world_words() -> list[str]:
    """Every word that is said of the small world and follows a space."""
    texts: set[str] = set()
    for num_frames in (1, CLIP):
        for place in range(NUM_SCENES):
            texts.update(words(*Records(0, num_frames).scene(place)).values())
    for seed in range(NUM_SCENES // 10):
        rng = np.random.default_rng(seed)
        story, asked = random_story(rng), film_questions(random_film(rng, CLIP), rng)
        texts.update((f" {story.asked}", *(f" {sentence}" for sentence in story.sentences)))
        texts.update(chain.from_iterable((f" {question.text}", f" {question.answer}") for question in asked))
    return sorted({word for text in texts for word in re.findall(r" ([A-Za-z]+)", text)})


def with_words(tokenizer: Tokenizer, added: Iterable[str]) -> Tokenizer:
    """The same tokenizer with more pieces behind its own, so that each word `added` is one where it follows a space.

    They are put together last of all, from the pieces that a word had: other text is cut as before, unless a word of
    it begins alike.
    """
    state = json.loads(tokenizer.to_str())
    ids, merges = state["model"]["vocab"], state["model"]["merges"]
    merged = {tuple(merge) for merge in merges}
    for word in added:
        whole_piece, *rest = tokenizer.encode(f" {word}").tokens
        for piece in rest:
            longer = whole_piece + piece
            ids.setdefault(longer, len(ids))
            if (whole_piece, piece) not in merged:
                merged.add((whole_piece, piece))
                merges.append([whole_piece, piece])
            whole_piece = longer
    return Tokenizer.from_str(json.dumps(state))


def main() -> None:
    """Train and write those that are not there."""
    _write_once(TEXT_TOKENIZER, lambda: train_tokenizer(training_texts()))
    _write_once(WORLD_TOKENIZER, lambda: with_words(Tokenizer.from_file(str(TEXT_TOKENIZER)), world_words()))


def _write_once(file: Path, make: Callable[[], Tokenizer]) -> None:
    """A tokenizer that is there stays: stages may have been trained with it."""
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole(file) as scratch:
        make().save(str(scratch))


if __name__ == "__main__":
    main()
