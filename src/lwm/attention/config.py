"""How attention is computed: never what it means."""

from dataclasses import dataclass
from typing import Literal

from lwm.core.errors import UserError

#: the `checkpoint_name` of what the backward pass needs of the forward pass: a remat policy may keep it by this name
KEPT = "attention"


@dataclass(frozen=True)
class AttentionConfig:
    """The kernel that does the arithmetic, and how the tokens of one sequence meet across the mesh's sp axis.

    Raises:
        UserError: a block or degree that is not positive.
    """

    #: `blockwise`: tiles with an online softmax, linear memory. `reference`: dense, for tests.
    kernel: Literal["blockwise", "reference"] = "blockwise"
    #: `ring`: keys and values go round. `all_to_all`: heads are split instead of tokens. `hybrid`: both.
    context: Literal["ring", "all_to_all", "hybrid"] = "ring"
    #: `hybrid` only: how many neighbours along sp trade heads for tokens; the ring goes over the rest
    all_to_all_degree: int = 2
    #: queries in a tile; 256 x 256 scores of a few heads stay in a CPU's cache
    query_block: int = 256
    #: keys in a tile
    key_block: int = 256

    def __post_init__(self) -> None:
        for name in ("all_to_all_degree", "query_block", "key_block"):
            if getattr(self, name) < 1:
                raise UserError(f"attention {name} is {getattr(self, name)}: it must be at least 1")
