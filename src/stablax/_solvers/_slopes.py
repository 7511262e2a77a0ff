"""What a solver makes of its field besides steps: dy/dt, and states at which algebraic equations
hold."""

from collections.abc import Callable
from typing import TypeGuard

import diffrax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, PyTree

from .._linalg import Mass
from .._types import Args
from ._algebraic import as_consistent, find_consistent, slope
from ._rosenbrock import AbstractRosenbrock


def has_algebraic(solver: diffrax.AbstractSolver) -> TypeGuard[AbstractRosenbrock]:
    """Whether some of the equations that it solves are algebraic."""
    return isinstance(solver, AbstractRosenbrock) and solver.has_algebraic


def mass_of(solver: diffrax.AbstractSolver) -> Mass | None:
    """M of M dy/dt = f, if `solver` has one."""
    return solver.mass if isinstance(solver, AbstractRosenbrock) else None


def slope_of(
    solver: diffrax.AbstractSolver, field: Callable, t: Array, y: PyTree[Array], args: Args
) -> PyTree[Array]:
    """dy/dt, of the `field(t, y, args)` that `solver` takes."""
    if isinstance(solver, AbstractRosenbrock) and solver.mass is not None:
        return slope(solver.mass, solver.structure, field, t, y, args)
    return field(t, y, args)


def right_side_of(solver: diffrax.AbstractSolver, slope: PyTree[Array]) -> PyTree[Array]:
    """What the field that `solver` takes has for a `slope` dy/dt."""
    mass = mass_of(solver)
    if mass is None:
        return slope
    flat, unravel = ravel_pytree(slope)
    return unravel(mass(flat))


def settle(
    solver: AbstractRosenbrock, field: Callable, t: Array, y, args
) -> tuple[PyTree[Array], Bool[Array, ""]]:
    """The state near `y` at which the algebraic equations of `solver` hold, and whether that was
    found. Has no derivative."""
    assert solver.mass is not None
    return find_consistent(solver.mass, solver.structure, field, t, y, args)


def as_settled(
    solver: AbstractRosenbrock, field: Callable, t: Array, y, args, found: PyTree[Array]
) -> PyTree[Array]:
    """What was `found` from `y`, with its derivative."""
    assert solver.mass is not None
    return as_consistent(solver.mass, solver.structure, field, t, y, args, found)
