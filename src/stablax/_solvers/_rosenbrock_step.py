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

from .._captured import capture
from .._fields import Guard
from .._lanes import only_where, spread
from .._linalg import AbstractJacobian, Dense, Factored, FlatField, Mass, MatrixFree
from .._precision import full_precision, product
from .._states import finite_or_zero, stop
from ._tableaus import RosenbrockTableau

# Up to this size the stages are unrolled: on jax 0.10 1.2x to 2.3x faster than a loop over the
# stages, forward and in a gradient, and 0.3 s to 3 s slower to compile (HIRES, POLLU, a neural ODE
# of 8 states, Robertson).
_UNROLLED = 24
# Up to this size a sum over the stages is written out, which fuses with its neighbours.
_SUMMED = 5

# The weight of the second look in the error estimate. With 1 `stablax.problems` need up to 9 % more
# attempts, with 0.1 no more than without it, give or take 1 %.
SECOND_LOOK = 0.1


class Known(eqx.Module):
    """What is known of the field at a point: f, J and df/dt."""

    value: Array
    stored: PyTree
    drift: Array


class Step(eqx.Module):
    """The step from `t0` to `t1`, on flat states. With a `box`, the field is evaluated inside, and
    goes on outside along its tangent with the Jacobian at the start of the step."""

    field: Callable
    jacobian: Callable | None  # by hand
    args: PyTree
    t0: Array
    t1: Array
    box: Guard | None
    mass: Mass | None = eqx.field(static=True)
    unravel: Callable = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)

    @property
    def h(self) -> Array:
        return (self.t1 - self.t0).astype(self.dtype)

    def inside(self, flat: Array) -> Array:
        """The point of the box at which the field is evaluated."""
        if self.box is None:
            return flat
        return ravel_pytree(self.box.inside(self.unravel(flat), mirrored=True))[0].astype(
            self.dtype
        )

    def value(self, t, inside: Array) -> Array:
        """f, at a point inside the box."""
        return ravel_pytree(self.field(t, self.unravel(inside), self.args))[0].astype(self.dtype)

    def slope_at(self, c, flat: Array) -> Array:
        """h f at the fraction `c` of the step, for the step size h; outside the box as inside."""
        return self.h * self.value(self.t0 + c * (self.t1 - self.t0), self.inside(flat))

    def outside(self, flat: Array) -> Array:
        """By how far each component is outside the box."""
        return flat - self.inside(flat)

    def tangent(self, structure: AbstractJacobian, stored: PyTree, flat: Array) -> Array:
        """What the field has more outside the box than inside, with J as `stored`."""
        return structure.multiply(stored, self.outside(flat))

    def slopes(self, structure: AbstractJacobian, at_start: "AtStart") -> Callable:
        """`slope_at` with the tangent outside the box."""
        if self.box is None:
            return self.slope_at
        scaled = at_start.factored.stored
        return lambda c, flat: self.slope_at(c, flat) + self.tangent(structure, scaled, flat)

    def drift(self, t, flat: Array) -> Array:
        """df/dt. Zero without cost where the field does not depend on t."""
        inside = self.inside(flat)
        return jax.jvp(lambda t: self.value(t, inside), (t,), (jnp.ones_like(t),))[1]

    def linearise(self, structure: AbstractJacobian, t, flat: Array) -> tuple[Array, PyTree]:
        """f and J, inside the box."""
        inside = self.inside(flat)
        fn = FlatField(
            lambda flat: self.value(t, flat),
            lambda _, flat: self.jacobian(t, self.unravel(flat), self.args),  # pyright: ignore[reportOptionalCall]
        )
        value, stored = structure.linearise(fn, inside)
        # Where the field is finite and its derivative is not (a root at zero), nothing is better.
        return value, stored if isinstance(structure, MatrixFree) else finite_or_zero(stored)

    def known(self, structure: AbstractJacobian, t, flat: Array) -> Known:
        value, stored = self.linearise(structure, t, flat)
        if self.box is not None:
            value = value + self.tangent(structure, stored, flat)
        return Known(value, stored, self.drift(t, flat))

    def factored(
        self, tableau: RosenbrockTableau, structure: AbstractJacobian, stored: PyTree
    ) -> Factored:
        """M / gamma - h J."""
        shift = jnp.asarray(1 / tableau.gamma, self.dtype)
        return Factored(structure, shift, structure.scale(stored, self.h), self.mass)

    def of_mass(self, x: Array) -> Array:
        """M x."""
        return x if self.mass is None else self.mass(x)

    def of_mass_transposed(self, x: Array) -> Array:
        """M^T x."""
        return x if self.mass is None else self.mass.transposed(x)


