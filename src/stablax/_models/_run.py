"""From the inputs of a solve to what its loop leaves: our own loop, or diffrax's."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from .._loop import Steps, integrate_steps
from .._results import RESULTS, is_okay, promoted
from .._states import all_finite, finite_or_zero, select, zeros_like
from .._types import Args
from ._adjoint import Inputs, Outputs, Trace, add
from ._event import EventOf
from ._kept_step import KeepsStep, KeptStep
from ._options import is_imex
from ._stepping import Pace, Plan
from ._verdict import verdict


class _Field(eqx.Module):
    closed: Callable
    shift: PyTree | None
    end: Any

    def __call__(self, t, y, args):
        if self.end is not None:
            end, before = self.end
            at_end = jnp.abs(t - end) <= jnp.abs(before - end)
            t = t + lax.stop_gradient(jnp.where(at_end, before - t, 0))
        return self.closed(t, y, args, zeros_like(y) if self.shift is None else self.shift)


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
    end: Any = None,
    way: Array | None = None,
) -> PyTree[diffrax.AbstractTerm]:
    """The terms of a `field(t, y, args, shift)` (by default zeros). With `end`, the end of a step
    and a time just before it, the field is evaluated before instead of at the end. With `way`,
    1 or -1, their time is `way * t`."""
    functions = [_Field(field, shift, end)]
    if is_imex(solver):
        functions = [lambda t, y, args: zeros_like(y), *functions]
    terms: Any = map(diffrax.ODETerm, functions)
    if way is not None:
        terms = [_OneWay(term, way) for term in terms]
    return diffrax.MultiTerm(*terms) if is_imex(solver) else next(iter(terms))


class _Ended(eqx.Module):
    """Rows, and the times `saved` of those that were reached (the others: not finite); time and
    state where the loop ended, with its result."""

    rows: PyTree[Array]
    saved: Array
    t: Array
    last: PyTree[Array]
    control: Any
    stats: dict[str, Any]
    result: RESULTS
    trace: Trace | None


def run_loop(plan: Plan, pace: Pace, inputs: Inputs, record: bool) -> tuple[Outputs, Trace | None]:
    """Solves, and if asked to `record` returns the accepted steps too."""
    # The derivative is taken with the steps held fixed. What moves with the times are the start,
    # the end, and the points of the dense output.
    t0, t1 = lax.stop_gradient((inputs.t0, inputs.t1))
    # Without a step to take nothing moves.
    start, end = (jnp.where(t0 == t1, 0, t) for t in (-inputs.t0, inputs.t1))
    y0 = _with_time(inputs.y0, start, inputs.t0, inputs.field, inputs.args)
    held = Inputs(inputs.field, y0, t0, t1, inputs.ts, inputs.args)
    if plan.on_own_loop:
        ended = _our_loop(plan, pace, held, record)
    else:
        ended = _diffrax_loop(plan, pace, held, inputs)
    at_end = _with_time(ended.last, end, inputs.t1, inputs.field, inputs.args)
    last = select(ended.result == RESULTS.successful, at_end, ended.last)
    result = verdict(pace.controller, inputs.y0, ended.control.record, ended.result)
    rest = (ended.control.record, ended.control.watched, ended.saved, ended.t, ended.stats, result)
    if ended.trace is None:
        return Outputs(ended.rows, last, rest), None
    # A failed sample has no derivative at all, however far it came.
    count = jnp.where(is_okay(result), ended.trace.count, 0)
    trace = eqx.tree_at(lambda trace: trace.count, ended.trace, count)
    return Outputs(ended.rows, last, rest), trace


def _our_loop(plan: Plan, pace: Pace, inputs: Inputs, record: bool) -> _Ended:
    way = jnp.where(inputs.t1 < inputs.t0, -1, 1).astype(inputs.t0.dtype)
    steps = Steps(
        terms=terms_of(plan.solver, inputs.field, way=way),
        solver=plan.solver,
        controller=pace.controller.wrap(way),
        meter=plan.progress_meter,
        max_steps=pace.max_steps,
        capacity=plan.capacity if record else None,
    )
    t0, t1, ts = inputs.t0 * way, inputs.t1 * way, inputs.ts * way
    solved = integrate_steps(steps, t0, t1, pace.dt0, inputs.y0, ts, inputs.args)
    reached = jnp.arange(ts.size) < solved.row
    stats = dict(
        num_steps=solved.tried,
        num_accepted_steps=solved.accepted,
        num_rejected_steps=solved.tried - solved.accepted,
        max_steps=pace.max_steps,
    )
    trace = None
    if solved.times is not None:
        trace = Trace(solved.times * way, solved.states, solved.accepted)
    return _Ended(
        rows=solved.rows,
        saved=jnp.where(reached, inputs.ts, jnp.inf),
        t=solved.t * way,
        last=solved.y,
        control=solved.control,
        stats=stats,
        result=promoted(solved.result),
        trace=trace,
    )


def _diffrax_loop(plan: Plan, pace: Pace, held: Inputs, inputs: Inputs) -> _Ended:
    """`inputs`, of which the loop sees those that are `held`."""
    solver, dt0 = plan.solver, pace.dt0
    adjoint: Any = plan.adjoint
    way = jnp.where(held.t1 < held.t0, -1, 1)
    subs = [diffrax.SubSaveAt(ts=held.ts), diffrax.SubSaveAt(t1=True)]
    saveat = diffrax.SaveAt(subs=subs, controller_state=True)
    settings: dict[str, Any] = dict(
        terms=terms_of(solver, held.field),
        solver=solver,
        t0=held.t0,
        t1=held.t1,
        dt0=None if dt0 is None else way.astype(dt0.dtype) * dt0,
        saveat=saveat,
        stepsize_controller=pace.controller,
        max_steps=plan.capacity,
    )
    event = None
    if plan.event is not None:
        event = EventOf(plan.event, settings, way, inputs.t0, inputs.y0, inputs.args)
        if event.is_located:
            saveat = diffrax.SaveAt(subs=subs, controller_state=True, solver_state=True)
            settings = {**settings, "solver": KeepsStep(solver), "saveat": saveat}
    solution = diffrax.diffeqsolve(
        **settings,
        y0=held.y0,
        args=held.args,
        adjoint=adjoint,
        event=None if event is None else event.for_loop(),
        throw=False,
        progress_meter=plan.progress_meter,
    )
    ts, ys = solution.ts, solution.ys
    assert ts is not None and ys is not None
    result: Any = promoted(solution.result)
    saved, t, last = ts[0], ts[1][0], jtu.tree_map(lambda x: x[0], ys[1])
    if event is not None and event.is_located:
        solver_state: Any = solution.solver_state
        t, last, result = _at_the_event(
            event, solver, inputs.args, solver_state[1], t, last, result
        )
        saved = jnp.where(way * saved > way * t, jnp.nan, saved)
    return _Ended(
        rows=ys[0],
        saved=saved,
        t=t,
        last=last,
        control=solution.controller_state,
        stats=solution.stats,
        result=result,
        trace=None,
    )


@eqx.filter_custom_jvp
def _with_time(y, forth, t, field: Callable, args: Args):
    """`y` at time `t`, which moves along its slope as `forth` does."""
    return y


@_with_time.def_jvp
def _with_time_jvp(primals, tangents):
    (y, _, t, field, args), (d_y, d_forth, *_) = primals, tangents
    if d_forth is not None:
        # A start that has no slope is that of a sample that fails.
        slope = finite_or_zero(field(t, y, args, zeros_like(y)))
        d_y = add(jtu.tree_map(lambda dy: dy * d_forth.astype(dy.dtype), slope), d_y)
    return y, d_y


def _at_the_event(event: EventOf, solver, args: Args, step: KeptStep, t, y, result):
    """Time, state and result of a solve that ended at the end `t` of the `step` with its event."""
    found = event.find(solver, step, y, args, result == RESULTS.event_occurred)
    result = RESULTS.where(found.crossed & ~found.located, RESULTS.event_not_located, result)
    # Where the state itself is not finite, that is what failed.
    is_lost = found.not_finite & all_finite(y)
    result = RESULTS.where(is_lost, RESULTS.event_not_finite, result)
    return (*select(found.crossed & found.located, (found.t, found.y), (t, y)), result)
