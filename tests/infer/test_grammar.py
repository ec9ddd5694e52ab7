"""Whatever is drawn among what is allowed, the ids have the form of text with frames in it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.core.errors import UserError
from lwm.core.vocab import Vocab
from lwm.infer.grammar import Grammar, advance, allowed, begin, expect
from lwm.infer.sampling import FrameSampling

VOCAB = Vocab(text_size=8, vision_size=10, num_codes=6, tokens_per_frame=4)
GRAMMAR = Grammar(VOCAB, opening=(3, 5))
OPENING = jnp.array([3, 5], jnp.int32)


def letters(ids: list[int]) -> str:
    """A letter an id: t text, c code, F end of frame, V end of vision, x spare; `<` where the opening was said."""
    text = "".join(
        "t"
        if i < 8
        else "c"
        if i < 14
        else "F"
        if i == VOCAB.end_of_frame
        else "V"
        if i == VOCAB.end_of_vision
        else "x"
        for i in ids
    )
    said = [place for place in range(1, len(ids)) if tuple(ids[place - 1 : place + 1]) == GRAMMAR.opening]
    return "".join("<" if place in said else letter for place, letter in enumerate(text))


def walk(num_rows: int, steps: int, num_frames: int | None, seed: int = 0) -> np.ndarray:
    """Ids drawn at random among those allowed; the pieces of the opening more often than others."""

    @jax.jit
    def step(progress, key):
        scores = jax.random.normal(key, (num_rows, VOCAB.size)).at[:, OPENING].add(1.0)
        token = jnp.where(allowed(progress, GRAMMAR), scores, -jnp.inf).argmax(axis=-1).astype(jnp.int32)
        return advance(progress, token, GRAMMAR), token

    progress, tokens = expect(begin(num_rows), FrameSampling(num_frames).total, GRAMMAR), []
    for key in jax.random.split(jax.random.key(seed), steps):
        progress, token = step(progress, key)
        tokens.append(token)
    return np.stack(tokens, axis=1)


@pytest.mark.parametrize("num_frames", [None, 0, 1, 3])
def test_random_rows_have_the_form(num_frames):
    frames = []
    for ids in walk(64, 80, num_frames).tolist():
        text = letters(ids)
        assert re.fullmatch(r"(t|<cccc(Fcccc)*V)*(<c{0,4}|<cccc(F(cccc|$))*(F?c{0,3}))?", text), text
        frames.append(len(re.findall("cccc", text)))
    if num_frames is None:
        assert max(frames) > 3 and min(frames) < max(frames)
    else:
        assert max(frames) == num_frames


def test_a_number_of_frames_is_kept_in_one_go():
    for ids in walk(64, 80, 3).tolist():
        text = letters(ids)
        if "<" in text:
            assert re.match(r"t*<ccccFccccFccccVt*$", text) or len(text.split("<")[1]) < 15, text


def test_a_model_without_vision_may_say_anything():
    vocab = Vocab(text_size=8)
    grammar, progress = Grammar(vocab), begin(2)
    assert allowed(progress, grammar).all()
    assert not advance(progress, jnp.array([3, 7], jnp.int32), grammar).inside.any()


def test_an_opening_that_repeats_itself_is_refused():
    with pytest.raises(UserError, match="repeat an id"):
        Grammar(VOCAB, opening=(3, 5, 3))
