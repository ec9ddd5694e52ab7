"""`import lwm` is instant, and every name it promises is there."""

import subprocess
import sys

import pytest

import lwm


def test_every_name_is_there() -> None:
    assert set(lwm.__all__) == set(lwm._HOMES) <= set(dir(lwm))
    for name in lwm.__all__:
        assert getattr(lwm, name).__module__.startswith(lwm._HOMES[name])
    with pytest.raises(AttributeError, match="no attribute 'loda'"):
        lwm.loda  # noqa: B018


def test_the_import_loads_nothing_heavy() -> None:
    code = "import sys, lwm; sys.exit(len({'jax', 'numpy', 'tokenizers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