def step_of(
    terms,
    structure: AbstractJacobian,
    box: Guard | None,
    mass: Mass | None,
    args,
    t0,
    t1,
    y0,
    closed: bool = False,
) -> Step:
    """The step of diffrax's `terms`. Where `closed`, what their field closes over is part of it.

    Backward in time diffrax runs on -t, and says so by its control only."""

    def direction(t):
        return terms.contr(jnp.zeros_like(t), jnp.ones_like(t))

    def slope(t, y, args):
        return terms.vf_prod(t, y, args, direction(t))

    field: Callable = slope
    fn = structure.fn if isinstance(structure, Dense) else None
    by_hand = fn and (lambda t, y, args: direction(t) * fn(t * direction(t), y, args))
    if closed:
        field = capture(field, t0, y0, args)
        with full_precision():
            by_hand = by_hand and capture(by_hand, t0, y0, args)
    flat0, unravel = ravel_pytree(y0)
    return Step(field, by_hand, args, t0, t1, box, mass, unravel, flat0.dtype)


class AtStart(eqx.Module):
    """What a step knows of the field at its start, scaled by its size."""

    start: Array
    slope: Array
    factored: Factored
    drift: Array


def at_start_of(
    tableau: RosenbrockTableau, structure: AbstractJacobian, step: Step, start: Array, known: Known
) -> AtStart:
    factored = step.factored(tableau, structure, known.stored)
    drift = step.h * (step.h * known.drift)
    return AtStart(start, step.h * known.value, factored, drift)


def end_of(tableau: RosenbrockTableau, at_start: AtStart, u: Array) -> Array:
    flat1 = at_start.start + _combine(tableau.b, u)
    # A smaller step brings the matrix closer to the identity.
    return jnp.where(at_start.factored.is_singular(), jnp.nan, flat1)


def take_step(
    tableau: RosenbrockTableau, structure: AbstractJacobian, step: Step, start: Array, known: Known
) -> tuple[tuple[Array, Array, Array], Known]:
    """**Returns:** the new state, the error estimate, and the stages u with a leading axis; and
    what is known of the field at the end, which has no derivative."""
    at_start = at_start_of(tableau, structure, step, start, known)
    u = stages_of(tableau, step, step.slopes(structure, at_start), at_start)
    end = end_of(tableau, at_start, u)
    error = _combine(tableau.e, u)
    missed, at_end = second_look(tableau, structure, *stop((step, at_start, end, u)))
    # Written so that nan does not get lost.
    error = jnp.where(SECOND_LOOK * missed <= jnp.abs(error), error, SECOND_LOOK * missed)
    return (end, error, u), at_end


# Whether to keep the stages of a step that was taken elsewhere, and these: then a step has their
# values, and the derivatives of its own.
Held = tuple[Array, PyTree[Array]] | None


def repeat_step(
    tableau: RosenbrockTableau,
    structure: AbstractJacobian,
    box: Guard | None,
    mass: Mass | None,
    terms,
    args,
    t0,
    t1,
    y0,
    held: Held = None,
):
    """A step without its error estimate: the new state, and the dense output's `y0`, `y1` and
    `stages`."""
    step = step_of(terms, structure, box, mass, args, t0, t1, y0)
    start = ravel_pytree(y0)[0]
    at_start = at_start_of(tableau, structure, step, start, step.known(structure, t0, start))
    slope = step.slopes(structure, at_start)
    u = stages_of(tableau, step, slope, at_start, flat_stages(held))
    y1 = step.unravel(end_of(tableau, at_start, u))
    return y1, dict(y0=y0, y1=y1, stages=jax.vmap(step.unravel)(u))


