"""The stiff problems of the benchmarks.

Each is a `Problem`: a field `f(t, y, args)` in JAX, whose `args` are its trainable parameters, and
everything that is needed to solve it and to judge an error. Fields are written as one should for
JAX: a reaction network is two gathers and one matrix product, not a stack of scalar expressions.

    from problems import PROBLEMS
    problem = PROBLEMS["Robertson"]
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np

PyTree = Any


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A stiff initial value problem.

    - `field`: f(t, y, args), for `y` of shape `(n,)`; it follows the dtype of `y`.
    - `y0`, `t0`, `t1`, `ts`: start, and the times at which the solution is compared.
    - `args`: the trainable parameters, a PyTree of arrays.
    - `floor`: what counts as zero. An error is |y - reference| / (floor + |reference|), and the
        absolute tolerance of every solver is `rtol * floor`.
    - `bands`: `(lower, upper)` bandwidths of the Jacobian, or None where it is dense.
    - `varies`: what differs between the lanes of a batch. `"args"`: each parameter is multiplied
        by exp(`spread` * normal); `"y0"`: `spread` * normal is added to the start.
    - `float32`: whether single precision can represent it.
    - `source`: where it is published.
    """

    name: str
    field: Callable[[Any, jax.Array, PyTree], jax.Array]
    y0: np.ndarray
    args: PyTree
    t0: float = 0.0
    t1: float
    ts: np.ndarray
    floor: float
    bands: tuple[int, int] | None = None
    varies: str = "args"
    spread: float = 0.2
    float32: bool = True
    source: str

    @property
    def size(self) -> int:
        return len(self.y0)

    def perturb(self, key, lanes: int) -> tuple[np.ndarray, PyTree]:
        """A batch of different problems: `(y0, args)` with a leading axis of `lanes` on the one
        that varies. See `axes` for `vmap`. The first lane is the problem itself."""
        on_first = (np.arange(lanes) > 0).astype(float)

        def noise(key, leaf):
            normal = np.asarray(jr.normal(key, (lanes, *np.shape(leaf))), np.float64)
            return self.spread * normal * on_first.reshape((-1,) + (1,) * np.ndim(leaf))

        if self.varies == "y0":
            return self.y0 + noise(key, self.y0), self.args
        leaves, structure = jtu.tree_flatten(self.args)
        keys = jr.split(key, len(leaves))
        leaves = [leaf * np.exp(noise(k, leaf)) for k, leaf in zip(keys, leaves, strict=True)]
        return self.y0, jtu.tree_unflatten(structure, leaves)

    @property
    def axes(self) -> tuple[int | None, int | None]:
        """The `in_axes` of `(y0, args)` of a batch."""
        return (0, None) if self.varies == "y0" else (None, 0)

    def error(self, ys, reference) -> float:
        """Largest error over saved times and components; inf where `ys` is not finite."""
        errors = np.abs(np.asarray(ys) - reference) / (self.floor + np.abs(reference))
        return float(np.max(errors)) if np.all(np.isfinite(errors)) else float("inf")


@dataclass(frozen=True, eq=False)
class Network:
    """The field of a reaction network: called with `(k, y, *extras)`, it returns dy/dt.

    - `change`: stoichiometry, shape `(species, reactions)`.
    - `used`: the two factors of each rate, shape `(2, reactions)`: indices into (1, y, extras).
    """

    change: np.ndarray
    used: np.ndarray

    def __call__(self, k, y, *extras):
        z = jnp.concatenate([jnp.ones_like(y[:1]), y, *(extra[None] for extra in extras)])
        return jnp.asarray(self.change, y.dtype) @ (k * z[self.used[0]] * z[self.used[1]])


def network(reactions: str, size: int) -> Network:
    """Reads reactions such as `2+3>2+2+1`, separated by `;`, between species `1 ... size` (`0` is
    nothing). The rate is k times the product of at most two reactants. Letters `a`, `b` stand for
    quantities that drive a reaction and are not used up."""
    symbols = ["0", *(str(i + 1) for i in range(size)), "a", "b"]
    sides = [[side.split("+") for side in each.split(">")] for each in reactions.split(";")]
    change, used = np.zeros((size, len(sides))), np.zeros((2, len(sides)), int)
    for column, (reactants, products) in enumerate(sides):
        for sign, side in ((-1, reactants), (1, products)):
            for symbol in side:
                if symbol.isdigit() and symbol != "0":
                    change[int(symbol) - 1, column] += sign
        used[: len(reactants), column] = [symbols.index(symbol) for symbol in reactants]
    return Network(change, used)


