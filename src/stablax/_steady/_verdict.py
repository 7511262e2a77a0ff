"""Whether a state is an admissible steady state, whatever the search said."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .._linalg import Dense, EquilibratedLU
from .._results import RESULTS, STATUS, translated
from .._states import all_finite
from ._problem import SteadyProblem

# Eigenvalues of larger Jacobians cost more than the search.
_LARGEST_FOR_STABILITY = 100


def with_stability(size: int, stability: bool | None) -> bool:
    return size <= _LARGEST_FOR_STABILITY if stability is None else stability


class Verdict(eqx.Module):
    """A state, and whether it is an admissible steady state."""

    y: Array
    residual: Array
    result: RESULTS
    stable: Array
    component: Array
    jacobian: Array  # of F


def judge(
    problem: SteadyProblem, y: Array, seen: tuple[Array, Array], stability: bool | None
) -> Verdict:
    """Looks at the bare residual at `y`, where f and its Jacobian are `seen`."""
    flux, of_field = seen
    value, jacobian = problem.constrained(y, flux, of_field)
    finite = all_finite((y, value, jacobian))
    jacobian = jnp.where(finite, jacobian, -jnp.eye(y.size, dtype=y.dtype))
    linear = EquilibratedLU()
    factors = linear.factorise(Dense(), jnp.zeros((), y.dtype), jacobian)
    singular = linear.is_singular(factors)
    step = linear.apply(factors, value, transpose=False)
    residual = problem.length(step, y)
    residual = jnp.where(jnp.isnan(residual), jnp.inf, residual)
    # Where the step says nothing (a singular Jacobian), the residual itself does.
    far = jnp.where(jnp.all(jnp.isfinite(step)), step, value) / (jnp.abs(y) + problem.atol)
    component = jnp.argmax(jnp.where(jnp.isnan(far), jnp.inf, jnp.abs(far)))
    # Rounding in f can hold the last step a little above the tolerance.
    converged = finite & (residual < 10 * problem.rtol) & ~singular
    admissible = converged & problem.inside(y) & problem.keeps_conserved(y)
    leaks = finite & jnp.any(problem.leak(y, flux, of_field) > 1)
    # A flat spot: nothing moves, but the Jacobian cannot say where the steady state is.
    scale = jnp.max(jnp.abs(jacobian))
    still = problem.length(flux, y) <= jnp.sqrt(problem.rtol) * scale
    flat = finite & singular & still & problem.inside(y)
    if with_stability(y.size, stability):
        # On the conserved directions the Jacobian of F is -1, so they do not count.
        stable = finite & jnp.all(jnp.real(jnp.linalg.eigvals(jacobian)) < 0)
    else:
        stable = jnp.array(True)
    steady = RESULTS.where(
        stable,
        RESULTS.successful,  # pyright: ignore[reportArgumentType]
        RESULTS.unstable_steady_state,
    )
    missing = RESULTS.where(flat, RESULTS.singular_steady_state, RESULTS.no_steady_state)
    result = RESULTS.where(admissible, steady, missing)
    result = RESULTS.where(admissible & leaks, RESULTS.not_conserved, result)
    return Verdict(y, residual, result, stable, component, jacobian)


def status_of(verdict: Verdict, said: STATUS, problem: SteadyProblem) -> STATUS:
    """The status of a stage: what it said, unless the verdict knows better."""
    left = ~problem.inside(verdict.y) & (said != STATUS.not_finite)
    found = (said == STATUS.converged) | (said == STATUS.ambiguous)
    wrong = found & (verdict.result != RESULTS.successful)
    status: Any = STATUS.where(wrong, STATUS.diverged, said)
    status = STATUS.where(left, STATUS.left_bounds, status)
    certain = (verdict.result == RESULTS.successful) & (said != STATUS.ambiguous)
    status = STATUS.where(certain, STATUS.converged, status)
    knows = ("unstable_steady_state", "singular_steady_state")
    return translated(verdict.result, RESULTS, STATUS, status, only=knows)
