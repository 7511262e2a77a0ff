"""Pseudo-transient continuation."""

from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from .._linalg import Dense, EquilibratedLU
from .._results import STATUS
from .._states import bounds_in
from .._types import ScalarLike
from ._problem import in_box
from ._root_finder import AbstractSteadyRootFinder, Scale, evaluate, no_factors

# Of h, the size of a step in time:
_FIRST_CHANGE = 0.01  # of the state, in the first step
_SAFETY = 0.8  # of what the last linearisation allows
_NOTHING = 1e-30  # where a linearisation is exact
_FAR_BELOW = 4  # times less than the limit: then h grows as the residual falls
_LEAST_GROWTH, _MOST_GROWTH = 0.5, 10.0
_CUT = 0.25  # after a rejected step
# Of a Newton step:
_CONTRACTS = 2  # the next one is that much shorter, or this one is rejected
_LESS_REACH = 10  # and Newton's method is tried again from so much nearer
_SETTLED = 10  # tolerances, at which rounding in F can hold it
# A step in time below so many units in the last place of the state moves nothing.
_SHORTEST_ULPS = 4


class _State(eqx.Module):
    y: Float[Array, " n"]  # the last accepted state,
    value: Float[Array, " n"]  # F there,
    jacobian: Float[Array, "n n"]  # and its Jacobian
    step: Float[Array, " n"]  # the step from there that is tried
    shift: Float[Array, ""]  # 1 / h of it: 0 for a Newton step
    factors: PyTree[Array]  # of shift I - J
    length: Float[Array, ""]  # of a Newton step that is tried
    h: Float[Array, ""]
    direction: Float[Array, ""]  # of time
    reach: Float[Array, ""]  # Newton steps below this size are tried
    first: Bool[Array, ""]
    blocked: Bool[Array, ""]  # nothing was tried, but h was cut
    crossed: Bool[Array, ""]  # a mode that grows was met on the way
    finished: Bool[Array, ""]
    status: STATUS


