"""What the model sees, draws, films and tells of the small world, on scenes that no training showed."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np
from jaxtyping import UInt8

from lwm.evals.journal import Row
from lwm.evals.world_tasks import Drawing, Subject, Telling
from lwm.infer.session import Session
from lwm.world.checker import read
from lwm.world.draw import draw
from lwm.world.film import CLIP, film_questions, random_film
from lwm.world.scene import HELD_OUT_PAIRS
from lwm.world.story import random_story

#: seeds of training lie below
SEED = 1 << 42
PICTURES_DRAWN, CLIPS_FILMED, PICTURES_TOLD, CLIPS_TOLD = 12, 3, 4, 2
STORY_TOKENS = 192
#: frames around the marked one that are shown
AROUND = 3

Frames = UInt8[np.ndarray, "N side side 3"]


@dataclass(frozen=True)
class Exhibit:
    """Frames, what was asked for or said about them, and whether that is so."""

    words: str
    frames: Frames
    correct: bool


@dataclass(frozen=True)
class Found:
    """A question about a long video, and what it cost: `read_tokens` is what it was the first to have read."""

    question: str
    response: str
    truth: str
    read_tokens: int
    seconds: float

    @property
    def correct(self) -> bool:
        return self.response == self.truth


@dataclass(frozen=True)
class FilmSeen:
    """A long video; `excerpt` is the frames around the marked one, which is frame `place` of `num_frames`."""

    num_frames: int
    place: int
    excerpt: Frames
    turns: tuple[Found, ...]


@dataclass(frozen=True)
class StoryTold:
    """What was asked, and text and pictures in the order they came; of the pictures, how many have the right shape."""

    asked: str
    pieces: tuple[str | Frames, ...]
    right_pictures: int


@dataclass(frozen=True)
class WorldSeen:
    """All of it."""

    drawn: tuple[Exhibit, ...]
    filmed: tuple[Exhibit, ...]
    told: tuple[Exhibit, ...]
    film: FilmSeen
    story: StoryTold

    def summary(self) -> Row:
        """All of it in words, for `summary.json`: what was asked or said of each exhibit, and whether it is right."""

        def each(shown: tuple[Exhibit, ...]) -> list[Row]:
            return [{"words": one.words, "correct": one.correct} for one in shown]

        film = {"num_frames": self.film.num_frames, "place": self.film.place}
        return {
            "drawn": each(self.drawn),
            "filmed": each(self.filmed),
            "told": each(self.told),
            "film": film | {"turns": [asdict(turn) | {"correct": turn.correct} for turn in self.film.turns]},
            "story": {
                "asked": self.story.asked,
                "text": [piece for piece in self.story.pieces if isinstance(piece, str)],
                "right_pictures": self.story.right_pictures,
            },
        }

    def counts(self) -> list[tuple[str, int, int]]:
        """What was tried, how often it was right, and of how many."""
        each = {"pictures drawn": self.drawn, "clips filmed": self.filmed, "pictures and clips told": self.told}
        counted = [(name, sum(one.correct for one in shown), len(shown)) for name, shown in each.items()]
        found = sum(turn.correct for turn in self.film.turns)
        return [*counted, (f"questions about a video of {self.film.num_frames:,} frames", found, len(self.film.turns))]


def see_world(subject: Subject, film_frames: int, seed: int, tell: Callable[[str], None]) -> WorldSeen:
    """Draw, film, tell, find and tell stories; what goes on is passed to `tell`."""
    subject = replace(subject, seed=subject.seed + seed)
    tell("drawing pictures and clips")
    drawn = _drawn(Drawing("", PICTURES_DRAWN), subject, seed)
    filmed = _drawn(Drawing("", CLIPS_FILMED, CLIP), subject, seed)
    tell("looking at pictures and clips")
    told = _told(Telling("", PICTURES_TOLD), subject, seed) + _told(Telling("", CLIPS_TOLD, CLIP), subject, seed)
    tell("telling a story")
    story = _story(subject, seed)
    tell(f"watching a video of {film_frames:,} frames")
    return WorldSeen(drawn, filmed, told, _watch(subject, film_frames, seed), story)


def _numbers(seed: int, count: int) -> range:
    return range(seed * 1000, seed * 1000 + count)


def _drawn(task: Drawing, subject: Subject, seed: int) -> tuple[Exhibit, ...]:
    rows = task.run(_numbers(seed, task.count), subject)
    codes = [np.array(row["codes"], np.int32) for row in rows]
    return tuple(
        Exhibit(row["asked"], subject.codec.decode(own), row["correct"]) for row, own in zip(rows, codes, strict=True)
    )


def _told(task: Telling, subject: Subject, seed: int) -> tuple[Exhibit, ...]:
    numbers = _numbers(seed, task.count)
    rows = task.run(numbers, subject)
    return tuple(
        Exhibit(row["response"], draw(task.scene(number)), row["correct"])
        for number, row in zip(numbers, rows, strict=True)
    )


def _watch(subject: Subject, num_frames: int, seed: int) -> FilmSeen:
    """What the marked frame shows and when it comes: the video is read once, the second question goes on from there."""
    rng = np.random.default_rng((SEED, seed))
    film = random_film(rng, num_frames, frozenset(HELD_OUT_PAIRS))
    asked = sorted(film_questions(film, rng), key=lambda question: question.kind != "what")
    asked = [question for question in asked if question.kind in ("what", "when")]
    frames = np.concatenate(list(film.frames()))
    codes = subject.codec.encode(frames)
    # A video may well be longer than the texts that the model was made for: how it fares there is what is shown.
    context = codes.shape[0] * (codes.shape[1] + 1) + 1024
    config = replace(subject.model.config, max_context=max(context, subject.model.config.max_context))
    session = Session(replace(subject.model, config=config), subject.engine, max_new_tokens=32, remember=True)
    session.look(codes)
    turns = []
    for question in asked:
        answer = session.ask(question.text)
        seconds = answer.read_seconds + answer.answer_seconds
        turns.append(Found(question.text, answer.text, question.answer, answer.read_tokens, seconds))
    first = max(0, film.place - AROUND)
    return FilmSeen(len(frames), film.place, frames[first : film.place + AROUND + 1], tuple(turns))


def _story(subject: Subject, seed: int) -> StoryTold:
    story = random_story(np.random.default_rng((SEED, seed)), frozenset(HELD_OUT_PAIRS))
    session = Session(subject.model, subject.engine, max_new_tokens=STORY_TOKENS)
    answer = session.ask(story.asked)
    decode = subject.codec.decode
    pieces = [piece.strip() if isinstance(piece, str) else decode(piece) for piece in answer.pieces]
    (sprite,) = story.pictures[0].sprites
    seen = [read(piece[0]).looks for piece in pieces if not isinstance(piece, str)]
    shown = tuple(piece for piece in pieces if len(piece))
    return StoryTold(story.asked, shown, sum(sprite.shape in {look.shape for look in looks} for looks in seen))
