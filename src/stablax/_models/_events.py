"""The events of a solve, and what they make of the state."""

import enum
import functools
from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from .._captured import Captured, capture
from .._lanes import spread
from .._loop import KeptStep, interpolated
from .._results import RESULTS
from .._solvers import has_algebraic
from .._states import same_shape_and_dtype, stop, stop_unless
from .._types import Args
from ._conditions import values_of
from ._dose import AbstractDose, DoseFunction
from ._event import Event, EventLog
from ._slope import settled
from ._solution import solution_at


class Why(enum.IntEnum):
    """Why a solve ended at an event: a number, since only diffrax's results go through the loop."""

    goes_on = 0
    ends = 1
    too_many = 2
    accumulates = 3
    lost = 4
    change_lost = 5


_RESULTS = {
    Why.too_many: RESULTS.too_many_events,
    Why.accumulates: RESULTS.events_accumulate,
    Why.lost: RESULTS.event_not_finite,
    Why.change_lost: RESULTS.event_change_not_finite,
}


class Seen(eqx.Module):
    """What the next step needs to know of those before.

    - `values`: of the conditions where it starts; exactly zero after an event of their own that
        leaves them there.
    - `is_first`, `is_new`: whether there was no step yet, in this solve and in this call.
    - `counts`, `latest`: how often each event took place, and when last.
    - `altered`: whether the last ones changed the state.
    - `why`: why the solve ended.
    """

    values: Float[Array, " conditions"]
    is_first: Bool[Array, ""]
    is_new: Bool[Array, ""]
    counts: Int[Array, " conditions"]
    latest: Float[Array, " conditions"]
    altered: Bool[Array, ""]
    why: Int[Array, ""]

    def result(self, otherwise: RESULTS) -> RESULTS:
        """How the solve ended, if an event ended it."""
        for why, result in _RESULTS.items():
            otherwise = RESULTS.where(self.why == why.value, result, otherwise)
        return otherwise


