"""The accepted steps of a solve, repeated with their derivative: a pass over them in either
direction."""

import abc
import functools
from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import Array, Bool, Int, PyTree

from .._fields import Aside, Guard
from .._lane_loop import as_buffers, lane_loop, put, take
from .._lanes import any_lane, only_where, spread
from .._loop import EventRows, KeptStep, interpolated, put_events
from .._solvers import AbstractRosenbrock, for_forward_mode, is_repeatable, repeat_explicit
from .._states import add, all_finite, is_none
from .._types import Args
from ._events import Events


class Inputs(eqx.Module):
    """What a solve depends on."""

    field: Callable
    y0: PyTree[Array]
    t0: Array
    t1: Array
    ts: Array
    args: Args
    events: Events | None


class AcceptedSteps(eqx.Module):
    """The accepted steps: `times[k]` and `states[k]` where step k ended; and whether the last one
    reaches the end that was asked for. Where events can cut them short, `ends[k]` to which it was
    taken, and `orders[k]` of the events there: their numbers, then -1."""

    times: Array
    states: PyTree[Array]
    count: Array
    arrives: Bool[Array, ""]
    ends: Array | None
    orders: Array | None


class Steps(eqx.Module):
    """The accepted steps of a solve, to be repeated. `moves`: which inputs have a derivative.
    `dense`: of the last step, if that has one, too."""

    inputs: Inputs
    moves: Inputs
    accepted: AcceptedSteps
    solver: diffrax.AbstractSolver
    terms: Callable[[Callable, PyTree, tuple[Array, Array] | None], PyTree]
    guard: Guard | None
    width: int | None
    dense: PyTree[Array] | None

    @property
    def record(self) -> "_Record":
        """What a pass reads at one place a step; the rest of the steps is the same in all."""
        accepted = self.accepted
        taken = (accepted.times, accepted.states, accepted.ends, accepted.orders)
        return _Record(self.inputs.ts, *taken)

    @property
    def parameters(self) -> tuple[PyTree, PyTree]:
        """The field, its args and the events: what moves, and the rest."""
        moves = (self.moves.field, self.moves.args, self.moves.events)
        return eqx.partition((self.inputs.field, self.inputs.args, self.inputs.events), moves)

    def system(self, shift, end, moving) -> tuple[PyTree, Args]:
        field, args, _ = eqx.combine(moving, self.parameters[1])
        return self.terms(field, shift, end), args

    def at_events(self, step: "_Step", moving, dense, start, end) -> tuple:
        """Of a step that is cut short: the time, the state after the events, and their states."""
        _, args, events = eqx.combine(moving, self.parameters[1])
        kept = KeptStep(start, end, self.inputs.y0, dense)
        return events.take_place(self.solver, kept, step.stop, args, step.order)

    def at(self, k: Array, record: "_Record") -> "_Step":
        """Step `k`. Under `vmap` a lane that is done goes on: with its first step or its last, or
        with none."""
        inputs, accepted = self.inputs, self.accepted
        first, last = k <= 0, k >= accepted.count - 1
        before = jnp.maximum(k - 1, 0)
        start = jnp.where(first, inputs.t0, take(record.times, before))
        arrives = last & accepted.arrives
        stop, order, after_cut = take(record.times, jnp.maximum(k, 0)), None, None
        end = stop
        if record.orders is not None:
            order = take(record.orders, jnp.maximum(k, 0))
            after_cut = ~first & (take(record.orders, before)[0] >= 0)
            end = jnp.where(order[0] >= 0, take(record.ends, jnp.maximum(k, 0)), end)
            arrives &= order[0] < 0
        end = jnp.where(arrives, inputs.t1, end)
        end = jnp.where(accepted.count > 0, end, inputs.t0)
        y = optax.tree.where(first, inputs.y0, take(record.states, before))
        # The end of a step that was taken up to a jump of the field is recorded behind the jump,
        # whose other side the step must not see. Only the field looks earlier: a step that ends
        # earlier is another one, and on a relaxation oscillation four ulp in each of a thousand
        # steps are an error of 7 % in the gradient. Stages beyond the end stay where they were.
        seen = lax.stop_gradient((end, _just_before(start, end)))
        return _Step(first, last, arrives, start, end, y, seen, stop, order, after_cut)

    def interpolate(self, dense, start, end, t) -> PyTree[Array]:
        return interpolated(self.solver, KeptStep(start, end, self.inputs.y0, dense), t)

    def held(self, dense) -> PyTree[Array] | None:
        """What a step that is taken aside keeps of the step as it was: the stages of a Rosenbrock
        method. For other methods it is the field that keeps its value; see `evaluate_aside`."""
        return dense["stages"] if isinstance(self.solver, AbstractRosenbrock) else None

    def blank(self) -> PyTree[Array] | None:
        """Of the structure of `held`."""
        if not isinstance(self.solver, AbstractRosenbrock):
            return None
        stages = self.solver.tableau.stages
        blank = jtu.tree_map(lambda y: jnp.zeros((stages, *y.shape), y.dtype), self.inputs.y0)
        return spread(blank, self.inputs)

    @property
    def zero_events(self) -> EventRows | None:
        """No change of the events."""
        events, inputs = self.inputs.events, self.inputs
        if events is None:
            return None
        states = jtu.tree_map(lambda y: jnp.zeros((events.capacity, *y.shape), y.dtype), inputs.y0)
        return EventRows(jnp.zeros(events.capacity, inputs.t0.dtype), states, states)

    @property
    def rows(self) -> Array:
        """How many were reached. The others belong to no step."""
        inputs, accepted = self.inputs, self.accepted
        last = accepted.times[jnp.maximum(accepted.count - 1, 0)]
        end = jnp.where(accepted.count > 0, last, jnp.nan)
        reached = jnp.where(self.is_backwards, inputs.ts >= end, inputs.ts <= end)
        return jnp.sum(jnp.isfinite(inputs.ts) & reached)

    @property
    def is_backwards(self) -> Array:
        return self.inputs.t1 < self.inputs.t0


