"""From the inputs of a solve to what its loop leaves: our own loop, or diffrax's."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import Array, PyTree

from .._control import StepRecord, Watched
from .._loop import KeptStep, Steps, integrate_steps
from .._results import RESULTS, promoted
from .._solvers import for_forward_mode, prepare
from .._states import add, all_finite, finite_or_zero
from .._types import Args
from ._accepted import AcceptedSteps, Inputs, just_before
from ._adjoint import DiscreteAdjoint, Outputs
from ._diffrax_event import EventOf
from ._event_search import look
from ._kept_step import KeepsStep
from ._knots import pass_jumps
from ._resolve import is_imex
from ._slope import settled, slope_at
from ._stepping import Pace, Plan
from ._verdict import verdict


class _Field(eqx.Module):
    closed: Callable
    shift: PyTree | None
    seen: Sequence[tuple[Array, Array]]

    def __call__(self, t, y, args):
        for at, instead in self.seen:
            is_there = jnp.abs(t - at) <= jnp.abs(instead - at)
            t = t + lax.stop_gradient(jnp.where(is_there, instead - t, 0))
        return self.closed(
            t, y, args, optax.tree.zeros_like(y) if self.shift is None else self.shift
        )


class _OneWay(diffrax.AbstractTerm):
    """`term` in the time `way * t`. As diffrax's own, it says so by its control only."""

    term: diffrax.ODETerm
    way: Array

    def vf(self, t, y, args):
        return self.term.vf(t * self.way, y, args)

    def contr(self, t0, t1, **kwargs):
        return self.way * (t1 - t0)

    def prod(self, vf, control):
        return self.term.prod(vf, control)


def terms_of(
    solver: diffrax.AbstractSolver,
    field: Callable,
    shift: PyTree | None = None,
    seen: Sequence[tuple[Array, Array]] = (),
    way: Array | None = None,
) -> PyTree[diffrax.AbstractTerm]:
    """The terms of a `field(t, y, args, shift)` (by default zeros). Of times that are `seen`
    elsewhere, the field is evaluated there: at the end of a step just before it. With `way`, 1 or
    -1, their time is `way * t`."""
    functions = [_Field(field, shift, seen)]
    if is_imex(solver):
        functions = [lambda t, y, args: optax.tree.zeros_like(y), *functions]
    terms: Any = map(diffrax.ODETerm, functions)
    if way is not None:
        terms = [_OneWay(term, way) for term in terms]
    return diffrax.MultiTerm(*terms) if is_imex(solver) else next(iter(terms))


class Ended(eqx.Module):
    """How a loop ended: the times `saved` of the rows that were reached (the others: not finite),
    and the time `t` where it did; and how many `events` there were."""

    saved: Array
    t: Array
    record: StepRecord
    watched: Watched | None
    stats: dict[str, Array]
    result: RESULTS
    events: Array | None = None


class _Run(eqx.Module):
    rows: PyTree[Array]
    last: PyTree[Array]
    step: KeptStep | None
    ended: Ended
    accepted: AcceptedSteps | None
    events: Array | None = None


def run_loop(
    plan: Plan, pace: Pace, event: EventOf | None, inputs: Inputs, record: bool
) -> tuple[Outputs, AcceptedSteps | None]:
    """Solves, and if asked to `record` returns the accepted steps too. The `rest` of the outputs
    is an `Ended`. A solve that an event ends does so with the step it is in."""
    # The derivative is taken with the steps held fixed. What moves with the times are the start,
    # the end, and the points of the dense output.
    t0, t1 = lax.stop_gradient((inputs.t0, inputs.t1))
    # Without a step to take only the last state moves: by the time between the ends.
    start = jnp.where(t0 == t1, 0, -inputs.t0)
    end = inputs.t1 - jnp.where(t0 == t1, inputs.t0, 0)
    behind = [inputs.t0, inputs.t1]
    if inputs.jumps is not None:  # on the side to which the solve goes
        over = just_before(t1, t0) - t0
        behind = [t + over for t in behind]
    of_field = (plan.solver, inputs.field, inputs.args, inputs.jumps is not None)
    y0 = _with_time(inputs.y0, start, behind[0], *of_field)
    held = dataclasses.replace(inputs, y0=y0, t0=t0, t1=t1)
    run = (_our_loop if plan.on_own_loop else _diffrax_loop)(plan, pace, held, event, record)
    ended = run.ended
    at_end = _with_time(run.last, end, behind[1], *of_field)
    last = optax.tree.where(ended.result == RESULTS.successful, at_end, run.last)
    result = verdict(pace.controller, inputs.y0, ended.record, ended.result)
    ended = dataclasses.replace(ended, result=result)
    return Outputs(run.rows, last, run.step, run.events, ended), run.accepted


