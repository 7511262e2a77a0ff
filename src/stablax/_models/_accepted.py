"""What a solve depends on, and the steps of it that were accepted, to be repeated."""

from collections.abc import Callable, Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import Array, Bool, PyTree

from .._fields import Guard
from .._lane_loop import take
from .._lanes import spread
from .._loop import KeptStep, interpolated
from .._solvers import AbstractRosenbrock, has_algebraic
from .._types import Args
from ._events import Events
from ._knots import Jumps, Settled, is_at_any, moved, settled_behind
from ._slope import slope_at


class Inputs(eqx.Module):
    """What a solve depends on."""

    field: Callable
    y0: PyTree[Array]
    t0: Array
    t1: Array
    ts: Array
    args: Args
    events: Events | None
    jumps: Jumps | None


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
    terms: Callable[[Callable, PyTree, Sequence[tuple[Array, Array]]], PyTree]
    guard: Guard | None
    width: int | None
    dense: PyTree[Array] | None

    @property
    def record(self) -> "Record":
        """What a pass reads at one place a step; the rest of the steps is the same in all."""
        accepted = self.accepted
        taken = (accepted.times, accepted.states, accepted.ends, accepted.orders)
        return Record(self.inputs.ts, *taken)

    @property
    def parameters(self) -> tuple[PyTree, PyTree]:
        """The field, its args, the events and jumps: what moves, and the rest."""
        of = lambda inputs: (inputs.field, inputs.args, inputs.events, inputs.jumps)
        return eqx.partition(of(self.inputs), of(self.moves))

    def system(self, shift, seen, moving) -> tuple[PyTree, Args]:
        field, args, *_ = eqx.combine(moving, self.parameters[1])
        return self.terms(field, shift, seen), args

    def at_events(self, step: "Step", moving, dense, start, end) -> tuple:
        """Of a step that is cut short: the time, the state after the events, rows about them."""
        field, args, events, _ = eqx.combine(moving, self.parameters[1])
        kept = KeptStep(start, end, self.inputs.y0, dense)
        return events.take_place(self.solver, field, kept, step.stop, args, step.order)

    @property
    def has_jumps(self) -> bool:
        """Whether there are some that count: that move; or the end does, at which one may be; or
        behind which the state is settled."""
        if self.inputs.jumps is None:
            return False
        moves: Any = self.moves
        return any(moves.jumps.ts) or moves.t1 or has_algebraic(self.solver)

    def ends_at_jump(self, step: "Step") -> Bool[Array, ""]:
        """Whether the field has two values where `step` ends."""
        assert self.inputs.jumps is not None
        ends = is_at_any(self.inputs.jumps, step.stop, self.way) & (self.accepted.count > 0)
        return ends if step.order is None else ends & ~step.is_cut

    def at_jump(self, step: "Step", after, moving, y, end) -> PyTree[Array]:
        """`y` where such a step ends, as a function of when the field jumps, and of the `end` of
        the solve if it is there. `after` it the state is recorded."""
        settled = None
        if has_algebraic(self.solver):
            field, args, *_ = eqx.combine(moving, self.parameters[1])
            # Where the solve ends, what is recorded is before the jump.
            at = (step.stop, after, args, self.way, step.arrives)
            behind = settled_behind(self.solver, field, *at)
            settled = Settled(behind.y, behind.found | ~step.arrives)
        return self._moved(step, moving, y, end, settled=settled)

    def before_jump(self, step: "Step", dense, after, moving, end) -> PyTree[Array]:
        """The `y` that `at_jump` takes to the state that is recorded `after` the step."""
        if has_algebraic(self.solver):
            return dense["y1"]
        return self._moved(step, moving, after, end, back=True)

    def _moved(self, step: "Step", moving, y, end, **how: Any) -> PyTree[Array]:
        field, args, _, jumps = eqx.combine(moving, self.parameters[1])
        moves: Any = self.moves.jumps
        at = (moves.ts, step.stop, y, args, self.way)
        return moved(self.solver, field, jumps, *at, end=end, **how)

    @property
    def has_ends(self) -> bool:
        """Whether one of them moves."""
        moves: Any = self.moves
        return moves.t0 or moves.t1

    @property
    def is_at_rest(self) -> Bool[Array, ""]:
        """Whether there is no time between the ends."""
        return self.inputs.t0 == self.inputs.t1

    def at_rest(self, moving, y, t0, t1) -> PyTree[Array]:
        """`y` after a solve from `t0` to `t1`, between which is no time."""
        field, args, *_ = eqx.combine(moving, self.parameters[1])
        still = lax.stop_gradient
        by = (t1 - still(t1)) - (t0 - still(t0))
        slope = slope_at(self.solver, field, t0, y, args)
        return jtu.tree_map(lambda y, dy: y + by.astype(y.dtype) * dy, y, slope)

    def at(self, k: Array, record: "Record") -> "Step":
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
        seen = [lax.stop_gradient((end, just_before(start, end)))]
        if inputs.jumps is not None:
            within = jnp.where(first, just_before(end, start), start)
            seen.append(lax.stop_gradient((start, within)))
        return Step(first, last, arrives, start, end, y, seen, stop, order, after_cut)

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
    def zero_events(self) -> Array | None:
        """No change of the rows about events."""
        events = self.inputs.events
        if events is None:
            return None
        shape = (events.capacity, events.row_size(self.inputs.y0))
        return jnp.zeros(shape, self.inputs.t0.dtype)

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

    @property
    def way(self) -> Array:
        return jnp.where(self.is_backwards, -1, 1)


class Record(eqx.Module):
    """Arrays, or in a loop [`Buffer`][]s of them."""

    ts: PyTree
    times: PyTree
    states: PyTree
    ends: PyTree
    orders: PyTree


class Step(eqx.Module):
    first: Array
    last: Array
    arrives: Array  # at the end that was asked for
    start: Array
    end: Array
    y: PyTree[Array]
    seen: list[tuple[Array, Array]]  # the end, and a time just before it, ...
    stop: Array  # where the next begins: if events cut it short, before its end
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


def just_before(start: Array, end: Array) -> Array:
    """A time before `end` by more than what its record and its computation as the last stage of
    the step round off."""
    largest = jnp.maximum(jnp.abs(start), jnp.abs(end))
    return end - 4 * jnp.finfo(end.dtype).eps * jnp.sign(end - start) * largest