class _Record(eqx.Module):
    """Arrays, or in a loop [`Buffer`][]s of them."""

    ts: PyTree
    times: PyTree
    states: PyTree
    ends: PyTree
    orders: PyTree


class _Step(eqx.Module):
    first: Array
    last: Array
    arrives: Array  # at the end that was asked for
    start: Array
    end: Array
    y: PyTree[Array]
    seen: tuple[Array, Array]  # the end, and a time just before it
    stop: Array  # where it ended, if events cut it short
    order: Array | None
    after_cut: Array | None  # whether the one before was cut short

    @property
    def is_cut(self) -> Array:
        assert self.order is not None
        return self.order[0] >= 0

    @property
    def count(self) -> Array:
        """Of the events in it."""
        assert self.order is not None
        return jnp.sum(self.order >= 0)

    def events_in(self, rows: EventRows, first: Array) -> EventRows:
        """Those of its events in `rows`, from the `first` on, and zeros."""
        assert self.order is not None
        each = [take(rows, first + place) for place in range(self.order.size)]
        stacked = jtu.tree_map(lambda *xs: jnp.stack(xs), *each)
        some = self.order >= 0
        is_one = lambda x: some.reshape(-1, *[1] * (x.ndim - 1))
        return jtu.tree_map(lambda x: jnp.where(is_one(x), x, 0), stacked)

    def has(self, t: Array, is_backwards: Array) -> Array:
        """Whether a row at `t` is not after its end."""
        not_after = lambda end: jnp.where(is_backwards, t >= end, t <= end)
        if self.order is None:
            return not_after(self.end)
        return jnp.where(self.is_cut, not_after(self.stop) & (t != self.stop), not_after(self.end))

    def begins_before(self, t: Array, is_backwards: Array) -> Array:
        """Whether a row at `t` is after its start."""
        later = jnp.where(is_backwards, t < self.start, t > self.start)
        return later if self.after_cut is None else later | self.after_cut & (t == self.start)


def _none_of(step: _Step, y: PyTree[Array]) -> tuple[PyTree[Array], PyTree[Array]]:
    """States before and after its events, of none."""
    assert step.order is not None
    count = step.order.size
    none = jtu.tree_map(lambda x: jnp.zeros((count, *x.shape), x.dtype), y)
    return none, none


class _AbstractPass(eqx.Module):
    """One step after the other, of what stands `at` the step before."""

    steps: eqx.AbstractVar[Steps]
    rows: eqx.AbstractVar[Array]  # how many were reached

    @property
    def fixed(self) -> "_AbstractPass":
        """What is the same in each step; the rest of the steps a loop shows where it is read."""
        record = lambda over: (
            over.steps.inputs.ts,
            over.steps.accepted.times,
            over.steps.accepted.states,
            over.steps.accepted.ends,
            over.steps.accepted.orders,
        )
        return eqx.tree_at(record, self, (None,) * 5, is_leaf=is_none)

    @abc.abstractmethod
    def order(self, i: Array) -> Array:
        """Which step of the solve is step `i` of the pass."""

    @abc.abstractmethod
    def take(self, k: Array, at: PyTree, aside: tuple, reads: PyTree, writes: PyTree) -> tuple:
        """Step `k`: the new `at`, what it wrote, and what a step that is taken aside holds."""