# --- chemistry --------------------------------------------------------------------------------


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
HIRES = Problem(
    name="HIRES",
    field=lambda t, y, k: hires_network(k, y),
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
E5 = Problem(
    name="E5",
    field=lambda t, y, k: e5_network(k, y),
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
POLLU = Problem(
    name="POLLU",
    field=lambda t, y, k: pollu_network(k, y),
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

# --- oscillators and a system that overflows ---------------------------------------------------


def van_der_pol(t, y, mu):
    return jnp.stack([y[1], mu * ((1 - y[0] ** 2) * y[1]) - y[0]])


VAN_DER_POL = Problem(
    name="van der Pol",
    field=van_der_pol,
    y0=np.array([2.0, 0.0]),
    args=np.array(1e3),
    t1=2e3,
    ts=np.linspace(0, 2e3, 9)[1:],  # none of them within a jump
    floor=1e-3,
    source="Test Set for IVP Solvers, problem VDPOL, mu = 1e3, one period",
)

K_BEFORE, K_AFTER = -2.2910986, -3.2617188


def issue_368(t, y, p):
    first = jnp.expm1(p[2] - y[0] - y[1]) * jnp.exp(p[0])
    return jnp.stack([first, jnp.expm1(K_AFTER - y[1]) * jnp.exp(p[1])])


ISSUE_368 = Problem(
    name="#368",
    field=issue_368,
    y0=np.array([2.29084657 - K_BEFORE, K_BEFORE]),
    args=np.array([10.02095681, 19.194259, 2.29084657]),
    t1=1e3,
    ts=np.geomspace(1e-9, 1e3, 13),
    floor=1e-3,
    spread=0.1,
    source="https://github.com/patrick-kidger/diffrax/issues/368, after its change of input",
)

# --- a partial differential equation -----------------------------------------------------------


def brusselator(t, y, args):
    a, b, alpha = args[0], args[1], args[2]
    w = y.reshape(-1, 2)
    edge = jnp.asarray([[1.0, 3.0]], y.dtype)
    padded = jnp.concatenate([edge, w, edge])
    spread = alpha * (len(w) + 1) ** 2 * (padded[2:] - 2 * w + padded[:-2])
    u, v = w[:, 0], w[:, 1]
    product = u**2 * v
    reaction = jnp.stack([a + product - (b + 1) * u, b * u - product], axis=1)
    return (reaction + spread).reshape(-1)


def brusselator_of(cells: int) -> Problem:
    x = np.arange(1, cells + 1) / (cells + 1)
    return Problem(
        name=f"Brusselator {2 * cells}",
        field=brusselator,
        y0=np.stack([1 + np.sin(2 * np.pi * x), np.full(cells, 3.0)], axis=1).reshape(-1),
        args=np.array([1.0, 3.0, 1 / 50]),
        t1=10.0,
        ts=np.linspace(0, 10, 11)[1:],
        floor=1e-3,
        bands=(2, 2),
        spread=0.1,
        source="Hairer and Wanner, Solving ODEs II, section IV.10; u and v interleaved",
    )


# --- neural fields -----------------------------------------------------------------------------


def mlp(layers, x):
    """A multilayer perceptron with tanh activations; `layers` are `(weight, bias)`."""
    for weight, bias in layers[:-1]:
        x = jnp.tanh(weight @ x + bias)
    weight, bias = layers[-1]
    return weight @ x + bias


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
    layers = tuple(
        (rng.normal(size=(m, n)) / np.sqrt(n), 0.1 * rng.normal(size=m))
        for n, m in zip(sizes[:-1], sizes[1:], strict=True)
    )

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
        ROBERTSON,
        VAN_DER_POL,
        OREGO,
        HIRES,
        E5,
        POLLU,
        ISSUE_368,
        INSULIN,
        NEURAL,
        brusselator_of(40),
        brusselator_of(200),
        COSTLY,
    )
}
"""By name; the geometric means of the benchmarks are over all of them."""
