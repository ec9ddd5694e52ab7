"""What a model is asked about the small world: to draw, to film, to tell, to answer, to find a frame in a long video.

Scenes are such as are kept out of training. Drawings are read back by the world's own checker.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from lwm.evals.journal import Row
from lwm.infer import prompts
from lwm.infer.draw_sampling import DrawSampling
from lwm.infer.engine import Engine
from lwm.infer.pictures import DrawTask, draw_best
from lwm.infer.prompts import Prompt
from lwm.infer.session import require_tokenizer
from lwm.vqgan.codec import FrameCodec
from lwm.weights.load import LoadedModel
from lwm.world.checker import Reading, direction_of, found_at, read
from lwm.world.draw import draw
from lwm.world.film import CLIP, film_questions, random_film
from lwm.world.language import Told, caption, place_of, understand
from lwm.world.questions import questions
from lwm.world.scene import HELD_OUT_PAIRS, MAX_SPRITES, Look, Scene, Sprite, random_scene, scene_for

#: seeds of training lie below
SEED = 1 << 41
#: the last word of each seed, so that no two tasks share a scene
IMAGES, NEW, CLIPS, TOLD, ASKED, FILMS = range(1, 7)
ANSWER_TOKENS = 64
TELL = {1: "What do you see?", CLIP: "Describe the video."}


@dataclass(frozen=True)
class Subject:
    """Who is examined, and how it is to draw."""

    model: LoadedModel
    engine: Engine
    codec: FrameCodec
    sampling: DrawSampling
    seed: int = 0

    def draw(self, words: Sequence[str], num_frames: int, seed: int) -> list[Int32[np.ndarray, "frames P"]]:
        """The codes drawn for each caption."""
        ask = prompts.draw_image if num_frames == 1 else prompts.draw_video
        asked = [ask(own) for own in words]
        task = DrawTask(asked, num_frames, self.sampling.plain(), self.sampling.cfg, seed)
        return draw_best(task, words, self.sampling.best_of, self.model, self.engine)

    def answer(self, asked: Sequence[Prompt]) -> list[str]:
        """The likeliest answer to each prompt."""
        tokenizer, vocab = require_tokenizer(self.model), self.model.config.vocab
        rows = [prompts.encode_prompt(tokenizer, vocab, prompt) for prompt in asked]
        ids = self.engine.generate(rows, ANSWER_TOKENS, stop_ids=prompts.stop_ids(tokenizer))
        return [tokenizer.decode([token for token in own if token < vocab.text_size]).strip() for own in ids]


@dataclass(frozen=True)
class Drawing:
    """Pictures or clips out of words. A picture is right if all that was asked of it is; a clip, if all directions are.

    `new`: of one shape in a colour that no training showed it in.
    """

    name: str
    count: int
    num_frames: int = 1
    new: bool = False
    at_once: int = 20

    def scene(self, number: int) -> tuple[Scene, str]:
        """What is to be drawn, and the words for it."""
        rng = np.random.default_rng((SEED, number, NEW if self.new else IMAGES if self.num_frames == 1 else CLIPS))
        if not self.new:
            scene = scene_for(True, rng, self.num_frames, MAX_SPRITES if self.num_frames == 1 else 2)
            return scene, caption(scene, rng)
        shape, colour = HELD_OUT_PAIRS[number % len(HELD_OUT_PAIRS)]
        (sprite,) = random_scene(rng, 1, 1).sprites
        known = Sprite(shape, colour, sprite.size, sprite.x, sprite.y)
        scene = Scene(random_scene(rng, 1, 1).ground, (known,))
        return scene, caption(scene, rng)

    def run(self, numbers: Sequence[int], subject: Subject) -> list[Row]:
        told = [self.scene(number)[1] for number in numbers]
        codes = subject.draw(told, self.num_frames, subject.seed + numbers[0])
        return [
            self._row(number, words, own, [read(frame) for frame in subject.codec.decode(own)])
            for number, words, own in zip(numbers, told, codes, strict=True)
        ]

    def _row(self, number: int, words: str, codes: np.ndarray, readings: list[Reading]) -> Row:
        right = attributes(words, readings)
        judged = [was for name, was in right if name == "direction"] if self.num_frames > 1 else [w for _, w in right]
        return {
            "task": self.name,
            "number": number,
            "asked": words,
            "attributes": [[name, was] for name, was in right],
            "correct": all(judged),
            "codes": codes.tolist(),
        }


def attributes(words: str, readings: Sequence[Reading]) -> list[tuple[str, bool]]:
    """Each attribute that a caption asks for, and whether the frames have it."""
    meaning = understand(words)
    if meaning is None:
        raise ValueError(f"not a caption of this world: {words!r}")
    found = [judged for told in meaning.sprites for judged in _of_sprite(told, readings)]
    if meaning.ground is not None:
        found.append(("ground", readings[0].ground == meaning.ground))
    at_first = sum(told.event != "appears" for told in meaning.sprites)
    return [*found, ("count", len(readings[0].looks) == at_first)]


def _of_sprite(told: Told, readings: Sequence[Reading]) -> list[tuple[str, bool]]:
    """What is asked of one sprite, judged on the shape that comes nearest where it should first be seen."""
    first = readings[0]
    if told.event == "appears":  # in whichever frame
        first = next((later for later in readings[1:] if found_at(later, told.shape, told.colour)), first)
    choices = [_of_look(told, look, readings) for look in first.looks]
    nothing = [(name, False) for name, asked, _ in _asked(told, None, readings) if asked is not None]
    return max(choices, key=lambda choice: sum(was for _, was in choice), default=nothing)


def _of_look(told: Told, look: Look, readings: Sequence[Reading]) -> list[tuple[str, bool]]:
    return [(name, true == asked) for name, asked, true in _asked(told, look, readings) if asked is not None]


def _asked(told: Told, look: Look | None, readings: Sequence[Reading]) -> Iterator[tuple[str, str | None, str | None]]:
    """Each attribute, what is asked of it, and what the frames show."""
    yield "shape", told.shape, look and look.shape
    yield "colour", told.colour, look and look.colour
    yield "size", told.size, look and look.size
    yield "place", told.place, look and place_of(look.x, look.y)
    if len(readings) > 1:
        yield "direction", told.direction, direction_of(readings, told.shape, told.colour)
        yield "event", told.event, _event(told, readings[0], readings[-1])


def _event(told: Told, first: Reading, last: Reading) -> str | None:
    """What became of a shape between the first frame and the last."""
    before, after = (bool(found_at(reading, told.shape, told.colour)) for reading in (first, last))
    if told.into is not None and before and not after and found_at(last, told.shape, told.into):
        return "changes"
    return {(False, True): "appears", (True, False): "vanishes"}.get((before, after))


@dataclass(frozen=True)
class Telling:
    """Captions of pictures or clips: right if they name every sprite and nothing they say is wrong."""

    name: str
    count: int
    num_frames: int = 1
    at_once: int = 20

    def scene(self, number: int) -> Scene:
        """What is to be told."""
        return _scene(number, self.num_frames, TOLD)

    def run(self, numbers: Sequence[int], subject: Subject) -> list[Row]:
        scenes = [self.scene(number) for number in numbers]
        asked = [prompts.about_frames(TELL[self.num_frames], [subject.codec.encode(draw(scene))]) for scene in scenes]
        answers = subject.answer(asked)
        meanings = [understand(answer) for answer in answers]
        return [
            {
                "task": self.name,
                "number": number,
                "asked": TELL[self.num_frames],
                "response": answer,
                "correct": meaning is not None and meaning.holds_of(scene),
            }
            for number, scene, answer, meaning in zip(numbers, scenes, answers, meanings, strict=True)
        ]


@dataclass(frozen=True)
class Asking:
    """Questions about pictures or clips: right if the answer is the word."""

    name: str
    count: int
    num_frames: int = 1
    at_once: int = 20

    def run(self, numbers: Sequence[int], subject: Subject) -> list[Row]:
        scenes = [_scene(number, self.num_frames, ASKED) for number in numbers]
        chosen = [
            questions(scene, np.random.default_rng((SEED, n)))[0] for n, scene in zip(numbers, scenes, strict=True)
        ]
        asked = [
            prompts.about_frames(question.text, [subject.codec.encode(draw(scene))])
            for scene, question in zip(scenes, chosen, strict=True)
        ]
        return [
            {
                "task": self.name,
                "number": number,
                "kind": question.kind,
                "asked": question.text,
                "response": answer,
                "answer": question.answer,
                "correct": answer == question.answer,
            }
            for number, question, answer in zip(numbers, chosen, subject.answer(asked), strict=True)
        ]


@dataclass(frozen=True)
class Finding:
    """A marked frame in a long video: what it shows, or when it comes."""

    name: str
    count: int
    num_frames: int
    kind: str
    at_once: int = 1

    def run(self, numbers: Sequence[int], subject: Subject) -> list[Row]:
        rows = []
        for number in numbers:
            rng = np.random.default_rng((SEED, number, FILMS))
            film = random_film(rng, self.num_frames, frozenset(HELD_OUT_PAIRS))
            asked = next(question for question in film_questions(film, rng) if question.kind == self.kind)
            codes = np.concatenate([subject.codec.encode(frames) for frames in film.frames()])
            (answer,) = subject.answer([prompts.about_frames(asked.text, [codes])])
            rows.append(
                {
                    "task": self.name,
                    "number": number,
                    "asked": asked.text,
                    "place": film.place,
                    "response": answer,
                    "answer": asked.answer,
                    "correct": answer == asked.answer,
                }
            )
        return rows


#: `count` questions of one kind, `at_once` of them asked together. Each row that `run` returns says what was `asked`,
#: what came, and whether it is `correct`.
Task = Drawing | Telling | Asking | Finding


def _scene(number: int, num_frames: int, task: int) -> Scene:
    rng = np.random.default_rng((SEED, number, num_frames, task))
    return scene_for(True, rng, num_frames, MAX_SPRITES if num_frames == 1 else 2)