class _Forth(eqx.Module):
    row: Array
    d_y: PyTree[Array]
    d_dense: PyTree[Array] | None  # of the step before
    d_start: Array | None  # after an event
    event: Array | None


class _ForwardPass(_AbstractPass):
    steps: Steps
    rows: Array
    d_moving: PyTree
    d_t0: Array
    d_t1: Array

    def order(self, i):
        return i

    def take(self, k, at: _Forth, aside, reads, writes):
        record, d_ts = reads
        writes, d_events = writes
        steps, (shift, held) = self.steps, aside
        step = steps.at(k, record)
        system = functools.partial(steps.system, shift, step.seen)
        repeat = functools.partial(_repeat, for_forward_mode(steps.solver), system, held)
        d_start = jnp.where(step.first, self.d_t0, 0) if at.d_start is None else at.d_start
        d_end = jnp.where(step.arrives, self.d_t1, 0)
        d_times = (d_start, d_end)
        points, d_points = (
            (steps.parameters[0], step.start, step.end, step.y),
            (self.d_moving, *d_times, at.d_y),
        )
        (_, dense), (d_y, d_dense) = eqx.filter_jvp(repeat, points, d_points)

        def in_step(row):
            t = take(record.ts, jnp.minimum(row, record.ts.size - 1))
            return (row < self.rows) & (step.has(t, steps.is_backwards) | step.last)

        def save(carry):
            row, writes = carry
            asked, place = in_step(row), jnp.minimum(row, record.ts.size - 1)
            points = (dense, step.start, step.end, take(record.ts, place))
            d_points = (d_dense, d_start, d_end, take(d_ts, place))
            _, d_row = jax.jvp(steps.interpolate, points, d_points)
            place = jnp.where(asked, place, record.ts.size)
            return row + asked.astype(row.dtype), put(writes, place, d_row)

        row, writes = lax.while_loop(lambda c: any_lane(in_step(c[0])), save, (at.row, writes))
        kept, event = None if steps.dense is None else d_dense, at.event
        d_next = None
        if step.order is not None and event is not None:

            def move():
                points = (steps.parameters[0], dense, step.start, step.end)
                d_points = (self.d_moving, d_dense, *d_times)
                return eqx.filter_jvp(functools.partial(steps.at_events, step), points, d_points)[1]

            still = (jnp.zeros_like(step.stop), d_y, *_none_of(step, d_y))
            d_next, d_y, *d_states = only_where(step.is_cut, move, still)
            d_rows = EventRows(jnp.broadcast_to(d_next, step.order.shape), *d_states)
            event, d_events = put_events(d_events, event, step.count, d_rows)
        at = _Forth(row, d_y, kept, d_next, event)
        return at, (writes, d_events), steps.held(dense)


def forward(steps: Steps, tangents: Inputs) -> tuple[PyTree, PyTree, PyTree, EventRows | None]:
    """The tangents of the rows, of the last state, of the dense output of the last step, and of
    the events."""
    inputs, count = steps.inputs, steps.accepted.count
    zero = lambda d, x: jtu.tree_map(
        lambda d, x: jnp.zeros_like(x) if d is None else d, d, x, is_leaf=is_none
    )
    d_t0, d_t1, d_y0, d_ts = (
        zero(getattr(tangents, name), getattr(inputs, name)) for name in ("t0", "t1", "y0", "ts")
    )
    # Rows of a solve without steps are its start.
    still = jtu.tree_map(
        lambda d: jnp.where(count == 0, jnp.broadcast_to(d, (inputs.ts.size, *d.shape)), 0), d_y0
    )
    rows, dense = steps.rows, optax.tree.zeros_like(steps.dense)
    d_events = steps.zero_events
    has_events = d_events is not None
    d_start, event = (d_t0, jnp.zeros_like(count)) if has_events else (None, None)
    start = _Forth(jnp.zeros_like(rows), d_y0, dense, d_start, event)
    d_moving = (tangents.field, tangents.args, tangents.events)
    over = _ForwardPass(steps, rows, d_moving, d_t0, d_t1)
    end, (d_rows, d_events) = step_by_step(over, start, (steps.record, d_ts), (still, d_events))
    return d_rows, end.d_y, end.d_dense, d_events


class _Back(eqx.Module):
    row: Array
    d_y: PyTree[Array]
    d_moving: PyTree[Array]
    d_start: Array
    d_end: Array
    event: Array | None


