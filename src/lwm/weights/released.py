"""The eleven models that LWM published, by name: what their files do not say.

All are Llama-2 7B in shape. Text models came as Hugging Face directories and, with `-Jax` behind their name, as
streams of parameters; vision-language models as streams alone. (The models' pages; contexts and rotary bases: paper,
tables 11 and 13, and the released configurations.)
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from lwm.core.vocab import Vocab
from lwm.model.config import SIZES, ModelConfig

#: whose models they are, on the hub
OWNER = "LargeWorldModel"
STREAM_SUFFIX = "-Jax"
#: the files of a published stream's directory
STREAM_FILE, TOKENIZER_FILE, CODEC_FILE = "params", "tokenizer.model", "vqgan"

_LENGTHS = {"32K": 32_768, "128K": 131_072, "256K": 262_144, "512K": 524_288, "1M": 1_048_576}
#: rotary base of the text models; the vision stages went on from the longest one and kept its base
_TEXT_THETA = {"128K": 1e7, "256K": 1e7, "512K": 2.5e7, "1M": 5e7}
_VISION_THETA, _VISION_LENGTHS = 5e7, ("32K", "128K", "1M")


@dataclass(frozen=True)
class Released:
    """A published model."""

    #: without the `-Jax` of its stream
    name: str
    #: tokens it was trained to read
    context: int
    rope_theta: float
    #: whether it reads and writes frames, too
    sees: bool
    #: trained on conversations; the others continue text
    chats: bool

    @property
    def files(self) -> tuple[str, ...]:
        """What its stream's directory holds."""
        return (STREAM_FILE, TOKENIZER_FILE, CODEC_FILE) if self.sees else (STREAM_FILE, TOKENIZER_FILE)

    @property
    def drawing(self) -> dict[str, Any]:
        """How LWM's scripts draw a picture with it: guided; frames after the first as they come."""
        return {"temperature": 1.0, "top_k": 8_192, "cfg": [5.0, 1.0]}

    @property
    def config(self) -> ModelConfig:
        """What it computes."""
        shape = dataclasses.replace(SIZES["7b"], rope_theta=self.rope_theta, max_context=self.context)
        return dataclasses.replace(shape, vocab=SEEING) if self.sees else shape


#: LWM's ids: 32,000 of text, 8,192 codes, end of frame, end of vision, and 254 to spare
SEEING = Vocab(text_size=32_000, vision_size=8_448, num_codes=8_192, tokens_per_frame=256)

RELEASED: dict[str, Released] = {
    model.name: model
    for model in (
        *(Released(f"LWM-Text-{size}", _LENGTHS[size], theta, False, False) for size, theta in _TEXT_THETA.items()),
        *(Released(f"LWM-Text-Chat-{size}", _LENGTHS[size], theta, False, True) for size, theta in _TEXT_THETA.items()),
        *(Released(f"LWM-Chat-{size}", _LENGTHS[size], _VISION_THETA, True, True) for size in _VISION_LENGTHS),
    )
}


def released(name: str) -> Released | None:
    """The published model that a name, a directory's name or a hub's id stands for.

    The hub has the vision-language models as LWM-1M-Jax, the papers and pages as LWM-Chat-1M.
    """
    short = name.rsplit("/", 1)[-1].removesuffix(STREAM_SUFFIX)
    return RELEASED.get(short) or RELEASED.get(short.replace("LWM-", "LWM-Chat-", 1))
