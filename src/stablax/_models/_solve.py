"""One protected diffrax solve: what every model is made of."""

import dataclasses
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import Array, Bool, PyTree

from .._captured import capture
from .._control import Watch
from .._fields import Guard, Guarded, GuardedField, as_guarded, names_of
from .._lanes import spread
from .._results import RESULTS, Cause
from .._solvers import AbstractRosenbrock, family_of, for_forward_mode, has_algebraic, prepare
from .._states import all_finite, finite_or_zero, stop
from .._types import VF, Args
from ._accepted import Inputs, just_before
from ._adjoint import Outputs
from ._event import EventLog
from ._events import Events
from ._knots import Jumps, Knots, is_at_any, without_derivative
from ._protect import closed_inputs, differentiable, of_successful
from ._run import Ended, at_the_event, event_of, run_loop, terms_of
from ._simulation import About, GuardSummary, Simulation
from ._slope import settled
from ._stepping import Pace, Plan, jump_times, meets_times, with_jumps
from ._times import last_asked, rows_are_ordered

_JUMPS = (
    "The field is driven by an `Input` that jumps, and a derivative in its knots was asked for. It "
    "needs steps that end there, of an adaptive controller, and the default adjoint or "
    "`ForwardMode`. If it is not wanted: `jax.lax.stop_gradient(ts)`, or in a field "
    "`sx.Input(sx.Frozen(ts), ...)`."
)

_ALGEBRAIC_JUMPS = (
    "Some of the equations are algebraic (`mass` is singular) and the field jumps, behind which "
    "their components have to be found anew. That needs the default adjoint or `ForwardMode`."
)


def _masks(plan: Plan, pace: Pace, guarded: GuardedField | Guarded, t0, y0, args) -> tuple:
    """Whether a step over (t0, t1) has a masked stage, and which outputs of the field are masked;
    None without a `fill`. The first repeats the step with the outputs unmasked, and looks whether
    the result is finite: it doubles the cost of a step."""
    guard = guarded.guard
    if guard.fill is None:
        return None, None
    unmasked = eqx.tree_at(
        lambda g: g.guard,
        guarded,
        Guard(guard.lower, guard.upper, pull=guard.pull, reject=guard.reject),
        is_leaf=lambda x: isinstance(x, Guard),
    )
    # What the field closes over is a leaf: a hidden input of the loop has no derivative rule.
    bare = capture(
        lambda t, y, args, shift: unmasked(t, y, args),
        *stop((t0, y0, args)),
        optax.tree.zeros_like(y0),
    )
    solver = for_forward_mode(prepare(plan.solver, pace.controller, pace.controller.guard))
    return jtu.Partial(_is_masked, solver, bare), jtu.Partial(_outputs_masked, bare)


def _is_masked(solver: diffrax.AbstractSolver, field: Callable, t0, t1, y0, args) -> Array:
    field, t0, t1, y0, args = stop((field, t0, t1, y0, args))
    terms = terms_of(solver, field)
    state = solver.init(terms, t0, t1, y0, args)
    y1, *_ = solver.step(terms, t0, t1, y0, args, state, False)
    return ~all_finite(y1)


