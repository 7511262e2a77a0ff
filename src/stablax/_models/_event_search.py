"""Which events take place in a step, and when."""

import dataclasses
from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._lanes import only_where, spread
from .._loop import Cut, KeptStep, interpolated
from .._states import all_finite, any_nonzero, stop
from .._types import Args
from ._bracket import bracketed_root
from ._events import Events, Seen, Why

# Places in a step at which the conditions are looked at, its end included, besides one for each.
_LOOKS = 8
# Units of rounding of the time within which two events are at one time, and two of one event are
# one too many.
_TIED = 256
# Where a parabola leaves so little of a condition, it may have crossed zero.
_NEAR = 0.25
# Units of rounding by which a condition changes at the start of a step, relative to where it is at
# the first look, if it starts at rest.
_AT_REST = 2**14
# Units of rounding of its size in the step: a condition that is so near to zero is at zero.
_NOTHING = 16


def look(
    events: Events,
    way: Array,
    field: Callable,
    solver: diffrax.AbstractSolver,
    seen: Seen,
    step: KeptStep,
    args: Args,
    asked: Bool[Array, ""],
) -> tuple[Cut, Seen]:
    """What takes place in a `step` that is accepted, if `asked`."""
    held, at_args = stop((events, args))
    search = _Search(held, way, solver, seen, stop(step), at_args)
    looks = search.looks()

    def find():
        found = search.find(looks)
        t, y, rows = events.take_place(solver, field, step, found.t, args, found.order, way)
        return found.happens, t, y, found.order, rows, found.seen

    nobody = jnp.full(events.size, -1, int)
    rows = jnp.zeros((events.size, events.row_size(step.y0)), step.t1.dtype)
    nothing = (jnp.array(False), step.t1, step.y0, nobody, rows, search.unchanged(looks))
    closely = asked & search.looks_closely(looks)
    found = only_where(closely, find, spread(nothing, events, step, args, seen))
    happens, t, y, order, rows, after = found
    no = jnp.zeros_like(seen.is_new)
    after = dataclasses.replace(after, is_first=no, is_new=no)
    after = optax.tree.where(asked, after, seen)
    return Cut(happens, t, y, order, asked & (after.why != Why.goes_on.value), rows), after


class _Looks(eqx.Module):
    """The conditions at times in a step, from its start to its end."""

    times: Float[Array, " looks"]
    values: Float[Array, "looks conditions"]


class _Bracket(eqx.Module):
    """Where in a step the first events are: between look `place` and the next. At -1 they are at
    the start of the step, and at the last there are none."""

    place: Int[Array, ""]
    crosses: Bool[Array, " conditions"]  # which cross there
    signs: Float[Array, " conditions"]  # before
    slope: Float[Array, " conditions"]  # at the start of the step


