"""A solver as it is asked for its steps."""

import diffrax
import equinox as eqx

from .._fields import Guard
from .._pickling import FROM_CONTROLLER
from .._states import is_none
from ._esdirk_step import EsdirkSteps, has_esdirk_steps
from ._rosenbrock import AbstractRosenbrock


def prepare(
    solver: diffrax.AbstractSolver, controller: diffrax.AbstractStepSizeController, guard: Guard
) -> diffrax.AbstractSolver:
    """`solver` with the tolerances of its root finder taken from the controller, as diffrax does
    inside `diffeqsolve`; its steps are taken by stablax where they can be. A Rosenbrock step has a
    Jacobian to go on with where the `guard` keeps it next to the box."""
    if isinstance(solver, AbstractRosenbrock) and guard.is_kept:
        return eqx.tree_at(lambda s: s.box, solver, guard, is_leaf=is_none)
    if not isinstance(solver, diffrax.AbstractImplicitSolver):
        return solver
    finder = solver.root_finder
    unset = [n for n in ("rtol", "atol", "norm") if getattr(finder, n) is FROM_CONTROLLER]
    solver = eqx.tree_at(
        lambda s: tuple(getattr(s.root_finder, n) for n in unset),
        solver,
        tuple(getattr(controller, n) for n in unset),
    )
    return EsdirkSteps(solver) if has_esdirk_steps(solver) else solver


def for_forward_mode(solver: diffrax.AbstractSolver) -> diffrax.AbstractSolver:
    """diffrax's default loop over the stages of a Runge-Kutta method has reverse mode only."""
    if isinstance(solver, diffrax.AbstractRungeKutta):
        solver = eqx.tree_at(lambda s: s.scan_kind, solver, "lax", is_leaf=is_none)
    return solver
