"""Ctrl-C and SIGTERM as something that a loop asks for between two steps."""

import signal
import threading
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


class Interruption:
    """Notes the first Ctrl-C or SIGTERM within a `with` block instead of dying of it; a second one acts as usual."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._usual: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # only there does Python let handlers be set
            self._usual = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._usual.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self.__exit__()

    def agreed(self) -> bool:
        """Whether any process was told to stop; all of them learn it at the same step."""
        if jax.process_count() > 1:
            self.signal = int(multihost_utils.process_allgather(np.int32(self.signal or 0)).max()) or None
        return self.signal is not None
