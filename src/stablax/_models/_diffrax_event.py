"""A `diffrax.Event` of a model: when the solve ends, and where in its last step that is."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import optimistix as optx
from jaxtyping import Array, Bool, Float, PyTree

from .._captured import Captured, capture
from .._loop import KeptStep
from .._states import is_none, stop
from .._types import Args
from ._bracket import bracketed_root
from ._conditions import values_of
from ._solution import solution_at


class Found(eqx.Module):
    """Where in the last step the first condition crosses zero, if any does (`crossed`)."""

    crossed: Bool[Array, ""]
    t: Array
    y: PyTree[Array]
    located: Bool[Array, ""]  # unless the user's root finder failed
    not_finite: Bool[Array, ""]  # the solve ended since a condition is nan


class EventOf(eqx.Module):
    """A user's `event` in one solve.

    - `conditions`: its functions of `(t, y, args)`, with what they close over as a value.
    - `way`: 1, or -1 backward in time, where diffrax runs on -t. The conditions do not see that.
    - `real`: which of its conditions are numbers, that can be solved for; the others are booleans.
    """

    root_finder: optx.AbstractRootFinder | None
    directions: tuple[bool | None, ...] = eqx.field(static=True)
    conditions: list[Captured]
    way: Array
    real: tuple[bool, ...] = eqx.field(static=True)

    def __init__(self, event: diffrax.Event, settings: dict[str, PyTree], way, t, y, args):
        self.root_finder, self.way = event.root_finder, way
        self.directions = tuple(jtu.tree_leaves(event.direction, is_leaf=is_none))
        functions = jtu.tree_leaves(event.cond_fn, is_leaf=callable)
        calls = [eqx.Partial(_call, function, settings) for function in functions]
        self.real = tuple(_is_real(call, t, y, args) for call in calls)
        # The derivative in what a function closes over is that of its crossing.
        self.conditions = [capture(call, t, y, args) for call in calls]

    def _real_directions(self) -> list[bool | None]:
        return [d for d, r in zip(self.directions, self.real, strict=True) if r]

    @property
    def is_located(self) -> bool:
        """Whether its time can be anywhere in a step, and not at the end only."""
        return any(self.real)

    @property
    def first_seen(self) -> tuple[Array, Array]:
        """What the first `look` knows: values of the conditions, and that it is the first."""
        return jnp.zeros(sum(self.real), jnp.result_type(self.way)), jnp.array(True)

    def look(self, seen: tuple[Array, Array], t, y, args) -> tuple[Bool[Array, ""], Any]:
        """Whether stablax's loop ends at `y` and its time `t`: where a condition is true, is nan,
        or has changed its sign in the step."""
        (before, first), (t, y, args) = seen, stop((t * self.way, y, args))
        ends = [jnp.array(False)]
        for condition, is_real in zip(self.conditions, self.real, strict=True):
            if not is_real:
                ends.append(jnp.asarray(condition(t, y, args)))
        values = before
        if self.is_located:
            values = self._real_values(t, y, args)
            crosses = jnp.any(_crosses(before, values, self._real_directions()))
            ends += [~first & crosses, jnp.any(jnp.isnan(values))]
        return jnp.any(jnp.stack(ends)), (values, jnp.zeros_like(first))

    def for_loop(self) -> diffrax.Event:
        """What diffrax's loop ends at: the end of the step with the event."""
        conditions, directions = self.conditions, list(self.directions)

        def in_loop(condition):
            # Whether a step is the last has no derivative.
            value = lambda t, y, args: condition(t * self.way, y, args)
            return lambda t, y, args, **_: lax.stop_gradient(value(t, y, args))

        def lost(t, y, args):
            return jnp.any(jnp.isnan(self._real_values(t, y, args)))

        if self.is_located:
            # A sign that is nan is no crossing where the event has a direction.
            conditions, directions = [*conditions, lost], [*directions, None]
        return diffrax.Event([in_loop(c) for c in conditions], direction=directions)

    def _real_values(self, t, y, args, relevant=None) -> Float[Array, " conditions"]:
        """Of those that are numbers."""
        real = [c for c, is_real in zip(self.conditions, self.real, strict=True) if is_real]
        return values_of(real, t, y, args, relevant)

    def find(
        self,
        solver: diffrax.AbstractSolver,
        field: Callable,
        step: KeptStep,
        y1: PyTree[Array],
        args: Args,
        happened: Bool[Array, ""],
    ) -> Found:
        """Looks where in the last `step` of the `solver`, to the state `y1`, the event is."""
        t0, t1 = lax.stop_gradient((step.t0 * self.way, step.t1 * self.way))
        ends = jtu.tree_map(lambda *x: jnp.stack(x), (t0, step.y0), (t1, y1))
        at_ends = jax.vmap(lambda t, y: self._real_values(t, y, args))(*ends)
        before, after = lax.stop_gradient((at_ends[0], at_ends[1]))
        not_finite = happened & jnp.any(jnp.isnan(before) | jnp.isnan(after))
        crossed = happened & ~not_finite & _crosses(before, after, self._real_directions())
        any_crossed = jnp.any(crossed)
        sides = jnp.where(crossed, jnp.sign(before - after), 0)
        interpolate = lambda t: solution_at(solver, field, step, t * self.way, args, self.way)

        def gap(t, values):
            """Above 0 before the first of the conditions that cross does so, below 0 after."""
            gaps = jnp.where(crossed, sides * values, jnp.inf)
            return jnp.where(any_crossed, jnp.min(gaps), (t0 + t1) / 2 - t)

        def solve(f, _):
            if self.root_finder is None:
                root = bracketed_root(f, t0, t1, gap(t0, before), gap(t1, after))
                return root, jnp.ones_like(root)
            return _by_optimistix(f, self.root_finder, t0, t1)

        t, located = lax.custom_root(
            lambda t: gap(t, self._real_values(t, interpolate(t), args, crossed)),
            t1,
            solve,
            lambda slope, x: x / slope(jnp.ones_like(x)),
            has_aux=True,
        )
        return Found(any_crossed, t, interpolate(t), located > 0, not_finite)


def _by_optimistix(f, root_finder, t0, t1):
    """The root by the user's own finder, and 1 if it was found, else 0."""
    options = dict(lower=jnp.minimum(t0, t1), upper=jnp.maximum(t0, t1))
    found = optx.root_find(lambda t, _: f(t), root_finder, t1, options=options, throw=False)
    located: Any = found.result == optx.RESULTS.successful
    return found.value, jnp.asarray(located, found.value.dtype)


def _is_real(condition, t, y, args) -> bool:
    out = eqx.filter_eval_shape(condition, t, y, args)
    if jtu.tree_structure(out) != jtu.tree_structure(0) or jnp.shape(out) != ():
        raise ValueError(
            f"A condition of `event` must return one number or one boolean, got {out}."
        )
    return jnp.issubdtype(jnp.result_type(out), jnp.floating)


def _call(function, settings, t, y, args):
    return function(t, y, args, **settings)


def _crosses(before, after, directions: list[bool | None]) -> Bool[Array, " conditions"]:
    """Which conditions change sign in their direction: diffrax's definition."""
    old, new = jnp.sign(before), jnp.sign(after)
    either = jnp.array([d is None for d in directions])
    upward = jnp.array([d is True for d in directions])
    rises, falls = (old <= 0) & (new > 0), (old > 0) & (new <= 0)
    return jnp.where(either, old != new, jnp.where(upward, rises, falls))
