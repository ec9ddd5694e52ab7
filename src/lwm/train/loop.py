"""A training run from its first check to the finished model directory.

Both Ctrl-C and SIGTERM let the step in hand finish, save a checkpoint and return; a second one stops at once.
"""

import functools
import operator
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from lwm.core import params as declared
from lwm.core.errors import UserError
from lwm.core.files import write_json
from lwm.core.mesh import make_mesh
from lwm.data.examples import ExampleSource, ExampleStream
from lwm.data.loader import merge_states
from lwm.data.tokenizer import load_tokenizer, tokenizer_file
from lwm.model.config import ModelConfig
from lwm.model.transformer import declare
from lwm.train.checkpoint import Checkpoints, gather_json
from lwm.train.feed import Fed, Feed
from lwm.train.metrics import (
    JsonLines,
    Meter,
    Screen,
    Sink,
    Sinks,
    TensorBoard,
    WeightsAndBiases,
    as_json,
    import_wandb,
)
from lwm.train.run import Run, open_directory, require_beginning, require_directory, require_runnable, saved_steps
from lwm.train.step import Metrics, TrainState, abstract_state, init_state, make_eval_step, make_train_step, summarize
from lwm.weights.store import EMBEDDED, load_model, save_model

Values = dict[str, float]


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    directory: Path
    #: steps taken in all
    step: int
    #: of the last step
    metrics: Values
    #: the signal that stopped it before its last step; a shell expects 128 + signal as exit code (130, 143)
    stopped_by: int | None


@dataclass(frozen=True)
class Moment:
    """What a hook sees: the run after a step."""

    step: int
    state: TrainState
    metrics: Values
    loader_state: dict[str, Any]


Hook = Callable[[Moment], None]


def train(run: Run, resume: bool = False) -> TrainResult:
    """Train from fresh weights, from `run.init_from`, or (`resume`) from the run's last checkpoint, to the last step.

    Raises:
        UserError: something does not fit together, before anything is computed; a record source that failed; a loss
            or gradient that is not finite. In the last two cases a checkpoint holds the state before it.
    """
    if run.distributed:
        join_processes()
    if run.wandb:
        import_wandb()
    tokenizer = load_tokenizer(run.tokenizer)
    mesh = make_mesh(run.mesh)
    with jax.set_mesh(mesh):
        require_runnable(run, tokenizer)
        require_directory(run, resume)
        source = run.data.open(tokenizer)
        held_out = None if run.held_out is None else run.held_out.open(tokenizer)
        measure = None if held_out is None else make_evaluation(run, held_out, mesh)
        with Feed(run, source, mesh) as feed:
            begin = resumed(run, feed, mesh) if resume else started(run, feed, mesh)
            feed.make_ready()
            open_directory(run)  # not before: what was refused until here leaves nothing behind
            with (
                Checkpoints(run.checkpoints, run.keep_checkpoints) as checkpoints,
                open_sinks(run, begin.step) as sinks,
            ):
                hooks = make_hooks(run, measure, sinks, checkpoints)
                end, stopped_by = take_steps(run, begin, feed, hooks, checkpoints)
        if stopped_by is None:
            publish(run, end.state.params)
    return TrainResult(run.out, end.step, end.metrics, stopped_by)


def join_processes() -> None:
    """Become one of the processes that compute a run together.

    Raises:
        UserError: nothing here says which they are, or they did not meet.
    """
    try:
        jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        raise UserError(f"--distributed: the processes of this run did not find each other: {error}") from None


def started(run: Run, feed: Feed, mesh: Mesh) -> Moment:
    """Before the first step."""
    require_beginning(run)
    declaration = declare(run.model)
    if run.init_from is None:
        params = declared.init_sharded(declaration, jax.random.key(run.seed), jnp.float32, mesh)
    else:
        params = params_from(run.init_from, declared.abstract(declaration, jnp.float32, mesh), mesh)
    return Moment(0, init_state(run.model, run.optimizer.ending_at(run.steps), mesh, params), {}, feed.get_state())


def params_from(source: str, target: Any, mesh: Mesh) -> Any:
    """The fp32 parameters of a run (its last checkpoint, else its finished model) or of a model.

    Raises:
        UserError: there is nothing to load, or it has other shapes.
    """
    if source not in EMBEDDED:
        directory = Path(source)
        if saved_steps(directory / "checkpoints"):
            with Checkpoints(directory / "checkpoints") as earlier:
                return earlier.restore_params(target)
        if os.path.isdir(directory / "model"):
            source = str(directory / "model")
    params = load_model(source, mesh, "float32").params
    declared.require_same_shapes(source, declared.shapes_by_name(params), "this run", declared.shapes_by_name(target))
    return params


def resumed(run: Run, feed: Feed, mesh: Mesh) -> Moment:
    """Where the last checkpoint stands, on the mesh of today."""
    with Checkpoints(run.checkpoints) as earlier:
        state, loader_state = earlier.restore(abstract_state(run.model, run.optimizer.ending_at(run.steps), mesh))
    feed.set_state(loader_state)
    return Moment(int(state.step), state, {}, loader_state)


