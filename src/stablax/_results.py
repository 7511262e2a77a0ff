"""How a step, a stage of a search and a solve ended, as data; and one table of what their words
have in common."""

import enum
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array, Bool, Int

from ._static import is_traced


class Cause(enum.IntEnum):
    """Why a step was rejected; `none`: it was accepted."""

    none = 0
    error = 1
    """The estimate of its error is above the tolerance."""
    not_finite = 2
    """Its result, or a stage of it, is not finite."""
    left_bounds = 3
    """Its result is outside the guard's box."""
    stages_unsolved = 4
    """Its implicit equations were not solved (the root finder failed, the matrix is singular)."""


class STATUS(eqx.Enumeration):
    """How a stage of a search for a steady state ended; see `SteadyState.statuses`."""

    not_needed = "was not needed"
    converged = "converged"
    ambiguous = "converged, but to a state that the dynamics may not reach"
    diverged = "diverged"
    singular = "ended where the Jacobian is singular"
    out_of_steps = "ran out of steps"
    left_bounds = "ended at or beyond the bounds"
    not_finite = "met values that are not finite"
    unstable = "ended at an unstable steady state"


class RESULTS(diffrax.RESULTS):  # pyright: ignore[reportGeneralTypeIssues]
    """How a solve ended. Chains `diffrax.RESULTS`, so that its members and messages survive.

    Compare with [`is_successful`][] (`==` against a member of `diffrax.RESULTS` raises).
    """

    no_steady_state = (
        "No steady state was found from `y0`: no method converged. The system may not have one (a "
        "source without a sink, a limit cycle), or takes longer to reach it. Check the field under "
        "the condition of the search, start closer (`guess=`), or raise the budget of steps "
        "(`max_steps` of `find_steady_state`, `steady_max_steps` of a model)."
    )
    ambiguous_steady_state = (
        "A stable steady state was found, but on the way to it lies a ridge between several, and "
        "integration did not confirm that the dynamics from `y0` reach this one. Raise the budget "
        "of steps, or accept it with `method=PseudoTransient()`."
    )
    singular_steady_state = (
        "The Jacobian is singular at the steady state, so that it is not isolated and has no "
        "sensitivities. If quantities are conserved (totals of a species), pass their rows as "
        '`conserved=`, or `conserved="detect"`.'
    )
    unstable_steady_state = (
        "Only an unstable steady state was found, which the dynamics would leave (a limit cycle, "
        "or the ridge between two stable states). Start from a `y0` in the basin of the one you "
        "want."
    )
    not_finite = (
        "The field, or the step built on it, is not finite however small the step. The solution "
        "has reached the edge of the field's domain, or a parameter is non-finite. Guard the "
        "field with the bounds of its domain (`stablax.Guard`), or check the parameters."
    )
    not_conserved = (
        "A row that was given as `conserved` is not conserved by the field: L f is not 0. Rows "
        'must satisfy L f(t, y, args) = 0 at every state; `conserved="detect"` finds them.'
    )
    bad_times = (
        "`ts` must be finite and go in one direction from `t0` (all later, or all earlier and "
        "decreasing; nan or inf only at its end, where it is not asked for); and its dtype, that "
        "of `y0`, must resolve the time that passes between them."
    )
    step_budget_spent = (
        "The budget of steps (`max_steps`) is spent before the end. See why the steps are short "
        "with `stablax.diagnose(model, ...)` before you raise it."
    )
    tolerance_out_of_reach = (
        "The relative tolerance is below what the dtype of the state can resolve (10 eps), so "
        "that the estimates of the error are rounding. Use a larger `rtol`, or float64: "
        '`jax.config.update("jax_enable_x64", True)` at the top of the program, and a float64 `y0`.'
    )
    gradient_not_finite = (
        "The gradient is not finite though the value is. Take it through a model of stablax, guard "
        "the field (`stablax.Guarded`), and look at the loss itself: the derivative of `sqrt` and "
        "`log` at 0 is infinite. `stablax.check_gradient` tells where."
    )
    bad_phases = (
        "The phases must end one after the other, in one direction from `t0`, and `ts` must lie "
        "within them."
    )
    bad_knots = (
        "The knots of an `Input` must rise strictly, in the dtype of the state (the last may be "
        "inf, which is none)."
    )
    no_consistent_state = (
        "No state was found near by at which the algebraic equations hold (those that a singular "
        "`mass` leaves without dy/dt): at the start, behind a jump of the field, after an event. "
        "What they determine is a guess in `y0`: give a closer one, at which the field is finite. "
        "Or the system has not index 1: differentiate the equations that determine nothing, until "
        "they do."
    )
    no_periodic_state = (
        "No periodic state was found: what a period makes of the state does not come to rest. The "
        "system may have none (it accumulates, or conserves something), or Newton's method starts "
        "too far off: give a `y0` after some periods, or raise `max_periods`. Doses at steady "
        "state have to arrive, and infusions to end, within one period from `t0`."
    )
    left_bounds = (
        "The solution leaves the guard's box (or starts outside it). Widen the bounds; or, if "
        "they only limit where the field is evaluated, use `Guard(..., reject=False)`."
    )
    masked = (
        "The trajectory rests on non-finite outputs of the field that the guard replaced by "
        "`fill`, so it is not a solution. Use `fill=None`, or allow it with `reject=False`."
    )
    step_underflow = (
        "The step size fell to the resolution of time: the error stays above the tolerance "
        "however small the step. This is a finite-time blow-up, a discontinuity, or a tolerance "
        "that the dtype cannot reach."
    )
    event_not_finite = (
        "A condition of the event is nan, so that its sign says nothing. Write it so that it is a "
        "number at every state that the solve can meet."
    )
    event_not_located = (
        "The `root_finder` of the event did not find its time in the step in which it is. Leave it "
        "out: the one that a model brings cannot miss it."
    )
    event_change_not_finite = (
        "The `change` of an event returned a state that is not finite, or (with a singular `mass`) "
        "none near which the algebraic equations hold."
    )
    too_many_events = (
        "An event happened once more than its `max_count`. If it may, raise that; if not, its "
        "`change` does not keep it from happening again."
    )
    events_accumulate = (
        "An event happened again at the same time, to its resolution: as the bounces of a ball "
        "that comes to rest, or a switch without hysteresis, of which there are infinitely many in "
        "a finite time (Zeno). End the solve before (an `Event` without a `change`, where what is "
        "left is small enough), or let the switch back have another threshold."
    )
    stages_unsolved = (
        "The step size fell to the resolution of time because the implicit equations of a step "
        "could not be solved. The Jacobian may be wrong or non-finite; try another solver, or "
        "guard the field."
    )


