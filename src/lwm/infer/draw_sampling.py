"""How pictures and videos are drawn, and where a model says how it draws best: in `drawing.json` beside its config."""

import math
from dataclasses import dataclass
from pathlib import Path

from lwm.core.config import from_json
from lwm.core.errors import UserError
from lwm.core.files import read_json
from lwm.infer.sampling import Sampling
from lwm.weights.store import DRAWING

#: drawings that one is chosen from, at most: they are drawn together
MOST_TRIES = 64


@dataclass(frozen=True)
class DrawSampling(Sampling):
    """How the codes of frames are drawn, and how much the prompt is heeded."""

    #: 0 takes the likeliest code; 1 draws from the model's distribution; in between sharpens it
    temperature: float = 0.7
    #: classifier-free guidance of the first frame, the second, ..., the last for all that follow: 1 takes the prompt as
    #: it is, more draws away from what would have come unasked
    cfg: tuple[float, ...] = (2.0,)
    #: draw so many, keep the one that the model itself, looking at it, finds best told by the prompt; costs as many
    #: in time and in memory
    best_of: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.cfg or not all(0 <= guide < math.inf for guide in self.cfg):
            raise UserError(f"cfg {' '.join(map(str, self.cfg))}: give one or more numbers of 0 or more")
        if not 1 <= self.best_of <= MOST_TRIES:
            raise UserError(f"best_of {self.best_of}: give 1 to {MOST_TRIES}")

    def plain(self) -> Sampling:
        """What picks each code, which is all that the compiled programs know of it."""
        return Sampling(self.temperature, self.top_k, self.top_p)


def sampling_of(model: Path) -> DrawSampling:
    """How a model's directory says that it draws best; the defaults, where it says nothing.

    Raises:
        UserError: a `drawing.json` that cannot be read or has other fields or values.
    """
    file = model / DRAWING
    if not file.is_file():
        return DrawSampling()
    sampling: DrawSampling = from_json(DrawSampling, read_json(file, f"cannot read {file}"), str(file))
    return sampling
