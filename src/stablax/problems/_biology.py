"""Cell biology: insulin signalling, a bistable switch."""

import jax.numpy as jnp
import numpy as np

from ._network import network
from ._problem import Problem

insulin_network = network(
    "1+a>2;1>2;2>1;2>3;3>4;4>5;4+b>5;3>1;5>1;6+3>7+3;6+4>7+4;8+7>9+7;7>6;9>8", 9
)
INSULIN_DOSE = 100.0


def insulin(t, y, k):
    return insulin_network(k, y, jnp.full_like(y[8], INSULIN_DOSE), y[8] / (1 + y[8]))


INSULIN = Problem(
    name="insulin",
    field=insulin,
    # The steady state without insulin.
    y0=np.array(
        [9.949794195404584, 0.017309734921620194, 1.756055064497773e-09, 1.1141616284365785e-05]
        + [0.03288492630145642, 9.867250892338387, 0.1327491076616142, 9.999842362919637]
        + [0.00015763708036408376]
    ),
    # The constant of the eleventh reaction is published relative to that of the tenth.
    args=np.array(
        [0.177, 3.93e-4, 0.175, 0.0509, 5e5, 1e-6, 5e5, 1730.0, 0.0267, 2.1, 2.1 * 667.0]
        + [4.94e-5, 1.16, 0.416]
    ),
    t1=30.0,  # minutes
    ts=np.append(np.geomspace(1e-3, 15, 12), 30.0),
    floor=1e-6,
    source="Brännmark et al. (2010), J. Biol. Chem. 285, 20171: 100 nM of insulin at rest",
)


def switch(t, y, args):
    basal, degradation = args[0], args[1]
    return basal + y**2 / (1 + y**2) - degradation * y


SWITCH = Problem(
    name="switch",
    field=switch,
    # One on each side of the ridge at 1/3; the stable states are 0.18350342 and 1.81649658.
    y0=np.array([0.32, 0.35]),
    args=np.array([0.05, 0.45]),
    t1=100.0,
    ts=np.array([1.0, 3.0, 10.0, 20.0, 30.0, 40.0, 60.0, 100.0]),
    floor=1e-3,
    varies="y0",
    spread=0.01,
    source="Lewis, Slack and Wolpert (1977), J. Theor. Biol. 65, 579; Strogatz, Nonlinear Dynamics "
    "and Chaos, exercise 3.7.5",
)
