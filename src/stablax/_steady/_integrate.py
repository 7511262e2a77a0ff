"""Integration to the steady state."""

from typing import Any, final

import diffrax
import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array

from .._control import StiffPID, admissible
from .._fields import Guard
from .._linalg import Dense, EquilibratedLU
from .._loop import Steps, integrate_steps
from .._results import STATUS, Cause, translated
from .._solvers import Rodas5P, for_forward_mode, is_implicit, mass_of, prepare
from .._words import short
from ._base import AbstractSteadyMethod, Attempt
from ._problem import SteadyProblem

_LEAST_RTOL_FLOAT32 = 1e-4
_ATOL = 1e-3  # of `rtol`
# Of the time that the state takes to move by its tolerance: the shortest step that the controller
# takes is a fraction of the whole time, so that this may not be endless.
_LONGEST = 1e20


@final
class Integrate(AbstractSteadyMethod):
    """Follows the dynamics from `y0` with a diffrax solver until the Newton step is within the
    tolerance in every component. That tells a steady state from a slow mode, which |f| and
    `diffrax.steady_state_event` do not: far from its steady state a slow component has a small
    derivative. Slower than [`PseudoTransient`][], and as true to the dynamics as its tolerance.

    **Arguments:**

    - `solver`: a diffrax solver of ODEs; by default [`Rodas5P`][].
    - `rtol`: relative tolerance of the integration, in (0, 1); in float32 at least 1e-4. `atol`
        is 1e-3 of it [units of the state].
    - `horizon`: the longest time to integrate for [time].
    """

    solver: diffrax.AbstractSolver = Rodas5P()
    rtol: float = eqx.field(static=True, default=1e-5)
    horizon: float = eqx.field(static=True, default=1e15)

    def __check_init__(self):
        if not isinstance(self.solver, diffrax.AbstractSolver):
            raise TypeError(f"`solver` must be a diffrax solver, got {short(self.solver)}.")
        if self.solver.term_structure not in (diffrax.AbstractTerm, diffrax.ODETerm):
            raise TypeError(
                "`solver` must take one term, as explicit and implicit solvers do; "
                f"`{type(self.solver).__name__}` takes several. Use `Rodas5P()` or `kvaerno5()`."
            )
        if mass_of(self.solver) is not None:
            raise TypeError("`solver` must have no `mass`: the search follows dy/dt = f.")
        if not 0 < self.rtol < 1:
            raise ValueError(f"`rtol` must be between 0 and 1, got {self.rtol}.")
        if not (np.isfinite(self.horizon) and self.horizon > 0):
            raise ValueError(f"`horizon` must be a finite time above 0, got {self.horizon}.")

    def search(self, problem, active):
        y0 = problem.start
        dtype = np.dtype(y0.dtype)
        box = Guard(np.asarray(problem.lower), np.asarray(problem.upper))
        rtol = self.rtol if dtype == np.float64 else max(self.rtol, _LEAST_RTOL_FLOAT32)
        law = StiffPID(rtol, _ATOL * rtol)
        controller = admissible(
            law.control_law(dtype), box, dtype, implicit=is_implicit(self.solver)
        )

        zero = jnp.zeros((), dtype)
        rate = problem.length(problem.residual(y0), y0)
        horizon = jnp.minimum(self.horizon, _LONGEST / rate)
        # At an infinite rate the horizon would be nothing, and nobody would look at the field.
        horizon = jnp.where(jnp.isfinite(horizon) & (horizon > 0), horizon, self.horizon)
        steps = Steps(
            terms=diffrax.ODETerm(jtu.Partial(_residual, problem)),
            solver=for_forward_mode(prepare(self.solver, controller, box)),
            controller=controller,
            meter=diffrax.NoProgressMeter(),
            max_steps=problem.max_steps,
            ends_at=jtu.Partial(_arrived, problem),
            seen=problem.unseen(),
            width=problem.width,
        )
        end = jnp.where(active, horizon, zero).astype(dtype)
        solved, _ = integrate_steps(steps, zero, end, None, y0, jnp.zeros(0, dtype), None)
        underflow = solved.result == diffrax.RESULTS.dt_min_reached
        why = translated(solved.control.record.cause, Cause, STATUS, STATUS.diverged)
        status: Any = STATUS.where(underflow, why, STATUS.out_of_steps)
        arrived = solved.result == diffrax.RESULTS.event_occurred
        status = STATUS.where(arrived, STATUS.converged, status)
        # Asked last of the state at which the loop ended.
        return Attempt(solved.y, status, solved.tried, solved.seen)


def _residual(problem: SteadyProblem, t, y: Array, args) -> Array:
    return problem.residual(y)


def _arrived(problem: SteadyProblem, _, t, y: Array, args) -> tuple[Array, tuple[Array, Array]]:
    """Whether the Newton step is within the tolerance in every component."""
    seen = problem.linearise_field(y)
    value, jacobian = problem.constrained(y, *seen)
    factors = EquilibratedLU().factorise(Dense(), jnp.zeros((), y.dtype), jacobian)
    step = EquilibratedLU().apply(factors, value, transpose=False)
    return problem.length(step, y) < problem.rtol, seen
