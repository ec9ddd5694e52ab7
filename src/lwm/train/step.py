"""One training step and one evaluation step as pure functions of (state, batch)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from lwm.core.batch import Batch
from lwm.core.mesh import constrain, sharding
from lwm.core.vocab import Vocab
from lwm.model.config import Compute, ModelConfig
from lwm.model.lora import LoraConfig, declare_trained, whole_model
from lwm.model.loss import LossSums, combine, loss_sums, target_weight
from lwm.model.transformer import Transformer
from lwm.train.code_rows import make_shared_update
from lwm.train.optimizer import OptimizerConfig
from lwm.train.state import Metrics, TrainState, abstract_state, make_update, shardings_of

#: LWM's: vision weighs as much as text in the loss, however many tokens of each there are
EVEN = 0.5
#: no adapters: all of the model is trained
ALL = LoraConfig()


def abstract_batch(batch_size: int, seq_len: int, mesh: Mesh) -> Batch:
    """Shapes, dtypes and shardings of a batch of `batch_size` rows of `seq_len` tokens."""
    ids = jax.ShapeDtypeStruct((batch_size, seq_len), jnp.int32, sharding=sharding(mesh, "batch", "tokens"))
    weights = jax.ShapeDtypeStruct(ids.shape, jnp.float32, sharding=ids.sharding)
    return Batch(tokens=ids, targets=ids, loss_weights=weights, segment_ids=ids, positions=ids)


def make_train_step(
    model: ModelConfig,
    compute: Compute,
    optimizer: OptimizerConfig,
    mesh: Mesh,
    accumulation: int = 1,
    vision_share: float = EVEN,
    code_features: Float[np.ndarray, "codes features"] | None = None,
    lora: LoraConfig = ALL,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The jitted step of state and batch; it consumes (donates) the state it is given. Call it with the mesh in force.

    The batch passes in `accumulation` parts whose gradients add up to exactly the whole batch's. A step whose loss or
    gradient is not finite leaves the state as it was and says so in its metrics (`finite`). With `code_features` the
    rows of codes move as sums of them (`train.code_rows`). With `lora` the state is that of the adapters, and the step
    takes the frozen model as a third argument, `base`.
    """
    declaration = declare_trained(model, lora)
    shared = None if code_features is None else make_shared_update(code_features, model.vocab)
    advance = make_update(declaration, optimizer, shared)

    def step(state: TrainState, batch: Batch, base: Any = None) -> tuple[TrainState, Metrics]:
        whole = partial(whole_model, base=base, lora=lora)
        gradients, sums = accumulate(state.params, batch, model, compute, accumulation, vision_share, whole)
        metrics = summarize(sums, model.vocab, vision_share)
        new, updated = advance(state, gradients, metrics["loss"])
        return new, metrics | updated | {"tokens": jnp.sum(batch.segment_ids > 0)}  # type: ignore[operator]

    placed = shardings_of(abstract_state(declaration, optimizer, mesh))
    return jax.jit(step, donate_argnums=0, out_shardings=(placed, sharding(mesh)))


def make_eval_step(model: ModelConfig, compute: Compute, mesh: Mesh, lora: LoraConfig = ALL) -> Callable[..., LossSums]:
    """The jitted forward pass of parameters and a batch, without learning; with `lora` it takes `base` as well.

    Its sums add up over batches (see `summarize`).
    """

    def step(params: Any, batch: Batch, base: Any = None) -> LossSums:
        return loss_sums(whole_model(params, base, lora), batch, model, compute)

    return jax.jit(step, out_shardings=sharding(mesh))


def accumulate(
    params: Any,
    batch: Batch,
    model: ModelConfig,
    compute: Compute,
    parts: int,
    vision_share: float = EVEN,
    whole: Callable[[Any], Transformer] = lambda params: params,
) -> tuple[Any, LossSums]:
    """Gradient of the whole batch's loss, and the loss's sums, computed over `parts` of the batch in turn.

    `whole` makes the model out of what is learned of it.
    """
    weight, shares = target_weight(batch, model.vocab), modality_shares(model.vocab, vision_share)

    def objective(params: Any, part: Batch) -> tuple[Float[Array, ""], LossSums]:
        sums = loss_sums(whole(params), part, model, compute)
        return combine(sums, weight, shares), sums

    gradient = jax.grad(objective, has_aux=True)
    if parts == 1:
        return gradient(params, batch)

    def add(total: Any, part: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient(params, part)), None

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(gradient, params, batch))
    total, _ = jax.lax.scan(add, zeros, split_rows(batch, parts))
    return total


def split_rows(batch: Batch, parts: int) -> Batch:
    """[B T] -> [parts B/parts T]: part p holds rows p, p + parts, ..., so every device keeps its own rows."""

    def leaf(array: Array) -> Array:
        rows = array.reshape(-1, parts, array.shape[1]).swapaxes(0, 1)
        return constrain(rows, None, "batch", "tokens")

    return jax.tree.map(leaf, batch)


def modality_shares(vocab: Vocab, vision_share: float) -> Float[Array, "2"]:
    """What text and vision weigh in the loss; a text model has only text."""
    return jnp.array([1 - vision_share, vision_share] if vocab.vision_size else [1.0, 0.0], jnp.float32)


def summarize(sums: LossSums, vocab: Vocab, vision_share: float = EVEN) -> Metrics:
    """Loss, and loss and accuracy of each modality the model has, as weighted means over the targets."""
    weight = jnp.where(sums.weight > 0, sums.weight, 1.0)
    means, accuracy = sums.weighted_nll / weight, sums.weighted_correct / weight
    metrics = {"loss": combine(sums, sums.weight, modality_shares(vocab, vision_share))}
    for index, name in enumerate(("text", "vision") if vocab.vision_size else ("text",)):
        metrics |= {f"{name}_loss": means[index], f"{name}_accuracy": accuracy[index]}
    return metrics
