"""Layers put between those of a model that is trained already: at first they add nothing, and its answers stay its own.

What a new layer writes to the residual stream starts at 0, what it reads is drawn as in a fresh model, so that it
learns from the first step on (Chen et al. 2016, Net2Net; Bachlechner et al. 2021, ReZero).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lwm.core import params as parameters
from lwm.core.mesh import MeshShape, make_mesh
from lwm.model.config import ModelConfig
from lwm.model.layers import declare_layers
from lwm.model.transformer import Transformer
from lwm.weights.load import load_model
from lwm.weights.store import save_model


def deepen(params: Transformer, config: ModelConfig, before: Sequence[int]) -> tuple[Transformer, ModelConfig]:
    """The model with a new layer before each of the layers named, and its configuration."""
    new_config = dataclasses.replace(config, num_layers=config.num_layers + len(before))
    declared = declare_layers(dataclasses.replace(config, num_layers=len(before)))
    drawn = parameters.init(declared, jax.random.key(0), jnp.float32)
    silent = dataclasses.replace(drawn, output=jnp.zeros_like(drawn.output), down=jnp.zeros_like(drawn.down))

    def insert(old: Array, new: Array) -> Array:
        return jnp.insert(old, np.array(before), new, axis=0)

    return dataclasses.replace(params, layers=jax.tree.map(insert, params.layers, silent)), new_config


def write_deeper(model: str | Path, before: Sequence[int], directory: Path) -> None:
    """Save a model with more layers as one that a run can begin from."""
    loaded = load_model(model, make_mesh(MeshShape(), jax.devices()[:1]))
    params, config = deepen(loaded.params, loaded.config, before)
    save_model(directory, config, params, None, "float32")