def open_sinks(run: Run, start: int) -> Sinks:
    """Where this run's numbers go; the first process speaks for all."""
    if jax.process_index():
        return Sinks()
    sinks: list[Sink] = [JsonLines(run.out, start), TensorBoard(run.out, start)]
    if run.wandb:
        sinks.append(WeightsAndBiases(run.name, run.out, run.to_json(), start))
    return Sinks(*sinks, Screen(run.name, start, run.steps))


def make_hooks(
    run: Run, measure: Callable[[Any], Values] | None, sinks: Sinks, checkpoints: Checkpoints
) -> list[tuple[int, Hook]]:
    """All that a run does besides stepping, and every how many steps."""
    meter = Meter()

    def log(moment: Moment) -> None:
        sinks.write(moment.step, moment.metrics | {"tokens_per_second": meter.read()})

    hooks: list[tuple[int, Hook]] = [
        (1, lambda moment: meter.add(int(moment.metrics["tokens"]))),
        (run.log_every, log),
        (run.checkpoint_every, lambda moment: save(run, moment, checkpoints)),
    ]
    if measure is not None:

        def evaluate(moment: Moment) -> None:
            sinks.write(moment.step, measure(moment.state.params))
            meter.restart()

        hooks.append((run.eval_every, evaluate))
    return hooks


def make_evaluation(run: Run, source: ExampleSource | ExampleStream, mesh: Mesh) -> Callable[[Any], Values]:
    """The loss and accuracy of parameters on the same held-out batches each time.

    Raises:
        UserError: the records cannot be read or used.
    """
    eval_step = make_eval_step(run.model, run.compute, mesh)
    summary = jax.jit(partial(summarize, vocab=run.model.vocab))
    feed = Feed(run, source, mesh)
    beginning = feed.get_state()
    feed.make_ready()

    def measure(params: Any) -> Values:
        feed.set_state(beginning)
        with feed:
            each = (eval_step(params, feed.next().batch) for _ in range(run.held_out_batches))
            sums = functools.reduce(partial(jax.tree.map, jnp.add), each)
        return {f"held_out_{name}": value for name, value in as_values(summary(sums)).items()}

    return measure


def take_steps(
    run: Run, begin: Moment, feed: Feed, hooks: list[tuple[int, Hook]], checkpoints: Checkpoints
) -> tuple[Moment, int | None]:
    """Step until the last step or a signal; return both."""
    optimizer = run.optimizer.ending_at(run.steps)
    train_step = make_train_step(run.model, run.compute, optimizer, feed.mesh, run.gradient_accumulation)
    now = begin
    with Interruption() as interruption:
        while now.step < run.steps and not interruption.agreed():
            fed = next_batch(run, now, feed, checkpoints)
            state, metrics = train_step(now.state, fed.batch)
            values = as_values(metrics)
            if not values.pop("finite"):
                save(run, replace(now, state=state), checkpoints)
                raise UserError(report_not_finite(run, now.step + 1, values, fed))
            now = Moment(now.step + 1, state, values, fed.loader_state)
            for every, hook in hooks:
                if now.step % every == 0 or now.step == run.steps:
                    hook(now)
        save(run, now, checkpoints)
    return now, interruption.signal if now.step < run.steps else None


def next_batch(run: Run, now: Moment, feed: Feed, checkpoints: Checkpoints) -> Fed:
    """The next batch. If its records cannot be read, what was learned so far is saved."""
    try:
        return feed.next()
    except UserError:
        if now.step and jax.process_count() == 1:  # saving takes all processes, and the others did not fail
            save(run, now, checkpoints)
        raise


def save(run: Run, moment: Moment, checkpoints: Checkpoints) -> None:
    """Begin to save a checkpoint of a moment."""
    checkpoints.save(moment.state, merge_states(gather_json(moment.loader_state)), run.to_json())


def report_not_finite(run: Run, step: int, values: Values, fed: Fed) -> str:
    """Write `bad_batch.json`; return the sentence that explains what happened."""
    record_ids = functools.reduce(operator.or_, gather_json(fed.record_ids))
    path = run.out / "bad_batch.json"
    if jax.process_index() == 0:
        write_json(path, {"step": step, **as_json(values), "record_ids": record_ids})
    return (
        f"step {step}: the loss is {values['loss']:.6g}, its gradient's norm {values['gradient_norm']:.6g}; the step "
        f"was not taken. The records of its batch are in {path}: mend them, or lower the learning rate and --resume"
    )


def publish(run: Run, params: Any) -> None:
    """Write the finished model's directory."""
    if jax.process_count() > 1:
        params = multihost_utils.process_allgather(params, tiled=True)
    if jax.process_index() == 0:
        save_model(run.out / "model", as_tokenized(run), params, tokenizer_file(run.tokenizer), run.save_dtype)


def as_tokenized(run: Run) -> ModelConfig:
    """The model's config with the begin and end that its tokenizer taught it."""
    tokenizer, vocab = load_tokenizer(run.tokenizer), run.model.vocab
    bos_id = vocab.bos_id if tokenizer.bos_id is None else tokenizer.bos_id
    eos_id = vocab.eos_id if tokenizer.eos_id is None else tokenizer.eos_id
    return replace(run.model, vocab=replace(vocab, bos_id=bos_id, eos_id=eos_id))


def as_values(metrics: Metrics) -> Values:
    """Wait for a step's metrics and bring them to the host."""
    return {name: float(value) for name, value in jax.device_get(metrics).items()}


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
