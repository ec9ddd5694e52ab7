"""Long videos to learn from: codes of clips one after another, a marked frame among them, and questions about it."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt16
from pyarrow import ArrowException, parquet

from lwm.core.errors import UserError
from lwm.core.vocab import Vocab
from lwm.data.examples import Encoder, Example
from lwm.data.fields import parse_fields
from lwm.data.positions import skip_positions
from lwm.data.records import Record
from lwm.data.tokenizer import Tokenizer
from lwm.data.vision import FrameIds, pack
from lwm.nano.world_records import FILES, LOOK, LOOK_ON, conversation
from lwm.world.film import CLIP, Film, film_questions, random_place


@dataclass(frozen=True)
class FilmData:
    """Which films to make, out of records of the small world (`python -m lwm.nano.world_records`)."""

    #: the directory of the records
    path: str
    #: clips of a film, at least and at most; short films are as frequent as long ones
    min_clips: int = 2
    max_clips: int = 20
    #: positions skip ahead between frames and reach up to this, as if frames had been left out; 0: they do not
    span: int = 0
    seed: int = 0
    #: films before the source ends and begins again
    num_records: int = 1 << 20

    def __post_init__(self) -> None:
        if not 1 <= self.min_clips <= self.max_clips:
            raise UserError(f"films of {self.min_clips} to {self.max_clips} clips: give 1 or more, the lower one first")
        if self.span < 0 or self.seed < 0:
            raise UserError(f"a span of {self.span} and a seed of {self.seed}: both must be 0 or more")

    def open(self, tokenizer: Tokenizer, vocab: Vocab) -> "FilmSource":
        """Read the codes.

        Raises:
            UserError: the records are not there, or are no codes of this vocabulary.
        """
        return FilmSource(self, tokenizer, vocab)


class FilmSource:
    """Random access to films (an `ExampleSource`)."""

    def __init__(self, config: FilmData, tokenizer: Tokenizer, vocab: Vocab) -> None:
        self._config, self._end_of_frame = config, vocab.end_of_frame
        frame_ids = FrameIds(vocab, tokenizer)
        self._encoder = Encoder(tokenizer, (parse_fields(LOOK), parse_fields(LOOK_ON)), frame_ids=frame_ids)
        self._clips, self._marked = (_codes(config.path, name, vocab) for name in ("clips_8", "marked"))

    def __len__(self) -> int:
        return self._config.num_records

    def __getitem__(self, index: int) -> Example:
        """Film `index` and what is asked about it."""
        rng = np.random.default_rng((self._config.seed, index, CLIP))
        least, most = np.log((self._config.min_clips, self._config.max_clips + 1))
        clips = rng.integers(len(self._clips), size=int(np.exp(rng.uniform(least, most))))
        marked = int(rng.integers(len(self._marked)))
        place = random_place(rng, len(clips))
        codes = self._clips[clips].reshape(CLIP * len(clips), -1)
        codes[place] = self._marked[marked][0]
        # Of the other clips nothing is said: their scenes need not be drawn up again.
        scenes = (FILES["clips_8"].scene(int(clips[place // CLIP]))[0],) * len(clips)
        asked = film_questions(Film(scenes, FILES["marked"].scene(marked)[0], place), rng)
        values = conversation([(question.text, question.answer) for question in asked]) | {"vision": pack(codes)}
        example = self._encoder.encode(Record(f"film/{self._config.seed}/{index}", values), index)
        return replace(example, positions=self._skip(example.tokens, rng)) if self._config.span else example

    def _skip(self, tokens: Int32[np.ndarray, "n"], rng: np.random.Generator) -> Int32[np.ndarray, "n"]:
        """Positions that skip between frames."""
        between = np.flatnonzero(tokens[:-1] == self._end_of_frame) + 1
        return skip_positions(len(tokens), between, self._config.span, rng)


def _codes(directory: str, name: str, vocab: Vocab) -> UInt16[np.ndarray, "records frames P"]:
    file = Path(directory) / f"{name}.parquet"
    try:
        rows = parquet.read_table(file, columns=["vision"])["vision"].to_pylist()
    except (OSError, ArrowException) as error:
        raise UserError(f"cannot read {file}: {error}; make it with python -m lwm.nano.world_records") from None
    shape = (FILES[name].count, FILES[name].num_frames, vocab.tokens_per_frame)
    codes = np.frombuffer(b"".join(rows), "<u2")
    if len(rows) != shape[0] or codes.size != np.prod(shape) or codes.max() >= vocab.num_codes:
        raise UserError(f"{file} holds {len(rows)} records, and not those that this model learns from: make it anew")
    return codes.reshape(shape)
