"""The mean of two models, with what lies beside the last of them."""

import shutil

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from lwm.nano.average import write_mean
from lwm.nano.train_tokenizer import TOKENIZER_FILE


def test_a_mean_is_that_of_every_tensor(tmp_path):
    one = TOKENIZER_FILE.parent
    shutil.copytree(one, tmp_path / "other")
    stored = load_file(one / "model.safetensors")
    save_file({name: tensor * np.asarray(3, tensor.dtype) for name, tensor in stored.items()}, tmp_path / "m")
    (tmp_path / "m").rename(tmp_path / "other" / "model.safetensors")
    write_mean([one, tmp_path / "other"], tmp_path / "mean")
    other, mean = (load_file(tmp_path / name / "model.safetensors") for name in ("other", "mean"))
    for name, tensor in stored.items():
        expected = (tensor.astype(np.float32) + other[name].astype(np.float32)) / 2
        np.testing.assert_array_equal(mean[name], expected.astype(ml_dtypes.bfloat16))
    assert sorted(path.name for path in (tmp_path / "mean").iterdir()) == sorted(path.name for path in one.iterdir())