@final
class PseudoTransient(AbstractSteadyRootFinder):
    """Pseudo-transient continuation: linearly implicit Euler steps on y' = F(y) whose size grows
    as the residual falls (switched evolution relaxation; Kelley and Keyes 1998, SIAM J. Numer.
    Anal. 35, 508), and Newton's method at the end. It follows the dynamics, and so finds the
    state that they reach; from a state nearby it is Newton's method from the first step.

    Where a growing mode was met on the way (det(-J) < 0, as around the ridge between two stable
    states), implicit Euler may have ended on the wrong side of it. Then the status is `ambiguous`,
    and a [`Chain`][] asks its next stage.

    A step is rejected, and repeated with a quarter of its size, if its linearisation is wrong by
    more than `nonlinearity`, if it leaves the bounds, or if 1/h is not above every growing mode
    (as far as the sign of det(I/h - J) tells): with a longer step implicit Euler would converge
    to a saddle that the dynamics leave.

    Also an optimistix root finder, as [`Newton`][] is. There F has no direction of time: Newton's
    method is tried first, and where it does not contract, y' = F or y' = -F is followed, whichever
    has a negative trace of its Jacobian at the start.

    **Arguments:**

    - `nonlinearity`: how wrong the linearisation of a step may be, relative to the state; in
        (0, 1). Smaller values follow the dynamics more closely.
    - `reach`: Newton's method is tried where its step is shorter than this, relative to the
        state, and left again where it does not contract at once.
    - `rtol`, `atol`, `norm`: as in [`Newton`][].
    """

    rtol: ScalarLike | None = None
    atol: ScalarLike | None = None
    norm: Callable[[PyTree], Array] = optx.max_norm
    nonlinearity: float = eqx.field(static=True, default=0.1)
    reach: float = eqx.field(static=True, default=0.01)

    def __check_init__(self):
        if not 0 < self.nonlinearity < 1:
            raise ValueError(f"`nonlinearity` must be between 0 and 1, got {self.nonlinearity}.")
        if not 0 < self.reach:
            raise ValueError(f"`reach` must be above 0, got {self.reach}.")

    def init(self, fn, y, args, options, f_struct, aux_struct, tags) -> _State:
        flat, _ = ravel_pytree(y)
        zero, one = jnp.zeros_like(flat), jnp.ones((), flat.dtype)
        matrix = jnp.zeros((flat.size, flat.size), flat.dtype)
        factors = no_factors(flat)
        no, yes = jnp.array(False), jnp.array(True)
        # Near a guess Newton's method is worth a try from farther away, and in a stage equation of
        # an implicit solver from any distance.
        reach = jnp.where(options.get("guessed", False), jnp.maximum(self.reach, 1), self.reach)
        reach = reach if "direction" in options else jnp.inf * one
        return _State(
            y=flat,
            value=zero,
            jacobian=matrix,
            step=zero,
            shift=one,
            factors=factors,
            length=one,
            h=jnp.nan * one,
            direction=one,
            reach=reach.astype(flat.dtype),
            first=yes,
            blocked=no,
            crossed=no,
            finished=no,
            status=STATUS.out_of_steps,
        )

    def step(self, fn, y, args, options, state: _State, tags):
        lower, upper = bounds_in(options, y)
        here = evaluate(fn, y, args, options)
        scale = Scale.of(self, here.y)
        # Relative to the state, and to `atol / rtol` where that is zero.
        relative = lambda step, y: scale(step, y) * scale.rtol
        inside = in_box(here.y, lower, upper, scale.rtol, scale.atol)
        direction = options.get("direction", None)
        if direction is None:
            turned = jnp.where(jnp.trace(here.jacobian) > 0, -1, 1).astype(here.y.dtype)
            direction = jnp.where(state.first, turned, state.direction)
        value, jacobian = direction * here.value, direction * here.jacobian

        # Is this step good?
        newton = state.shift == 0
        apply = lambda factors, b: EquilibratedLU().apply(factors, b, transpose=False)
        largest = jnp.maximum(jnp.abs(state.y), jnp.abs(here.y))
        missed = relative(apply(state.factors, value - state.shift * state.step), largest)
        limit = jnp.where(
            newton, jnp.maximum(state.length / _CONTRACTS, scale.rtol), self.nonlinearity
        )
        good = here.finite & inside & (state.first | state.blocked | (missed < limit))

        # The step after it.
        rate = relative(value, here.y)
        first_h = _FIRST_CHANGE / rate
        first_h = jnp.where(jnp.isfinite(first_h), first_h, 1)
        relaxed = relative(state.value, state.y) / rate
        # As the residual falls, and as the linearisation allows, whose error goes with h^2.
        allowed = _SAFETY * jnp.sqrt(limit / jnp.maximum(missed, _NOTHING))
        growth = jnp.where(missed < limit / _FAR_BELOW, jnp.maximum(relaxed, allowed), allowed)
        growth = jnp.clip(growth, _LEAST_GROWTH, _MOST_GROWTH)
        growth = jnp.where(state.blocked | newton, 1, growth)
        h = state.h * jnp.where(good, growth, jnp.where(newton, 1, _CUT))
        h = jnp.where(state.first, first_h, h)
        reach = jnp.where(newton & ~good, state.length / _LESS_REACH, state.reach)
        y, value, jacobian = optax.tree.where(
            good | state.first,
            (here.y, value, jacobian),
            (state.y, state.value, state.jacobian),
        )
        shifts = jnp.stack([jnp.zeros_like(h), 1 / h])
        pair = jax.vmap(EquilibratedLU().factorise, in_axes=(None, 0, None))(
            Dense(), shifts, jacobian
        )
        steps = jax.vmap(lambda factors: apply(factors, value))(pair)
        upright = jax.vmap(EquilibratedLU().orientation)(pair) > 0
        length = relative(steps[0], y)
        near = upright[0] & (length < reach)
        blocked = ~near & ~upright[1]
        h = jnp.where(blocked, _CUT * h, h)

        use = jnp.where(near, 0, 1)
        step, factors = jax.tree.map(lambda x: x[use], (steps, pair))
        step = jnp.where(blocked, 0, step)
        following = y + step
        following = jnp.where(near, jnp.clip(following, lower, upper), following)
        step = following - y

        # Rounding in F can hold the last steps a little above the tolerance.
        settled = newton & ~good & (state.length <= _SETTLED * scale.rtol)
        converged = near & (length <= scale.rtol) | settled
        too_short = ~near & (relative(steps[1], y) < _SHORTEST_ULPS * jnp.finfo(y.dtype).eps)
        stuck = too_short & (~good | blocked) | ~jnp.isfinite(h) | (state.first & ~here.finite)
        status: Any = STATUS.where(here.finite, STATUS.diverged, STATUS.not_finite)
        status = STATUS.where(here.finite & ~inside, STATUS.left_bounds, status)
        status = STATUS.where(converged & state.crossed, STATUS.ambiguous, status)
        status = STATUS.where(converged & ~state.crossed, STATUS.converged, status)
        finished = converged | stuck
        status = STATUS.where(finished, status, STATUS.out_of_steps)
        following = jnp.where(finished & (~converged | settled), y, following)
        new = _State(
            y=y,
            value=value,
            jacobian=jacobian,
            step=step,
            shift=jnp.where(near, 0, shifts[1]),
            factors=factors,
            length=length,
            h=h,
            direction=direction * jnp.ones_like(h),
            reach=reach,
            first=jnp.array(False),
            blocked=blocked,
            crossed=state.crossed | ~upright[0],
            finished=finished,
            status=status,
        )
        return here.unravel(following), new, here.aux
