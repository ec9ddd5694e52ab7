"""A vocabulary whose numbers do not go together is refused, by the number."""

from typing import Any

import pytest

from lwm.core.errors import UserError
from lwm.core.vocab import Vocab


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text_size": 0}, "text_size of a vocabulary is 0: give one from 1"),
        ({"text_size": -64, "vision_size": 80, "num_codes": 16}, "text_size of a vocabulary is -64"),
        ({"text_size": 10**30}, "text_size of a vocabulary is 10+: give one from 1 to 2147483647"),
        ({"vision_size": -1}, "vision_size of a vocabulary is -1"),
        ({"vision_size": 8, "num_codes": -3}, "num_codes of a vocabulary is -3"),
        ({"vision_size": 8, "tokens_per_frame": -1}, "tokens_per_frame of a vocabulary is -1"),
        ({"vision_size": 9, "num_codes": 8}, "vision_size 9 has no room for 8 codes"),
        ({"vision_size": 10, "num_codes": 8}, "num_codes 8 and tokens_per_frame 0: give 1 or more of each"),
        ({"vision_size": 10, "tokens_per_frame": 4}, "num_codes 0 and tokens_per_frame 4: give 1 or more of each"),
        ({"num_codes": 8}, "vision_size 0 has no room for 8 codes"),
        (
            {"text_size": 2**31 - 1, "vision_size": 10, "num_codes": 8, "tokens_per_frame": 4},
            "a vocabulary of 2147483657 ids is too large",
        ),
        ({"bos_id": -1}, "bos_id of a vocabulary is -1, which is none of its ids of text: give one from 0 to 9"),
        ({"vision_size": 10, "num_codes": 8, "tokens_per_frame": 4, "eos_id": 10}, "eos_id of a vocabulary is 10"),
    ],
)
def test_numbers_that_do_not_go_together(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Vocab(**{"text_size": 10, **fields})


def test_numbers_that_do() -> None:
    assert Vocab(260, vision_size=96, num_codes=64, tokens_per_frame=16, bos_id=256, eos_id=257).end_of_vision == 325
    assert Vocab(10, vision_size=10, num_codes=8, tokens_per_frame=1, bos_id=0, eos_id=9).size == 20
