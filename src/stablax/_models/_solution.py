"""The solution in a step, at a time that has a derivative."""

import functools
from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, ArrayLike, PyTree

from .._loop import KeptStep, interpolated
from .._types import Args
from ._slope import slope_at


@eqx.filter_custom_jvp
def solution_at(
    solver: diffrax.AbstractSolver,
    field: Callable,
    step: KeptStep,
    t: Array,
    args: Args,
    way: ArrayLike,
) -> PyTree[Array]:
    """The dense output of a `step` at its time `t`, with the slope of the `field` (whose time is
    `way * t`): its own is right to an order less than its value, and the derivative of the time of
    an event is divided by it."""
    return interpolated(solver, step, t)


@solution_at.def_jvp
def _solution_jvp(primals, tangents):
    (solver, field, step, t, args, way), (_, _, d_step, d_t, *_) = primals, tangents
    dense = functools.partial(interpolated, solver)
    y, d_y = eqx.filter_jvp(dense, (step, t), (d_step, d_t))
    if d_t is not None:
        _, own = jax.jvp(functools.partial(dense, step), (t,), (jnp.ones_like(t),))
        slope = slope_at(solver, field, t * way, y, args)
        d_y = jtu.tree_map(
            lambda d, own, f: d + jnp.where(jnp.isfinite(f), way * f - own, 0) * d_t,
            d_y,
            own,
            slope,
        )
    return y, d_y
