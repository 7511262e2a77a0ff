"""One step of a Rosenbrock method."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from .._linalg import AbstractJacobian, Factored, MatrixFree, linearise
from .._states import finite_or_zero
from ._tableaus import Tableau

# Up to this size the stages are unrolled: 1.2x to 2.3x faster than a loop over the stages, forward
# and in a gradient, and 0.3 s to 3 s slower to compile. Measured on HIRES, POLLU, a neural
# ODE of 8 states, and Robertson.
UNROLLED = 24


class Step(eqx.Module):
    """The step from `t0` to `t1`, on flat states."""

    terms: Any
    args: PyTree
    t0: Array
    t1: Array
    unravel: Callable = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)

    @property
    def control(self):
        return self.terms.contr(self.t0, self.t1)

    def slope(self, t, flat: Array) -> Array:
        """h f, for the step size h."""
        out = self.terms.vf_prod(t, self.unravel(flat), self.args, self.control)
        return ravel_pytree(out)[0].astype(self.dtype)

    def slope_at(self, c, flat: Array) -> Array:
        """h f at the fraction `c` of the step."""
        return self.slope(self.t0 + c * (self.t1 - self.t0), flat)

    def drift(self, flat: Array) -> Array:
        """h^2 df/dt at the start. Zero without cost where the field does not depend on t."""
        _, slope_t = jax.jvp(lambda t: self.slope(t, flat), (self.t0,), (jnp.ones_like(self.t0),))
        return (self.t1 - self.t0).astype(self.dtype) * slope_t

    def by_hand(self, flat: Array, jacobian: Callable) -> Array:
        """h J, from a function of the user's."""
        # Backward in time diffrax runs on -t, and says so by its control only.
        t = self.t0 * self.terms.contr(0.0, 1.0)
        return self.control * jacobian(t, self.unravel(flat), self.args)

    def linearise(self, structure: AbstractJacobian, flat: Array) -> tuple[Array, PyTree]:
        """h f and h J at the start."""
        slope, stored = linearise(
            structure,
            lambda flat: self.slope(self.t0, flat),
            flat,
            functools.partial(self.by_hand, flat),
        )
        # Where the field is finite and its derivative is not (a root at zero), nothing is better.
        return slope, stored if isinstance(structure, MatrixFree) else finite_or_zero(stored)


class AtStart(eqx.Module):
    """What a step knows of the field at its start."""

    start: Array
    slope: Array
    factored: Factored
    drift: Array


def at_start_of(tableau: Tableau, structure: AbstractJacobian, step: Step, y0) -> AtStart:
    flat0 = ravel_pytree(y0)[0]
    slope, stored = step.linearise(structure, flat0)
    factored = Factored(structure, jnp.asarray(1 / tableau.gamma, flat0.dtype), stored)
    return AtStart(flat0, slope, factored, step.drift(flat0))


def end_of(tableau: Tableau, at_start: AtStart, u: Array) -> Array:
    flat1 = at_start.start + _combine(tableau.b, u)
    # A smaller step brings the matrix closer to the identity.
    return jnp.where(at_start.factored.is_singular(), jnp.nan, flat1)


def take_step(tableau: Tableau, structure: AbstractJacobian, terms, t0, t1, y0, args):
    """**Returns:** the new state, the error estimate, and the stages u with a leading axis."""
    step = Step(terms, args, t0, t1, *form_of(y0))
    at_start = at_start_of(tableau, structure, step, y0)
    solve = unrolled if at_start.start.size <= UNROLLED else scanned
    u = solve(tableau, step.slope_at, at_start)
    error = step.unravel(_combine(tableau.e, u))
    return step.unravel(end_of(tableau, at_start, u)), error, jax.vmap(step.unravel)(u)


def form_of(y0):
    flat0, unravel = ravel_pytree(y0)
    return unravel, flat0.dtype


def _combine(weights, u):
    rows = [w * u[i] if w != 1 else u[i] for i, w in enumerate(weights) if w != 0]
    return functools.reduce(jnp.add, rows)


def unrolled(tableau: Tableau, slope, at_start: AtStart) -> Array:
    u = []
    for A, C, c, d in zip(tableau.A, tableau.C, tableau.c, tableau.d, strict=True):
        right = at_start.slope if not u else slope(c, at_start.start + _combine(A, u))
        if d != 0:
            right = right + d * at_start.drift
        if u:
            right = right + _combine(C, u)
        u.append(at_start.factored.solve(right))
    return jnp.stack(u)


def padded(rows, dtype) -> Array:
    return jnp.asarray([(*row, *[0.0] * (len(rows) - len(row))) for row in rows], dtype)


def scanned(tableau: Tableau, slope, at_start: AtStart) -> Array:
    start, dtype = at_start.start, at_start.start.dtype
    count = tableau.stages
    rows = (
        jnp.arange(1, count),
        padded(tableau.A, dtype)[1:],
        padded(tableau.C, dtype)[1:],
        jnp.asarray(tableau.c[1:], dtype),
        jnp.asarray(tableau.d[1:], dtype),
    )
    first = at_start.factored.solve(at_start.slope + tableau.d[0] * at_start.drift)
    u = jnp.zeros((count, start.size), dtype).at[0].set(first)

    def stage(u, row):
        i, A, C, c, d = row
        right = slope(c, start + A @ u) + d * at_start.drift + C @ u
        return u.at[i].set(at_start.factored.solve(right)), None

    return lax.scan(stage, u, rows)[0]
