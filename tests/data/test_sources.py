import builtins
import itertools
import json

import datasets
import numpy as np
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from lwm.core.errors import UserError
from lwm.data import local, recent
from lwm.data.local import index_lines
from lwm.data.records import BadRecordError
from lwm.data.sources import open_records, stream_records

ROWS = [{"text": f"row {number}", "number": number} for number in range(23)]


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@given(content=st.binary(max_size=60).map(lambda content: content.replace(b"\x01", b"\n")), block=st.integers(1, 9))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_line_index_agrees_with_splitting_whatever_the_block(content, block, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "SCAN_BLOCK_BYTES", block)
    file = tmp_path / "lines"
    file.write_bytes(content)
    offsets = index_lines(file)
    lines = [content[start:end] for start, end in itertools.pairwise(offsets)]
    assert b"".join(lines) == content
    assert all(line.count(b"\n") == 1 and line.endswith(b"\n") for line in lines[:-1])
    assert all(lines)


@pytest.mark.parametrize("ending", ["\n", "", "\r\n"])
def test_jsonl_by_index_with_or_without_a_last_newline(ending, tmp_path):
    file = tmp_path / "records.jsonl"
    file.write_bytes(("\n".join(json.dumps(row) for row in ROWS) + ending).encode())
    source = open_records(str(file))
    assert len(source) == len(ROWS)
    for index in np.random.default_rng(0).permutation(len(ROWS)).tolist():
        record = source[index]
        assert (record.record_id, record.values) == (f"records.jsonl:{index + 1}", ROWS[index])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "cut off', "not JSON"),
        ("", "the line is empty"),
        ("[1, 2]", "a JSON list, not an object"),
        ("[" * 100_000, "not JSON"),
        (b'{"text": "\xff\xfe"}'.decode("latin1"), None),
    ],
)
def test_a_malformed_line_is_named_and_its_neighbours_are_not(line, reason, tmp_path):
    file = tmp_path / "records.jsonl"
    file.write_bytes(b'{"text": "before"}\n' + line.encode("latin1") + b'\n{"text": "after"}\n')
    source = open_records(str(file))
    assert [source[0].values["text"], source[2].values["text"]] == ["before", "after"]
    with pytest.raises(BadRecordError, match=reason) as raised:
        source[1]
    assert raised.value.record_id == "records.jsonl:2"


@pytest.mark.parametrize("content", [b'[{"text": "a"}]', b'\xef\xbb\xbf [\n{"text": "a"},\n{"text": "b"}\n]\n'])
def test_a_file_that_is_one_array_is_told_so(content, tmp_path):
    (tmp_path / "array.json").write_bytes(content)
    with pytest.raises(BadRecordError, match=r"array\.json:1: this is one JSON array; write one object a line"):
        open_records(str(tmp_path / "array.json"))[0]


def test_text_files_are_known_by_their_names_wherever_they_lie(tmp_path):
    for directory, names in (("one", "ab"), ("two", "ab"), ("three", "ac")):
        (tmp_path / directory).mkdir()
        for name in names:
            (tmp_path / directory / f"{name}.txt").write_bytes(b"\xef\xbb\xbfwith a mark")
    one, two, three = (open_records(str(tmp_path / directory)) for directory in ("one", "two", "three"))
    assert one.name == two.name != three.name
    assert "2 text files" in one.name
    assert one[0].values == {"text": "with a mark"}


def test_text_files_of_a_directory_are_records_in_order(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.md").write_text("first ☕")
    (tmp_path / "sub" / "c.txt").write_bytes(b"\xff not utf-8")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / ".git" / "sub").mkdir(parents=True)
    (tmp_path / ".git" / "sub" / "description.txt").write_text("hidden by its directory")
    source = open_records(str(tmp_path))
    assert [source[index].values for index in range(2)] == [{"text": "first ☕"}, {"text": "second"}]
    assert len(source) == 3
    with pytest.raises(BadRecordError, match="UTF-8"):
        source[2]


def test_parquet_by_row_group_reads_only_the_columns_asked_for(tmp_path):
    file = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), file, row_group_size=5)
    source = open_records(str(file), columns=["text", "absent"])
    assert len(source) == len(ROWS)
    for index in (22, 0, 4, 5, 14, 9):
        assert source[index].values == {"text": f"row {index}"}
        assert source[index].record_id == f"rows.parquet:{index + 1}"


def test_a_parquet_row_group_that_cannot_be_read_is_a_bad_record(tmp_path):
    file = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), file, row_group_size=20, compression="none")
    column = parquet.ParquetFile(file).metadata.row_group(0).column(0)
    with open(file, "r+b") as stream:
        stream.seek(column.dictionary_page_offset)
        stream.write(b"\xff" * 20)
    source = open_records(str(file))
    with pytest.raises(BadRecordError, match=r"rows\.parquet:3: its row group cannot be read"):
        source[2]
    assert source[22].values == ROWS[22]


