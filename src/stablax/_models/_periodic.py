"""`find_periodic_state`: the state to which a period leads back."""

from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool

from .._failure import output_with_finite_derivative, raise_if
from .._results import RESULTS, is_okay, message
from .._states import all_finite, as_state, state_dtype, stop
from .._types import Explained, ScalarLike, YLike, typechecked
from ._periodic_state import PeriodicState
from ._phase import as_stacks
from ._protect import of_successful
from ._run_phases import ends_of
from ._simulate_phases import SimulatePhases
from ._stepping import planned

# So many periods go by before Newton's method, which may start far off.
_PERIODS = 2
MOST_PERIODS = 30
# Of the tolerance of the solve, by which a period is known no better.
_IN_TOLERANCES = 10


@typechecked
def find_periodic_state(
    model: SimulatePhases,
    y0: YLike,
    phases: Explained[Any],
    *,
    t0: ScalarLike = 0.0,
    max_periods: int = MOST_PERIODS,
    throw: bool = True,
) -> PeriodicState:
    """Finds the state that a period leads back to: that of a patient who has taken the same doses
    for long.

    ```python
    daily = sx.Phase(24.0, args=rates, dose=oral)
    start = sx.find_periodic_state(model, jnp.zeros(2), daily).y  # just before a dose
    ```

    After two periods by Newton's method on what a period makes of the state (of a linear system one
    step is exact), with a derivative in each component: for tens of components, not for thousands.
    The search is not differentiated; derivatives follow from the implicit function theorem, in
    both modes.

    **Arguments:**

    - `model`: a [`SimulatePhases`][] with the default adjoint, that starts from a given state.
    - `y0`: where the search starts, as in the call of the model. What the system conserves has to
        have no part in the state: then a periodic state is not isolated.
    - `phases`: those of one period, from `t0` on; a [`Phase`][] or a sequence of them.
    - `t0`: the start of the period.
    - `max_periods`: >= 1; static.
    - `throw`: raise an error if there is none, or return the reason as `result`.

    **Returns:** a [`PeriodicState`][].

    **Raises:** `ValueError` or `TypeError` as the call of the model; with `throw=True` a
    `RuntimeError` that says what failed.
    """
    if max_periods < 1:
        raise ValueError(f"`max_periods` must be at least 1, got {max_periods}.")
    if model.steady_options is not None:
        raise ValueError(
            "`model` starts from a steady state of its own: make it without `steady=True`."
        )
    yes = jnp.array(True)
    return found_periodic(model, y0, phases, t0, yes, yes, max_periods, throw)


def found_periodic(
    model: SimulatePhases,
    y0,
    phases,
    t0,
    active: Bool[Array, ""],
    fits: Bool[Array, ""],
    max_periods: int,
    throw: bool,
) -> PeriodicState:
    """As [`find_periodic_state`][], but `y0` where not `active`, and none where nothing `fits`."""
    y0 = as_state(y0, "y0")
    dtype = state_dtype(y0)
    end = ends_of(as_stacks(phases, dtype))[-1]
    pace = planned(model._options, model.guard, dtype, None)[1]
    tolerance = (pace.controller.rtol, pace.controller.atol)
    t0 = jnp.asarray(t0, dtype)
    found = _search(model, y0, phases, t0, end, tolerance, active, fits, max_periods)
    if not throw:
        return found
    index = jax.tree.leaves(found.result)[0]
    write = lambda index: message(_okay(), int(index))
    return raise_if(output_with_finite_derivative(found), ~is_okay(found.result), index, write)


@eqx.filter_jit
def _search(
    model: SimulatePhases,
    y0,
    phases,
    t0: Array,
    end: Array,
    tolerance,
    active: Bool[Array, ""],
    fits: Bool[Array, ""],
    max_periods: int,
) -> PeriodicState:
    flat, unravel = ravel_pytree(y0)
    rtol, atol = tolerance

    def period(y: Array, model, phases, t0, end) -> tuple[Array, tuple[Array, RESULTS]]:
        inside = model.guard.clip(unravel(y))
        simulation = model(inside, end[None], phases, t0=t0, throw=False)
        after = ravel_pytree(jax.tree.map(lambda x: x[-1], simulation.ys))[0]
        return after, (after, simulation.result)

    given = (model, phases, t0, end)
    held = stop(given)

    def body(carry):
        y, k, *_ = carry
        slope, (after, result) = jax.jacfwd(period, has_aux=True)(y, *held)
        step = jnp.linalg.solve(jnp.eye(y.size, dtype=y.dtype) - slope, after - y)
        size = jnp.abs(step) / (_IN_TOLERANCES * (atol + rtol * jnp.abs(y + step)))
        residual = jnp.where(all_finite(size), jnp.max(size), jnp.inf)
        found = is_okay(result) & (residual <= 1)
        goes = is_okay(result) & (all_finite(step) | (k < _PERIODS))
        step = jnp.where(found | (k >= _PERIODS), step, after - y)
        return jnp.where(goes, y + step, y), k + 1, residual, result, found, goes

    def is_sought(carry):
        _, k, *_, found, goes = carry
        return active & ~found & goes & (k < max_periods)

    no, yes = jnp.array(False), jnp.array(True)
    start = (flat, jnp.zeros((), int), jnp.array(jnp.inf, flat.dtype), _okay(), no, yes)
    y, k, residual, result, found, _ = lax.while_loop(is_sought, body, lax.stop_gradient(start))
    none: Any = RESULTS.no_periodic_state
    result = RESULTS.where(is_okay(result) & ~(found & fits), none, result)
    result = RESULTS.where(active, result, _okay())
    y = lax.custom_root(lambda y: period(y, *given)[0] - y, y, lambda _, y: y, _solve)
    y = of_successful(result, jnp.where(active, y, flat))
    return PeriodicState(unravel(y), result, jnp.where(active, residual, 0), k)


def _solve(linear, b: Array) -> Array:
    matrix = jax.jacfwd(linear)(jnp.zeros_like(b))
    return jnp.linalg.solve(matrix, b)


def _okay() -> RESULTS:
    fine: Any = RESULTS.successful
    return RESULTS.where(jnp.array(True), fine, fine)
