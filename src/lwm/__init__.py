"""Large World Model: one transformer over very long text, pictures and video.

import lwm
lwm.load("nano").chat("What is the special magic Oslo number?", document=text)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lwm.attention import AttentionConfig
    from lwm.core.errors import UserError
    from lwm.core.mesh import MeshShape, make_mesh
    from lwm.infer.engine import Engine
    from lwm.infer.sampling import Sampling
    from lwm.infer.session import Answer, Session, load
    from lwm.model.config import Compute, ModelConfig
    from lwm.weights.load import LoadedModel, load_model
    from lwm.weights.store import save_model

#: Where each name of the front door lives. A name is imported when it is first used, so `import lwm` is instant.
_HOMES = {
    "Answer": "lwm.infer.session",
    "AttentionConfig": "lwm.attention",
    "Compute": "lwm.model.config",
    "Engine": "lwm.infer.engine",
    "LoadedModel": "lwm.weights.load",
    "MeshShape": "lwm.core.mesh",
    "ModelConfig": "lwm.model.config",
    "Sampling": "lwm.infer.sampling",
    "Session": "lwm.infer.session",
    "UserError": "lwm.core.errors",
    "load": "lwm.infer.session",
    "load_model": "lwm.weights.load",
    "make_mesh": "lwm.core.mesh",
    "save_model": "lwm.weights.store",
}

__all__ = [
    "Answer",
    "AttentionConfig",
    "Compute",
    "Engine",
    "LoadedModel",
    "MeshShape",
    "ModelConfig",
    "Sampling",
    "Session",
    "UserError",
    "load",
    "load_model",
    "make_mesh",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lwm' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
