"""Rows of codes that were not seen are what the others say that their features are worth."""

import numpy as np
import pyarrow
from pyarrow import parquet

from lwm.data.vision import pack
from lwm.nano.unseen import count_codes, fit_rows


def test_unseen_rows_are_sums_of_features_and_all_others_stay():
    rng = np.random.default_rng(0)
    colour, shape = np.repeat(np.arange(4), 3), np.tile(np.arange(3), 4)
    features = np.concatenate([np.eye(4)[colour], np.eye(3)[shape]], axis=1).astype(np.float32)
    features[11] = 0  # shows nothing that is known
    true = (features @ rng.normal(size=(7, 5)) + 2).astype(np.float32)
    rows, seen = true.copy(), np.ones(12, bool)
    for pushed_away in (4, 8, 11):
        rows[pushed_away], seen[pushed_away] = -9, False
    fitted = fit_rows(rows, features, seen)
    np.testing.assert_allclose(fitted[[4, 8]], true[[4, 8]], atol=1e-4)
    others = [0, 1, 2, 3, 5, 6, 7, 9, 10, 11]
    np.testing.assert_array_equal(fitted[others], rows[others])


def test_codes_are_counted_over_all_files(tmp_path):
    for name, frames in (("one", [[0, 1, 1], [5, 5, 5]]), ("two", [[1, 2, 3]])):
        table = pyarrow.table({"vision": [pack(np.array(own)) for own in frames], "told": ["" for _ in frames]})
        parquet.write_table(table, tmp_path / f"{name}.parquet")
    counts = count_codes([tmp_path / "one.parquet", tmp_path / "two.parquet"], 7)
    np.testing.assert_array_equal(counts, [1, 3, 1, 1, 0, 3, 0])