def event_of(plan: Plan, pace: Pace, inputs: Inputs) -> EventOf | None:
    """The `diffrax.Event` of a solve, whose conditions are told what diffrax tells them."""
    if not isinstance(plan.event, diffrax.Event):
        return None
    t0, t1 = lax.stop_gradient((inputs.t0, inputs.t1))
    way = jnp.where(t1 < t0, -1, 1).astype(t0.dtype)
    return EventOf(plan.event, _settings(plan, pace, inputs), way, t0, inputs.y0, inputs.args)


def _settings(plan: Plan, pace: Pace, inputs: Inputs) -> dict[str, Any]:
    """Of `diffeqsolve`."""
    t0, t1 = lax.stop_gradient((inputs.t0, inputs.t1))
    way = jnp.where(t1 < t0, -1, 1)
    subs = [diffrax.SubSaveAt(ts=inputs.ts), diffrax.SubSaveAt(t1=True)]
    return dict(
        terms=terms_of(plan.solver, inputs.field, seen=_edges(pace, inputs)),
        solver=plan.solver,
        t0=t0,
        t1=t1,
        dt0=None if pace.dt0 is None else way.astype(pace.dt0.dtype) * pace.dt0,
        saveat=diffrax.SaveAt(subs=subs, controller_state=True),
        stepsize_controller=pace.controller,
        max_steps=plan.capacity,
    )


def _edges(pace: Pace, inputs: Inputs) -> Sequence[tuple[Array, Array]]:
    """Of a field that may jump there, the ends of a solve, and times within at which it is seen
    instead."""
    t0, t1 = lax.stop_gradient((inputs.t0, inputs.t1))
    start, end = (t0, just_before(t1, t0)), (t1, just_before(t0, t1))
    if inputs.jumps is not None:
        return start, end
    return (end,) if pace.controller.meets_jumps else ()


def _our_loop(plan: Plan, pace: Pace, inputs: Inputs, event: EventOf | None, record: bool) -> _Run:
    way = jnp.where(inputs.t1 < inputs.t0, -1, 1).astype(inputs.t0.dtype)
    controller = pace.controller.wrap(way)
    events, seen = inputs.events, None if event is None else event.first_seen
    if events is not None:
        seen = events.first_seen(inputs.t0, inputs.y0, inputs.args)
    passes_at = None
    if inputs.jumps is not None:
        end = inputs.t1 * way
        passes_at = jtu.Partial(pass_jumps, plan.solver, inputs.field, inputs.jumps, way, end)
    steps = Steps(
        terms=terms_of(plan.solver, inputs.field, seen=_edges(pace, inputs), way=way),
        solver=for_forward_mode(prepare(plan.solver, controller, controller.guard)),
        controller=controller,
        meter=plan.progress_meter,
        max_steps=pace.max_steps,
        capacity=plan.capacity if record else None,
        ends_at=None if event is None else event.look,
        seen=seen,
        passes_at=passes_at,
        cuts_at=None if events is None else jtu.Partial(look, events, way, inputs.field),
        at_once=0 if events is None else events.size,
        events=(0, 0) if events is None else (events.capacity, events.row_size(inputs.y0)),
        keeps_last=event is not None and event.is_located,
        width=plan.width,
    )
    t0, t1, ts = inputs.t0 * way, inputs.t1 * way, inputs.ts * way
    solved, written = integrate_steps(steps, t0, t1, pace.dt0, inputs.y0, ts, inputs.args)
    reached = jnp.arange(ts.size) < solved.row
    stats: dict[str, Any] = dict(
        num_steps=solved.tried,
        num_accepted_steps=solved.accepted,
        num_rejected_steps=solved.tried - solved.accepted,
        max_steps=pace.max_steps,
    )
    ended = Ended(
        saved=jnp.where(reached, inputs.ts, jnp.inf),
        t=solved.t * way,
        record=solved.control.record,
        watched=solved.control.watched,
        stats=stats,
        result=promoted(solved.result),
    )
    if events is not None:
        result = solved.seen.result(ended.result)
        ended = dataclasses.replace(ended, result=result, events=solved.event)
    accepted = None
    if written.times is not None:
        accepted = AcceptedSteps(
            times=written.times * way,
            states=written.states,
            count=solved.accepted,
            arrives=ended.result == RESULTS.successful,
            ends=None if written.ends is None else written.ends * way,
            orders=written.orders,
        )
    return _Run(written.rows, solved.y, solved.last, ended, accepted, written.events)


