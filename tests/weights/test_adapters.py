from pathlib import Path

import jax.numpy as jnp
import pytest
from safetensors.numpy import load_file

from lwm.core.errors import UserError
from lwm.model.lora import Adapter
from lwm.weights.adapters import save_adapters

ADAPTERS = {"query": Adapter(jnp.ones((2, 8, 3)), jnp.zeros((2, 3, 4, 2))), "up": Adapter(jnp.ones(1), jnp.ones(1))}


def test_each_factor_is_named_after_its_matrix(tmp_path: Path) -> None:
    path = save_adapters(tmp_path, ADAPTERS)
    stored = load_file(path)
    assert path.name == "adapters.safetensors"
    assert stored.keys() == {"layers.query.A", "layers.query.B", "layers.up.A", "layers.up.B"}
    assert stored["layers.query.B"].shape == (2, 3, 4, 2) and (stored["layers.query.A"] == 1).all()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write the adapters to .*absent.adapters\.safetensors"):
        save_adapters(tmp_path / "absent", ADAPTERS)
