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
from jaxtyping import Array, Int, PyTree

from .._fields import Aside
from .._lane_loop import as_buffers, lane_loop, put, take
from .._lanes import any_lane, only_where, spread
from .._loop import put_events
from .._solvers import AbstractRosenbrock, for_forward_mode, is_repeatable, repeat_explicit
from .._states import add, all_finite, is_none, or_zero
from ._accepted import Inputs, Steps


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


def _finite_or(tangents: PyTree[Array], otherwise: PyTree[Array]) -> PyTree[Array]:
    """`tangents` of a time without length, in which a slope of the field counts for nothing, even
    one that is not finite."""
    return jtu.tree_map(lambda d, x: jnp.where(jnp.isfinite(d), d, x), tangents, otherwise)


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
        moving = steps.parameters[0]
        points, d_points = (
            (moving, step.start, step.end, step.y),
            (self.d_moving, *d_times, at.d_y),
        )
        (y, dense), (d_y, d_dense) = eqx.filter_jvp(repeat, points, d_points)
        # What is constant has none: of an IMEX method the explicit part, which is zero.
        d_y, d_dense = or_zero((d_y, d_dense), (y, dense))

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
                points = (moving, dense, step.start, step.end)
                d_points = (self.d_moving, d_dense, *d_times)
                return eqx.filter_jvp(functools.partial(steps.at_events, step), points, d_points)[1]

            no_rows = jnp.zeros((step.order.size, *d_events.array.shape[-1:]), step.stop.dtype)
            still = (jnp.zeros_like(step.stop), d_y, no_rows)
            d_next, d_y, d_rows = only_where(step.is_cut, move, still)
            event, d_events = put_events(d_events, event, step.count, d_rows)
        if steps.has_jumps:
            after = take(record.states, k)

            def move_jump(d_y=d_y):
                at_jump = functools.partial(steps.at_jump, step, after)
                d_points = (self.d_moving, d_y, d_end)
                return eqx.filter_jvp(at_jump, (moving, y, step.end), d_points)[1]

            d_y = only_where(steps.ends_at_jump(step), move_jump, d_y)
        at = _Forth(row, d_y, kept, d_next, event)
        return at, (writes, d_events), steps.held(dense)


def forward(steps: Steps, tangents: Inputs) -> tuple[PyTree, PyTree, PyTree, Array | None]:
    """The tangents of the rows, of the last state, of the dense output of the last step, and of
    the events."""
    inputs, count = steps.inputs, steps.accepted.count
    d_t0, d_t1, d_y0, d_ts = (
        or_zero(getattr(tangents, name), getattr(inputs, name)) for name in ("t0", "t1", "y0", "ts")
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
    d_moving = (tangents.field, tangents.args, tangents.events, tangents.jumps)
    over = _ForwardPass(steps, rows, d_moving, d_t0, d_t1)
    end, (d_rows, d_events) = step_by_step(over, start, (steps.record, d_ts), (still, d_events))
    d_last = end.d_y
    if steps.has_ends:

        def move():
            points = (steps.parameters[0], inputs.y0, inputs.t0, inputs.t1)
            moved = eqx.filter_jvp(steps.at_rest, points, (d_moving, d_y0, d_t0, d_t1))[1]
            return _finite_or(moved, end.d_y)

        d_last = only_where(steps.is_at_rest, move, d_last)
    return d_rows, d_last, end.d_dense, d_events


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
        order = step.order
        d_last_end = zero_time
        if steps.has_jumps:
            # The state behind the jump is recorded; before it is what it is made of.
            after = take(record.states, jnp.maximum(k, 0))

            def pull_jump(d_y=d_y):
                y1 = steps.before_jump(step, dense, after, moving, end)
                at_jump = functools.partial(steps.at_jump, step, after)
                return eqx.filter_vjp(at_jump, moving, y1, end)[1](d_y)

            none = (optax.tree.zeros_like(moving), d_y, zero_time)
            more, d_y, d_last_end = only_where(steps.ends_at_jump(step), pull_jump, none)
            d_moving = add(d_moving, more)
        if order is not None and event is not None:
            event = event - step.count

            def pull_events():
                d_of_these = take(d_events, event + jnp.arange(order.size))
                is_one = (order >= 0)[:, None]
                at_events = functools.partial(steps.at_events, step)
                _, pull = eqx.filter_vjp(at_events, moving, dense, start, end)
                return pull((at.d_start, d_y, jnp.where(is_one, d_of_these, 0)))

            none = (optax.tree.zeros_like(moving), *so_far)
            more, *so_far = only_where(step.is_cut, pull_events, none)
            d_moving, so_far = add(d_moving, more), tuple(so_far)
            d_y = jtu.tree_map(lambda d: jnp.where(step.is_cut, 0, d), d_y)
        saved = spread((at.row, so_far, writes))
        more_rows = lambda carry: any_lane(in_step(carry[0]))
        row, (d_dense, d_start, d_stop), writes = lax.while_loop(more_rows, save, saved)
        more, step_start, step_end, d_y = pull(d_y, d_dense)
        d_end = jnp.where(step.arrives, d_stop + step_end + d_last_end, at.d_end)
        new = _Back(row, d_y, add(d_moving, more), d_start + step_start, d_end, event)
        return new, writes, steps.held(dense)


def backward(steps: Steps, cotangents: tuple[PyTree, PyTree, PyTree, Array | None]) -> Inputs:
    """The cotangents of the inputs that move, from those of the rows, of the last state, of the
    dense output of the last step, and of the events."""
    inputs, count = steps.inputs, steps.accepted.count
    d_rows, d_last, d_kept, d_events = cotangents
    d_t0 = d_t1 = jnp.zeros_like(inputs.t0)
    d_moving = optax.tree.zeros_like(steps.parameters[0])
    if steps.has_ends:

        def pull_rest(d_last=d_last):
            points = (steps.parameters[0], inputs.y0, inputs.t0, inputs.t1)
            return _finite_or(eqx.filter_vjp(steps.at_rest, *points)[1](d_last), none)

        none = (d_moving, d_last, d_t0, d_t1)
        d_moving, d_last, d_t0, d_t1 = only_where(steps.is_at_rest, pull_rest, none)
    # Rows of a solve without steps are its start.
    d_last = jtu.tree_map(
        lambda d, rows: d + jnp.where(count == 0, jnp.sum(rows, axis=0), 0), d_last, d_rows
    )
    # In a batch a scatter costs more than the step: only where somebody asks for it.
    d_ts = jnp.zeros_like(inputs.ts) if steps.moves.ts else None
    rows = steps.rows
    orders = steps.accepted.orders
    event = None if orders is None else jnp.sum(orders >= 0)
    start = _Back(rows - 1, d_last, d_moving, d_t0, d_t1, event)
    over = _BackwardPass(steps, rows, d_kept)
    end, d_ts = step_by_step(over, start, (steps.record, d_rows, d_events), d_ts)
    d_field, d_args, d_of_events, d_jumps = end.d_moving
    d_times = (end.d_start, end.d_end, d_ts)
    d_inputs = Inputs(d_field, end.d_y, *d_times, d_args, d_of_events, d_jumps)
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
