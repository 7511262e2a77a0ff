"""A network whose rates are written as combustion codes write them: clipped, by logarithms."""

import jax.numpy as jnp
import numpy as np

from ._problem import Problem

_SPECIES = "F O X R S W P".split()
# Fuel F, an oxidiser O in excess, a carrier X, radicals R and S, and what is left. R and S live for
# 1e-12 and 1e-11: their amounts are what makes and takes them, and no tolerance knows of them.
_REACTIONS: tuple[tuple[str, str, float], ...] = (
    ("F O", "R X", 1e-6),  # begins
    ("F X", "R W", 1e3),
    ("R O", "S X X", 1e12),  # branches
    ("S O", "P X", 1e11),
    ("X X", "W", 1e2),  # ends
    ("R X", "P", 1e9),
)


def _counts(sides: list[str]) -> np.ndarray:
    return np.array([[side.split().count(s) for s in _SPECIES] for side in sides], float)


_ORDERS = _counts([left for left, _, _ in _REACTIONS])
_NET = _counts([right for _, right, _ in _REACTIONS]) - _ORDERS


def _clipped(t, y, rates):
    y = jnp.maximum(y, 0)
    logs = jnp.log(jnp.maximum(y, 1e-100))
    orders, net = jnp.asarray(_ORDERS, y.dtype), jnp.asarray(_NET, y.dtype)
    return (rates * jnp.exp(orders @ logs)) @ net


CLIPPED = Problem(
    name="clipped chain",
    field=_clipped,
    y0=np.array([1.0, 4.0, 0, 0, 0, 0, 0]),
    args=np.array([rate for *_, rate in _REACTIONS]),
    t1=1e4,
    ts=np.geomspace(1e-3, 1e4, 15),
    floor=1e-6,
    float32=False,  # 1e-100 is none of its numbers
    source="made for stablax, after rates of combustion codes such as Cantera's: concentrations "
    "clipped at zero, and powers by logarithms",
)
"""A branching chain whose field clips concentrations at zero, as it stands: no component of
`PROBLEMS`, since an implicit solver needs a guard for it (`stablax.Guard(lower=0.0)`). Beyond zero
the field has no slope, a step believes it, and radicals that hover there are no longer damped."""
