"""What follows from a state besides a step, for the field `(t, y, args, shift)` of a solve."""

from collections.abc import Callable

import diffrax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, PyTree

from .._solvers import AbstractRosenbrock, as_settled, has_algebraic, settle, slope_of
from .._states import stop, stop_unless
from .._types import Args


def slope_at(
    solver: diffrax.AbstractSolver, field: Callable, t: Array, y: PyTree[Array], args: Args
) -> PyTree[Array]:
    """dy/dt."""
    return slope_of(solver, unshifted(field), t, y, args)


def settled(
    solver: diffrax.AbstractSolver, field: Callable, t: Array, y: PyTree[Array], args: Args
) -> tuple[PyTree[Array], Bool[Array, ""]]:
    """The state near `y` at which the algebraic equations hold, if `solver` has some, with its
    derivative; and whether that was found. Where it was not, `y`."""
    if not has_algebraic(solver):
        return y, jnp.array(True)
    still, *at = stop((field, t, y, args))
    known, found = settle(solver, unshifted(still), *at)
    known = optax.tree.where(found, known, at[1])
    return optax.tree.where(found, resettled(solver, field, t, y, args, known, found), y), found


def resettled(
    solver: AbstractRosenbrock,
    field: Callable,
    t: Array,
    y: PyTree[Array],
    args: Args,
    known: PyTree[Array],
    found: Bool[Array, ""],
) -> PyTree[Array]:
    """What is `known` to be settled from `y`, with its derivative where it was `found`."""
    field, t, y, args = stop_unless(found, (field, t, y, args))
    return as_settled(solver, unshifted(field), t, y, args, known)


def unshifted(field: Callable) -> Callable:
    return lambda t, y, args: field(t, y, args, optax.tree.zeros_like(y))
