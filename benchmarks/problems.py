"""The problems of the benchmarks: those of `stablax.problems`, and larger ones.

from problems import PROBLEMS
problem = PROBLEMS["Robertson"]
"""

import jax.numpy as jnp
import numpy as np

from stablax import problems
from stablax.problems import Problem, brusselator_of
from stablax.problems._biology import INSULIN_DOSE as INSULIN_DOSE
from stablax.problems._neural import mlp, random_layers
from stablax.problems._oscillators import K_AFTER as K_AFTER

INSULIN, NETWORKS = problems.INSULIN, problems.NETWORKS
insulin_network = NETWORKS["insulin"]


def neural(name, seed, size, width, depth, decays, waves, t1, source) -> Problem:
    """dy/dt = MLP(y) + A y. The eigenvalues of A are `-decays`, and -0.1 +- i w for w of `waves`;
    its eigenvectors are random and orthogonal."""
    rng = np.random.default_rng(seed)
    normal_form = np.diag(np.concatenate([-np.asarray(decays), np.full(2 * len(waves), -0.1)]))
    for j, wave in enumerate(waves):
        k = len(decays) + 2 * j
        normal_form[k, k + 1], normal_form[k + 1, k] = wave, -wave
    basis, _ = np.linalg.qr(rng.normal(size=(size, size)))
    linear = basis @ normal_form @ basis.T
    sizes = [size, *[width] * depth, size]
    layers = random_layers(rng, sizes)

    def field(t, y, layers):
        return mlp(layers, y) + jnp.asarray(linear, y.dtype) @ y

    field.linear = linear
    return Problem(
        name=name,
        field=field,
        y0=rng.normal(size=size),
        args=layers,
        t1=t1,
        ts=np.append(np.geomspace(1e-5, 1e-1, 5) * t1, np.linspace(0.2, 1, 5) * t1),
        floor=1e-2,
        varies="y0",
        spread=0.5,
        source=source,
    )


NEURAL = neural(
    "neural", 0, 8, 32, 2, [1e4, 1e3, 1e2, 10.0], [2.0, 1.0], 10.0, "this file: an MLP of width 32"
)
COSTLY = neural(
    "costly neural",
    1,
    50,
    512,
    3,
    np.geomspace(1e4, 1.0, 40),
    np.geomspace(0.5, 5.0, 5),
    2.0,
    "this file: an MLP of width 512 and depth 3, 50 states",
)


# --- three that no part of stablax was tuned on


def _akzo_nobel(t, y, k):
    """The 6th species is in equilibrium with the 1st and the 4th."""
    root = jnp.sqrt(y[1])
    r1 = k[0] * y[0] ** 4 * root
    r2 = k[1] * y[2] * y[3]
    r3 = k[1] / k[4] * y[0] * y[4]
    r4 = k[2] * y[0] * y[3] ** 2
    r5 = k[3] * (k[6] * y[0] * y[3]) ** 2 * root
    inflow = k[5] * (k[7] / k[8] - y[1])
    return jnp.stack(
        [
            -2 * r1 + r2 - r3 - r4,
            -0.5 * r1 - r4 - 0.5 * r5 + inflow,
            r1 - r2 + r3,
            -r2 + r3 - 2 * r4,
            r2 - r3 + r5,
        ]
    )


AKZO_NOBEL = Problem(
    name="chemical Akzo Nobel",
    field=_akzo_nobel,
    y0=np.array([0.444, 0.00123, 0.0, 0.007, 0.0]),
    args=np.array([18.7, 0.58, 0.09, 0.42, 34.4, 3.3, 115.83, 0.9, 737.0]),
    t1=180.0,
    ts=np.append(np.geomspace(1e-2, 30.0, 8), np.linspace(60.0, 180.0, 4)),
    floor=1e-5,
    source="W. Stortelder (1998), in Mazzia and Magherini, Test Set for IVP Solvers, 2.4 (2008)",
)


def _field_noyes(t, y, k):
    """Scaled as by Tyson."""
    fast, slow, q, f = k[0], k[1], k[2], k[3]
    bromous = (q * y[1] - y[0] * y[1] + y[0] * (1 - y[0])) / fast
    bromide = (-q * y[1] - y[0] * y[1] + f * y[2]) / slow
    return jnp.stack([bromous, bromide, y[0] - y[2]])


FIELD_NOYES = Problem(
    name="Field-Noyes",
    field=_field_noyes,
    y0=np.array([0.1, 0.5, 0.2]),
    args=np.array([9.9e-3, 1.98e-5, 7.62e-5, 1.0]),
    t1=20.0,
    ts=np.linspace(0.0, 20.0, 13)[1:],
    floor=1e-4,
    spread=0.05,
    source="Field and Noyes (1974), scaled and with the constants of Tyson (1985), in Field and "
    "Burger (ed.), Oscillations and traveling waves in chemical systems",
)


def _mapk(t, y, k):
    """Ten rate laws of Michaelis and Menten, each a scalar: what one writes down from the paper."""
    first = k[0] * y[0] / ((1 + y[7] / k[1]) * (k[2] + y[0]))
    second = k[3] * y[1] / (k[4] + y[1])
    turned = [k[5] * y[1] * y[i] / (k[6] + y[i]) for i in (2, 3)]
    back = [k[7] * y[i] / (k[8] + y[i]) for i in (4, 3)]
    last = [k[5] * y[4] * y[i] / (k[6] + y[i]) for i in (5, 6)]
    lost = [k[9] * y[i] / (k[8] + y[i]) for i in (7, 6)]
    return jnp.stack(
        [
            second - first,
            first - second,
            back[1] - turned[0],
            turned[0] + back[0] - turned[1] - back[1],
            turned[1] - back[0],
            lost[1] - last[0],
            last[0] + lost[0] - last[1] - lost[1],
            last[1] - lost[0],
        ]
    )


MAPK = Problem(
    name="MAPK cascade",
    field=_mapk,
    y0=np.array([90.0, 10.0, 280.0, 10.0, 10.0, 280.0, 10.0, 10.0]),
    args=np.array([2.5, 9.0, 10.0, 0.25, 8.0, 0.025, 15.0, 0.75, 15.0, 0.5]),
    t1=3600.0,
    ts=np.linspace(0.0, 3600.0, 13)[1:],
    floor=1e-1,
    spread=0.05,
    source="Kholodenko (2000), Eur. J. Biochem. 267, 1583, table 2",
)

UNTUNED = ("chemical Akzo Nobel", "Field-Noyes", "MAPK cascade")

PROBLEMS: dict[str, Problem] = {
    problem.name: problem
    for problem in (
        problems.ROBERTSON,
        problems.VAN_DER_POL,
        problems.OREGO,
        problems.HIRES,
        problems.E5,
        problems.POLLU,
        problems.ISSUE_368,
        INSULIN,
        NEURAL,
        problems.BRUSSELATOR,
        brusselator_of(200),
        COSTLY,
        AKZO_NOBEL,
        FIELD_NOYES,
        MAPK,
    )
}
"""By name. The tables are of all but `UNTUNED`, which have their own."""
