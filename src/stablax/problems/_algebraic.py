"""Problems with algebraic equations: M dy/dt = f with a singular M, of index 1."""

import jax.numpy as jnp
import numpy as np
from scipy.special import ellipj, ellipk

from ._chemistry import ROBERTSON, robertson
from ._problem import Problem


def _conserving(t, y, rates):
    """Robertson's field, with what it conserves for its last equation."""
    first, second, _ = robertson(t, y, rates)
    return jnp.stack([first, second, y[0] + y[1] + y[2] - 1])


ROBERTSON_DAE = Problem(
    name="Robertson, DAE",
    field=_conserving,
    y0=ROBERTSON.y0,
    args=ROBERTSON.args,
    t1=ROBERTSON.t1,
    ts=ROBERTSON.ts,
    reference=ROBERTSON.reference,
    floor=ROBERTSON.floor,
    mass=np.array([1.0, 1.0, 0.0]),
    source="Hindmarsh and others, SUNDIALS, example idaRoberts_dns",
)


# Of the amplifier, in ohm, farad and volt.
_SOURCE_RESISTANCE, _RESISTANCE = 1e3, 9e3
_CAPACITIES = 1e-6 * np.arange(1, 6)
_SUPPLY = 6.0
_GAIN, _SATURATION, _THERMAL = 0.99, 1e-6, 0.026
_BETWEEN = {0: (0, 1), 2: (3, 4), 4: (6, 7)}  # nodes that these capacitors connect
_TO_GROUND = {1: 2, 3: 5}


def _capacitors() -> np.ndarray:
    mass = np.zeros((8, 8))
    for k, (a, b) in _BETWEEN.items():
        mass[np.ix_((a, b), (a, b))] += _CAPACITIES[k] * np.array([[-1, 1], [1, -1]])
    for k, a in _TO_GROUND.items():
        mass[a, a] -= _CAPACITIES[k]
    return mass


def _amplifier(t, y, args):
    """Currents out of the eight nodes; `args`: amplitude [V] and frequency [1/s] of the input."""
    amplitude, frequency = args[0], args[1]
    wave = amplitude * jnp.sin(2 * jnp.pi * frequency * t)
    base, emitter = y[jnp.array([1, 4])], y[jnp.array([2, 5])]
    collector = y[jnp.array([3, 6])]
    diode = _SATURATION * jnp.expm1((base - emitter) / _THERMAL)
    into_base = (2 * base - _SUPPLY) / _RESISTANCE + (1 - _GAIN) * diode
    into_emitter = emitter / _RESISTANCE - diode
    into_collector = (collector - _SUPPLY) / _RESISTANCE + _GAIN * diode
    stages = jnp.stack([into_base, into_emitter, into_collector], axis=1)
    first, last = (y[:1] - wave) / _SOURCE_RESISTANCE, y[7:] / _RESISTANCE
    return jnp.concatenate([first, stages.ravel(), last])


AMPLIFIER = Problem(
    name="transistor amplifier",
    field=_amplifier,
    y0=np.array([0.0, 3, 3, 6, 3, 3, 6, 0]),
    args=np.array([0.1, 100.0]),
    t1=0.2,
    ts=np.array([0.2]),
    reference=np.array(
        [
            [
                -0.5562145012262709e-2,
                0.3006522471903042e1,
                0.2849958788608128e1,
                0.2926422536206241e1,
                0.2704617865010554e1,
                0.2761837778393145e1,
                0.4770927631616772e1,
                0.1236995868091548e1,
            ]
        ]
    ),
    floor=1.0,
    mass=_capacitors(),
    float32=False,  # rounding of a y of 3 is 1e-5 of exp((y1 - y2) / 0.026)
    source="Mazzia and Magherini, Test Set for Initial Value Problem Solvers (Bari 2008), II-7, "
    "with the solution that is given there",
)


_GRAVITY = 9.81


def _pendulum(t, y, args):
    """y = (position, velocity, tension / (mass length)); `args`: gravity."""
    position, velocity, tension = y[:2], y[2:4], y[4]
    gravity = args[0] * jnp.array([0.0, -1.0], y.dtype)
    pull = velocity @ velocity + position @ gravity - tension * (position @ position)
    return jnp.concatenate([velocity, gravity - tension * position, pull[None]])


def _swing(t: np.ndarray) -> np.ndarray:
    """Released at rest from the horizontal; by elliptic functions."""
    k, rate = np.sqrt(0.5), np.sqrt(_GRAVITY)
    sn, cn, *_ = ellipj(ellipk(k**2) - rate * t, k**2)
    half, speed = np.arcsin(k * sn), -2 * k * rate * cn
    angle = 2 * half
    x, y = np.sin(angle), -np.cos(angle)
    tension = speed**2 - _GRAVITY * y
    return np.stack([x, y, -y * speed, x * speed, tension], axis=1)


_TIMES = np.linspace(0.25, 5.0, 20)

PENDULUM = Problem(
    name="pendulum",
    field=_pendulum,
    y0=np.array([1.0, 0, 0, 0, 0]),
    args=np.array([_GRAVITY]),
    t1=5.0,
    ts=_TIMES,
    reference=_swing(_TIMES),
    floor=1.0,
    mass=np.array([1.0, 1, 1, 1, 0]),
    source="Hairer and Wanner, Solving ODEs II, section VI.5: the constraint x^2 + y^2 = 1 "
    "differentiated twice, for index 1",
)
"""A mass on a rod of length 1, in Cartesian coordinates."""

DAES: dict[str, Problem] = {
    problem.name: problem for problem in (ROBERTSON_DAE, AMPLIFIER, PENDULUM)
}
"""Those with a `mass`, by name."""
