"""Phases one after the other: each a solve, from where the one before it ended."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
from jaxtyping import Array, Bool, PyTree

from .._control import StepLog
from .._failure import inputs_with_finite_derivative
from .._fields import names_of
from .._lanes import spread
from .._results import RESULTS, is_okay
from .._solvers import family_of
from .._states import finite_or_zero, is_none
from .._static import Split, Static
from .._types import VF
from ._call import explain_forward_mode
from ._dose import inflow_for
from ._event import EventLog
from ._explain import raise_on_failure
from ._model import AbstractModel
from ._phase import Leg, Overrides, Phase, Stack
from ._protect import of_successful
from ._resolve import resolve
from ._simulation import About, GuardSummary, Simulation
from ._solve import integrate
from ._start import AbstractStart
from ._stepping import Pace, Plan, Stepping, planned
from ._times import rows_are_ordered, times_are_ordered


class _Progress(eqx.Module):
    """How far the phases have come."""

    t: Array
    y: PyTree[Array]
    going: Bool[Array, ""]  # no phase has failed, or ended at an event
    is_new: Bool[Array, ""]  # no step was taken yet
    rows: PyTree[Array]
    reached: Bool[Array, " times"]


class _Outcome(eqx.Module):
    """How one phase ended, or, with a leading axis, all of them."""

    ran: Bool[Array, ""]
    result: RESULTS
    stats: dict[str, Array]
    guard: GuardSummary
    events: EventLog | None
    steps: StepLog | None


def ends_of(stacks: Sequence[Stack]) -> Array:
    return jnp.concatenate([stack.t1 for stack in stacks])


def phases_fit(t0: Array, ts: Array, ends: Array) -> Bool[Array, ""]:
    """Whether the phases end one after the other, and `ts` is within them."""
    low, high = jnp.minimum(t0, ends[-1]), jnp.maximum(t0, ends[-1])
    within = (low <= ts) & (ts <= high) | ~jnp.isfinite(ts)
    return times_are_ordered(t0, ends) & jnp.all(within)


def options_of(model: AbstractModel, overrides: Overrides) -> Static:
    """Those of `model`, where a phase has none of its own."""
    if not overrides.given:
        return model._options
    own = resolve(dataclasses.replace(model.options.given, **overrides.given), model.field)
    return Static(dataclasses.replace(own, width=model.options.width), "options")


def options_in(model: AbstractModel, call: Mapping[str, PyTree]) -> list[Static]:
    """Those with which a call of `model` solves: of each of its phases, or its own."""
    own = [options_of(model, phase.overrides) for phase in phases_in(call)]
    return own or [model._options]


def phases_in(call: Mapping[str, PyTree]) -> list[Phase]:
    """Those among the arguments of a call."""
    is_phase = lambda x: isinstance(x, Phase)
    return list(filter(is_phase, jtu.tree_leaves(call.get("phases"), is_leaf=is_phase)))


def plans_of(
    model: AbstractModel, stacks: Sequence[Stack], dtype: np.dtype, stepping: Stepping | None
) -> list[tuple[Static, Pace]]:
    """How each stack is solved: as the model says, where it says nothing of its own."""
    how = []
    for stack in stacks:
        overrides = stack.overrides.tree
        try:
            options = options_of(model, overrides)
            how.append(planned(options, model.guard, dtype, stepping))
        except (ValueError, TypeError) as error:
            if not overrides.given:
                raise
            raise type(error)(f"Phase {stack.first} (the first is 0): {error}") from error
    return how


def solve_phases(
    model: AbstractModel,
    start: AbstractStart,
    ts: Array,
    t0: Array,
    *,
    legs: tuple[Leg, ...],
    before: bool,
    throw: bool,
) -> Simulation:
    """The call of a model, with inputs that are checked."""
    field, (stacks, plans, paces) = model._field, zip(*legs, strict=True)
    for plan in plans:
        start.refuse(plan.tree.solver)
    if throw:
        field, y0, ts, t0, stacks, steady_args = inputs_with_finite_derivative(
            field=field, y0=start.y0, ts=ts, t0=t0, phases=stacks, steady_args=start.args
        )
        start = start.moved(y0, steady_args)
    legs = tuple(zip(stacks, plans, paces, strict=True))
    with explain_forward_mode():
        simulation = _simulate_phases(field, start, ts, t0, legs, before)
    start.check(simulation.steady, model.field, t0)
    return raise_on_failure(simulation) if throw else simulation


@eqx.filter_jit
def _simulate_phases(
    field: Split, start: AbstractStart, ts, t0, legs: tuple[Leg, ...], before: bool
) -> Simulation:
    return run_phases(field.tree, start, ts, t0, legs, before)


def run_phases(
    field: VF,
    begins: AbstractStart,
    ts: Array,
    t0: Array,
    legs: tuple[Leg, ...],
    before: bool,
) -> Simulation:
    """Solves one phase after the other from where it `begins`. A save time on a boundary belongs to
    the phase `before` it, or after it."""
    # Under `shard_map` all that a loop works with differs between devices as one of them does.
    field, begins, ts, t0, legs = spread((field, begins, ts, t0, legs))
    first: Plan = legs[0][1].tree
    start, steady = begins.begin(field, t0, first.width)
    ends = ends_of([stack for stack, *_ in legs])
    found = jnp.array(True) if steady is None else is_okay(steady.result)
    ordered, fits = rows_are_ordered(t0, ts), phases_fit(t0, ts, ends)
    going = found & ordered & fits
    progress = _Progress(
        t0,
        start,
        going,
        jnp.array(True),
        jtu.tree_map(lambda x: jnp.broadcast_to(x[None], (ts.size, *x.shape)), start),
        going & (ts == t0) if before else jnp.zeros(ts.shape, bool),
    )
    progress = spread(progress)
    backwards = ends[-1] < t0
    outcomes, logs = [], []
    for stack, plan, pace in legs:
        step = functools.partial(_step, field, plan.tree, stack, ts, backwards, before, ends.size)
        places = stack.first + jnp.arange(stack.size)
        inputs = (pace, stack.t1, stack.arrays, places)
        if stack.size == 1:
            progress, outcome = step(progress, jtu.tree_map(lambda x: x[0], inputs))
            outcome = jtu.tree_map(lambda x: jnp.asarray(x)[None], outcome)
        else:
            progress, outcome = lax.scan(step, progress, inputs)
        logs.append(outcome.steps)  # of different length, if phases have budgets of their own
        outcomes.append(eqx.tree_at(lambda o: o.steps, outcome, None, is_leaf=is_none))
    outcome = jtu.tree_map(lambda *xs: jnp.concatenate(xs), *outcomes)

    last = jnp.maximum(jnp.sum(outcome.ran) - 1, 0)
    ended = jtu.tree_map(lambda x: x[last], outcome)
    result = RESULTS.where(fits, ended.result, RESULTS.bad_phases)
    result = RESULTS.where(ordered, result, RESULTS.bad_times)
    if steady is not None:
        result = RESULTS.where(found, result, steady.result)

    def rest(row, y):
        return jnp.where(progress.reached.reshape(-1, *[1] * y.ndim), row, y[None])

    ys = finite_or_zero(jtu.tree_map(rest, progress.rows, progress.y))
    # Whichever part failed.
    ys, t1, begun = of_successful(result, (ys, progress.t, None if steady is None else steady.y))
    if steady is not None:
        steady = eqx.tree_at(lambda s: s.y, steady, begun)
    counts = {k: jnp.sum(x) for k, x in outcome.stats.items() if k.startswith("num_")}
    stats = {**ended.stats, **counts, "phase": last}
    accepted = outcome.guard.accepted
    guard = jtu.tree_map(
        jnp.sum, eqx.tree_at(lambda g: g.accepted, outcome.guard, None, is_leaf=is_none)
    )
    if accepted is not None:
        guard = eqx.tree_at(lambda g: g.accepted, guard, accepted.over_phases(), is_leaf=is_none)
    log = None if first.trace != "record" else StepLog.joined(logs)
    about = About(names_of(field, start), family_of(first.solver))
    events = None
    if outcome.events is not None:
        of_all = outcome.events.over_phases(t1, finite_or_zero(progress.y))
        events = of_successful(result, of_all)
    return Simulation(
        ts, ys, progress.reached, t1, steady, result, stats, guard, events, log, about
    )


def _step(
    field: VF,
    plan: Plan,
    stack: Stack,
    ts: Array,
    backwards: Bool[Array, ""],
    before: bool,
    count: int,
    progress: _Progress,
    inputs: tuple[Pace, Array, PyTree[Array], Array],
) -> tuple[_Progress, _Outcome]:
    """One phase: its dose, and its solve."""
    pace, t1, arrays, place = inputs
    args, dose, inflow = stack.one(arrays)
    t, y, going = progress.t, progress.y, progress.going
    start = y
    if dose is not None:
        change = functools.partial(dose, t, y, args)
        start = optax.tree.where(going, _of_phase("dose", stack.dosed, change), y)
    if inflow is not None:
        inflow = _of_phase("inflow", stack.first, functools.partial(inflow_for, inflow, y))

    own = going & _own(ts, t, t1, backwards, before, place == count - 1)
    if count == 1:
        save, back = ts, jnp.arange(ts.size)
    else:
        # Its own rows first, since those that no step reaches cost nothing at the end.
        order = (jnp.arange(ts.size) + jnp.argmax(own)) % ts.size
        back = (jnp.arange(ts.size) - jnp.argmax(own)) % ts.size
        save = jnp.where(own[order], ts[order], jnp.nan)
    is_new = progress.is_new
    simulation, last = integrate(field, plan, pace, start, save, t, args, going, t1, is_new, inflow)
    # Where there is no way on after the dose, the last state is that before it.
    stuck = ~is_okay(simulation.result) & (simulation.stats["num_accepted_steps"] == 0)
    last = optax.tree.where(stuck, lax.stop_gradient(y), last)

    new = own & simulation.reached[back]

    def put(row, old):
        return jnp.where(new.reshape(-1, *[1] * (old.ndim - 1)), row[back], old)

    rows = jtu.tree_map(put, simulation.ys, progress.rows)
    outcome = _Outcome(
        going,
        simulation.result,
        simulation.stats,
        simulation.guard,
        simulation.events,
        simulation.steps,
    )
    progress = _Progress(
        jnp.where(going, simulation.t1, t),
        last,
        going & (simulation.result == RESULTS.successful),
        is_new & (simulation.stats["num_accepted_steps"] == 0),
        rows,
        progress.reached | new,
    )
    return progress, outcome


def _own(ts, t0, t1, backwards, before: bool, is_last) -> Bool[Array, " times"]:
    """Which save times belong to the phase from `t0` to `t1`."""
    earlier = lambda a, b: jnp.where(backwards, a > b, a < b)
    asked = jnp.isfinite(ts)
    if before:
        return asked & earlier(t0, ts) & ~earlier(t1, ts)
    return asked & ~earlier(ts, t0) & (earlier(ts, t1) | is_last & ~earlier(t1, ts))


def _of_phase(what: str, first: int, make: Callable[[], PyTree[Array]]) -> PyTree[Array]:
    try:
        return make()
    except (ValueError, TypeError) as error:
        raise type(error)(f"The {what} of phase {first} (the first is 0): {error}") from error
