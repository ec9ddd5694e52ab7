"""Records of the small world for a model to learn from: scenes as codes, told, asked about, to be drawn.

    python -m lwm.nano.world_records --codec runs/nano-codec/model --out runs/world

One record serves both directions, by the fields that a run reads of it: `DRAW` asks for the frames, `TELL` for a
caption, `LOOK` for answers to several questions, one of which may give away another, and `UNASKED` is what guidance
draws away from. `STORY` is told and drawn in turn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import jax
import numpy as np
import pyarrow
import tyro
from pyarrow import parquet

from lwm.core.files import whole
from lwm.core.mesh import MeshShape, make_mesh
from lwm.data.vision import pack
from lwm.infer import prompts
from lwm.nano.shown import SHOWN, write_shown
from lwm.vqgan.codec import FrameCodec
from lwm.weights.codec_store import load_codec
from lwm.world.draw import draw
from lwm.world.film import CLIP, mark
from lwm.world.language import caption
from lwm.world.questions import questions
from lwm.world.scene import HELD_OUT_PAIRS, MAX_SPRITES, Scene, choose, scene_for
from lwm.world.story import random_story

TURNS = 4
DRAW, UNASKED, TELL = "[draw],vision", "vision", "[tell],[vision],[after],told"
_TURNS = [f"[ask_{n}],answer_{n}" for n in range(2, TURNS + 1)]
#: what is looked at is learned too: most of a clip follows from how it begins
_FIRST = "[before],vision,[after],answer_1"
#: a conversation may go on with or without the end of an answer between two turns
LOOK, LOOK_ON = (between.join([_FIRST, *_TURNS]) for between in (",<|eos|>,", ","))
STORY = "[ask],text_1,vision_1,text_2,vision_2,text_3,vision_3,text_4"
#: how a caption is asked for, of a picture and of a video
ASK_TO_TELL = {
    False: ("What is in the picture?", "Describe the picture.", "What do you see?"),
    True: ("What happens in the video?", "Describe the video.", "What do you see?"),
}
TEXTS = (
    "draw",
    "tell",
    "told",
    "before",
    "after",
    *(f"{kind}_{n}" for n in range(1, TURNS + 1) for kind in ("ask", "answer")),
)
SCENES_AT_ONCE = 256
#: how many there are in `stories`, and their seed
STORIES, STORY_SEED = 15_000, 6


@dataclass(frozen=True)
class Records:
    """How many to make, and of what."""

    count: int
    num_frames: int = 1
    max_sprites: int = MAX_SPRITES
    #: on the ground of the marked frames of films
    marked: bool = False
    #: of scenes that no other file shows
    held_out: bool = False
    seed: int = 0

    def scene(self, place: int) -> tuple[Scene, np.random.Generator]:
        """The scene of a record, and the generator that its words are drawn from."""
        rng = np.random.default_rng((self.seed, place))
        scene = scene_for(self.held_out, rng, self.num_frames, self.max_sprites)
        return mark(scene) if self.marked else scene, rng


#: the files of a training
FILES: dict[str, Records] = {
    "single": Records(40_000, max_sprites=1, seed=7),
    "pictures": Records(60_000, seed=1),
    "moves": Records(40_000, num_frames=4, max_sprites=1, seed=9),
    "clips_4": Records(20_000, num_frames=4, max_sprites=2, seed=2),
    "clips_8": Records(20_000, num_frames=CLIP, max_sprites=2, seed=3),
    "marked": Records(5_000, max_sprites=1, marked=True, seed=4),
    "held_out": Records(1_000, num_frames=CLIP, max_sprites=2, held_out=True, seed=5),
    "held_out_pictures": Records(1_000, held_out=True, seed=8),
}


def _around_frames(question: str) -> tuple[str, str]:
    """What stands before the frames that a question is about, and what after them."""
    before, _, after = map(str, prompts.about_frames(question, [np.zeros((0, 0), np.int32)]))
    return before, after


def conversation(turns: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The texts of questions about frames, and of their answers, for the fields of `LOOK`."""
    before, after = _around_frames(turns[0][0])
    record = {"before": before, "after": after}
    record |= {f"ask_{number}": f" USER: {asked} ASSISTANT:" for number, (asked, _) in enumerate(turns, 1)}
    return record | {f"answer_{number}": f" {answer}" for number, (_, answer) in enumerate(turns, 1)}


def words(scene: Scene, rng: np.random.Generator) -> dict[str, str]:
    """The texts of a record."""
    moving = scene.num_frames > 1
    told = caption(scene, rng)
    turns = [(choose(rng, ASK_TO_TELL[moving]), caption(scene, rng))]
    turns += [(question.text, question.answer) for question in questions(scene, rng)[: TURNS - 1]]
    asked = prompts.draw_video(told) if moving else prompts.draw_image(told)
    tell, _ = _around_frames(choose(rng, ASK_TO_TELL[moving]))
    return {"draw": asked, "tell": tell, "told": f" {told}"} | conversation(
        [turns[place] for place in rng.permutation(len(turns))]
    )


def _drawn(config: Records) -> Iterator[tuple[Scene, np.random.Generator]]:
    return (config.scene(place) for place in range(config.count))


def write_records(file: Path, config: Records, codec: FrameCodec) -> None:
    """Write one Parquet file, with codes as bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    schema = pyarrow.schema([(name, pyarrow.string()) for name in TEXTS] + [("vision", pyarrow.binary())])
    with whole(file) as scratch, parquet.ParquetWriter(scratch, schema) as writer:
        drawn = _drawn(config)
        while some := list(islice(drawn, SCENES_AT_ONCE)):
            codes = codec.encode(np.concatenate([draw(scene) for scene, _ in some]))
            frames = codes.reshape(len(some), -1)
            rows = [words(*each) | {"vision": pack(own)} for each, own in zip(some, frames, strict=True)]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))


def write_stories(file: Path, count: int, codec: FrameCodec) -> None:
    """Write the Parquet file of stories."""
    file.parent.mkdir(parents=True, exist_ok=True)
    forbidden = frozenset(HELD_OUT_PAIRS)
    stories = [random_story(np.random.default_rng((STORY_SEED, place)), forbidden) for place in range(count)]
    pictures = np.concatenate([draw(scene) for story in stories for scene in story.pictures])
    codes = codec.encode(pictures).reshape(count, -1, codec.tokens_per_frame)
    rows = []
    for story, own in zip(stories, codes, strict=True):
        row: dict[str, str | bytes] = {"ask": prompts.chat(story.asked)}
        row |= {f"text_{number}": f" {sentence}" for number, sentence in enumerate(story.sentences, 1)}
        rows.append(row | {f"vision_{number}": pack(frame) for number, frame in enumerate(own, 1)})
    with whole(file) as scratch:
        parquet.write_table(pyarrow.Table.from_pylist(rows), scratch)


def main(codec: Path, out: Path) -> None:
    """Make every file that is not there yet."""
    loaded = load_codec(codec, make_mesh(MeshShape(), jax.devices()[:1]))
    for name, config in FILES.items():
        if not (out / f"{name}.parquet").exists():
            write_records(out / f"{name}.parquet", config, loaded)
    if not (out / "stories.parquet").exists():
        write_stories(out / "stories.parquet", STORIES, loaded)
    if not (out / SHOWN).exists():
        write_shown(out / SHOWN, loaded)


if __name__ == "__main__":
    tyro.cli(main)
