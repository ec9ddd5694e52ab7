"""Where a model is computed: devices, mesh, precision."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lwm.core.errors import UserError

if TYPE_CHECKING:
    from lwm.infer.engine import Engine
    from lwm.vqgan.codec import FrameCodec
    from lwm.weights.load import LoadedModel


@dataclass(frozen=True)
class Machine:
    """Where a model is computed, and how precisely."""

    #: devices along each axis: dp and fsdp split prompts, tp heads, sp the text; one may be -1, for those that remain
    mesh: str = "dp=1,fsdp=1,tp=1,sp=-1"
    #: of weights, activations, keys and values
    dtype: Literal["float32", "bfloat16"] = "float32"
    #: make this computer's processor so many devices, to try a mesh without any
    cpu_devices: int | None = None


@dataclass(frozen=True)
class Devices:
    """Where pictures are encoded and decoded."""

    #: devices along each axis: dp and fsdp split frames; one may be -1, for those that remain
    mesh: str = "dp=1,fsdp=-1,tp=1,sp=1"
    #: make this computer's processor so many devices, to try a mesh without any
    cpu_devices: int | None = None


def open_codec(model: str, devices: Devices) -> "FrameCodec":
    """The codec of a model, on the devices' mesh."""
    make_devices(devices.cpu_devices)
    from lwm.core.mesh import MeshShape, make_mesh
    from lwm.weights.codec_store import load_codec
    from lwm.weights.load import locate

    return load_codec(locate(model), make_mesh(MeshShape.parse(devices.mesh)))


def require_codec(model: str) -> None:
    """Refuse a model without a codec before anything large is read."""
    from lwm.weights.codec_store import read_codec_config
    from lwm.weights.load import locate

    read_codec_config(locate(model))


def make_devices(count: int | None) -> None:
    """Split the processor into `count` devices; must come before the first computation."""
    if count is None:
        return
    if count < 1:
        raise UserError(f"--cpu-devices {count}: give 1 or more")
    import jax

    # A collective keeps its thread until every device has come to it. With one for each and none to spare, whatever
    # else wants a thread, such as the copy for a checkpoint, may leave all of them waiting (once in 20,000 steps).
    os.environ.setdefault("NPROC", str(count + (os.cpu_count() or 1)))
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)


def open_model(name: str, machine: Machine) -> "tuple[LoadedModel, Engine]":
    """The model on the machine's mesh, and an engine that runs it there."""
    make_devices(machine.cpu_devices)
    from lwm.core.mesh import MeshShape, make_mesh
    from lwm.infer.engine import Engine
    from lwm.weights.load import load_model

    mesh = make_mesh(MeshShape.parse(machine.mesh))
    model = load_model(name, mesh, machine.dtype)
    return model, Engine.of(model, machine.dtype)
