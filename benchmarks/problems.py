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
    )
}
"""By name; the geometric means of the benchmarks are over all of them."""
