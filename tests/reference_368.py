"""Reference trajectories and gradients of the stiff system of diffrax issue #368.

https://github.com/patrick-kidger/diffrax/issues/368

    dx0/dt = expm1(p2 - x0 - x1) exp(p0)
    dx1/dt = expm1(k - x1) exp(p1)

starts in its steady state under `K1`, exactly `(p2 - K1, K1)`, and is followed under `K2`. Nothing
is integrated in time: `exp(x1)` and then `exp(x0)` turn the system into linear equations. In the
time `s = exp(p1) t`, with the rate ratio `r = exp(p0 - p1)` and `c = expm1(K1 - K2)`,

    x1 = K2 + log1p(c exp(-s))
    x0 = p2 - K2 + log1p(-d(s)),    d' = r (g - d),    d(0) = g(0),    g(s) = c / (exp(s) + c)

and, integrated by parts, `d` is a sum of positive terms without cancellation or overflow:

    d(s) = g(s) + int_0^s exp(-r (s - q)) h(q) dq,    h = -g' = g (1 - g).

The integrand is smooth on the longer of its two scales (1 for `h`, 1/r for the kernel) once it is
taken in the shorter one, so that Gauss-Legendre panels give it to rounding. Trajectories are
accurate to 1e-15 of their largest magnitude (or of 1), gradients to 1e-13 of their largest
component. Only numpy is used.
"""

from itertools import pairwise
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[np.float64]

K1: Final = -2.2910986
"""Input `k` of the steady state."""
K2: Final = -3.2617188
"""Input `k` of the trajectory."""
Y0: Final = (0.21629536, 0.8041241)
"""Start of the search for the steady state; the steady state does not depend on it."""
TIMES: Final[Array] = np.logspace(-3, 3, 10)
"""Times at which the trajectory is saved, shape `(10,)`."""
NAMED_PARAMETERS: Final = (
    (10.02095681, 19.194259, 2.29084657),
    (13.73606048, 8.24349876, -0.59946121),
)
"""The two `p = (p0, p1, p2)` for which the gradient of diffrax alone is all NaN."""

_C: Final = float(np.expm1(K1 - K2))
_CUT: Final = 45.0  # decay lengths after which an exponential is below rounding: exp(-45) = 3e-20
_STEP: Final = 0.1  # largest step of the differences, in p0 and p1 (natural logarithms of rates)
_LEVELS: Final = 4  # number of steps, each half of the one before: order 2 * _LEVELS


def _panels(count: int, order: int) -> tuple[Array, Array]:
    """Nodes and weights of `count` equal Gauss-Legendre panels of `order` nodes on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(order)
    starts = np.arange(count)[:, None]
    return ((starts + (nodes + 1) / 2) / count).ravel(), np.tile(weights / (2 * count), count)


_NODES, _WEIGHTS = _panels(count=16, order=16)


def _unpack(p: ArrayLike) -> tuple[float, float, float]:
    """Give the entries of `p` as Python floats; a wrong length is a `ValueError`."""
    p0, p1, p2 = np.asarray(p, dtype=np.float64)
    return float(p0), float(p1), float(p2)


def _deviation(p0: float, p1: float) -> Array:
    """Distance of the trajectory from the steady state under `K2`, shape `(10, 2)`; free of p2."""
    ratio = float(np.exp(p0 - p1))
    scale = max(ratio, 1.0)
    time = np.exp(p1) * TIMES[:, None]
    length = np.minimum(scale * time, _CUT)
    near = length * _NODES / scale  # distance to the end where the faster of h and kernel sits
    lag, past = (near, time - near) if ratio > 1 else (time - near, near)
    decayed = _C * np.exp(-past)
    integrand = np.exp(-ratio * lag) * decayed / (1 + decayed) ** 2
    integral = length[:, 0] / scale * (integrand @ _WEIGHTS)
    decay = _C * np.exp(-time[:, 0])
    return np.stack([np.log1p(-decay / (1 + decay) - integral), np.log1p(decay)], axis=-1)


def _deviation_derivative(p0: float, p1: float, direction: tuple[float, float]) -> Array:
    """Differentiate `_deviation` along `direction`: central differences, Richardson-extrapolated.

    Reference: L. F. Richardson (1911), Phil. Trans. R. Soc. A 210, 307.
    """
    e0, e1 = direction
    table: list[Array] = []
    for level in range(_LEVELS):
        step = _STEP / 2.0**level
        forward = _deviation(p0 + step * e0, p1 + step * e1)
        backward = _deviation(p0 - step * e0, p1 - step * e1)
        table.append((forward - backward) / (2 * step))
    for order in range(1, _LEVELS):
        weight = 1 / (4.0**order - 1)
        table = [fine + weight * (fine - coarse) for coarse, fine in pairwise(table)]
    return table[0]


def random_parameters(n: int = 50) -> Array:
    """Draw parameters from a fixed seed; the first rows do not depend on `n`.

    **Arguments:**

    - `n`: the number of parameter sets.

    **Returns:** array of shape `(n, 3)`; p0, p1 and p2 are uniform on (-10, 20), (5, 20), (-5, 5).
    """
    return np.random.default_rng(368).uniform((-10.0, 5.0, -5.0), (20.0, 20.0, 5.0), (n, 3))


def steady_state(p: ArrayLike) -> Array:
    """Give the steady state under `K1`, `(p2 - K1, K1)`, where the trajectory starts, shape `(2,)`.

    **Arguments:**

    - `p`: `(p0, p1, p2)`, shape `(3,)`.
    """
    return np.array([_unpack(p)[2] - K1, K1])


def trajectory(p: ArrayLike) -> Array:
    """Follow the system under `K2` from its steady state under `K1`.

    **Arguments:**

    - `p`: `(p0, p1, p2)`, shape `(3,)`; p0 and p1 are natural logarithms of rates. Checked for p0
      in (-10, 20) and p1 in (5, 20).

    **Returns:** array `ys` of shape `(10, 2)`, the states at `TIMES`.
    """
    p0, p1, p2 = _unpack(p)
    return _deviation(p0, p1) + np.array([p2 - K2, K2])


def value_and_gradient(p: ArrayLike) -> tuple[float, Array]:
    """Give `mean(ys**2)` and its gradient in `p`, through the steady state too.

    Derivatives in p0 and p1 are differences of the trajectory, that in p2 is exact: it only shifts
    x0.

    **Arguments:**

    - `p`: as in `trajectory`.

    **Returns:** the value, and the gradient of shape `(3,)`.
    """
    p0, p1, _ = _unpack(p)
    ys = trajectory(p)
    shift = np.array([1.0, 0.0])
    tangents = (
        _deviation_derivative(p0, p1, (1.0, 0.0)),
        _deviation_derivative(p0, p1, (0.0, 1.0)),
        shift,
    )
    gradient = np.array([2 * float(np.mean(ys * tangent)) for tangent in tangents])
    return float(np.mean(ys**2)), gradient
