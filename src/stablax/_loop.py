"""The integration loop: the steps of a solver, under a controller, with what they leave.

diffrax's `diffeqsolve` would do; but its checks of the save times are host callbacks, which keep
a program out of JAX's persistent cache and out of `jax.export`, and it traces a step six times.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from ._lane_loop import Buffer, lane_loop, put, take
from ._lanes import any_lane
from ._types import Args, ScalarLike

# A last step of so many rounding errors would spoil its dense output: the one before takes it.
_LAST_STEP_ULPS = 50


class Steps(eqx.Module):
    """What is solved, and how. Times rise: a solve backwards in time is one in `-t`. The `solver`
    has its tolerances, and forward mode."""

    terms: PyTree[diffrax.AbstractTerm]
    solver: diffrax.AbstractSolver
    controller: diffrax.AbstractStepSizeController
    meter: diffrax.AbstractProgressMeter
    max_steps: Int[Array | np.ndarray, ""] | int
    capacity: int | None = None  # accepted steps that are kept, if any: at least `max_steps`
    # `ends_at(seen, t, y, args)`, asked at the start and at the end of each step: whether the loop
    # ends there, with the result `event_occurred`; and what the next question knows, the first of
    # which knows `seen`.
    ends_at: Callable | None = None
    seen: PyTree = None
    # `passes_at(t, y, args)`: the state `y` where an accepted step ended, from where the next one
    # begins at `t`, with the derivative of a jump of the field there.
    passes_at: Callable | None = None
    # `cuts_at(solver, seen, step, args, asked)`, asked of each step that is accepted: the `Cut` in
    # it, and what the next question knows. Of events there are so many `at_once`, and there is
    # room for `events`: so many, and so many numbers about each.
    cuts_at: Callable | None = None
    at_once: int = 0
    events: tuple[int, int] = (0, 0)
    keeps_last: bool = False  # whether the last step is kept
    width: int | None = None  # of a batch, how many step at once at most


class KeptStep(eqx.Module):
    """A step from `y0` at `t0` to `t1`, and what its solver interpolates it with."""

    t0: Any
    t1: Any
    y0: PyTree[Array]
    dense: PyTree[Array]

    @staticmethod
    def none(solver: diffrax.AbstractSolver, terms, t0, t1, y0, args, state) -> "KeptStep":
        """Before the first, one that has no length."""
        step = eqx.filter_eval_shape(solver.step, terms, t0, t1, y0, args, state, False)
        dense = jtu.tree_map(lambda x: jnp.zeros(x.shape, x.dtype), step[2])
        return KeptStep(t0, t0, y0, dense)


def interpolated(solver: diffrax.AbstractSolver, step: KeptStep, t: ScalarLike) -> PyTree[Array]:
    """The dense output of a `step` of `solver` at `t`, in the dtypes of the state: the coefficients
    of diffrax's KenCarp methods are of float64."""
    make: Any = solver.interpolation_cls
    found = make(t0=step.t0, t1=step.t1, **step.dense).evaluate(t)
    return jtu.tree_map(lambda x, y: jnp.asarray(x, y.dtype), found, step.y0)


class Cut(eqx.Module):
    """Where a step is cut short by events, if `happens`: at `t`, from where it goes on from `y`, if
    it does not `end` there. `order`: the numbers of the events, then -1; and `rows` about them."""

    happens: Bool[Array, ""]
    t: Float[Array, ""]
    y: PyTree[Array]
    order: Int[Array, " events"]
    ends: Bool[Array, ""]
    rows: Float[Array, "events row"]


class Written(eqx.Module):
    """`rows` at the times that were reached.

    If they are recorded, of accepted step k `times[k]` and `states[k]` where it ended, and where it
    can be cut short the end `ends[k]` to which it was taken, and the `orders[k]` of a [`Cut`][].

    Of events, if there are some, the `rows` of their cuts, one after the other."""

    rows: PyTree
    times: PyTree
    states: PyTree
    ends: PyTree
    orders: PyTree
    events: PyTree


