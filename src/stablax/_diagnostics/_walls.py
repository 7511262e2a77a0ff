"""Where a field stops being finite, and where it jumps along the solution."""

import dataclasses

import numpy as np

from ._observe import Observation

# Where a wall is looked for, in steps, and below which part of the component it is at zero.
_REACH = np.geomspace(1e-3, 1e6, 46)
_ZERO = 1e-9
# A jump along a step: intervals that are cut, how often, and what part of its size, and of the
# field's, a jump keeps.
_PARTS, _CUTS, _KEEPS, _LEAST = 33, 6, 0.5, 1e-3
_HALVINGS = 50  # of the interval that holds a wall


@dataclasses.dataclass(frozen=True)
class Wall:
    """A value of one component beyond which the field is not finite.

    - `name`, `index`: the component.
    - `side`: `"lower"` or `"upper"`.
    - `value`: the last value at which the field is finite, all other components held.
    - `t`: the time at which it was found.
    """

    name: str
    index: int
    side: str
    value: float
    t: float


def find_walls(seen: Observation, t: float, dt: float) -> list[Wall]:
    """The walls next to the state at `t`, the nearest first: one component is moved at a time,
    as far as the step `dt` would move it, and much farther."""
    y = seen.state_at(t)
    flux = seen.field([t], y[None])[0]
    if not np.isfinite(flux).all():
        return []
    size = len(y)
    step = np.abs(dt * flux) + seen.rtol * np.abs(y) + seen.atols
    # moved[i, s, k]: component i, below or above, by _REACH[k] steps
    distance = np.concatenate([-_REACH, _REACH]).reshape(2, -1)
    moved = np.broadcast_to(y, (size, 2, len(_REACH), size)).copy()
    for i in range(size):
        moved[i, :, :, i] += distance * step[i]
    finite = _finite(seen, t, moved)
    walls = []
    for i, side in np.ndindex(size, 2):
        if finite[i, side].all():
            continue
        k = int(np.argmin(finite[i, side]))
        inside = float(y[i] if k == 0 else moved[i, side, k - 1, i])
        value = _bisect(seen, t, y, i, inside, float(moved[i, side, k, i]))
        near = abs(value - y[i]) / step[i]
        walls.append((near, Wall(seen.names[i], i, ("lower", "upper")[side], value, t)))
    return [wall for _, wall in sorted(walls, key=lambda pair: pair[0])]


def _finite(seen: Observation, t: float, states: np.ndarray) -> np.ndarray:
    flat = states.reshape(-1, states.shape[-1])
    out = seen.field(np.full(len(flat), t), flat)
    return np.all(np.isfinite(out), axis=1).reshape(states.shape[:-1])


def _bisect(seen: Observation, t: float, y, i: int, inside: float, outside: float) -> float:
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        moved = y.copy()
        moved[i] = middle
        if _finite(seen, t, moved[None])[0]:
            inside = middle
        else:
            outside = middle
    return 0.0 if abs(inside) < _ZERO * abs(y[i]) else float(inside)


def find_jump_along(seen: Observation, t: float, dt: float) -> float | None:
    """When the field jumps along the solution, within the step `(t, t + dt)`. A jump keeps its
    size where the difference of a continuous field shrinks with the distance."""
    y = seen.state_at(t)
    flux = seen.field([t], y[None])[0]
    low, high, first = 0.0, 1.0, None
    for _ in range(_CUTS):
        part = np.linspace(low, high, _PARTS)
        values = seen.field(t + dt * part, y + dt * part[:, None] * flux)
        if not np.isfinite(values).all():
            return None
        scale = np.abs(values).max() + np.finfo(values.dtype).tiny
        change = np.abs(np.diff(values, axis=0)).max(axis=1) / scale
        place = int(np.argmax(change))
        first = change[place] if first is None else first
        if change[place] < max(_KEEPS * first, _LEAST):
            return None
        low, high = part[place], part[place + 1]
    return float(t + dt * (low + high) / 2)
