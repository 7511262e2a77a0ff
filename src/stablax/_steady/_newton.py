"""Damped Newton."""

from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import jax.numpy as jnp
import optax
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from .._linalg import Dense, EquilibratedLU
from .._results import STATUS
from .._states import bounds_in
from .._types import ScalarLike
from ._root_finder import AbstractSteadyRootFinder, Scale, evaluate, no_factors

_SMALLEST_FRACTION = 0.5**20


class _State(eqx.Module):
    y: Float[Array, " n"]  # the last accepted state, where the Newton step begins
    step: Float[Array, " n"]
    length: Float[Array, ""]  # of the whole step, in units of the tolerance
    factors: PyTree[Array]
    fraction: Float[Array, ""]  # of the step that is tried
    first: Bool[Array, ""]
    finished: Bool[Array, ""]
    status: STATUS


@final
class Newton(AbstractSteadyRootFinder):
    """Damped Newton: quadratic near a steady state, and blind to which one the dynamics reach.

    A step is halved until the next one, by the same factorisation, is shorter (the natural
    monotonicity test, which does not depend on the units of F: Deuflhard 2004, Newton Methods for
    Nonlinear Problems, section 3.3). Matrices are scaled by rows and columns. Converged means
    that the Newton step is within the tolerance in every component.

    Also an optimistix root finder: for `optimistix.root_find(fn, sx.Newton(), y0)`, with the
    bounds `options=dict(lower=..., upper=...)`, and for `root_finder=` of diffrax's implicit
    solvers, `diffrax.with_stepsize_controller_tols(sx.Newton)()`. `y` is any PyTree. A step
    evaluates `fn` and its Jacobian once; a halved step counts as one.

    **Arguments:**

    - `rtol`, `atol`: of each component of the root. `None`: those of [`find_steady_state`][].
    - `norm`: of the step in units of `atol + rtol |y|`; by default the largest component.
    """

    rtol: ScalarLike | None = None
    atol: ScalarLike | None = None
    norm: Callable[[PyTree], Array] = optx.max_norm

    def init(self, fn, y, args, options, f_struct, aux_struct, tags) -> _State:
        flat, _ = ravel_pytree(y)
        one = jnp.ones((), flat.dtype)
        factors = no_factors(flat)
        no, yes = jnp.array(False), jnp.array(True)
        zero = jnp.zeros_like(flat)
        return _State(flat, zero, one, factors, one, yes, no, STATUS.out_of_steps)

    def step(self, fn, y, args, options, state: _State, tags):
        lower, upper = bounds_in(options, y)
        here = evaluate(fn, y, args, options)
        scale = Scale.of(self, here.y)
        solve = lambda factors: EquilibratedLU().apply(factors, here.value, transpose=False)
        next_length = scale(solve(state.factors), here.y)
        shorter = next_length <= (1 - state.fraction / 4) * state.length
        factors = EquilibratedLU().factorise(Dense(), jnp.zeros((), here.y.dtype), here.jacobian)
        step = solve(factors)
        length = scale(step, here.y)

        accepted = here.finite & jnp.isfinite(length) & (state.first | shorter | (length <= 1))
        lost = state.first & ~accepted
        one = jnp.ones_like(state.fraction)
        new = _State(
            here.y, step, length, factors, one, jnp.array(False), state.finished, state.status
        )
        old = eqx.tree_at(lambda s: s.fraction, state, state.fraction / 2)
        new = optax.tree.where(accepted, new, old)
        following = jnp.clip(new.y + new.fraction * new.step, lower, upper)

        converged = accepted & (length <= 1)
        held = ~converged & jnp.all(following == new.y)  # at a bound that the step would cross
        finished = converged | held | lost | (new.fraction < _SMALLEST_FRACTION)
        whole = new.y + new.step
        crosses = jnp.any(whole != jnp.clip(whole, lower, upper))
        status: Any = STATUS.where(crosses, STATUS.left_bounds, STATUS.diverged)
        singular = here.finite & EquilibratedLU().is_singular(factors)
        status = STATUS.where(~accepted & singular, STATUS.singular, status)
        status = STATUS.where(~accepted & ~here.finite, STATUS.not_finite, status)
        status = STATUS.where(converged, STATUS.converged, status)
        status = STATUS.where(finished, status, STATUS.out_of_steps)
        new = eqx.tree_at(
            lambda s: (s.finished, s.status),
            new,
            (finished, status),
            is_leaf=lambda x: isinstance(x, STATUS),
        )
        following = jnp.where(finished & ~converged, new.y, following)
        return here.unravel(following), new, here.aux
