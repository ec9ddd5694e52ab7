"""One id space for text and vision: text ids at [0, text_size), vision ids after them.

A token alone says its modality. A text-only model has a vision part of size 0. LWM's vision part is 8448 ids:
8192 codes, then `end_of_frame` (after every frame but the last), `end_of_vision` (after the last), then spare.
"""

from dataclasses import dataclass

import jax

from lwm.core.errors import UserError

#: ids are int32
_MOST = 2**31 - 1


@dataclass(frozen=True)
class Vocab:
    """Sizes and special ids; `text_size` counts every text id, special ones included.

    Raises:
        UserError: a size that is negative or too large, codes and marks that do not fit, a special id that is no text.
    """

    text_size: int
    vision_size: int = 0
    num_codes: int = 0
    tokens_per_frame: int = 0
    bos_id: int = 1
    eos_id: int = 2

    def __post_init__(self) -> None:
        for name in ("text_size", "vision_size", "num_codes", "tokens_per_frame"):
            least = int(name == "text_size")
            if not least <= getattr(self, name) <= _MOST:
                raise UserError(f"{name} of a vocabulary is {getattr(self, name)}: give one from {least} to {_MOST}")
        if self.vision_size < self.num_codes + 2 and (self.vision_size or self.num_codes):
            raise UserError(
                f"vision_size {self.vision_size} has no room for {self.num_codes} codes, end of frame and end of vision"
            )
        if self.vision_size and not (self.num_codes and self.tokens_per_frame):
            raise UserError(
                f"a vocabulary of vision_size {self.vision_size} has num_codes {self.num_codes} and tokens_per_frame "
                f"{self.tokens_per_frame}: give 1 or more of each"
            )
        if self.size > _MOST:
            raise UserError(f"a vocabulary of {self.size} ids is too large: give text_size and vision_size smaller")
        for name in ("bos_id", "eos_id"):
            if not 0 <= getattr(self, name) < self.text_size:
                raise UserError(
                    f"{name} of a vocabulary is {getattr(self, name)}, which is none of its ids of text: give one "
                    f"from 0 to {self.text_size - 1}"
                )

    @property
    def size(self) -> int:
        """Ids in all, text and vision: the rows of the embedding."""
        return self.text_size + self.vision_size

    @property
    def end_of_frame(self) -> int:
        return self.text_size + self.num_codes

    @property
    def end_of_vision(self) -> int:
        return self.text_size + self.num_codes + 1

    def is_code(self, ids: jax.Array) -> jax.Array:
        """Which ids are codes, elementwise."""
        return (ids >= self.text_size) & (ids < self.text_size + self.num_codes)

    def is_vision(self, ids: jax.Array) -> jax.Array:
        """Which ids are codes or frame marks, elementwise."""
        return ids >= self.text_size