class _BackwardPass(_AbstractPass):
    steps: Steps
    rows: Array
    d_kept: PyTree[Array] | None

    def order(self, i):
        return self.steps.accepted.count - 1 - i

    def take(self, k, at: _Back, aside, reads, writes):
        record, d_rows, d_events = reads
        steps, (shift, held) = self.steps, aside
        step = steps.at(k, record)
        start, end = step.start, step.end
        system = functools.partial(steps.system, shift, step.seen)
        moving = steps.parameters[0]
        dense, pull = _replay(steps.solver, system, held, moving, start, end, step.y)

        def in_step(row):
            t = take(record.ts, jnp.maximum(row, 0))
            return (row >= 0) & (step.begins_before(t, steps.is_backwards) | step.first)

        def save(carry):
            row, so_far, d_ts = carry
            asked, place = in_step(row), jnp.maximum(row, 0)
            _, pull_row = eqx.filter_vjp(
                steps.interpolate, dense, start, end, take(record.ts, place)
            )
            *more, d_t = pull_row(take(d_rows, place))
            so_far = optax.tree.where(asked, add(so_far, tuple(more)), so_far)
            if d_ts is not None:
                d_ts = put(d_ts, jnp.where(asked, place, record.ts.size), d_t)
            return row - asked.astype(row.dtype), so_far, d_ts

        d_dense = optax.tree.zeros_like(dense)
        if self.d_kept is not None:
            d_dense = optax.tree.where(step.last, self.d_kept, d_dense)
        d_y, d_moving, zero_time = at.d_y, at.d_moving, jnp.zeros_like(start)
        so_far, event = (d_dense, zero_time, zero_time), at.event
        if step.order is not None and event is not None:
            event = event - step.count

            def pull_events():
                d = step.events_in(d_events, event)
                at_events = functools.partial(steps.at_events, step)
                _, pull = eqx.filter_vjp(at_events, moving, dense, start, end)
                return pull((at.d_start + jnp.sum(d.t), d_y, d.before, d.after))

            none = (optax.tree.zeros_like(moving), *so_far)
            more, *so_far = only_where(step.is_cut, pull_events, none)
            d_moving, so_far = add(d_moving, more), tuple(so_far)
            d_y = jtu.tree_map(lambda d: jnp.where(step.is_cut, 0, d), d_y)
        saved = spread((at.row, so_far, writes))
        more_rows = lambda carry: any_lane(in_step(carry[0]))
        row, (d_dense, d_start, d_stop), writes = lax.while_loop(more_rows, save, saved)
        more, step_start, step_end, d_y = pull(d_y, d_dense)
        d_end = jnp.where(step.arrives, d_stop + step_end, at.d_end)
        new = _Back(row, d_y, add(d_moving, more), d_start + step_start, d_end, event)
        return new, writes, steps.held(dense)


def backward(steps: Steps, cotangents: tuple[PyTree, PyTree, PyTree, EventRows | None]) -> Inputs:
    """The cotangents of the inputs that move, from those of the rows, of the last state, of the
    dense output of the last step, and of the events."""
    inputs, count = steps.inputs, steps.accepted.count
    d_rows, d_last, d_kept, d_events = cotangents
    # Rows of a solve without steps are its start.
    d_last = jtu.tree_map(
        lambda d, rows: d + jnp.where(count == 0, jnp.sum(rows, axis=0), 0), d_last, d_rows
    )
    zero_time = jnp.zeros_like(inputs.t0)
    # In a batch a scatter costs more than the step: only where somebody asks for it.
    d_ts = jnp.zeros_like(inputs.ts) if steps.moves.ts else None
    rows = steps.rows
    orders, d_moving = steps.accepted.orders, optax.tree.zeros_like(steps.parameters[0])
    event = None if orders is None else jnp.sum(orders >= 0)
    start = _Back(rows - 1, d_last, d_moving, zero_time, zero_time, event)
    over = _BackwardPass(steps, rows, d_kept)
    end, d_ts = step_by_step(over, start, (steps.record, d_rows, d_events), d_ts)
    d_field, d_args, d_of_events = end.d_moving
    d_inputs = Inputs(d_field, end.d_y, end.d_start, end.d_end, d_ts, d_args, d_of_events)
    return eqx.filter(d_inputs, steps.moves)


class _Progress(eqx.Module):
    """How far a pass has come: `at`, with what was written."""

    at: PyTree
    written: PyTree[Array]
    # After how many steps, how many to take next, and after how many it is not finite, as far as
    # that is known. In one array, as the numbers of `aside`.
    numbers: Int[Array, "3"]
    aside: Aside
    held: PyTree  # of the next step


