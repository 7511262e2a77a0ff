"""What lies between the times at which a solve has looked: the field, and the condition of an
event, sampled on a fine grid within the steps."""

import dataclasses
from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree

from .._models import knots_met, with_options
from .._results import RESULTS, Cause
from .._types import Args
from ._observe import Observation
from ._stiffness import jacobian_at
from ._suggestion import ended_with

_SAMPLES = 4096  # of the field, in all steps together, and ...
_LEAST = 16  # ... at least in each of
_STEPS = 512  # the longest steps: what is stepped over lies in a long one
_ROWS = 1024  # of the trajectory, for an event
_HALVINGS = 40
_CANDIDATES = 32  # for a jump
# A jump is so many times the changes beside it, and at least this part of the field.
_SUDDEN, _LEAST_JUMP = 4, 1e-3
_PEAK = 0.1  # of the largest change: where less is missed, nothing is
_LARGE = 1e3  # what is stepped over changes the state by so many tolerances, at least


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A stretch of time that no stage of a step has seen.

    - `begin`, `end`: [time]; `begin` is earlier in the direction of the solve.
    - `name`: the component whose derivative was missed most. `change`: by how much that changes
        it.
    """

    begin: float
    end: float
    name: str
    change: float


def _windows(seen: Observation, most: int) -> np.ndarray:
    """The accepted steps that are looked into, and the last one that was tried: their places in
    the log, in the order of time."""
    places = np.flatnonzero((seen.cause == Cause.none) & (seen.dt != 0))
    longest = places[np.argsort(-np.abs(seen.dt[places]), kind="stable")[:most]]
    return np.unique([*longest, len(seen.t) - 1])


def _stages(seen: Observation) -> np.ndarray:
    """Where in a step the solver evaluates the field: fractions of the step, with both ends."""
    tableau = getattr(seen.model.options.solver, "tableau", None)
    c = np.asarray(getattr(tableau, "c", np.linspace(0, 1, 5)), float)
    return np.unique(np.clip([0.0, *c, 1.0], 0, 1))


def _sample(seen: Observation, places: np.ndarray, parts: np.ndarray):
    """Times in the steps at `places`, shape `(steps, parts)`, and the field there, `(steps, parts,
    size)`, with the state held at that of the start of the step: what changes is due to time."""
    start, dt = seen.t[places], seen.dt[places]
    last = start[-1] + dt[-1]
    times = start[:, None] + dt[:, None] * parts
    times = np.minimum(times, last) if dt[-1] > 0 else np.maximum(times, last)
    held = np.broadcast_to(
        seen.states_between(start)[:, None], (*times.shape, len(seen.names))
    ).reshape(-1, len(seen.names))
    return times, seen.field(times.ravel(), held).reshape(*times.shape, -1)


def _grid(steps: int, samples: int, least: int) -> np.ndarray:
    number = max(least, samples // steps)
    return (np.arange(number) + 0.5) / number


def stepped_over(seen: Observation) -> list[Skipped]:
    """Where the field is far outside of what the stages of an accepted step saw of it, by a change
    in time alone, for so long that it would move the state by many tolerances."""
    places = _windows(seen, _STEPS)
    places = places[seen.accepted[places]]
    if not len(places):
        return []
    stages, fine = _stages(seen), _grid(len(places), _SAMPLES, _LEAST)
    times, values = _sample(seen, places, np.concatenate([stages, fine]))
    times, saw, values = times[:, len(stages) :], values[:, : len(stages)], values[:, len(stages) :]
    low, high = saw.min(axis=1, keepdims=True), saw.max(axis=1, keepdims=True)
    unseen = values - np.clip(values, 2 * low - high, 2 * high - low)
    tolerance = seen.atols + seen.rtol * np.abs(seen.states).max(axis=0)
    change = np.abs(seen.dt[places])[:, None] * np.abs(unseen).mean(axis=1)
    worst = np.max(np.where(np.isfinite(change), change, 0) / tolerance, axis=1)
    found = []
    for k in np.flatnonzero(worst > _LARGE):
        moved = _damped(seen, float(seen.t[places[k]]), float(seen.dt[places[k]]), change[k])
        if np.max(moved / tolerance) > _LARGE:
            component = int(np.argmax(moved / tolerance))
            magnitude = np.abs(unseen[k, :, component])
            inside = np.flatnonzero(magnitude > _PEAK * magnitude.max())
            half = float(seen.dt[places[k]]) / len(fine) / 2
            for run in np.split(inside, np.flatnonzero(np.diff(inside) > 1) + 1):
                begin, end = float(times[k, run[0]]) - half, float(times[k, run[-1]]) + half
                share = float(moved[component] * magnitude[run].sum() / magnitude.sum())
                found.append(Skipped(begin, end, seen.names[component], share))
    return found


def _damped(seen: Observation, t: float, dt: float, change: np.ndarray) -> np.ndarray:
    """What is left of a change of the state after a step of a stiff system."""
    y = seen.state_at(t)
    args = seen.conditions.args[int(seen.conditions.at(t))]
    jacobian = np.asarray(jacobian_at(seen.model.field, t, seen.unravel(y), args))
    if not np.isfinite(jacobian).all():
        return change
    return np.abs(np.linalg.solve(np.eye(len(y)) - dt * jacobian, change))


def jumps_in_time(seen: Observation) -> list[float]:
    """When the field jumps with the state held. A jump keeps its size however short the time in
    which it happens."""
    places = _windows(seen, _STEPS)
    parts = _grid(len(places), _SAMPLES, _LEAST)
    # One more beyond the end of the step, since a step may end at a jump.
    parts = np.append(parts, 1 + parts[0])
    times, values = _sample(seen, places, parts)
    scale = np.abs(values).max(axis=1, keepdims=True)
    scale = scale + (seen.atols + seen.rtol * np.abs(seen.states).max(axis=0)) / np.abs(
        seen.dt[places, None, None]
    )
    change = np.max(np.abs(np.diff(values, axis=1)) / scale, axis=2)
    # A change of the condition at the end of a phase is no jump of the field.
    same = seen.conditions.at(times[:, 1:]) == seen.conditions.at(times[:, :-1])
    change = np.where(np.isfinite(change) & same, change, 0)
    around = np.pad(change, ((0, 0), (1, 1)))
    sudden = change > np.maximum(_SUDDEN * np.minimum(around[:, :-2], around[:, 2:]), _LEAST_JUMP)
    order = np.argsort(np.where(sudden, -change, 0), axis=None)[:_CANDIDATES]
    step, part = np.unravel_index(order, change.shape)
    low, high = times[step, part], times[step, part + 1]
    held, scale = seen.states_between(seen.t[places][step]), scale[step, 0]
    below, above = values[step, part], values[step, part + 1]
    first = _size(above - below, scale)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        value = seen.field(middle, held)
        lower = _size(value - below, scale) > _size(above - value, scale)
        high, above = np.where(lower, middle, high), np.where(lower[:, None], value, above)
        low, below = np.where(lower, low, middle), np.where(lower[:, None], below, value)
    stays = sudden[step, part] & (_size(above - below, scale) > 0.5 * first)
    return sorted({float(f"{t:.7g}") for t in high[stays]})


def is_knot(seen: Observation, t: float) -> bool:
    """Whether it is one of an `Input`, at which the model ends a step by itself."""
    of_phases = [
        knots_met(seen.model.field, seen.start, seen.like, args) for args in seen.conditions.args
    ]
    return bool(np.isclose(np.concatenate(of_phases), t, rtol=1e-6).any())


def _size(change: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.max(np.abs(change) / scale, axis=1)


def missed_events(seen: Observation) -> list[tuple[float, float]]:
    """Between which times the condition of the model's event was met, or changed its sign, and
    changed back within a step, so that it was not noticed at the end of the step. (The conditions
    of a [`Event`][] are looked at within the steps, too.)"""
    event = seen.model.options.event
    places = _windows(seen, _STEPS)
    places = places[seen.accepted[places]]
    if ended_with(seen, RESULTS.event_occurred):
        places = places[:-1]
    if not isinstance(event, diffrax.Event) or not len(places):
        return []
    parts = np.concatenate([[0.0], _grid(len(places), _ROWS, 4), [1.0]])
    times = seen.t[places][:, None] + seen.dt[places][:, None] * parts
    goes_on = with_options(seen.model, event=None, adjoint=diffrax.ForwardMode())
    inputs = {**seen.inputs, "ts": jnp.asarray(times.ravel(), seen.dtype)}
    rows = goes_on(**inputs, throw=False)
    found = set()
    for condition in jtu.tree_leaves(event.cond_fn, is_leaf=callable):
        try:
            on = seen.conditions.apply(
                lambda args, t, y, fn=condition: _holds(fn, args, t, y), times.ravel(), rows.ys
            )
        except TypeError:  # it looks at more than the state, as `diffrax.steady_state_event` does
            continue
        either_way = on.dtype != bool
        on = (on > 0 if either_way else on).reshape(times.shape)
        start, end = on[:, :1], on[:, -1:]
        inside = (on != start) & (start == end) & (either_way | ~start)
        for k in np.flatnonzero(inside.any(axis=1)):
            where = np.flatnonzero(inside[k])
            found.add((float(times[k, where[0] - 1]), float(times[k, where[-1] + 1])))
    return sorted(found, key=lambda stretch: abs(stretch[0] - float(seen.t[0])))


@eqx.filter_jit
def _holds(condition: Callable, args: Args, ts: np.ndarray, ys: PyTree) -> Array:
    return jax.vmap(lambda t, y: jnp.asarray(condition(t, y, args)))(jnp.asarray(ts), ys)