class Solved(eqx.Module):
    """How a loop ended: `row` rows and `event` events, at `t` and `y`; `seen`: what the last answer
    of `ends_at` or `cuts_at` left."""

    row: Int[Array, ""]
    event: Int[Array, ""] | None
    t: Float[Array, ""]
    y: PyTree[Array]
    control: PyTree
    result: diffrax.RESULTS
    tried: Int[Array, ""]
    accepted: Int[Array, ""]
    last: KeptStep | None
    seen: PyTree


class _Carry(eqx.Module):
    solved: Solved
    looked: Bool[Array, ""] | None  # whether `ends_at` was asked of this state
    end: Float[Array, ""]  # of the next step
    known: PyTree  # the solver's state
    jumped: Bool[ArrayLike, ""]
    meter: PyTree


class _Stepper(eqx.Module):
    """One step after the other, from `t0` to `t1`."""

    steps: Steps
    solver: diffrax.AbstractSolver
    order: Any
    t0: Float[Array, ""]
    t1: Float[Array, ""]
    args: Args
    fixed: PyTree  # of the carry, what is no array

    def steps_on(self, solved: Solved) -> Bool[Array, ""]:
        is_fine = solved.result == diffrax.RESULTS.successful
        return (solved.t < self.t1) & is_fine & (solved.tried < self.steps.max_steps)

    def goes_on(self, moving: PyTree[Array]) -> Bool[Array, ""]:
        return self._goes_on(eqx.combine(moving, self.fixed))

    def _goes_on(self, carry: _Carry) -> Bool[Array, ""]:
        on = self.steps_on(carry.solved)
        return on if carry.looked is None else on | ~carry.looked

    def look(self, carry: _Carry) -> Solved:
        """One call site, before a step, for the start and for what the steps arrive at."""
        solved = carry.solved
        if self.steps.ends_at is None or carry.looked is None:
            return solved
        ends, seen = self.steps.ends_at(solved.seen, solved.t, solved.y, self.args)
        asks = self._goes_on(carry) & ~carry.looked
        result = diffrax.RESULTS.where(asks & ends, diffrax.RESULTS.event_occurred, solved.result)
        return dataclasses.replace(
            solved, result=result, seen=optax.tree.where(asks, seen, solved.seen)
        )

    def step(self, moving: PyTree[Array], ts, written: Written) -> tuple[PyTree[Array], Written]:
        steps, solver, order, t1, args = self.steps, self.solver, self.order, self.t1, self.args
        controller: Any = steps.controller
        nearly_there = t1 - _LAST_STEP_ULPS * jnp.finfo(t1.dtype).eps * jnp.abs(t1)
        carry = eqx.combine(moving, self.fixed)
        solved = self.look(carry)
        t, end, y = solved.t, carry.end, solved.y
        live = self.steps_on(solved)
        y1, error, dense, known, ended = solver.step(
            steps.terms, t, end, y, args, carry.known, carry.jumped
        )
        # An estimate that is nan is no estimate.
        error = jtu.tree_map(lambda e: jnp.where(jnp.isnan(e), jnp.inf, e), error)
        # A step that begins at an event begins at a time that moves; its length does not.
        keep, next_t, next_end, jumped, control, stopped = controller.adapt_step_size(
            lax.stop_gradient(t), end, y, y1, args, error, order, solved.control
        )
        next_t = jnp.minimum(next_t, t1)
        keep = jnp.asarray(keep) & live
        if steps.passes_at is not None:
            y1 = steps.passes_at(next_t, y1, args)
        cut, seen = None, solved.seen
        if steps.cuts_at is not None:
            cut, seen = steps.cuts_at(solver, seen, KeptStep(t, end, y, dense), args, keep)
            resumed = controller.resumed(
                lax.stop_gradient(cut.t), end, next_end, solved.control, control
            )
            fine = diffrax.RESULTS.successful
            next_t, (next_end, control), y1, jumped, stopped = optax.tree.where(
                cut.happens,
                (jnp.where(cut.t > nearly_there, t1, cut.t), resumed, cut.y, True, fine),
                (next_t, (next_end, control), y1, jumped, stopped),
            )
            stopped = diffrax.RESULTS.where(cut.ends, diffrax.RESULTS.event_occurred, stopped)
        # Where the step is taken again it is shortened, since `t1` is where it ended.
        rest = jnp.where(keep, t1, next_t + 0.5 * (t1 - next_t))
        next_end = jnp.where(next_end > nearly_there, rest, next_end)
        ended = diffrax.RESULTS.where(keep, ended, diffrax.RESULTS.successful)
        ended = diffrax.RESULTS.where(ended == diffrax.RESULTS.successful, stopped, ended)
        meter = steps.meter.step(carry.meter, _part(self.t0, next_t, t1))

        def is_next(row):
            time = take(ts, jnp.minimum(row, ts.size - 1))
            before_end = time <= end
            if cut is not None:
                # A row at an event is what comes after, if something does.
                is_last = cut.ends | (next_t >= t1)
                before_cut = jnp.where(is_last, time <= cut.t, time < cut.t)
                before_end = jnp.where(cut.happens, before_cut, before_end)
            return keep & (row < ts.size) & before_end

        def save(carry):
            row, rows = carry
            asked = is_next(row)
            place = jnp.where(asked, row, ts.size)
            time = take(ts, jnp.minimum(row, ts.size - 1))
            value = interpolated(solver, KeptStep(t, end, y, dense), time)
            return row + asked.astype(row.dtype), put(rows, place, value)

        row, rows = solved.row, written.rows
        if ts.size:
            row, rows = lax.while_loop(lambda c: any_lane(is_next(c[0])), save, (row, rows))
        taken = (written.times, written.states, written.ends, written.orders)
        if written.times is not None:
            place = jnp.where(keep, solved.accepted, written.times.size)
            ends, orders = (None, None) if cut is None else (end, cut.order)
            taken = put(taken, place, (next_t, y1, ends, orders))
        event, events = solved.event, written.events
        if cut is not None and event is not None:
            of_cut = jnp.where(cut.happens, jnp.sum(cut.order >= 0), 0)
            event, events = put_events(events, event, of_cut, cut.rows)
        count = lambda number, flag: number + flag.astype(number.dtype)
        # What a lane that is done has stays as it is.
        control, ended, next_end, meter = optax.tree.where(
            live,
            (control, ended, next_end, meter),
            (solved.control, solved.result, end, carry.meter),
        )
        last = solved.last
        if last is not None:
            last = optax.tree.where(keep, KeptStep(t, end, y, dense), last)
        t, y, known = optax.tree.where(keep, (next_t, y1, known), (t, y, carry.known))
        if carry.jumped is not False:
            jumped = jnp.where(keep, jumped, carry.jumped)
        tried, accepted = count(solved.tried, live), count(solved.accepted, keep)
        solved = Solved(row, event, t, y, control, ended, tried, accepted, last, seen)
        looked = None if carry.looked is None else ~keep
        carry = _Carry(solved, looked, next_end, known, jumped, meter)
        times, states, ends, orders = taken
        written = Written(rows, times, states, ends, orders, events)
        return eqx.filter(carry, eqx.is_array), written


