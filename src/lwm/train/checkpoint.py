"""Checkpoints: parameters, optimizer, loader state and resolved config of a step, saved while training goes on."""

import errno
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from lwm.core.errors import UserError
from lwm.core.params import require_same_shapes, shapes_by_name
from lwm.train.base import require_room, saved_steps
from lwm.train.state import TrainState

# orbax reports each save as a warning or an info line, and a failed one with a traceback before it raises it
logging.getLogger("absl").setLevel(logging.CRITICAL)


class Checkpoints:
    """`DIRECTORY/STEP/`: each step is whole or absent, whenever the process dies. A context manager."""

    def __init__(self, directory: Path, keep: int | None = None):
        """Open a directory of checkpoints, creating it. With `keep`, only the last so many stay."""
        self.directory, self._failed = directory, False
        arrays, text = ocp.StandardCheckpointHandler, ocp.JsonCheckpointHandler
        self._manager = ocp.CheckpointManager(
            directory.resolve(),
            item_handlers={"params": arrays(), "optimizer": arrays(), "loader": text(), "config": text()},
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if not self._failed:
                with self._writing():
                    self._manager.wait_until_finished()
        finally:
            self._manager.close()

    @property
    def latest(self) -> int | None:
        """The last step saved, None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, loader_state: dict[str, Any], config: dict[str, Any]) -> None:
        """Begin to save a step and return once its arrays are copied; a step already there stays as it is.

        After a save that failed no other is tried.

        Raises:
            UserError: the disk is full or may not be written; it may be the save before this one that failed.
        """
        step = int(state.step)
        if self._failed or step == self.latest:
            return
        with self._writing():
            _require_room_everywhere(self.directory)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(state.params),
                    optimizer=ocp.args.StandardSave(state.opt_state),
                    loader=ocp.args.JsonSave(loader_state),
                    config=ocp.args.JsonSave(config),
                ),
            )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            self._failed = True
            raise
        except Exception as error:  # what TensorStore raises is of no kind of its own
            if not isinstance(error, OSError | ValueError) and type(error) is not Exception:
                raise
            self._failed = True
            raise UserError(
                f"cannot write a checkpoint to {self.directory}: {_cause(error)}; make room there and --resume from "
                "the last one that is whole"
            ) from error

    def restore(self, target: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The last step's state, laid out as `target` (shapes, dtypes, shardings) asks, and the loader's state.

        Raises:
            UserError: there is no checkpoint, it is damaged, or its tensors have other shapes.
        """
        step = self._latest_or_refuse()
        self._require_shapes(step, target.params)
        with self._reading(step):
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
            UserError: there is no checkpoint, or it is damaged.
        """
        step = self._latest_or_refuse()
        with self._reading(step):
            restored = self._manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))
        config: dict[str, Any] = restored.config
        return config

    def restore_params(self, target: Any) -> Any:
        """The last step's parameters alone, laid out as `target` asks.

        Raises:
            UserError: there is no checkpoint, it is damaged, or its tensors have other shapes.
        """
        step = self._latest_or_refuse()
        self._require_shapes(step, target)
        with self._reading(step):
            return self._manager.restore(step, args=ocp.args.Composite(params=ocp.args.StandardRestore(target))).params

    @contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """What orbax raises where files of a step are missing or cut short is neither short nor of one kind."""
        try:
            yield
        except (RuntimeError, MemoryError):
            raise  # the machine's fault, not the files'
        except Exception as error:
            file = self.directory / str(step)
            if _is_of_the_system(error):
                raise UserError(f"cannot read the checkpoint in {file}: {_cause(error)}") from error
            before = [saved for saved in saved_steps(self.directory) if saved < step]
            remedy = (
                f"delete that directory to go on from step {max(before)}"
                if before
                else "it is the only one, so start anew, in another directory"
            )
            raise UserError(
                f"the checkpoint in {file} is damaged ({type(error).__name__}: {_cause(error)}): {remedy}"
            ) from error

    def _latest_or_refuse(self) -> int:
        if self.latest is None:
            raise UserError(f"{self.directory} holds no checkpoint")
        return self.latest

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter of the last step, under its name.

        Raises:
            UserError: there is no checkpoint, or it is damaged.
        """
        step = self._latest_or_refuse()
        with self._reading(step):
            return shapes_by_name(self._manager.item_metadata(step)["params"].tree)

    def _require_shapes(self, step: int, target: Any) -> None:
        require_same_shapes(str(self.directory / str(step)), self.shapes(), "this run", shapes_by_name(target))


def _is_of_the_system(error: Exception) -> bool:
    """Whether files could not be reached, whatever is in them. TensorStore says so in words alone."""
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError)
    codes = (errno.EACCES, errno.EPERM, errno.EIO, errno.ELOOP, errno.EMFILE, errno.ENFILE, errno.ESTALE)
    words = ("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", *map(os.strerror, codes))
    return any(word in str(error) for word in words)


def _cause(error: Exception) -> str:
    """The end of an error's first line; TensorStore tells before it where in its code it was, and the arrays' specs."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, KeyError):  # orbax goes on to list what there is
        return str(error.args[0]).split(". ", 1)[0]
    first = (str(error).splitlines() or [""])[0]
    return first.split(" [", 1)[0].rsplit(": ", 1)[-1][:200]


def _require_room_everywhere(directory: Path) -> None:
    """As `require_room`, on all processes where it is so on one: the others would wait for it while saving."""
    refused = ""
    try:
        require_room(directory)
    except UserError as error:
        refused = str(error)
    if why := next(filter(None, (told["refused"] for told in gather_json({"refused": refused}))), None):
        raise UserError(why)


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
