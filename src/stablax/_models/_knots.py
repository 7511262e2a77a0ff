"""Where the inputs of a field have kinks and jumps, and what it does to a state if those move."""

from collections.abc import Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PyTree

from .._captured import Captured, capture
from .._control import near
from .._fields import KNOTS, knots_of
from .._lanes import only_where, spread
from .._solvers import AbstractRosenbrock, has_algebraic, settle, slope_of
from .._states import or_zero, stop
from .._static import is_traced
from .._types import VF, Args, ScalarLike
from ._slope import resettled, unshifted


class Jumps(eqx.Module):
    """When a field has two values: of each input that jumps its knots, inf where it does not; and
    its place among what the program of the field takes, if it is there as it is."""

    ts: list[Float[Array, " knots"]]
    sources: tuple[int | None, ...] = eqx.field(static=True)

    def with_others(self, ts: Array) -> "Jumps":
        """And these, which do not move."""
        return Jumps([*self.ts, ts], (*self.sources, None))


class Knots(eqx.Module):
    """The knots of all inputs of a field, in no order; what is inf is none. Whether those of each
    rise; and at which it `jumps`, if any of them can."""

    ts: Float[Array, " knots"]
    rise: Bool[Array, ""]
    jumps: Jumps | None

    @staticmethod
    def of(field: Captured, t: Array, y: PyTree[Array], args: Args) -> "Knots | None":
        """Of the inputs that `field(t, y, args, shift)` calls."""
        known = (False, False, True, False)
        found = field.marked(KNOTS, t, y, args, optax.tree.zeros_like(y), known=known)
        inputs = {(id(one.operands[0]), *one.params.values()): one for one in found}
        all_ts, rise, jumps, sources = [], jnp.array(True), [], []
        for one in inputs.values():
            ts, *values = one.operands
            if ts is None:
                raise ValueError(
                    "The knots of an `Input` depend on the time or the state, or change in a loop "
                    "within the field, so that no step can be told to end there."
                )
            ts = knots_of(ts).astype(t.dtype)
            all_ts.append(jnp.ravel(ts))
            rise &= jnp.all((ts[..., 1:] > ts[..., :-1]) | jnp.isinf(ts[..., 1:]))
            if one.params["ends"] or one.params["between"]:
                jump = _jumps(lax.stop_gradient(ts), values, **one.params)
                jumps.append(jnp.ravel(jnp.where(jump, ts, jnp.inf)))
                sources.append(one.sources[0])
        if not all_ts:
            return None
        jump = Jumps(jumps, tuple(sources)) if jumps else None
        return Knots(jnp.concatenate(all_ts), rise, jump)


def knots_met(field: VF, t: ScalarLike, y: PyTree[Array], args: Args) -> np.ndarray:
    """Those of the inputs that `field` calls, as far as they are known."""
    start = jnp.asarray(t, float)
    captured = capture(lambda t, y, args, shift: field(t, y, args), start, y, args, y)
    knots = Knots.of(captured, start, y, args)
    return np.zeros(0) if knots is None or is_traced(knots.ts) else np.asarray(knots.ts)


def _jumps(ts: Array, values: Sequence[Array | None], *, ends: bool, between: bool) -> Array:
    """At which knots an input has two values: behind the last axis of `ts` come those of a row."""
    axis = ts.ndim - 1
    changes = jnp.zeros(ts.shape, bool)
    for value in values:
        if value is None:
            changes = jnp.ones(ts.shape, bool)
            continue
        value = lax.stop_gradient(value)
        before = jnp.roll(value, 1, axis=axis)
        changes |= jnp.any(before != value, axis=tuple(range(ts.ndim, value.ndim)))
    place, last = jnp.arange(ts.shape[-1]), jnp.sum(jnp.isfinite(ts), axis=-1, keepdims=True) - 1
    place = jnp.broadcast_to(place, ts.shape)
    return changes & between & (place > 0) | ((place == 0) | (place == last)) & ends


def is_at(jumps: Float[Array, "..."], t: Array, way: Array) -> Bool[Array, "..."]:
    """At which of the `jumps` a step ended, if the next one begins at `t`: just behind, or on it at
    the end of a solve. `way`: 1, or -1 backwards in time."""
    jumps, t = lax.stop_gradient((jumps, t))
    past = way.astype(t.dtype) * (t - jumps)
    return (past >= 0) & (past <= near(t))


def is_at_any(jumps: Jumps, t: Array, way: Array) -> Bool[Array, ""]:
    return jnp.any(jnp.stack([jnp.any(is_at(ts, t, way)) for ts in jumps.ts]))


