"""What the tour ran on and what it cost there: compile time, memory, versions."""

import os
import platform
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import jax

_COMPILE_EVENTS = ("/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration")


@contextmanager
def compile_clock() -> Iterator[Callable[[], float]]:
    """Yields a function that tells the seconds JAX has spent compiling since."""
    seconds = 0.0

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        nonlocal seconds
        if event in _COMPILE_EVENTS:
            seconds += duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield lambda: seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def peak_memory() -> int:
    """The most bytes this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def describe_machine() -> str:
    """Processor and devices in one line."""
    devices = jax.devices()
    where = f"{len(devices)} x {devices[0].device_kind}, " if devices[0].platform != "cpu" else ""
    return f"{where}{os.cpu_count()} cores of {_processor()}, {platform.system()}"


def versions() -> dict[str, str]:
    """What to name when figures differ."""
    return {"Python": platform.python_version(), **{name: version(name) for name in ("lwm", "jax", "jaxlib", "numpy")}}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