def integrate(
    field: VF,
    plan: Plan,
    pace: Pace,
    y0,
    ts: Array,
    t0: Array,
    args: Args,
    active: Bool[Array, ""] | None = None,
    t1: Array | None = None,
    is_new: Bool[Array, ""] | None = None,
    inflow: PyTree[Array] | None = None,
) -> tuple[Simulation, PyTree[Array]]:
    """Solves from `y0` at `t0` to `t1`, by default the last of `ts`, saving at `ts`, of which the
    last may be nan or inf: those are not asked for. A caller that gives `t1` has looked at the
    times. Where not `active`, takes no step. `is_new`: whether no step of the call came before.
    `inflow` is added to dy/dt. Returns the last state, too."""
    if isinstance(plan.solver, AbstractRosenbrock):
        plan.solver.check(y0)
    closed, (field, t0, y0, args), (pace, ts, active, t1, is_new) = closed_inputs(
        plan, (field, t0, y0, args), (stop(pace), ts, active, t1, is_new), inflow
    )
    knots, jumps, rise = spread(Knots.of(closed, t0, y0, args), y0), None, None
    given_jumps = jump_times(pace)
    if knots is not None:
        rise = knots.rise
        pace = with_jumps(pace, stop(knots.ts))
        jumps = knots.jumps
    if jumps is not None and not (plan.on_own_loop and meets_times(pace.controller)):
        y0, jumps = without_derivative(y0, jumps, _JUMPS), stop(jumps)
    guarded = as_guarded(field)
    masks, outputs_masked = _masks(plan, pace, guarded, t0, y0, args)
    asked, ordered = jnp.isfinite(ts), jnp.array(True)
    if t1 is None:
        ordered, t1 = rows_are_ordered(t0, ts), last_asked(ts)
    assert t1 is not None
    going = ordered if rise is None else ordered & rise
    going = going if active is None else active & going
    found = None
    if has_algebraic(plan.solver):
        if given_jumps is not None:
            of_inputs = Jumps([], ()) if jumps is None else jumps
            jumps = of_inputs.with_others(spread(jnp.asarray(given_jumps, ts.dtype), y0))
        if jumps is not None and not plan.on_own_loop:
            raise TypeError(_ALGEBRAIC_JUMPS)
        # Of a field that jumps, on the side to which the solve goes.
        start = t0 if jumps is None else just_before(t1, t0)
        consistent, found = settled(plan.solver, closed, start, y0, args)
        y0 = optax.tree.where(going, consistent, y0)
        going &= found
    # Without a step to take the solve is from `t0` to `t0`.
    end = jnp.where(going, t1, t0)
    # Our loop takes what is nan as never; diffrax's saves it at the end.
    never = jnp.nan if plan.on_own_loop else end
    save = jnp.where(asked, jnp.where(going, ts, t0), never)
    names = names_of(field, y0)
    watch = _watch(plan, guarded.guard, outputs_masked, names)
    controller = dataclasses.replace(pace.controller, masks=masks, watch=watch)
    events = None
    if isinstance(plan.event, tuple):
        is_new = jnp.array(True) if is_new is None else is_new
        events = Events.of(plan.event, plan.solver, closed, t0, y0, args, is_new)
    inputs = Inputs(closed, y0, t0, end, save, args, events, jumps)
    event = event_of(plan, pace, inputs)
    # Whether a step is the last has no derivative.
    run = jtu.Partial(run_loop, plan, pace.replace(controller), stop(event))
    outputs = differentiable(run, plan, controller, guarded.guard, inputs)
    if outputs.step is not None:
        assert event is not None
        outputs = at_the_event(event, plan, inputs, outputs, outputs.step)
    log = None
    if events is not None and outputs.events is not None:
        log = events.log(outputs.events, outputs.rest.events, y0)
        outputs = eqx.tree_at(lambda o: o.rest.t, outputs, _time_of_end(outputs.rest, log))
    about = About(names, family_of(plan.solver))
    if found is not None and jumps is not None:
        found &= ~_is_lost_at(jumps, outputs.rest, end < t0)
    result: Any = outputs.rest.result
    for fits, otherwise in (
        (found, RESULTS.no_consistent_state),
        (rise, RESULTS.bad_knots),
        (ordered, RESULTS.bad_times),
    ):
        result = result if fits is None else RESULTS.where(fits, result, otherwise)
    simulation = _summarise(outputs, result, log, about, ts, end, going & asked)
    return simulation, of_successful(simulation.result, finite_or_zero(outputs.last))


def _time_of_end(ended: Ended, log: EventLog) -> Array:
    """Where an event ended the solve, that of the event, which has a derivative."""
    latest = log.t[jnp.maximum(jnp.sum(log.happened) - 1, 0)]
    return jnp.where(ended.result == RESULTS.event_occurred, latest, ended.t)


def _outputs_masked(field: Callable, t, y, args):
    return jtu.tree_map(lambda dy: ~jnp.isfinite(dy), field(t, y, args, optax.tree.zeros_like(y)))


def _watch(plan: Plan, guard: Guard, outputs_masked, names) -> Watch | None:
    if not plan.telemetry and plan.trace is None:
        return None
    return Watch(
        guard=guard if plan.telemetry else None,
        outputs=outputs_masked,
        capacity=plan.capacity if plan.trace == "record" else 0,
        prints=plan.trace == "print",
        names=names,
    )


def _is_lost_at(jumps: Jumps, ended: Ended, is_backwards: Array) -> Array:
    """Whether the solve ended where the field jumps since behind it no state was found."""
    way = jnp.where(is_backwards, -1, 1)
    return is_at_any(jumps, ended.t, way) & (ended.result == RESULTS.not_finite)


def _summarise(
    outputs: Outputs, result: RESULTS, log: EventLog | None, about: About, ts, end, active
) -> Simulation:
    rows, last = outputs.rows, outputs.last
    ended: Ended = outputs.rest
    record, watched, statistics = ended.record, ended.watched, ended.stats
    reached = jnp.isfinite(ended.saved) & active

    def fill_row(row, last):
        row_reached = reached.reshape(-1, *[1] * (row.ndim - 1))
        return jnp.where(row_reached & jnp.isfinite(row), row, last)

    ys = finite_or_zero(jtu.tree_map(fill_row, rows, last))
    # The loop's own time has no derivative in `end`.
    t1 = jnp.where(result == RESULTS.successful, end, ended.t)
    ys, t1 = of_successful(result, (ys, t1))
    stats = {
        **{k: statistics[k] for k in ("num_steps", "num_accepted_steps", "num_rejected_steps")},
        "max_steps": statistics["max_steps"],
        "t": ended.t,
        "dt": record.dt,
        "component": jnp.where(record.cause == Cause.none.value, -1, record.component),
    }
    stats = stop(jtu.tree_map(jnp.asarray, stats))
    summary = GuardSummary(
        rejected_not_finite=record.not_finite,
        rejected_outside=record.outside,
        masked=record.masked,
        masked_accepted=record.masked_accepted,
        accepted=None if watched is None else watched.guard,
    )
    steps = None if watched is None else watched.log
    events = None if log is None else of_successful(result, log.padded(t1, finite_or_zero(last)))
    return Simulation(ts, ys, reached, t1, None, result, stats, summary, events, steps, about)