def moved(
    solver: diffrax.AbstractSolver,
    field: Captured,
    jumps: Jumps,
    moves: Sequence[bool],
    t: Array,
    y: PyTree[Array],
    args: Args,
    way: Array,
    *,
    end: Array | None = None,
    settled: "Settled | None" = None,
    back: bool = False,
) -> PyTree[Array]:
    """`y` where a step ended at one of the `jumps`, as a function of when those are that `moves`:
    from there on under the field before it until then, and back under the field behind it. (If the
    state is where the solve ends, that may move, too: `end`.) Between the two, where `solver` has
    algebraic equations, it is `settled`. Or, `back`, the `y` from which this makes the one that is
    given.

    As it is then now both ways have no length, and this is `y`; its derivatives, of first and
    second order, are those of two steps of the midpoint rule. Inputs that jump there and do not
    move stay before their jump."""
    moving = jnp.concatenate([ts for ts, m in zip(jumps.ts, moves, strict=True) if m] or [t[None]])
    here = is_at(moving, t, way) if any(moves) else jnp.zeros(1, bool)
    of_all = jnp.where(here, moving, 0)
    still = lax.stop_gradient
    by = jnp.sum(of_all - still(of_all)) / jnp.maximum(jnp.sum(here), 1).astype(t.dtype)
    if end is not None:
        by -= end - still(end)
    apart = _apart(t, way)
    before, behind = t - apart, t + apart

    def held(ts: Array) -> Array:
        own = ts.astype(t.dtype)
        later = jnp.where(is_at(own, t, way), (behind + apart).astype(ts.dtype), ts)
        return still(later)

    pairs = zip(jumps.sources, moves, strict=True)
    # If none moves it is the end that does, and they all stay where they are.
    stays = {i: held for i, m in pairs if i is not None and not m and any(moves)}

    def value(time, at, args):
        return field.with_others(stays, time, at, args, optax.tree.zeros_like(at))

    def stage(carry, x):
        start, at = carry
        time, length, is_last = x
        slope = slope_of(solver, value, time, at, args)
        at = jtu.tree_map(lambda y, dy: y + length.astype(y.dtype) * dy, start, slope)
        return (optax.tree.where(is_last, at, start), at), None

    def through(y, *stages):
        start, stages = spread(((y, y), stages), field, jumps, t, args)
        return lax.scan(stage, start, stages)[0][0]

    sides = (behind, before) if back else (before, behind)
    times = jnp.stack([sides[0], sides[0] + by / 2, sides[1] + by, sides[1] + by / 2])
    lengths = jnp.stack([by / 2, by, -by / 2, -by])
    is_last = np.array([False, True, False, True])
    if settled is None or not has_algebraic(solver):
        return through(y, times, lengths, is_last)
    y = through(y, times[:2], lengths[:2], is_last[:2])
    known = resettled(solver, field, sides[1] + by, y, args, settled.y, settled.found)
    y = optax.tree.where(settled.found, known, y)
    return through(y, times[2:], lengths[2:], is_last[2:])


def _apart(t: Array, way: Array) -> Array:
    """From a time next to a jump to one that is surely behind it."""
    return 2 * way.astype(t.dtype) * near(t)


class Settled(eqx.Module):
    """The state `y` behind a jump, at which the algebraic equations hold, if it was `found`."""

    y: PyTree[Array]
    found: Bool[Array, ""]


def settled_behind(
    solver: AbstractRosenbrock,
    field: Captured,
    t: Array,
    y: PyTree[Array],
    args: Args,
    way: Array,
    asked: Bool[Array, ""],
) -> Settled:
    """From the `y` before a jump next to `t`, if `asked`. Has no derivative."""
    still, t, y, args = stop((field, t, y, args))

    def settle_there():
        return settle(solver, unshifted(still), t + _apart(t, way), y, args)

    return Settled(*only_where(asked, settle_there, (y, jnp.array(False))))


def pass_jumps(
    solver: diffrax.AbstractSolver,
    field: Captured,
    jumps: Jumps,
    way: Array,
    end: Array,
    t: Array,
    y: PyTree[Array],
    args: Args,
) -> PyTree[Array]:
    """`y` where a step ended, from where the next begins at `t`, if it does: times of a loop, which
    are `way * t`. With the derivative of [`moved`][] at one of the `jumps`; and settled, where
    algebraic equations jump and the solve goes on. Forward mode only."""
    behind, onward = None, y
    if has_algebraic(solver):
        is_there = is_at_any(jumps, t * way, way)
        behind = settled_behind(solver, field, t * way, y, args, way, is_there)
        found = behind.found
        lost = jtu.tree_map(lambda x: jnp.where(found, x, jnp.nan), behind.y)
        onward = optax.tree.where(is_there & (t != lax.stop_gradient(end)), lost, y)
    return _past_jumps(y, onward, behind, jumps, t * way, solver, field, args, way)


@eqx.filter_custom_jvp
def _past_jumps(
    y: PyTree[Array],
    onward: PyTree[Array],
    settled: Settled | None,
    jumps: Jumps,
    t: Array,
    solver: diffrax.AbstractSolver,
    field: Captured,
    args: Args,
    way: Array,
) -> PyTree[Array]:
    return onward


@_past_jumps.def_jvp
def _past_jumps_jvp(primals, tangents):
    (y, onward, settled, jumps, t, solver, field, args, way) = primals
    (d_y, _, _, d_jumps, _, _, d_field, d_args, _) = tangents
    if settled is None and not jtu.tree_leaves(d_jumps):
        return onward, d_y
    d_y = or_zero(d_y, y)
    moves = [d is not None for d in d_jumps.ts]

    def move():
        points, d_points = (field, jumps, y, args), (d_field, d_jumps, d_y, d_args)
        at = lambda field, jumps, y, args: moved(
            solver, field, jumps, moves, t, y, args, way, settled=settled
        )
        return eqx.filter_jvp(at, points, d_points)[1]

    return onward, only_where(is_at_any(jumps, t, way), move, d_y)


@eqx.filter_custom_jvp
def without_derivative(tree: PyTree, jumps: Any, message: str) -> PyTree:
    """`tree`, whose derivative in `jumps` is a `TypeError` with `message`."""
    return tree


@without_derivative.def_jvp
def _without_derivative_jvp(primals, tangents):
    (tree, _, message), (d_tree, d_jumps, _) = primals, tangents
    if jtu.tree_leaves(d_jumps):
        raise TypeError(message)
    return tree, d_tree
