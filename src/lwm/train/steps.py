"""The steps of a run, whatever it trains: batches in, a new state out, and what is done every so many steps."""

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax

from lwm.core.errors import UserError
from lwm.core.files import write_json
from lwm.data.loader import merge_states
from lwm.train.base import BaseRun
from lwm.train.checkpoint import Checkpoints, gather_json
from lwm.train.interruption import Interruption
from lwm.train.metrics import JsonLines, Meter, Screen, Sink, Sinks, TensorBoard, WeightsAndBiases, as_json
from lwm.train.state import Metrics, TrainState

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
TrainStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


@dataclass(frozen=True)
class Fed:
    """A batch on the devices, the records it is made of, and where the loader stands after it."""

    batch: Any
    #: of the rows that this process loads
    record_ids: dict[str, list[str]]
    loader_state: dict[str, Any]


@runtime_checkable
class AnyFeed(Protocol):
    """Where batches come from, whatever they are of."""

    def next(self) -> Fed: ...


def open_sinks(run: BaseRun, start: int) -> Sinks:
    """Where this run's numbers go; the first process speaks for all."""
    if jax.process_index():
        return Sinks()
    sinks: list[Sink] = [JsonLines(run.out, start), TensorBoard(run.out, start)]
    if run.wandb:
        sinks.append(WeightsAndBiases(run.name, run.out, run.described(), start))
    return Sinks(*sinks, Screen(run.name, start, run.steps))


def make_hooks(
    run: BaseRun, measure: Callable[[Moment], Values] | None, sinks: Sinks, checkpoints: Checkpoints
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
            sinks.write(moment.step, measure(moment))
            meter.restart()

        hooks.append((run.eval_every, evaluate))
    return hooks


def take_steps(
    run: BaseRun,
    begin: Moment,
    feed: AnyFeed,
    train_step: TrainStep,
    hooks: list[tuple[int, Hook]],
    checkpoints: Checkpoints,
) -> tuple[Moment, int | None]:
    """Step until the last step or a signal; return both."""
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
            call_hooks(run, now, hooks, checkpoints)
        save(run, now, checkpoints)
    return now, interruption.signal if now.step < run.steps else None


def next_batch(run: BaseRun, now: Moment, feed: AnyFeed, checkpoints: Checkpoints) -> Fed:
    """The next batch. If its records cannot be read, what was learned so far is saved."""
    try:
        return feed.next()
    except UserError:
        if now.step and jax.process_count() == 1:  # saving takes all processes, and the others did not fail
            save(run, now, checkpoints)
        raise


def call_hooks(run: BaseRun, now: Moment, hooks: list[tuple[int, Hook]], checkpoints: Checkpoints) -> None:
    """Call the hooks that are due. If one of them cannot go on, what was learned so far is saved."""
    try:
        for every, hook in hooks:
            if now.step % every == 0 or now.step == run.steps:
                hook(now)
    except UserError:
        if jax.process_count() == 1:  # as in `next_batch`
            save(run, now, checkpoints)
        raise


def save(run: BaseRun, moment: Moment, checkpoints: Checkpoints) -> None:
    """Begin to save a checkpoint of a moment."""
    checkpoints.save(moment.state, merge_states(gather_json(moment.loader_state)), run.described())


def report_not_finite(run: BaseRun, step: int, values: Values, fed: Fed) -> str:
    """Write `bad_batch.json`; return the sentence that explains what happened."""
    record_ids = functools.reduce(operator.or_, gather_json(fed.record_ids))
    path = run.out / "bad_batch.json"
    if jax.process_index() == 0:
        write_json(path, {"step": step, **as_json(values), "record_ids": record_ids})
    return (
        f"step {step}: the loss is {values['loss']:.6g}, its gradient's norm {values['gradient_norm']:.6g}; the step "
        f"was not taken. The records of its batch are in {path}: mend them, or lower the learning rate and --resume"
    )


def as_values(metrics: Metrics) -> Values:
    """Wait for a step's metrics and bring them to the host."""
    return {name: float(value) for name, value in jax.device_get(metrics).items()}
