"""Checkpoints: parameters, optimizer, loader state and resolved config of a step, saved while training goes on."""

import json
import logging
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from lwm.core.errors import UserError
from lwm.core.params import require_same_shapes, shapes_by_name
from lwm.train.state import TrainState

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports each save as a warning or an info line


class Checkpoints:
    """`DIRECTORY/STEP/`: each step is whole or absent, whenever the process dies. A context manager."""

    def __init__(self, directory: Path, keep: int | None = None):
        """Open a directory of checkpoints, creating it. With `keep`, only the last so many stay."""
        self.directory = directory
        arrays, text = ocp.StandardCheckpointHandler, ocp.JsonCheckpointHandler
        self._manager = ocp.CheckpointManager(
            directory.resolve(),
            item_handlers={"params": arrays(), "optimizer": arrays(), "loader": text(), "config": text()},
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The last step saved, None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, loader_state: dict[str, Any], config: dict[str, Any]) -> None:
        """Begin to save a step and return once its arrays are copied; a step already there stays as it is."""
        step = int(state.step)
        if step == self.latest:
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                optimizer=ocp.args.StandardSave(state.opt_state),
                loader=ocp.args.JsonSave(loader_state),
                config=ocp.args.JsonSave(config),
            ),
        )

    def restore(self, target: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The last step's state, laid out as `target` (shapes, dtypes, shardings) asks, and the loader's state.

        Raises:
            UserError: there is no checkpoint, or its tensors have other shapes.
        """
        step = self._latest_or_refuse()
        self._require_shapes(step, target.params)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(target.params),
                optimizer=ocp.args.StandardRestore(target.opt_state),
                loader=ocp.args.JsonRestore(),
            ),
        )
        placed_step = jax.device_put(np.int32(step), target.step.sharding)
        return TrainState(restored.params, restored.optimizer, placed_step), restored.loader

    def config(self) -> dict[str, Any]:
        """The resolved run of the last step.

        Raises:
            UserError: there is no checkpoint.
        """
        config: dict[str, Any] = self._manager.restore(
            self._latest_or_refuse(), args=ocp.args.Composite(config=ocp.args.JsonRestore())
        ).config
        return config

    def restore_params(self, target: Any) -> Any:
        """The last step's parameters alone, laid out as `target` asks.

        Raises:
            UserError: there is no checkpoint, or its tensors have other shapes.
        """
        step = self._latest_or_refuse()
        self._require_shapes(step, target)
        args = ocp.args.Composite(params=ocp.args.StandardRestore(target))
        return self._manager.restore(step, args=args).params

    def _latest_or_refuse(self) -> int:
        if self.latest is None:
            raise UserError(f"{self.directory} holds no checkpoint")
        return self.latest

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter of the last step, under its name.

        Raises:
            UserError: there is no checkpoint.
        """
        return shapes_by_name(self._manager.item_metadata(self._latest_or_refuse())["params"].tree)

    def _require_shapes(self, step: int, target: Any) -> None:
        require_same_shapes(str(self.directory / str(step)), self.shapes(), "this run", shapes_by_name(target))


def gather_json(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Every process's dictionary, on every process. A collective: all processes must call it."""
    if jax.process_count() == 1:
        return [values]
    own = np.frombuffer(json.dumps(values).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(own)))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(own)] = own
    everyone = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:length])) for row, length in zip(everyone, lengths, strict=True)]
