"""Directional derivatives by finite differences, with their uncertainty."""

import dataclasses
from collections.abc import Callable

import numpy as np

# Central differences at steps that fall by 4, in units of the size of the parameters. Their errors
# go with the square of the step.
_FALL = 0.25
STEPS = 0.1 * _FALL ** np.arange(9)
_GAIN = _FALL**-2
REACH = 2  # a step so large that the change is more than scatter, and so small that few solves fail
# Spacings at which the noise of the function is looked at: that of rounding, and that of an
# adaptive solver whose number of steps changes with the parameters.
_SPACINGS = (1e-3, 1e-5, 1e-7)
# Where jumps are looked for: how far around, at how many places (an even number: the point itself
# is inside an interval), from which part of the range on, and how often the place is halved.
_NEAR, _PLACES, _LEAST_JUMP, _HALVINGS = 0.05, 22, 0.02, 12
# Of a fourth difference of independent noise, the variance is 70 times that of the noise.
_FOURTH = np.array([1.0, -4.0, 6.0, -4.0, 1.0])
_FOURTH_VARIANCE = float(np.sum(_FOURTH**2))


@dataclasses.dataclass(frozen=True)
class Difference:
    """A derivative by Richardson-extrapolated central differences.

    - `value`, `uncertainty`: the estimate, and how far the truth may be from it.
    - `noise`: by how much the function scatters.
    - `jump`: the size of a discontinuity near the point, or None.
    - `central`: the plain central differences at `STEPS`; nan where the function is not finite.
    - `reach`: by how much the function changes at least, up or down, at `STEPS[REACH]`.
    - `evaluations`, `failed`: how often the function was evaluated, and was not finite.
    """

    value: float
    uncertainty: float
    noise: float
    jump: float | None
    central: np.ndarray
    reach: float
    evaluations: int
    failed: int


def differentiate(fn: Callable[[float], float], eps: float, rtol: float) -> Difference:
    """d fn / ds at s = 0, for a function of order one in s, computed with a resolution of `eps`.
    Jumps below `rtol` of the function are noise.

    Richardson's extrapolation removes the error of the step, in a table; the entry is taken whose
    neighbours agree best, noise included (Ridders 1982, Adv. Eng. Software 4, 75; the noise by
    fourth differences, after Hamming).
    """
    values: list[float] = []

    def seen(s: float) -> float:
        value = fn(s)
        values.append(value if np.isfinite(value) else float("nan"))
        return values[-1]

    middle = seen(0.0)
    above, below = (np.array([seen(sign * h) for h in STEPS]) for sign in (1.0, -1.0))
    central = (above - below) / (2 * STEPS)
    noise = _noise(seen, eps)
    value, uncertainty = _extrapolate(central, noise)
    jump = _jump(seen, rtol)
    changes = [abs(x - middle) for x in (above[REACH], below[REACH]) if np.isfinite(x)]
    reach = float(min(changes, default=0.0))
    failed = int(np.sum(np.isnan(values)))
    return Difference(value, uncertainty, noise, jump, central, reach, len(values), failed)


def _noise(fn: Callable[[float], float], eps: float) -> float:
    middle = abs(fn(0.0))
    rounding = eps * (middle if np.isfinite(middle) else 0.0)
    found = []
    for spacing in _SPACINGS:
        values = np.array([fn(spacing * i) for i in (-3, -2, -1, 0, 1, 2, 3)])
        fourth = np.convolve(values, _FOURTH, mode="valid")
        if np.isfinite(fourth).all():
            found.append(float(np.sqrt(np.mean(fourth**2) / _FOURTH_VARIANCE)))
    # At the widest spacing there may be curvature, at the narrowest no noise of a solver yet.
    return max(rounding, float(np.median(found))) if found else rounding


def _extrapolate(central: np.ndarray, noise: float) -> tuple[float, float]:
    best, uncertainty = float("nan"), float("inf")
    previous: list[float] = []
    for h, difference in zip(STEPS, central, strict=True):
        row = [float(difference)]
        if not np.isfinite(difference):
            previous = []
            continue
        for order, coarse in enumerate(previous, 1):
            fine = row[-1]
            better = fine + (fine - coarse) / (_GAIN**order - 1)
            doubt = max(abs(better - fine), abs(better - coarse)) + noise / h
            if doubt < uncertainty:
                best, uncertainty = better, doubt
            row.append(better)
        previous = row
    return best, uncertainty


def _jump(fn: Callable[[float], float], rtol: float) -> float | None:
    """The largest jump within `_NEAR` of the point: a difference that stays as large while the
    interval in which it happens is halved and halved again."""
    places = np.linspace(-_NEAR, _NEAR, _PLACES)
    values = np.array([fn(s) for s in places])
    if not np.isfinite(values).all():
        return None
    k = int(np.argmax(np.abs(np.diff(values))))
    (low, high), (below, above) = places[k : k + 2], values[k : k + 2]
    least = max(rtol * np.abs(values).max(), _LEAST_JUMP * np.ptp(values))
    for _ in range(_HALVINGS):
        if not abs(above - below) > least:
            return None
        middle = (low + high) / 2
        value = fn(middle)
        if abs(value - below) > abs(above - value):
            high, above = middle, value
        else:
            low, below = middle, value
    return float(abs(above - below))