class _Search(eqx.Module):
    """For the events of one step; nothing of it has a derivative."""

    events: Events
    way: Array
    solver: diffrax.AbstractSolver
    seen: Seen
    step: KeptStep
    args: Args

    def state(self, t) -> PyTree[Array]:
        return interpolated(self.solver, self.step, t)

    def values(self, t) -> Float[Array, " conditions"]:
        return self.events.values(t * self.way, self.state(t), self.args)

    def looks(self) -> _Looks:
        """The conditions at the start of the step, and evenly in it to its end."""
        t0, t1 = self.step.t0, self.step.t1
        parts = jnp.linspace(1 / _LOOKS, 1, _LOOKS, dtype=t1.dtype)
        times = (t0 + (t1 - t0) * parts).at[-1].set(t1)
        values = jax.vmap(self.values)(times)
        return _Looks(
            jnp.concatenate([t0[None], times]), jnp.concatenate([self.seen.values[None], values])
        )

    def unchanged(self, looks: _Looks) -> Seen:
        """What is seen at the end of the step, if nothing takes place."""
        return dataclasses.replace(self.seen, values=looks.values[-1])

    def looks_closely(self, looks: _Looks) -> Bool[Array, ""]:
        """Whether something may take place. It is dear to find out what."""
        values = looks.values
        crosses = self.events.crosses(values[:-1], values[1:])
        lost = jnp.any(jnp.isnan(values), axis=0)
        special = self._from_zero(looks) | lost | self._lowest(looks)[0]
        return jnp.any(crosses) | jnp.any(special)

    def _noise(self, looks: _Looks) -> Float[Array, " conditions"]:
        """What of each condition is rounding."""
        eps = jnp.finfo(looks.times.dtype).eps
        return _NOTHING * eps * jnp.nanmax(jnp.abs(looks.values), axis=0)

    def _from_zero(self, looks: _Looks) -> Bool[Array, " conditions"]:
        """Which conditions are at zero at the start: of a solve, up to rounding."""
        start = jnp.abs(looks.values[0])
        return (start == 0) | self.seen.is_first & (start <= self._noise(looks))

    def _lowest(self, looks: _Looks) -> tuple[Bool[Array, " conditions"], Array]:
        """Which conditions may cross twice between two looks, and when they are nearest to zero: by
        the parabola through the three looks that are."""
        values = looks.values
        middle = jnp.clip(jnp.nanargmin(jnp.abs(values), axis=0), 1, _LOOKS - 1)
        at = lambda place: jnp.take_along_axis(values, place[None], axis=0)[0]
        before, here, after = at(middle - 1), at(middle), at(middle + 1)
        slope, curved = (after - before) / 2, after - 2 * here + before
        way = -slope / jnp.where(curved == 0, 1, curved)
        least = jnp.abs(here) - slope**2 / jnp.where(curved == 0, jnp.inf, 2 * jnp.abs(curved))
        near = (curved * here > 0) & (jnp.abs(way) < 1.5) & (least < _NEAR * jnp.abs(here))
        times = looks.times[middle] + jnp.clip(way, -1, 1) * (looks.times[1] - looks.times[0])
        return near, times

    def _more(self, looks: _Looks) -> _Looks:
        """With one more for each condition, where it may cross twice."""
        near, times = self._lowest(looks)
        start, end = looks.times[0], looks.times[-1]
        times = jnp.where(near & (times > start) & (times < end), times, end)
        values = jnp.concatenate([looks.values, jax.vmap(self.values)(times)])
        times = jnp.concatenate([looks.times, times])
        # In the order of time. A sort is slow to compile.
        number = jnp.arange(len(times))
        is_later = (times[:, None] > times[None]) | (
            (times[:, None] == times[None]) & (number[:, None] > number[None])
        )
        place = jnp.sum(is_later, axis=1)
        is_at = number[:, None] == place[None]
        times = jnp.sum(jnp.where(is_at, times[None], 0), axis=1)
        values = jnp.sum(jnp.where(is_at[..., None], values[None], 0), axis=1)
        return _Looks(times, values)

    def _bracket(self, looks: _Looks, even: _Looks) -> _Bracket:
        seen, (t0, *_), values = self.seen, looks.times, looks.values
        at_zero = self._from_zero(looks)
        _, slope = jax.jvp(self.values, (t0,), (jnp.ones_like(t0),))
        most = _AT_REST * jnp.finfo(t0.dtype).eps * jnp.abs(even.values[1])
        at_rest = jnp.abs(slope * (even.times[1] - t0)) <= most
        # From zero it is where it goes.
        goes = jnp.sign(jnp.where(at_rest, even.values[1], slope))
        # As long as it is nothing but rounding.
        is_heard = jnp.cumsum(jnp.abs(values) > self._noise(looks)[None], axis=0) > 0
        signs = jnp.where(at_zero[None] & ~is_heard, goes[None], jnp.sign(values))
        crosses = self.events.crosses(signs[:-1], signs[1:])
        place = jnp.where(jnp.any(crosses, axis=0), jnp.argmax(crosses, axis=0), len(crosses))
        # Set to rest by its own event it would be the next one at once.
        again = at_rest & (seen.latest == t0) & seen.altered
        at_start = at_zero & (seen.is_new | again) & self.events.crosses(-goes, goes)
        place = jnp.where(at_start, -1, place)
        first = jnp.min(place)
        return _Bracket(first, place == first, signs[jnp.maximum(first, 0)], slope)

    def find(self, even: _Looks) -> "_Found":
        """When they are, and in which order they change the state."""
        looks = self._more(even)
        times, values = looks.times, looks.values
        t0, t1, eps = times[0], times[-1], jnp.finfo(times.dtype).eps
        bracket = self._bracket(looks, even)
        count, place = len(times) - 1, jnp.maximum(bracket.place, 0)
        happens = bracket.place < count
        # Behind an event the state may be one that the change keeps the solve away from.
        is_before = jnp.arange(count) < bracket.place
        lost = jnp.any(jnp.isnan(values[1:]) & is_before[:, None])

        # A condition that starts from zero is zero at the start of the step, too: divided by what
        # makes it so it has the zero that is asked for only.
        at_zero = (place == 0) & self._from_zero(looks)
        part = lambda t: jnp.where(at_zero, (t - t0) / (t1 - t0), 1)

        def gap(values):
            """Above zero before the first of those that cross does so, below zero after."""
            return jnp.min(jnp.where(bracket.crosses, bracket.signs * values, jnp.inf))

        before = jnp.where(at_zero, bracket.slope * (t1 - t0), values[place])
        start = times[place]
        end = jnp.where(happens, times[place + 1], start)
        after = values[place + 1] / part(end)
        found = bracketed_root(
            lambda t: gap(self.values(t) / part(t)), start, end, gap(before), gap(after)
        )
        t = jnp.where(bracket.place < 0, t0, found)
        # Those that are at one time take place in the order in which they were given.
        unit = eps * jnp.maximum(jnp.abs(start), jnp.abs(end))
        near = self.values(jnp.minimum(t + _TIED * unit, t1))
        gaps = jnp.where(bracket.crosses, bracket.signs * near, jnp.inf)
        tied = self.events.crosses(bracket.signs, near) | (gaps == jnp.min(gaps))
        tied = jnp.where(bracket.place < 0, bracket.crosses, tied)
        # A condition that crosses here is at zero, whether or not it is taken in that direction.
        length = jnp.where(end > start, end - start, 1)
        noise = self._noise(looks) + 4 * unit * jnp.abs(values[place + 1] - values[place]) / length
        order, after = self._chain(t, tied, noise)
        unchanged = self.unchanged(even)
        happens = happens & ~lost
        after = optax.tree.where(happens, after, unchanged)
        why = jnp.where(lost, Why.lost.value, after.why)
        order = jnp.where(happens, order, -1)
        return _Found(happens, t, order, dataclasses.replace(after, why=why))

    def _chain(self, t: Array, tied: Array, nothing: Array) -> tuple[Array, Seen]:
        """The order of the events at `t`, and of those that they set off at once; and what is seen
        after them. A condition that is `nothing` away from zero is at zero."""
        events, seen = self.events, self.seen
        y, time = self.state(t), t * self.way
        values = events.values(time, y, self.args)
        nothing = jnp.where(tied, nothing + 2 * jnp.abs(values), nothing)
        most, number = np.array(events.max_counts), np.arange(events.size)
        ends = np.array([change is None for change in events.changes])
        resolution = _TIED * jnp.finfo(t.dtype).eps * jnp.abs(t)

        def turn(place, state):
            y, seen, pending, done, order = state
            next_one = jnp.argmax(pending & ~done)
            is_next = (number == next_one) & pending & ~done & (seen.why == Why.goes_on.value)
            after = events.changed(jnp.where(jnp.any(is_next), next_one, -1), time, y, self.args)
            values = events.values(time, after, self.args)
            values = jnp.where(jnp.abs(values) <= nothing, 0, values)
            more = events.crosses(seen.values, values) & ~is_next
            why = seen.why
            for reason, holds in (
                (Why.ends.value, is_next & ends),
                (Why.accumulates.value, jnp.any(is_next) & more & done),
                (Why.change_lost.value, is_next & ~all_finite(after)),
                (Why.accumulates.value, is_next & (t - seen.latest <= resolution)),
                (Why.too_many.value, is_next & (seen.counts >= most)),
            ):
                why = jnp.where(jnp.any(holds), reason, why)
            takes_place = jnp.any(is_next) & (why <= Why.ends.value)
            is_now = is_next & takes_place
            seen = Seen(
                jnp.where(takes_place, values, seen.values),
                seen.is_first,
                seen.is_new,
                seen.counts + is_now.astype(seen.counts.dtype),
                jnp.where(is_now, t, seen.latest),
                seen.altered,
                why,
            )
            order = order.at[place].set(jnp.where(takes_place, next_one, -1))
            pending = pending | takes_place & more
            return optax.tree.where(takes_place, after, y), seen, pending, done | is_now, order

        values = jnp.where(jnp.abs(values) <= nothing, 0, values)
        start = dataclasses.replace(seen, values=values)
        order = jnp.full(events.size, -1, int)
        state = spread((y, start, tied, jnp.zeros_like(tied), order), self)
        after, seen, *_, order = lax.fori_loop(0, events.size, turn, state)
        altered = any_nonzero(optax.tree.sub(after, y))
        return order, dataclasses.replace(seen, altered=altered)


class _Found(eqx.Module):
    happens: Bool[Array, ""]
    t: Array
    order: Int[Array, " conditions"]
    seen: Seen