# What can happen, a row each, in the words of a step, a stage, a solve, and a root finder of
# optimistix; "-" where they have none. What one says in two rows it means as in the first.
Vocabulary = type[Cause] | type[eqx.Enumeration]
VOCABULARIES: tuple[Vocabulary, ...] = (Cause, STATUS, RESULTS, optx.RESULTS)
TABLE: list[dict[Vocabulary, str]] = [
    dict(zip(VOCABULARIES, row.split(), strict=True))
    for row in """
-                converged     successful              successful
-                ambiguous     ambiguous_steady_state  successful
error            diverged      step_underflow          nonlinear_divergence
not_finite       not_finite    not_finite              nonfinite
left_bounds      left_bounds   left_bounds             -
stages_unsolved  -             stages_unsolved         -
-                singular      singular_steady_state   singular
-                unstable      unstable_steady_state   -
-                out_of_steps  step_budget_spent       nonlinear_max_steps_reached
""".strip().splitlines()
]


def translated(
    said: Cause | STATUS | optx.RESULTS | Int[Array, ""],
    source: Vocabulary,
    target: type[eqx.Enumeration],
    otherwise: STATUS | optx.RESULTS,
    only: tuple[str, ...] | None = None,
) -> Any:
    """What is `said` in the words of one vocabulary (or of them `only` in these), in those of
    another; `otherwise` where that has none.

    By selects: looked up in an array it fails under `shard_map`, since the array does not differ
    between the devices as its index does."""
    both = [row for row in TABLE if "-" not in (row[source], row[target])]
    meanings = {row[source]: getattr(target, row[target]) for row in reversed(both)}
    result = otherwise
    for word in meanings if only is None else only:
        if meanings[word] is not otherwise:
            result = target.where(said == getattr(source, word), meanings[word], result)
    return result


def is_okay(result: diffrax.RESULTS) -> Bool[Array, ""]:
    """Successful, or ended by the user's event."""
    if not isinstance(result, RESULTS):
        result = promoted(result)
    return jnp.asarray((result == RESULTS.successful) | (result == RESULTS.event_occurred))


# Equinox has no public way to ask an enumeration for its names. A test counts them.
_NAMES = """
successful max_steps_reached singular breakdown stagnation conlim nonfinite_input
nonlinear_max_steps_reached nonlinear_divergence nonfinite dt_min_reached event_occurred
max_steps_rejected internal_error no_steady_state ambiguous_steady_state singular_steady_state
unstable_steady_state not_finite not_conserved bad_times bad_phases bad_knots no_consistent_state
no_periodic_state step_budget_spent tolerance_out_of_reach gradient_not_finite left_bounds masked
step_underflow event_not_finite event_not_located event_change_not_finite too_many_events
events_accumulate stages_unsolved
""".split()


def promoted(result: diffrax.RESULTS) -> RESULTS:
    """A member of `diffrax.RESULTS` as one of ours, where those come first and have the same
    numbers. (`RESULTS.promote` looks it up in an array, which fails under `shard_map`.)"""
    structure = jax.tree.structure(RESULTS.successful)
    return jax.tree.unflatten(structure, jax.tree.leaves(result))


def name_of(result: diffrax.RESULTS) -> str:
    """The name of a member of `RESULTS`, for a concrete one."""
    index = int(jax.tree.leaves(result)[0])
    numbers = {int(jax.tree.leaves(getattr(RESULTS, name))[0]): name for name in _NAMES}
    return numbers[index]


def message(result: RESULTS, index: int | None = None) -> str:
    """The text of a member of `RESULTS`, or of the one whose number is `index`."""
    if index is not None:
        result = jax.tree.map(lambda _: np.asarray(index), result)
    return RESULTS[result]


def ended(result: RESULTS) -> str:
    """How it ended, in a few words: of one, or of how many in a batch; where nobody knows yet, the
    shape of the answer."""
    numbers = jax.tree.leaves(result)
    if is_traced(numbers) or not all(map(eqx.is_array, numbers)) or not numbers:
        return eqx.tree_pformat(numbers)
    good = np.asarray(is_okay(result))
    return name_of(result) if good.ndim == 0 else f"{good.sum()} of {good.size} successful"