class Events(eqx.Module):
    """The events of a model in one solve; `is_new` if that is at the start of the call, and not
    behind a phase. What they close over is a value."""

    conditions: list[Captured]
    changes: list[Captured | None]
    is_new: Bool[Array, ""]
    directions: tuple[bool | None, ...] = eqx.field(static=True)
    max_counts: tuple[int, ...] = eqx.field(static=True)

    @staticmethod
    def of(
        events: tuple[Event, ...],
        solver: diffrax.AbstractSolver,
        field: Captured,
        t: Array,
        y: PyTree[Array],
        args: Args,
        is_new: Bool[Array, ""],
    ) -> "Events":
        """Of a solve of `field` by `solver`."""
        conditions, changes = [], []
        for k, event in enumerate(events):
            number = functools.partial(_number, k, event.condition)
            conditions.append(capture(number, t, y, args))
            state = None if event.change is None else functools.partial(_state, k, event.change)
            if state is not None and has_algebraic(solver):
                state = functools.partial(_settled, state, solver, field)
            changes.append(None if state is None else capture(state, t, y, args))
        directions = tuple(event.direction for event in events)
        max_counts = tuple(event.max_count for event in events)
        return Events(conditions, changes, is_new, directions, max_counts)

    @property
    def size(self) -> int:
        return len(self.conditions)

    @property
    def capacity(self) -> int:
        """How many there may be."""
        return sum(self.max_counts)

    def first_seen(self, t0: Array, y0: PyTree[Array], args: Args) -> Seen:
        """At the start of a solve, at the time `t0` of the conditions."""
        held, *start = stop((self, t0, y0, args))
        values = held.values(*start)
        never = jnp.full(self.size, -jnp.inf, t0.dtype)
        counts = jnp.zeros(self.size, int)
        no, yes, why = jnp.array(False), jnp.array(True), jnp.array(Why.goes_on.value)
        return Seen(values, yes, self.is_new, counts, never, no, why)

    def values(self, t, y, args, relevant=None) -> Float[Array, " conditions"]:
        """Of the conditions."""
        return values_of(self.conditions, t, y, args, relevant)

    def changed(self, which: Int[Array, ""], t, y, args) -> PyTree[Array]:
        """The state after event `which`; if that is -1, or ends the solve, `y`."""
        after = y
        for k, change in enumerate(self.changes):
            if change is not None:
                change, *inputs = stop_unless(which == k, (change, t, y, args))
                after = optax.tree.where(which == k, change(*inputs), after)
        return after

    def take_place(
        self,
        solver: diffrax.AbstractSolver,
        field: Callable,
        step: KeptStep,
        t: Array,
        args: Args,
        order: Int[Array, " conditions"],
        way: ArrayLike = 1,
    ) -> tuple[Array, PyTree[Array], Array]:
        """Those of a `step`, at its time `t`; that of the conditions is `way * t`. `order`: their
        numbers, one after the other, and then -1.

        With their derivatives: the time, the state after all, and a row about each: the time of
        the conditions, its number, the states before and after it."""
        first = jnp.arange(self.size) == order[0]
        state = lambda t: solution_at(solver, field, step, t, args, way)

        def gap(t):
            return jnp.sum(jnp.where(first, self.values(t * way, state(t), args, first), 0))

        # What is an event since it is zero at the start of the solve is there by definition.
        is_start = t == step.t0
        per_slope = lambda slope, x: x / jnp.where(is_start, 1, slope(jnp.ones_like(x)))
        found = lax.custom_root(gap, t, lambda _, found: found, per_slope)
        t = jnp.where(is_start, step.t0, found)
        y = optax.tree.where(is_start, interpolated(solver, step, step.t0), state(found))

        def change(y, which):
            after = self.changed(which, t * way, y, args)
            flat = ravel_pytree((t * way, which.astype(t.dtype), y, after))[0]
            return after, flat

        y, rows = lax.scan(change, spread(y, self, step, args), order)
        return t, y, rows

    def row_size(self, y: PyTree[Array]) -> int:
        """How many numbers a row has."""
        return 2 + 2 * sum(x.size for x in jtu.tree_leaves(y))

    def log(self, rows: Array, count: Array, y: PyTree[Array]) -> EventLog:
        """What the rows of the first `count` events say; of states like `y`."""
        times, which = rows[:, 0], lax.stop_gradient(rows[:, 1]).astype(int)
        unravel = jax.vmap(ravel_pytree(y)[1])
        before, after = map(unravel, jnp.split(rows[:, 2:], 2, axis=1))
        return EventLog(times, which, jnp.arange(len(rows)) < count, before, after)

    def crosses(self, before: Array, after: Array) -> Bool[Array, "... conditions"]:
        """Which conditions cross in a direction that is taken. Leaving zero is no crossing."""
        rises = np.array([d is not False for d in self.directions])
        falls = np.array([d is not True for d in self.directions])
        rises, falls = (jnp.broadcast_to(x, before.shape) for x in (rises, falls))
        return (before < 0) & (after >= 0) & rises | (before > 0) & (after <= 0) & falls


def _number(place: int, condition: Callable, t, y, args) -> Array:
    out = condition(t, y, args)
    is_number = jtu.all_leaves([out]) and eqx.is_array_like(out) and jnp.shape(out) == ()
    if not (is_number and jnp.issubdtype(jnp.result_type(out), jnp.floating)):
        raise TypeError(
            f"The `condition` of event {place} (the first is 0) must return one real number that "
            f"changes its sign where the event is, got {eqx.tree_pformat(out)}." + _hint(out)
        )
    return jnp.asarray(out)


def _hint(out: object) -> str:
    if (
        jtu.all_leaves([out])
        and eqx.is_array_like(out)
        and jnp.issubdtype(jnp.result_type(out), jnp.bool_)
    ):
        return " Instead of `x < limit` return `x - limit`, with `direction=False`."
    return ""


def _settled(state: Callable, solver: diffrax.AbstractSolver, field: Captured, t, y, args):
    """Where the algebraic equations hold after a change."""
    y, found = settled(solver, field, t, state(t, y, args), args)
    return jtu.tree_map(lambda x: jnp.where(found, x, jnp.nan), y)


def _state(place: int, change: AbstractDose, t, y, args) -> PyTree[Array]:
    try:
        out = (change.fn if isinstance(change, DoseFunction) else change)(t, y, args)
        same_shape_and_dtype(out, y, "It", "y")
    except (ValueError, TypeError) as error:
        kind = type(error)
        raise kind(f"The `change` of event {place} (the first is 0): {error}") from error
    return out
