import pytest

from lwm.core.errors import UserError
from lwm.evals.journal import Journal

SETTINGS = {"model": "nano", "rounds": 3}


def test_rows_come_back_in_another_run(tmp_path):
    Journal.open(tmp_path / "out", SETTINGS).add([{"a": 1}, {"a": 2}])
    journal = Journal.open(tmp_path / "out", SETTINGS)
    journal.add([{"a": 3}])
    assert journal.rows() == [{"a": 1}, {"a": 2}, {"a": 3}]


def test_a_line_torn_by_a_kill_is_dropped_and_the_next_one_is_whole(tmp_path):
    Journal.open(tmp_path, SETTINGS).add([{"a": 1}])
    with open(tmp_path / "cells.jsonl", "ab") as file:
        file.write(b'{"a": 2, "resp')
    journal = Journal.open(tmp_path, SETTINGS)
    journal.add([{"a": 3}])
    assert journal.rows() == [{"a": 1}, {"a": 3}]


def test_changed_settings_are_refused_by_name_and_nothing_is_lost(tmp_path):
    Journal.open(tmp_path, SETTINGS).add([{"a": 1}])
    with pytest.raises(UserError, match=r"rounds=3, and now it is 5: choose another --out"):
        Journal.open(tmp_path, SETTINGS | {"rounds": 5})
    assert Journal.open(tmp_path, SETTINGS).rows() == [{"a": 1}]


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write results to .*file"):
        Journal.open(tmp_path / "file", SETTINGS)
    with pytest.raises(UserError, match=r"cannot write results to .*out"):
        Journal.open(tmp_path / "file" / "out", SETTINGS)


@pytest.mark.parametrize("content", [b"[]", b"\xff", b"[" * 100_000])
def test_a_directory_with_something_else_in_it_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json: .*; it does not describe an evaluation"):
        Journal.open(tmp_path, SETTINGS)


def test_a_line_without_what_tells_its_cell_is_named(tmp_path):
    Journal.open(tmp_path, SETTINGS).add([{"task": "a", "number": 1}, {}])
    with pytest.raises(UserError, match=r"cells\.jsonl:2 is not a result: delete the line"):
        Journal.open(tmp_path, SETTINGS).rows("task", "number")
