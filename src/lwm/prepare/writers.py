"""Records of codes as files: lists of numbers in JSONL, or bytes in Parquet."""

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from lwm.core.files import whole
from lwm.data.vision import unpack
from lwm.prepare.items import VISION
from lwm.prepare.journal import Journal

#: rows that are held in memory at a time
ROWS_AT_ONCE = 256


def _write_jsonl(path: Path, journal: Journal) -> int:
    """LWM's format: codes as a list of numbers."""
    count = 0
    with whole(path) as scratch, scratch.open("w", encoding="utf-8") as file:
        for record, packed in journal.records():
            codes = unpack(packed).tolist()
            file.write(json.dumps(record | {VISION: codes}, ensure_ascii=False) + "\n")
            count += 1
    return count


def _write_parquet(path: Path, journal: Journal) -> int:
    """Codes as bytes. All records have the fields that any has."""
    import pyarrow  # noqa: PLC0415 (slow to import)
    from pyarrow import parquet  # noqa: PLC0415

    names = list(dict.fromkeys(name for record, _ in journal.records() for name in record))
    sample = pyarrow.Table.from_pylist([{name: record.get(name) for name in names} for record, _ in journal.records()])
    schema = sample.schema.append(pyarrow.field(VISION, pyarrow.binary()))
    count, records = 0, journal.records()
    with whole(path) as scratch, parquet.ParquetWriter(scratch, schema) as writer:
        while rows := [record | {VISION: packed} for record, packed in islice(records, ROWS_AT_ONCE)]:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))
            count += len(rows)
    return count


WRITERS: dict[str, Callable[[Path, Journal], int]] = {".jsonl": _write_jsonl, ".parquet": _write_parquet}
