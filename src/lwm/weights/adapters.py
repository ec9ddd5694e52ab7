"""Low-rank adapters as a file beside the model that they were merged into."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from lwm.core.errors import UserError
from lwm.core.files import write_file
from lwm.core.params import named_leaves
from lwm.model.lora import Adapter

TENSORS = "adapters.safetensors"


def save_adapters(directory: Path, adapters: Mapping[str, Adapter]) -> Path:
    """Write `adapters.safetensors`, fp32, each factor named after its matrix: `layers.query.A`, `layers.query.B`.

    Raises:
        UserError: the file cannot be written.
    """
    path = directory / TENSORS
    leaves: dict[str, Any] = named_leaves({"layers": dict(adapters)})
    try:
        write_file(path, save({name: np.asarray(leaf, order="C") for name, leaf in leaves.items()}))
    except OSError as error:
        raise UserError(f"cannot write the adapters to {path}: {error.strerror or error}") from None
    return path
