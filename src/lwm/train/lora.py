"""A run that trains adapters: the frozen model beneath them, known again when the run goes on, and what they leave.

`adapters.json` is written before the first step: rank, alpha, targets and the fingerprint of the base, which
checkpoints do not hold. `adapters.safetensors` comes with the finished model, into which they are merged.
"""

import hashlib
import json
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, UInt32

from lwm.core import params as declared
from lwm.core.errors import UserError
from lwm.core.files import read_json, write_json
from lwm.core.mesh import sharding
from lwm.model.lora import declare_trained
from lwm.model.transformer import Transformer
from lwm.train.begin import starting_params
from lwm.train.run import Run

DESCRIPTION = "adapters.json"


def load_base(run: Run, mesh: Mesh) -> Transformer | None:
    """The frozen model beneath a run's adapters, fp32; None where all of the model is trained.

    Raises:
        UserError: there is none, or it is not one for this run.
    """
    return starting_params(run, mesh) if run.lora.enabled else None


def first_params(run: Run, mesh: Mesh) -> Any:
    """What is trained, before the first step: adapters that change nothing yet, or all of the model.

    Raises:
        UserError: as `starting_params`.
    """
    if not run.lora.enabled:
        return starting_params(run, mesh)
    return declared.init_sharded(declare_trained(run.model, run.lora), jax.random.key(run.seed), jnp.float32, mesh)


def describe_base(run: Run, base: Transformer | None, mesh: Mesh) -> None:
    """Write `adapters.json`, by which `require_same_base` knows the base again; nothing where there is none."""
    if base is None:
        return
    digest = fingerprint(base, mesh)
    if jax.process_index() == 0:
        write_json(run.out / DESCRIPTION, asdict(run.lora) | {"init_from": run.init_from, "base": digest})


def require_same_base(run: Run, base: Transformer | None, mesh: Mesh) -> None:
    """Refuse to go on with adapters on another model than they were trained on.

    Raises:
        UserError: it is another, or nothing tells which it was.
    """
    if base is None:
        return
    path = run.out / DESCRIPTION
    try:
        stored = read_json(path, str(run.out)).get("base")
    except UserError as error:
        raise UserError(f"{path} does not tell which model was adapted: {error}; restore it, or start anew") from None
    if not isinstance(stored, str):
        raise UserError(f"{path} does not tell which model was adapted: restore it, or start anew")
    if stored != fingerprint(base, mesh):
        raise UserError(
            f"{run.init_from} is not the model that the adapters in {run.out} were trained on: its tensors differ; "
            "name that one with --init-from, or start a run in another directory"
        )


def fingerprint(params: Any, mesh: Mesh) -> str:
    """A digest of fp32 tensors, by names, shapes and every bit: the same from any file format and on any mesh."""
    leaves = declared.named_leaves(params)
    sums = jax.jit(lambda leaves: jax.tree.map(_mixed_bits, leaves), out_shardings=sharding(mesh))(leaves)
    described = {name: [*leaf.shape, int(sums[name])] for name, leaf in leaves.items()}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _mixed_bits(tensor: Array) -> UInt32[Array, ""]:
    """The sum of each number's bits mixed with its place; it wraps, and so is alike in any order of summation.

    Without the mixing (MurmurHash3's) two changes could cancel: two flipped signs always would.
    """
    place = jnp.zeros(tensor.shape, jnp.uint32)
    for axis, size in enumerate(tensor.shape):
        place = place * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, tensor.shape, axis)
    mixed = jax.lax.bitcast_convert_type(tensor, jnp.uint32) + place * np.uint32(0x9E3779B9)
    mixed = (mixed ^ (mixed >> 16)) * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * np.uint32(0xC2B2AE35)
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)