def put_events(
    buffer: Buffer, event: Int[Array, ""], count: Int[Array, ""], rows: Float[Array, "events row"]
) -> tuple[Int[Array, ""], Buffer]:
    """The first `count` of the `rows` behind the `event` ones that are in the `buffer`; and how
    many are then."""
    number = jnp.arange(rows.shape[0])
    places = jnp.where(number < count, event + number, buffer.size)
    return event + count.astype(event.dtype), put(buffer, places, rows)


def integrate_steps(
    steps: Steps,
    t0: Float[Array, ""],
    t1: Float[Array, ""],
    dt0: Float[Array | np.ndarray, ""] | None,
    y0: PyTree[Array],
    ts: Float[Array, " times"],
    args: Args,
) -> tuple[Solved, Written]:
    """Steps from `y0` at `t0` to `t1`, with rows at `ts`, which rise and are at most `t1`; those
    that are nan come last, and are never reached."""
    terms, solver, controller = steps.terms, steps.solver, steps.controller
    order: Any = solver.error_order(terms)
    end, control = controller.init(terms, t0, t1, y0, dt0, args, solver.func, order)
    end = jnp.minimum(end, t1)
    known = solver.init(terms, t0, end, y0, args)

    def blank(size):
        return jtu.tree_map(lambda y: jnp.full((size, *y.shape), jnp.inf, y.dtype), y0)

    zero = jnp.zeros((), int)
    # Without a step to take every row is at the start; with one, only what a step has reached is.
    still = t0 >= t1
    row = jnp.where(still, ts.size, 0)
    rows = jtu.tree_map(lambda b, y: jnp.where(still, y, b), blank(ts.size), y0)
    successful: Any = diffrax.RESULTS.where(
        jnp.array(True), diffrax.RESULTS.successful, diffrax.RESULTS.successful
    )
    size = steps.capacity
    times = None if size is None else jnp.full(size, jnp.inf, t0.dtype)
    states = None if size is None else blank(size)
    ends = orders = events = event = None
    if steps.cuts_at is not None:
        event, events = zero, jnp.zeros(steps.events, t0.dtype)
        if size is not None:
            ends = jnp.full(size, jnp.inf, t0.dtype)
            orders = jnp.full((size, steps.at_once), -1, int)

    never = steps.cuts_at is None and _never_jumps(controller, t0, y0, args, order, control)
    jumped = False if never else jnp.array(False)
    control, known, meter = _as_arrays((control, known, steps.meter.init()))
    last = None
    if steps.keeps_last:
        last = KeptStep.none(solver, terms, t0, end, y0, args, known)
    solved = Solved(row, event, t0, y0, control, successful, zero, zero, last, steps.seen)
    looked = None if steps.ends_at is None else still
    carry = _Carry(solved, looked, end, known, jumped, meter)
    moving, fixed = eqx.partition(carry, eqx.is_array)
    moving, written = lane_loop(
        lambda stepper, moving: stepper.goes_on(moving),
        lambda stepper, moving, ts, written: stepper.step(moving, ts, written),
        moving,
        _Stepper(steps, solver, order, t0, t1, args, fixed),
        ts,
        Written(rows, times, states, ends, orders, events),
        steps.width,
        keeps=True,
    )
    carry = eqx.combine(moving, fixed)
    steps.meter.close(carry.meter)
    solved = carry.solved
    is_spent = (solved.t < t1) & (solved.result == diffrax.RESULTS.successful)
    result = diffrax.RESULTS.where(is_spent, diffrax.RESULTS.max_steps_reached, solved.result)
    return eqx.tree_at(lambda s: s.result, solved, result), written


def _as_arrays(tree: PyTree) -> PyTree:
    return jtu.tree_map(lambda x: jnp.asarray(x) if eqx.is_array_like(x) else x, tree)


def _part(t0, t, t1):
    """How far `t` is on the way."""
    return jnp.where(t0 < t1, (t - t0) / jnp.where(t0 < t1, t1 - t0, 1), 1)


def _never_jumps(controller, t0, y0, args, order, control) -> bool:
    """Whether the controller knows, before any step, that the field has no jumps. (A solver then
    need not look whether what it knows of the field is still so.)"""
    out = eqx.filter_eval_shape(
        controller.adapt_step_size, t0, t0, y0, y0, args, y0, order, control
    )
    return out[3] is False
