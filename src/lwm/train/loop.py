"""A training run from its first check to the finished model directory.

Both Ctrl-C and SIGTERM let the step in hand finish, save a checkpoint and return; a second one stops at once.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from lwm.core.errors import UserError
from lwm.core.mesh import make_mesh
from lwm.data.examples import ExampleSource, ExampleStream
from lwm.data.tokenizer import load_tokenizer, tokenizer_file
from lwm.model.config import ModelConfig
from lwm.model.lora import declare_trained, merge_adapters
from lwm.model.transformer import Transformer
from lwm.train.base import open_directory, require_directory
from lwm.train.checkpoint import Checkpoints
from lwm.train.feed import Feed, require_targets
from lwm.train.lora import describe_base, first_params, load_base, require_same_base
from lwm.train.metrics import import_wandb
from lwm.train.run import Run, codec_of, features_of, require_runnable
from lwm.train.state import abstract_state, init_state
from lwm.train.step import make_eval_step, make_train_step, summarize
from lwm.train.steps import Moment, TrainResult, Values, as_values, make_hooks, open_sinks, take_steps
from lwm.weights.adapters import save_adapters
from lwm.weights.store import require_replaceable, save_model


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
        require_replaceable(run.finished)
        source = run.data.open(tokenizer, run.model.vocab)
        held_out = None if run.held_out is None else run.held_out.open(tokenizer, run.model.vocab)
        measure = None if held_out is None else make_evaluation(run, held_out, mesh)
        with Feed(run, source, mesh) as feed:
            base = load_base(run, mesh)
            begin = resumed(run, feed, base, mesh) if resume else started(run, feed, mesh)
            require_targets(run, feed)
            open_directory(run)  # not before: what was refused until here leaves nothing behind
            describe_base(run, base, mesh)
            with (
                Checkpoints(run.checkpoints, run.keep_checkpoints) as checkpoints,
                open_sinks(run, begin.step) as sinks,
            ):
                hooks = make_hooks(run, None if measure is None else partial(measure, base), sinks, checkpoints)
                optimizer = run.optimizer.ending_at(run.steps)
                train_step = make_train_step(
                    run.model,
                    run.compute,
                    optimizer,
                    mesh,
                    run.gradient_accumulation,
                    run.vision_share,
                    features_of(run),
                    run.lora,
                )
                end, stopped_by = take_steps(run, begin, feed, partial(train_step, base=base), hooks, checkpoints)
        if stopped_by is None:
            publish(run, end.state.params, base)
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
    declaration, optimizer = declare_trained(run.model, run.lora), run.optimizer.ending_at(run.steps)
    state = init_state(declaration, optimizer, mesh, first_params(run, mesh))
    return Moment(0, state, {}, feed.get_state())


def resumed(run: Run, feed: Feed, base: Transformer | None, mesh: Mesh) -> Moment:
    """Where the last checkpoint stands, on the mesh of today."""
    require_same_base(run, base, mesh)
    declaration, optimizer = declare_trained(run.model, run.lora), run.optimizer.ending_at(run.steps)
    with Checkpoints(run.checkpoints) as earlier:
        state, loader_state = earlier.restore(abstract_state(declaration, optimizer, mesh))
    feed.set_state(loader_state)
    return Moment(int(state.step), state, {}, loader_state)


def make_evaluation(
    run: Run, source: ExampleSource | ExampleStream, mesh: Mesh
) -> Callable[[Transformer | None, Moment], Values]:
    """The loss and accuracy of parameters, on a frozen base if need be, on the same held-out batches each time.

    Raises:
        UserError: the records cannot be read or used.
    """
    eval_step = make_eval_step(run.model, run.compute, mesh, run.lora)
    summary = jax.jit(partial(summarize, vocab=run.model.vocab, vision_share=run.vision_share))
    feed = Feed(run, source, mesh)
    beginning = feed.get_state()
    feed.make_ready()

    def measure(base: Transformer | None, moment: Moment) -> Values:
        feed.set_state(beginning)
        with feed:
            each = (eval_step(moment.state.params, feed.next().batch, base) for _ in range(run.held_out_batches))
            sums = functools.reduce(partial(jax.tree.map, jnp.add), each)
        return {f"held_out_{name}": value for name, value in as_values(summary(sums)).items()}

    return measure


def publish(run: Run, params: Any, base: Transformer | None) -> None:
    """Write the finished model's directory; adapters are merged into their base, and written by themselves as well."""
    adapters = None if base is None else _on_every_host(params)
    whole = _on_every_host(params if base is None else merge_adapters(base, params, run.lora))
    if jax.process_index() == 0:
        if adapters is not None:
            save_adapters(run.out, adapters)
        config, tokenizer = as_tokenized(run), tokenizer_file(run.tokenizer)
        save_model(run.finished, config, whole, tokenizer, run.save_dtype, codec_of(run))


def _on_every_host(params: Any) -> Any:
    return multihost_utils.process_allgather(params, tiled=True) if jax.process_count() > 1 else params


def as_tokenized(run: Run) -> ModelConfig:
    """The model's config with the begin and end that its tokenizer taught it."""
    tokenizer, vocab = load_tokenizer(run.tokenizer), run.model.vocab
    bos_id = vocab.bos_id if tokenizer.bos_id is None else tokenizer.bos_id
    eos_id = vocab.eos_id if tokenizer.eos_id is None else tokenizer.eos_id
    return replace(run.model, vocab=replace(vocab, bos_id=bos_id, eos_id=eos_id))