def test_parquet_text_that_is_not_utf8_is_a_bad_record(tmp_path):
    file = tmp_path / "rows.parquet"
    broken = pyarrow.array([b"fine", b"\xff\xfe"]).cast(pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": broken}), file)
    source = open_records(str(file))
    assert source[0].values == {"text": "fine"}
    with pytest.raises(BadRecordError, match=r"rows\.parquet:2: its values cannot be read: 'utf-8'"):
        source[1]


def test_row_groups_of_all_files_share_one_bounded_memory(tmp_path, monkeypatch):
    rows = [{"text": "x" * 1000}] * 40
    for name in ("a", "b"):
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{name}.parquet", row_group_size=10)
    reads = []
    read = parquet.ParquetFile.read_row_group
    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", lambda *args, **kw: reads.append(1) or read(*args, **kw))
    monkeypatch.setattr(recent, "CACHED_BYTES", 25_000)  # two row groups
    source = open_records(str(tmp_path))
    for index, expected in ((0, 1), (45, 2), (1, 2), (49, 2), (60, 3), (2, 4), (61, 4)):
        assert source[index].values == rows[0]
        assert len(reads) == expected


def test_a_pattern_joins_files_of_one_format(write_jsonl, tmp_path):
    write_jsonl(*ROWS[:3], name="a.jsonl")
    write_jsonl(*ROWS[3:5], name="b.jsonl")
    source = open_records(str(tmp_path / "*.jsonl"))
    ids = [source[index].record_id for index in range(len(source))]
    assert ids == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3", "b.jsonl:1", "b.jsonl:2"]
    assert [source[index].values for index in range(5)] == ROWS[:5]


def test_a_saved_hugging_face_dataset_is_found_by_its_directory(tmp_path):
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "saved")
    source = open_records(str(tmp_path / "saved"))
    assert [source[index].values for index in range(len(source))] == ROWS
    stream = stream_records(str(tmp_path / "saved"))
    assert [record.values for record in stream] == ROWS
    with pytest.raises(UserError, match="no split 'test'; it has train"):
        open_records(str(tmp_path / "saved"), split="test")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_stream_resumes_after_any_record(kind, write_jsonl, tmp_path):
    file = write_jsonl(*ROWS)
    if kind == "parquet":
        file = tmp_path / "rows.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), file, row_group_size=5)
    stream = stream_records(str(file))
    states, records = [stream.get_state()], []
    for _ in ROWS:
        records.append(stream.read())
        states.append(json.loads(json.dumps(stream.get_state())))
    assert [record.values for record in records] == ROWS
    for place, state in enumerate(states):
        resumed = stream_records(str(file))
        resumed.set_state(state)
        assert resumed.get_state() == state
        assert list(resumed) == records[place:]
    stream.set_state(None)
    assert list(stream) == records


def test_an_empty_stream_is_refused(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UserError, match=r"empty\.jsonl holds no records"):
        stream_records(str(tmp_path / "empty.jsonl"))


@pytest.mark.slow  # the library retries for five seconds
def test_a_stream_of_malformed_json_is_refused(write_jsonl):
    with pytest.raises(UserError, match=r"cannot (read record 1|open)"):
        list(stream_records(str(write_jsonl("{broken", "{worse"))))


def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch):
    imported = builtins.__import__

    def absent(name, *rest, **named):
        if name == "datasets":
            raise ImportError(name)
        return imported(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match=r"pip install 'lwm\[datasets\]'"):
        open_records("somebody/something", "datasets")


def test_what_cannot_be_read_is_refused_by_name(tmp_path, write_jsonl):
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1")
    binary = tmp_path / "model.bin"
    binary.touch()
    with pytest.raises(UserError, match=r"empty\.jsonl holds no records"):
        open_records(str(empty))
    with pytest.raises(UserError, match=r"broken\.parquet is not a readable Parquet file"):
        open_records(str(broken))
    with pytest.raises(UserError, match=r"model\.bin does not tell its format"):
        open_records(str(binary))
    with pytest.raises(UserError, match="no such file or directory; for a Hugging Face dataset"):
        open_records("somebody/something")
    with pytest.raises(UserError, match="no such file"):
        open_records("x" * 300)  # the file system itself refuses the name
    with pytest.raises(UserError, match="mixes formats"):
        write_jsonl(*ROWS)
        open_records(str(tmp_path))


def test_files_of_one_name_are_told_apart(tmp_path):
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "part.jsonl").write_text('{"text": "one"}\n')
    source = open_records(str(tmp_path))
    assert [source[index].record_id for index in range(2)] == ["a/part.jsonl:1", "b/part.jsonl:1"]


def test_a_file_that_goes_away_is_named(tmp_path):
    records = tmp_path / "records.jsonl"
    records.write_text('{"text": "one"}\n')
    source = open_records(str(records))
    records.unlink()
    with pytest.raises(UserError, match=r"records\.jsonl:1 can no longer be read"):
        source[0]