def step_by_step(
    over: _AbstractPass, start: PyTree, reads: PyTree[Array], writes: PyTree[Array]
) -> tuple[PyTree, PyTree[Array]]:
    """What a pass over all steps leaves, from `start`; and `writes`.

    What is not finite stays so to the end of a pass. So it is looked for there, and not in each
    step, which would cost a third of a pass: only then shorter runs find the step at fault, and
    that one is taken again, aside, until it is finite or nothing better is to be had."""
    steps = over.steps
    start, writes = spread((start, writes), steps.inputs)
    count, guard = steps.accepted.count, steps.guard
    blank = steps.blank()

    def step(consts, carry, reads, writes):
        over, aside, _ = consts
        i, at, _ = carry
        at, writes, held = over.take(over.order(i), at, aside, reads, writes)
        return (i + 1, at, held), writes

    def run(at, writes, first, end, aside):
        goes_on = lambda consts, carry: carry[0] < consts[2]
        carry, consts = (first, at, blank), (over.fixed, aside, end)
        carry, writes = lane_loop(goes_on, step, carry, consts, reads, writes, steps.width)
        return carry[1], writes, carry[2]

    if guard is None:
        return run(start, writes, jnp.zeros_like(count), count, (None, None))[:2]

    def body(progress: _Progress) -> _Progress:
        aside, (done, stride, bad) = progress.aside, progress.numbers
        end = jnp.minimum(done + stride, count)
        is_one, was_aside = end - done == 1, aside.moves
        y = guard.clip(steps.at(over.order(done), as_buffers(steps.record)).y)
        shift = aside.shift(y, *spread(guard.bounds(y), y))
        held = None if blank is None else (was_aside, progress.held)
        at, written, held = run(progress.at, progress.written, done, end, (shift, held))
        held = optax.tree.where(was_aside, progress.held, held)
        finite = all_finite((at, written))
        keep = jnp.where(is_one, aside.is_last(finite), finite)

        tried = aside.after(finite)
        tried = optax.tree.where(tried.done, tried.again(), tried)
        aside = optax.tree.where(is_one & ~(finite & ~was_aside), tried, aside)

        at, written = optax.tree.where(keep, (at, written), (progress.at, progress.written))
        done = jnp.where(keep, end, done)
        bad = jnp.where(keep, jnp.where(was_aside, count + 1, bad), end)
        # Steps that are at fault come together.
        stride = jnp.where(keep, jnp.where(was_aside, 1, 2 * stride), stride // 2)
        stride = jnp.where(bad <= count, jnp.minimum(stride, (bad - done) // 2), stride)
        stride = jnp.where(aside.moves, 1, jnp.maximum(stride, 1))
        return _Progress(at, written, jnp.stack([done, stride, bad]), aside, held)

    numbers = jnp.stack([jnp.zeros_like(count), count, count + 1])
    progress = _Progress(start, writes, numbers, Aside.start(steps.inputs.y0), blank)
    is_left = lambda progress: progress.numbers[0] < count
    progress = lax.while_loop(is_left, body, spread(progress))
    return progress.at, progress.written


def _repeat(solver: diffrax.AbstractSolver, system: Callable, held, moving, start, end, y):
    """A step from `start` to `end`: the new state, and its dense output."""
    terms, args = system(moving)
    if isinstance(solver, AbstractRosenbrock):
        return solver.repeat(terms, start, end, y, args, held)
    if is_repeatable(solver):
        return repeat_explicit(solver, terms, start, end, y, args)
    state = solver.init(terms, start, end, y, args)
    y1, _, dense, *_ = solver.step(terms, start, end, y, args, state, False)
    return y1, dense


def _replay(solver: diffrax.AbstractSolver, system: Callable, held, moving, start, end, y):
    """A step from `start` to `end`: its dense output, and a function from the cotangents of the
    new state and of the dense output to those of `(moving, start, end, y)`."""
    if isinstance(solver, AbstractRosenbrock):
        return solver.replay(system, moving, start, end, y, held)

    repeat = functools.partial(_repeat, solver, system, held)
    (_, dense), pull = eqx.filter_vjp(repeat, moving, start, end, y)
    return dense, lambda d_end, d_dense: pull((d_end, d_dense))


def _just_before(start: Array, end: Array) -> Array:
    """A time before `end` by more than what its record and its computation as the last stage of
    the step round off."""
    largest = jnp.maximum(jnp.abs(start), jnp.abs(end))
    return end - 4 * jnp.finfo(end.dtype).eps * jnp.sign(end - start) * largest
