import pytest

from lwm.core.errors import UserError
from lwm.evals.lengths import parse_lengths, short


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("1024", (1024,)),
        ("4096,1024", (1024, 4096)),
        ("1k, 4K ,1k", (1024, 4096)),
        ("1k..8k", (1024, 2048, 4096, 8192)),
        ("1k..6k", (1024, 2048, 4096, 6144)),
        ("1000..4000,1m", (1000, 2000, 4000, 1048576)),
        ("2k..2k", (2048,)),
    ],
)
def test_lengths(text, lengths):
    assert parse_lengths(text) == lengths


@pytest.mark.parametrize("text", ["", "1k,", "0", "1k..", "..4k", "8k..1k", "1.5k", "-1k", "1g", "1k...4k", "²"])
def test_what_is_no_length_is_refused_with_the_text_in_the_sentence(text):
    with pytest.raises(UserError, match=r"context lengths '"):
        parse_lengths(text)


def test_short():
    assert [short(length) for length in (1000, 1024, 65536, 1048576, 1536)] == ["1,000", "1K", "64K", "1M", "1,536"]
