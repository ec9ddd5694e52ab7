import json
import os

import pytest

from lwm.core.errors import UserError
from lwm.core.files import read_json, whole, write_file, write_json


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a"
    write_file(path, b"old")
    with pytest.raises(TypeError):
        write_json(path, object())
    with pytest.raises(KeyboardInterrupt), whole(path) as scratch:
        scratch.write_text("half")
        assert path.read_bytes() == b"old"
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    write_json(path, {"ä": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ä": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_is_as_open_to_others_as_any_other(tmp_path):
    (tmp_path / "usual").touch()
    write_json(tmp_path / "ours", {})
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(UserError, match=r"cannot read .*config\.json: it is not a file"):
        read_json(tmp_path / "config.json", "no model")
    with pytest.raises(UserError, match=r"no model: it has no other\.json"):
        read_json(tmp_path / "other.json", "no model")
