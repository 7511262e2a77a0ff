"""The derivative of a Rosenbrock step in reverse mode, by hand.

With W = M / gamma - h J and the products m_i = W^-T (cotangent of stage i), the cotangent of a
parameter p is

    sum_i m_i . d/dp [h f(Y_i) + h J(y0) (u_i + E_i)] + (sum_i d_i m_i) . d/dp [h^2 df/dt]

with E_i by how far Y_i is outside the box, so that from stage to stage only the transposed
Jacobians at the points Y_i are needed. Automatic differentiation of the step finds the same
numbers, with a product for each entry of J, and with more and smaller operations.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.lax as lax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from .._fields import Guard
from .._lanes import spread
from .._linalg import AbstractJacobian, Mass
from .._precision import product
from ._rosenbrock_step import (
    AtStart,
    Held,
    Step,
    at_start_of,
    end_of,
    flat_stages,
    padded,
    scanned,
    step_of,
    unrolled,
    unrolls,
    weighted,
)
from ._tableaus import RosenbrockTableau


def replay_step(
    tableau: RosenbrockTableau,
    structure: AbstractJacobian,
    box: Guard | None,
    mass: Mass | None,
    system: Callable,
    moving,
    t0,
    t1,
    y0,
    held: Held = None,
):
    """A step whose derivative is to be transposed; `system(moving)` are its `(terms, args)`.

    **Returns:** the dense output's `y0`, `y1` and `stages`, and a function from the cotangents of
    the new state and of the dense output to those of `(moving, t0, t1, y0)`.
    """
    flat = lambda tree: ravel_pytree(tree)[0]
    inputs = (moving, t0, t1)

    def step_at(inputs):
        moving, t0, t1 = inputs
        terms, args = system(moving)
        return step_of(terms, structure, box, mass, args, t0, t1, y0)

    step, start = step_at(inputs), flat(y0)
    unravel, dtype = step.unravel, step.dtype
    at_start = at_start_of(tableau, structure, step, start, step.known(structure, t0, start))
    replay = _replay_unrolled if unrolls(start.size) else _replay_scanned
    slope = step.slopes(structure, at_start)
    u, points, transpose = replay(tableau, step, slope, at_start, flat_stages(held))
    # What h J at the start is multiplied with: the stages, and what its tangent is taken along.
    along_start = u if box is None else u + jax.vmap(step.outside)(points)
    dense = dict(y0=y0, y1=unravel(end_of(tableau, at_start, u)), stages=jax.vmap(unravel)(u))

    def along(inputs, start, m):
        """What the products are of; the points of the stages are held."""
        step = step_at(inputs)
        slopes = jax.vmap(step.slope_at)(jnp.asarray(tableau.c, dtype), points)
        bend = _products(tableau, structure, step, start, along_start)
        d_drift = product(jnp.asarray(tableau.d, dtype), m)
        drift = step.h * (step.h * step.drift(step.t0, start))
        return jnp.sum(m * (slopes + bend)) + jnp.sum(d_drift * drift)

    def pull(d_end, d_dense):
        d_end = flat(d_end) + flat(d_dense["y1"])
        d_stages = jax.vmap(flat)(d_dense["stages"])
        d_stages = d_stages + jnp.outer(jnp.asarray(tableau.b, dtype), d_end)
        m, d_start = transpose(d_stages)
        d_inputs, d_start_too = jax.grad(along, argnums=(0, 1))(inputs, start, m)
        d_start = d_start + d_start_too + d_end + flat(d_dense["y0"])
        return *d_inputs, unravel(d_start)

    return dense, pull


def _products(tableau: RosenbrockTableau, structure: AbstractJacobian, step: Step, start, rows):
    """h J at the start with each of `rows`, with as few columns of h J as there are."""
    if start.size > tableau.stages and step.jacobian is None:
        multiply = jax.linearize(functools.partial(step.value, step.t0), step.inside(start))[1]
    else:
        stored = step.linearise(structure, step.t0, start)[1]
        multiply = functools.partial(structure.multiply, stored)
    return step.h * jax.vmap(multiply)(rows)


# Both return the stages, their points, and a function from the cotangents of the stages to the
# products m and the cotangent of the start by way of f(Y_i).


def _replay_unrolled(
    tableau: RosenbrockTableau, step: Step, slope: Callable, at_start: AtStart, held: Held
):
    points, pulls = [], []

    def linearised(c, point):
        value, pull = jax.vjp(functools.partial(slope, c), point)
        points.append(point)
        pulls.append(pull)
        return value

    linearised(tableau.c[0], at_start.start)
    u = unrolled(tableau, step, linearised, at_start, held)

    def transpose(d_stages):
        count = tableau.stages
        m: list[Any] = [None] * count
        d_points: list[Any] = [None] * count
        for i in reversed(range(count)):
            later = range(i + 1, count)
            parts = [d_stages[i]]
            parts += [tableau.A[k][i] * d_points[k] for k in later if tableau.A[k][i] != 0]
            bent = [tableau.C[k][i] * m[k] for k in later if tableau.C[k][i] != 0]
            parts += [step.of_mass_transposed(functools.reduce(operator.add, bent))] if bent else []
            m[i] = at_start.factored.solve_transposed(functools.reduce(operator.add, parts))
            (d_points[i],) = pulls[i](m[i])
        return jnp.stack(m), functools.reduce(operator.add, d_points)

    return u, jnp.stack(points), transpose


def _replay_scanned(
    tableau: RosenbrockTableau, step: Step, slope: Callable, at_start: AtStart, held: Held
):
    dtype = at_start.start.dtype
    u = scanned(tableau, step, slope, at_start, held)
    A, C = padded(tableau.A, dtype), padded(tableau.C, dtype)
    c = jnp.asarray(tableau.c, dtype)
    points = at_start.start[None] + product(A, u)

    def stage(carry, row):
        m, d_points = carry
        i, A, C, c, point, d_stage = row
        right = d_stage + weighted(A, d_points) + step.of_mass_transposed(weighted(C, m))
        new = at_start.factored.solve_transposed(right)
        _, pull = jax.vjp(functools.partial(slope, c), point)
        return (m.at[i].set(new), d_points.at[i].set(pull(new)[0])), None

    def transpose(d_stages):
        rows = (jnp.arange(tableau.stages), A.T, C.T, c, points, d_stages)
        zeros = spread(jnp.zeros_like(points), d_stages)
        (m, d_points), _ = lax.scan(stage, (zeros, zeros), rows, reverse=True)
        return m, jnp.sum(d_points, axis=0)

    return u, points, transpose
