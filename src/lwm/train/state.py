"""What training changes: parameters, the optimizer's moments, the count of steps. And how a gradient changes it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from lwm.core import params as declared
from lwm.core.mesh import sharding
from lwm.core.pytree import pytree
from lwm.train.optimizer import OptimizerConfig, make_optimizer, make_schedule

Metrics = dict[str, jax.Array]


@pytree
@dataclass(frozen=True)
class TrainState:
    """All that a step changes. Parameters and moments are fp32 whatever the compute's precision."""

    params: Any
    opt_state: Any
    #: steps taken so far, int32 []
    step: Any


def abstract_state(declaration: Any, optimizer: OptimizerConfig, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state of declared tensors; moments lie like the parameters they belong to.

    Raises:
        UserError: a tensor's axis is not divisible by the mesh axes it is split over.
    """
    chain = make_optimizer(optimizer, declaration)
    params = declared.abstract(declaration, jnp.float32, mesh)
    everywhere = sharding(mesh)
    opt_state = optax.tree.map_params(
        chain,
        lambda moment, placed: jax.ShapeDtypeStruct(moment.shape, moment.dtype, sharding=placed),
        jax.eval_shape(chain.init, params),
        declared.shardings(declaration, mesh),
        transform_non_params=lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
    )
    return TrainState(params, opt_state, jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere))


def init_state(declaration: Any, optimizer: OptimizerConfig, mesh: Mesh, params: Any) -> TrainState:
    """The state before the first step, from fp32 parameters laid out on the mesh."""
    placed = shardings_of(abstract_state(declaration, optimizer, mesh))
    chain = make_optimizer(optimizer, declaration)
    opt_state = jax.jit(chain.init, out_shardings=placed.opt_state)(params)
    return TrainState(params, opt_state, jax.device_put(np.int32(0), placed.step))


def shardings_of(abstract: Any) -> Any:
    """The sharding of each leaf of an abstract tree."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def make_update(
    declaration: Any, optimizer: OptimizerConfig, adjust: Callable[[Any], Any] | None = None
) -> Callable[[TrainState, Any, jax.Array], tuple[TrainState, Metrics]]:
    """How a gradient and the loss it is of change a state; for use within a jitted step.

    Where one of them is not finite the state stays as it was, and the metrics say so (`finite`). `adjust` has the last
    word on what is added to the parameters.
    """
    chain, schedule = make_optimizer(optimizer, declaration), make_schedule(optimizer)

    def update(state: TrainState, gradients: Any, loss: jax.Array) -> tuple[TrainState, Metrics]:
        gradient_norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integer counts into floats
            updates, opt_state = chain.update(gradients, state.opt_state, state.params)
            learning_rate = jnp.asarray(schedule(state.step), jnp.float32)
        if adjust is not None:
            updates = adjust(updates)
        new = TrainState(optax.apply_updates(state.params, updates), opt_state, state.step + 1)
        return jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, state), {
            "gradient_norm": gradient_norm,
            "param_norm": optax.tree.norm(new.params),
            "learning_rate": learning_rate,
            "finite": finite,
        }

    return update
