"""Causes in the field: where it is not finite, leaves its guard's box, jumps or blows up."""

from collections.abc import Iterator

import jax.tree_util as jtu
import numpy as np
from jax.flatten_util import ravel_pytree

from .._fields import Guard, as_guarded
from .._results import RESULTS, Cause
from ._observe import Observation, busiest
from ._report import number
from ._sampled import is_knot, jumps_in_time
from ._suggestion import (
    LIKELY,
    MINOR,
    POSSIBLE,
    PROBABLE,
    SEEN,
    Suggestion,
    ended_with,
    guarded_with,
    model_with,
    preset,
    undeclared,
    with_times,
)
from ._walls import Wall, find_jump_along, find_walls

# Of rejected steps: how many are no reason to look, how many are looked at, and how many times its
# absolute tolerance a component may be off a bound that it hovers about.
_FEW, _LOOKS, _NEAR = 10, 5, 100.0


def _walls(seen: Observation) -> Iterator[Suggestion]:
    count = int(np.sum(seen.cause == Cause.not_finite))
    if count == 0:
        return
    places = np.flatnonzero(seen.cause == Cause.not_finite)
    walls = {}
    for place in dict.fromkeys((places[0], places[len(places) // 2], places[-1])):
        for wall in find_walls(seen, float(seen.t[place]), float(seen.dt[place])):
            walls.setdefault((wall.index, wall.side), wall)
    fatal = ended_with(seen, RESULTS.not_finite)
    weight = LIKELY if fatal else PROBABLE
    if not walls:
        yield Suggestion(
            "field_not_finite",
            f"{count} steps were rejected because they were not finite, and no single component "
            "explains it: look at the field, and at its parameters, near t = "
            f"{number(seen.t[places[0]], 6)}.",
            'model = sx.with_options(model, trace="print")',
            weight,
        )
        return
    nearest = list(walls.values())[:4]
    words = " and ".join(
        f"{wall.name} is {'above' if wall.side == 'upper' else 'below'} {number(wall.value, 6)}"
        for wall in nearest
    )
    yield Suggestion(
        "field_not_finite",
        f"{count} steps were rejected because they were not finite. The field is not finite where "
        f"{words}." + (" The solution itself runs into it." if fatal else ""),
        guarded_with(_box(seen, nearest)),
        weight,
    )


def _box(seen: Observation, walls: list[Wall]) -> str:
    """A guard that keeps a little off the walls, on the side of the trajectory."""
    bounds = {"lower": np.full(len(seen.names), -np.inf), "upper": np.full(len(seen.names), np.inf)}
    for wall in walls:
        values = seen.states[:, wall.index]
        nearest = values[np.argmin(np.abs(values - wall.value))]
        bounds[wall.side][wall.index] = wall.value + 1e-3 * (nearest - wall.value)
    return (
        "Guard("
        + ", ".join(
            f"{side}={_tree(seen, values)}"
            for side, values in bounds.items()
            if np.isfinite(values).any()
        )
        + ")"
    )


def _tree(seen: Observation, flat: np.ndarray) -> str:
    """Python text of a tree of numpy arrays in the structure of the state."""

    def leaf(x):
        x = np.asarray(x, float)
        if x.ndim == 0:
            return float(f"{x:.8g}") if np.isfinite(x) else None
        far = 10**6  # neither shortened nor wrapped
        text = np.array2string(x, separator=", ", precision=8, threshold=far, max_line_width=far)
        return _Array(text)

    return repr(jtu.tree_map(leaf, seen.unravel(flat)))


class _Array(str):
    def __repr__(self) -> str:
        return f"np.array({self.replace('inf', 'np.inf')})"


def _box_left(seen: Observation) -> Iterator[Suggestion]:
    places = np.flatnonzero(seen.cause == Cause.left_bounds)
    if not len(places):
        return
    guard = as_guarded(seen.model.field).guard
    fatal = ended_with(seen, RESULTS.left_bounds)
    last = places[-1]
    names = ", ".join(dict.fromkeys(seen.names[i] for i in seen.component[places]))
    opened = repr(guard).removesuffix(")").replace(", reject=True", "") + ", reject=False)"
    yield Suggestion(
        "guard_excludes_the_solution" if fatal else "guard_rejects_steps",
        f"{len(places)} steps left the guard's box through {names}"
        + (
            f"; at t = {number(seen.t[last], 6)} the solution itself does, however small the step."
            if fatal
            else ", and were retried."
        ),
        guarded_with(opened),
        SEEN if fatal else MINOR,
    )


def _masked(seen: Observation) -> Iterator[Suggestion]:
    steps = int(seen.simulation.guard.masked_accepted)
    if steps:
        guard = as_guarded(seen.model.field).guard
        yield Suggestion(
            "masked_outputs",
            f"{steps} accepted steps rest on outputs of the field that were not finite, and that "
            f"the guard replaced by {guard.fill:g}: that is not a solution.",
            guarded_with("Guard()"),
            SEEN,
        )


def _jumps_and_blow_ups(seen: Observation) -> Iterator[Suggestion]:
    underflow = ended_with(seen, RESULTS.step_underflow)
    weight = LIKELY if underflow else POSSIBLE
    in_time = jumps_in_time(seen)
    unmet = [t for t in in_time if not is_knot(seen, t)]
    if unmet:
        yield _jump_in_time(seen, unmet, weight)
    starts = busiest(seen.t, seen.cause, 2)
    along = []
    for start in dict.fromkeys([*starts, seen.t[-1]] if underflow else starts):
        rejected = (seen.t == start) & (seen.cause == Cause.error)
        # Once is how every controller finds the step size.
        if np.sum(rejected) >= 2:
            dt = float(seen.dt[rejected][0])
            inside = [0 <= (t - start) / dt <= 1 for t in in_time]
            jump = None if any(inside) else find_jump_along(seen, start, dt)
            along += [] if jump is None else [jump]
    if along:
        yield Suggestion(
            "field_jumps_along_the_solution",
            f"The field jumps along the solution near t = {number(along[0], 6)} (in the state, "
            "not in time): a switch, a threshold, a clip. Make it smooth, or use a solver of low "
            "order, which loses least there.",
            model_with(solver="sx.Rosenbrock23()"),
            weight,
        )
    if underflow and not (along or in_time):
        grown = np.abs(seen.states[-1]) > 1e4 * (np.abs(seen.states[0]) + seen.atols)
        names = ", ".join(name for name, g in zip(seen.names, grown, strict=True) if g)
        if names:
            t = seen.t[-1]
            yield Suggestion(
                "blow_up",
                f"{names} grows without bound as t comes to {number(t, 8)}: the solution ends "
                "there. If it should not, a sign or a parameter of the field is wrong.",
                f"ts = np.asarray(ts); ts = ts[ts < {number(t - 0.01 * abs(t), 6)}]",
                SEEN,
            )


def _no_slope_beyond(seen: Observation) -> Iterator[Suggestion]:
    """Components that hover about a bound: inside the field damps them, and beyond it does not see
    them, so that a step that begins there relies on a slope of zero."""
    rejected = np.flatnonzero(np.isin(seen.cause, (Cause.error, Cause.left_bounds)))
    if len(rejected) < _FEW or len(rejected) < len(seen.t) / 10:
        return
    looked_at = rejected[np.linspace(0, len(rejected) - 1, _LOOKS).astype(int)]
    guard = as_guarded(seen.model.field).guard
    bounds = guard.bounds(seen.unravel(seen.states[0]))
    lower, upper = (np.asarray(ravel_pytree(side)[0]) for side in bounds)

    if guard.outside == "constant":
        below, above = (_hovers(seen, looked_at, *side) for side in ((lower, 1), (upper, -1)))
        if (below | above).any():
            code = guarded_with(repr(guard).replace(", outside='constant'", ""))
            yield _without_slope(seen, below | above, "a bound", "its guard", len(rejected), code)

    zero = np.where(np.isfinite(lower), np.nan, 0.0)
    hovers = _hovers(seen, looked_at, zero, 1, is_clipped=False)
    if hovers.any():
        lower = np.where(hovers, 0.0, lower)
        if guard == Guard() and (seen.states > -_NEAR * seen.atols).all():
            lower[:] = 0.0  # nothing is below zero by more than its tolerance
        sides = dict(lower=lower, upper=upper)
        parts = [f"{n}={_side(seen, x)}" for n, x in sides.items() if np.isfinite(x).any()]
        code = guarded_with(f"Guard({', '.join(parts)}{'' if guard.reject else ', reject=False'})")
        yield _without_slope(seen, hovers, "0", "the field", len(rejected), code)


def _hovers(
    seen: Observation, places: np.ndarray, bound: np.ndarray, inward: int, is_clipped: bool = True
) -> np.ndarray:
    """Which components are next to their `bound`, damped on its side `inward`, and not seen by the
    field on the other, as those are that a guard clips. At the steps `places`."""
    found = np.zeros(len(bound), bool)
    for place in dict.fromkeys(places):
        t, dt = float(seen.t[place]), seen.dt[place]
        y = seen.state_at(t)
        for i in np.flatnonzero(np.abs(y - bound) < _NEAR * seen.atols):
            moved = np.repeat(y[None], 4, axis=0)
            moved[:, i] = bound[i] + inward * np.array([1, 2, -1, -2]) * seen.atols[i]
            f = seen.field(np.full(4, t), moved)
            damped = dt * inward * (f[0, i] - f[1, i]) > seen.atols[i]
            found[i] |= damped and (is_clipped or np.array_equal(f[2], f[3]))
    return found


def _without_slope(
    seen: Observation, hovers: np.ndarray, bound: str, clips: str, rejected: int, code: str
) -> Suggestion:
    names = ", ".join(seen.names[i] for i in np.flatnonzero(hovers)[:5])
    return Suggestion(
        "no_slope_beyond_a_bound",
        f"{names} {'hovers' if hovers.sum() == 1 else 'hover'} about {bound}, where {clips} clips: "
        "beyond, the slope of the field vanishes, a step believes that, and nothing is damped. "
        f"{rejected} steps were rejected. A guard goes on along the tangent.",
        code,
        LIKELY if ended_with(seen, RESULTS.step_budget_spent) else PROBABLE,
    )


def _side(seen: Observation, bound: np.ndarray) -> str:
    """Python text of one side of a box."""
    return repr(float(bound[0])) if (bound == bound[0]).all() else _tree(seen, bound)


def _jump_in_time(seen: Observation, times: list[float], weight: float) -> Suggestion:
    known = not undeclared(seen, "jump_ts", times)
    why = f"The field jumps at t = {', '.join(number(t, 7) for t in times)}" + (
        ", as `jump_ts` says." if known else ": steps across it are rejected, or less exact."
    )
    why += (
        " A time that is a parameter, or computed from one, has no derivative there, whatever the "
        "solver and with `jump_ts` too: the gradient in it is 0. As a knot of an `Input`, or as "
        "the end of a phase, `Phase(t1=...)` of `SimulatePhases`, it has."
    )
    if known:
        ends = ", ".join(f"sx.Phase({number(t, 7)})" for t in times)
        code = f"model = sx.SimulatePhases(model.field); phases = [{ends}, sx.Phase(ts[-1])]"
        return Suggestion("field_jumps_in_time", why, code, MINOR)
    code = model_with(controller=preset(seen, jump_ts=with_times(seen, "jump_ts", times)))
    return Suggestion("field_jumps_in_time", why, code, weight)


FIELD_RULES = (_walls, _box_left, _masked, _no_slope_beyond, _jumps_and_blow_ups)