def second_look(
    tableau: RosenbrockTableau,
    structure: AbstractJacobian,
    step: Step,
    at_start: AtStart,
    end: Array,
    u: Array,
) -> tuple[Array, Known]:
    """By how much a step misses the field that it arrives at, and what is known of the field there.

    The stages, and with them the embedded error, are filtered by the Jacobian at the start: where
    that is huge and soon is not, they agree on next to nothing. Here the defect of the dense
    output at the end, h (f - M y'), is filtered by the Jacobian at the end, J1, and without another
    factorisation: with W = M / gamma - h J0, the solution is the sum over k of

        W^-1 (h J1 - h J0) ... W^-1 (h J1 - h J0) W^-1 defect / gamma      (k changes of J)

    which is taken for a geometric series in each component. Where it converges slowly, J1 filters
    less than J0: then stiffness falls with the state, and is taken to fall by as much again over
    the correction, so that nothing is smaller than it looks. Where it diverges, and at most, it is
    the defect as it is: of a singular M its M^+ defect, that of the equations with dy/dt.
    """
    known = step.known(structure, step.t1, end)
    defect = step.h * known.value - step.of_mass(_combine(tableau.end_slope, u))
    by_start = at_start.factored
    first = by_start.solve_frozen(defect / tableau.gamma)
    change = step.h * structure.multiply(known.stored, first)
    change = change - structure.multiply(by_start.stored, first)
    second = by_start.solve_frozen(change)
    rest = 1 - second / jnp.where(first == 0, 1, first)
    if step.mass is not None:
        defect = step.mass.slopes(defect)
    first, defect = jnp.abs(first), jnp.abs(defect)
    converges = rest > jnp.finfo(step.dtype).eps
    less = jnp.where(converges, first / jnp.where(converges, rest, 1) ** 2, defect)
    less = jnp.maximum(first, jnp.minimum(less, defect))
    return jnp.where(rest >= 1, first / rest, less), known


def at_start(
    step: Step, structure: AbstractJacobian, start: Array, handed: tuple[Known, Any] | None
) -> Known:
    """What the last step handed on, or what is evaluated: where there is nothing, and where the
    field has jumped since."""
    if handed is None:
        return step.known(structure, step.t0, start)
    known, jumped = handed
    if jumped is False:
        return known

    # In a batch this costs an evaluation only in the step in which a lane has jumped.
    return only_where(jumped, lambda: step.known(structure, step.t0, start), known)


def _combine(weights, u):
    rows = [w * u[i] if w != 1 else u[i] for i, w in enumerate(weights) if w != 0]
    return functools.reduce(jnp.add, rows)


def flat_stages(held: Held) -> Held:
    return held and (held[0], jax.vmap(lambda y: ravel_pytree(y)[0])(held[1]))


def _keep(held: Held, i, u: Array) -> Array:
    if held is None:
        return u
    is_held, stages = held
    return jnp.where(is_held, stages[i] + (u - lax.stop_gradient(u)), u)


def unrolls(size: int) -> bool:
    """Whether the stages of a state of `size` are unrolled."""
    # From jax 0.12 on the loop runs as fast on a CPU, and compiles faster. On a GPU, where a batch
    # of 1,000 waits for the next kernel, it takes 1.3 times as long, and a gradient 2.2 times.
    fast_loop = jax.__version_info__ >= (0, 12) and jax.default_backend() == "cpu"
    return size <= _UNROLLED and not fast_loop


def stages_of(
    tableau: RosenbrockTableau, step: Step, slope, at_start: AtStart, held: Held = None
) -> Array:
    solve = unrolled if unrolls(at_start.start.size) else scanned
    return solve(tableau, step, slope, at_start, held)


def unrolled(
    tableau: RosenbrockTableau, step: Step, slope, at_start: AtStart, held: Held = None
) -> Array:
    u = []
    for A, C, c, d in zip(tableau.A, tableau.C, tableau.c, tableau.d, strict=True):
        right = at_start.slope if not u else slope(c, at_start.start + _combine(A, u))
        if d != 0:
            right = right + d * at_start.drift
        if u:
            right = right + step.of_mass(_combine(C, u))
        u.append(_keep(held, len(u), at_start.factored.solve(right)))
    return jnp.stack(u)


def weighted(weights: Array, u: Array) -> Array:
    """The sum of the rows of `u`."""
    if u.shape[1] <= _SUMMED:
        return jnp.sum(weights[:, None] * u, axis=0)
    return product(weights, u)


def padded(rows, dtype) -> Array:
    return jnp.asarray([(*row, *[0.0] * (len(rows) - len(row))) for row in rows], dtype)


def scanned(
    tableau: RosenbrockTableau, step: Step, slope, at_start: AtStart, held: Held = None
) -> Array:
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
    first = _keep(held, 0, first)
    u = spread(jnp.zeros((count, start.size), dtype), at_start).at[0].set(first)

    def stage(u, row):
        i, A, C, c, d = row
        right = slope(c, start + weighted(A, u)) + d * at_start.drift
        right = right + step.of_mass(weighted(C, u))
        return u.at[i].set(_keep(held, i, at_start.factored.solve(right))), None

    return lax.scan(stage, u, rows)[0]
