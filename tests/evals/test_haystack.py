from itertools import pairwise

import pytest

from lwm.core.errors import UserError
from lwm.evals.haystack import Haystack, read_haystack

TEXT = "One. Two is longer!\nThree\n\nfour (five.) six"


def test_pieces_end_at_lines_and_sentences_and_join_to_the_text():
    haystack = Haystack.of(TEXT, lambda text: text.encode())
    ends = [int(end) for end in haystack.boundaries]
    pieces = [TEXT[a:b] for a, b in pairwise(ends)]
    assert pieces == ["One. ", "Two is longer!\n", "Three\n\n", "four (five.) ", "six"]


def test_a_place_has_as_many_tokens_before_it_as_asked_in_any_turn():
    haystack = Haystack.of(TEXT, lambda text: text.encode())  # a token is a character
    assert haystack.num_tokens == len(TEXT)
    for tokens in (0, 3, 20, len(TEXT), len(TEXT) + 7, 5 * len(TEXT) + 1):
        assert haystack.place(float(tokens)) == tokens


@pytest.mark.parametrize(
    ("text", "longest"),
    [
        ("word and other words again " * 100, 200),
        ("minified;" * 100, 200),
        ("\u6ca1\u6709\u7a7a\u683c\u7684\u53e5\u5b50\u3002" * 100, 8),
        ("a long-ish sentence without an end, then " * 10 + "an end. Next.\n", 200),
    ],
)
def test_text_without_lines_or_sentences_is_cut_too(text, longest):
    ends = Haystack.of(text, lambda text: text.encode()).boundaries
    pieces = [text[a:b] for a, b in pairwise(ends)]
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= longest
    if " " in text:
        assert all(piece[-1].isspace() for piece in pieces)


def test_nearest_boundary_goes_either_way_and_into_later_turns():
    haystack = Haystack.of(TEXT, lambda text: text.encode())
    assert [haystack.nearest_boundary(place) for place in (0, 2, 3, 5, 12, 13, 43)] == [0, 0, 5, 5, 5, 20, 43]
    assert haystack.nearest_boundary(2 * len(TEXT) + 3) == 2 * len(TEXT) + 5


def test_past_its_end_the_text_begins_again():
    haystack = Haystack.of("abc\n", lambda text: text.encode())
    assert haystack.between(2, 11) == "c\nabc\nabc"
    assert haystack.between(9, 11) == "bc"
    assert haystack.between(4, 4) == ""


def test_counts_are_scaled_to_those_of_the_whole_text():
    merges = 2  # a tokenizer whose every piece costs two tokens more than it adds to the whole
    haystack = Haystack.of(TEXT, lambda text: [0] * (len(text) + merges))
    assert haystack.num_tokens == len(TEXT) + merges


def test_files_are_read_one_after_another_and_json_lines_by_their_text(tmp_path):
    (tmp_path / "a.txt").write_text("First.")
    (tmp_path / "b.jsonl").write_text('{"text": "Sec\u2028o\x85nd."}\n\n{"text": "Third."}\n', encoding="utf-8")
    haystack = read_haystack([tmp_path / "a.txt", tmp_path / "b.jsonl"], lambda text: text.encode())
    assert haystack.text == "First.\nSec\u2028o\x85nd.\nThird."


def test_a_mark_of_the_encoding_is_not_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfFirst.")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "Second."}')
    haystack = read_haystack([tmp_path / "a.txt", tmp_path / "b.jsonl"], lambda text: text.encode())
    assert haystack.text == "First.\nSecond."


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("missing.txt", None, "missing.txt cannot be read: No such file"),
        ("empty.txt", b"", "empty.txt is empty"),
        ("blank.txt", b" \n\n", "blank.txt is empty"),
        ("binary.txt", b"\xff\xfe\x00", "binary.txt cannot be read: it is not UTF-8"),
        ("broken.jsonl", b'{"text": "a"}\n{"text"\n', "broken.jsonl, line 2: not JSON"),
        ("deep.jsonl", b'{"text": ' + b"[" * 100_000, "deep.jsonl, line 1: its lists and objects lie too deep"),
        ("long.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "long.jsonl, line 1: a number in it has too many digits"),
        ("half.jsonl", b'{"text": "\\ud83d x"}', "half.jsonl, line 1: its text is not valid Unicode"),
        ("other.jsonl", b'{"body": "a"}\n', 'other.jsonl, line 1: no "text" field'),
    ],
)
def test_a_file_that_cannot_serve_is_refused_by_name(tmp_path, name, content, complaint):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        read_haystack([tmp_path / name], lambda text: text.encode())


def test_no_file_and_a_directory_are_refused(tmp_path):
    with pytest.raises(UserError, match="--haystack"):
        read_haystack([], lambda text: text.encode())
    with pytest.raises(UserError, match="Is a directory"):
        read_haystack([tmp_path], lambda text: text.encode())
