"""Films and stories are functions of a seed, and what is said of them is to be seen in them."""

import numpy as np

from lwm.world.checker import read
from lwm.world.draw import draw
from lwm.world.film import CLIP, film_questions, random_film
from lwm.world.scene import DIRECTIONS, MARKED, PLACES
from lwm.world.story import STRIDE, random_story


def test_one_frame_is_marked_and_the_answers_are_those_of_the_pixels():
    for seed in range(12):
        rng = np.random.default_rng(seed)
        film = random_film(rng, 45)
        frames = np.concatenate(list(film.frames()))
        assert len(frames) == film.num_frames == 40
        readings = [read(frame) for frame in frames]
        assert [place for place, reading in enumerate(readings) if reading.ground == MARKED] == [film.place]
        (look,) = readings[film.place].looks
        answers = {question.kind: question.answer for question in film_questions(film, rng)}
        assert answers["what"] == f"a {look.colour} {look.shape}"
        assert (answers["colour"], answers["shape"]) == (look.colour, look.shape)
        assert film.place % CLIP and answers["when"] == f"after {readings[film.place - 1].ground}"


def test_a_story_shows_what_it_tells():
    for seed in range(30):
        story = random_story(np.random.default_rng(seed))
        assert len(story.sentences) == len(story.pictures) + 1
        looks = []
        for scene in story.pictures:
            (look,) = read(draw(scene)[0]).looks
            looks.append(look)
            assert 0 <= look.x < PLACES and 0 <= look.y < PLACES
        begins, gone, changed = looks
        assert story.asked == f"Tell a story of a {begins.colour} {begins.shape}, with pictures."
        way = story.sentences[1].removeprefix("It went ").removesuffix(".")
        assert (gone.x - begins.x, gone.y - begins.y) == tuple(STRIDE * step for step in DIRECTIONS[way])
        assert story.sentences[2] == f"Then it became {changed.colour}." and changed.colour != gone.colour
        assert (changed.x, changed.y, changed.shape) == (gone.x, gone.y, gone.shape)