def _diffrax_loop(
    plan: Plan, pace: Pace, inputs: Inputs, event: EventOf | None, record: bool
) -> _Run:
    settings, adjoint = _settings(plan, pace, inputs), plan.adjoint
    is_located = event is not None and event.is_located
    if is_located:
        subs = settings["saveat"].subs
        saveat = diffrax.SaveAt(subs=subs, controller_state=True, solver_state=True)
        settings = {**settings, "solver": KeepsStep(plan.solver), "saveat": saveat}
    solution = diffrax.diffeqsolve(
        **settings,
        y0=inputs.y0,
        args=inputs.args,
        adjoint=adjoint,  # pyright: ignore[reportArgumentType]
        event=None if event is None else event.for_loop(),
        throw=False,
        progress_meter=plan.progress_meter,
    )
    ts, ys = solution.ts, solution.ys
    assert ts is not None and ys is not None
    solver_state: Any = solution.solver_state
    control: Any = solution.controller_state
    ended = Ended(
        saved=ts[0],
        t=ts[1][0],
        record=control.record,
        watched=control.watched,
        stats=solution.stats,
        result=promoted(solution.result),
    )
    last = jtu.tree_map(lambda x: x[0], ys[1])
    return _Run(ys[0], last, solver_state[1] if is_located else None, ended, None)


def at_the_event(
    event: EventOf, plan: Plan, inputs: Inputs, outputs: Outputs, step: KeptStep
) -> Outputs:
    """Time, state and result of a solve that ended with the `step` in which its event is."""
    ended: Ended = outputs.rest
    if isinstance(plan.adjoint, DiscreteAdjoint):  # the first step moves with the start
        begins = ended.stats["num_accepted_steps"] == 1
        start = jnp.where(begins, inputs.t0 * event.way, step.t0)
        step = KeptStep(start, step.t1, step.y0, step.dense)
    happened = ended.result == RESULTS.event_occurred
    found = event.find(plan.solver, inputs.field, step, outputs.last, inputs.args, happened)
    result = RESULTS.where(found.crossed & ~found.located, RESULTS.event_not_located, ended.result)
    # Where the state itself is not finite, that is what failed.
    is_lost = found.not_finite & all_finite(outputs.last)
    result = RESULTS.where(is_lost, RESULTS.event_not_finite, result)
    here = found.crossed & found.located
    t, last = optax.tree.where(here, (found.t, found.y), (ended.t, outputs.last))
    saved = jnp.where(event.way * ended.saved > event.way * t, jnp.nan, ended.saved)
    ended = dataclasses.replace(ended, saved=saved, t=t, result=result)
    return Outputs(outputs.rows, last, None, None, ended)


@eqx.filter_custom_jvp
def _with_time(
    y, of_time, t, solver: diffrax.AbstractSolver, field: Callable, args: Args, jumps: bool
):
    """`y` at time `t`, which moves along its slope as `of_time` does. If the field `jumps`, there
    may be a jump between the two."""
    return y


@_with_time.def_jvp
def _with_time_jvp(primals, tangents):
    (y, _, t, solver, field, args, jumps), (d_y, d_of_time, *_) = primals, tangents
    if d_of_time is not None:
        # A start that has no slope is that of a sample that fails.
        behind = settled(solver, field, t, y, args)[0] if jumps else y
        slope = finite_or_zero(slope_at(solver, field, t, behind, args))
        d_y = add(jtu.tree_map(lambda dy: dy * d_of_time.astype(dy.dtype), slope), d_y)
    return y, d_y
