"""Chemical kinetics: Robertson, OREGO, HIRES, E5, POLLU."""

import jax.numpy as jnp
import numpy as np

from ._network import network
from ._problem import Problem


def robertson(t, y, k):
    a, b, c = k[0] * y[0], k[1] * y[1] * y[2], k[2] * y[1] ** 2
    return jnp.stack([b - a, a - b - c, c])


ROBERTSON = Problem(
    name="Robertson",
    field=robertson,
    y0=np.array([1.0, 0.0, 0.0]),
    args=np.array([0.04, 1e4, 3e7]),
    t1=1e5,  # as in most papers and packages; Hairer and Wanner go on to 1e11
    ts=np.geomspace(1e-2, 1e5, 15),
    floor=1e-6,
    source="H. H. Robertson (1966); Hairer and Wanner, Solving ODEs II, section IV.1",
)


def oregonator(t, y, args):
    s, q, w = args[0], args[1], args[2]
    first = s * (y[1] + y[0] * (1 - q * y[0] - y[1]))
    return jnp.stack([first, (y[2] - (1 + y[0]) * y[1]) / s, w * (y[0] - y[2])])


OREGO = Problem(
    name="OREGO",
    field=oregonator,
    y0=np.array([1.0, 2.0, 3.0]),
    args=np.array([77.27, 8.375e-6, 0.161]),
    t1=360.0,
    ts=np.linspace(0, 360, 13)[1:],
    floor=1e-3,
    spread=0.1,
    source="Field and Noyes (1974); Hairer and Wanner, Solving ODEs II, section IV.10",
)

hires_network = network("1>2;2>1;3>1;0>1;2>4;3>4;4>3;5>3;4>6;5>6;6>5;7>5+8;6+8>7;7>6+8;7>8", 8)


def _hires(t, y, k):
    return hires_network(k, y)


HIRES = Problem(
    name="HIRES",
    field=_hires,
    y0=np.array([1.0, 0, 0, 0, 0, 0, 0, 0.0057]),
    args=np.array(
        [1.71, 0.43, 8.32, 7e-4, 8.32, 1.71, 0.43, 0.035, 0.69, 1.71, 0.43, 0.43, 280.0, 0.69, 0.69]
    ),
    t1=321.8122,
    ts=np.append(np.geomspace(1e-2, 250, 12), 321.8122),
    floor=1e-5,
    source="Schäfer (1975); Test Set for IVP Solvers, problem HIRES",
)

e5_network = network("1>2+3;1+3>4;2+3>0;4>3", 4)


def _e5(t, y, k):
    return e5_network(k, y)


E5 = Problem(
    name="E5",
    field=_e5,
    y0=np.array([1.76e-3, 0, 0, 0]),
    args=np.array([7.89e-10, 1.1e7, 1.13e9, 1.13e3]),
    # Published up to 1e11. But y2 - y3 - y4 = 0, and once y4 is far below the others, rounding
    # errors of y2 and y3 decide: at 1e8 no two codes agree to more than six digits.
    t1=1e6,
    ts=np.geomspace(1e-3, 1e6, 10),
    floor=1e-16,  # the second to fourth components stay below 2e-10
    float32=False,
    source="Enright, Hull and Lindberg (1975); Hairer and Wanner, Solving ODEs II, section IV.10",
)

pollu_network = network(
    "1>2+3;2+4>1;5+2>1;7>5+5+8;7>8;7+6>5+8;9>10+5+8;9+6>11;11+2>1+10+12;11+1>13;13>11+1;10+2>14+1;"
    "14>7+5;1+6>15;3>4;4>16;4>3;16>6+6;16>3;17+6>18+5;19>2;19>1+3;1+4>19;19+1>20;20>19+1",
    20,
)


def _pollu(t, y, k):
    return pollu_network(k, y)


POLLU = Problem(
    name="POLLU",
    field=_pollu,
    y0=np.array(
        [0, 0.2, 0, 0.04, 0, 0, 0.1, 0.3, 0.01, 0, 0, 0, 0, 0, 0, 0, 0.007, 0, 0, 0], float
    ),
    args=np.array(
        [0.35, 26.6, 1.23e4, 8.6e-4, 8.2e-4, 1.5e4, 1.3e-4, 2.4e4, 1.65e4, 9e3, 0.022, 1.2e4, 1.88]
        + [1.63e4, 4.8e6, 3.5e-4, 0.0175, 1e8, 4.44e11, 1240.0, 2.1, 5.78, 0.0474, 1780.0, 3.12]
    ),
    t1=60.0,
    ts=np.append(np.geomspace(1e-3, 30, 10), 60.0),
    floor=1e-7,
    source="Verwer (1994), SIAM J. Sci. Comput. 15, 1243; Test Set for IVP Solvers, problem POLLU",
)
