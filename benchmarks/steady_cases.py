"""The cases of `steady_state.py`: fields, random starts and parameters, and the truth.

The truth is in closed form, or the state that the dynamics reach: integrated tightly by scipy's
Radau, then polished by Newton's method in numpy (which must not move it).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from problems import INSULIN, insulin_network
from scipy.integrate import solve_ivp

import stablax as sx


@dataclass(frozen=True, kw_only=True)
class Case:
    """Many searches for a steady state of one field `f(t, y, args)`.

    - `y0`: starts, `(samples, n)`; `args`: a PyTree with a leading axis of samples.
    - `conserved`: rows L, or None.
    - `positive`: whether states are concentrations.
    - `truth`: `(samples, n)`. Right is what agrees with it to `1e-6` in each component, relative
        to the component, or to `floor` where that is larger.
    """

    name: str
    field: Callable
    y0: np.ndarray
    args: Any
    conserved: np.ndarray | None = None
    positive: bool = False
    truth: np.ndarray
    floor: float = 1e-6

    @property
    def samples(self) -> int:
        return len(self.y0)

    @property
    def guarded(self) -> Callable:
        """The field as one would give it to stablax."""
        return sx.Guarded(self.field, sx.Guard(0.0)) if self.positive else self.field

    def right(self, ys) -> np.ndarray:
        """Which of the states `(samples, n)` are those of the truth."""
        return self.right_of(ys, self.samples)

    def right_of(self, ys, lanes: int) -> np.ndarray:
        """`right`, of the first `lanes` samples."""
        truth = self.truth[:lanes]
        error = np.abs(np.asarray(ys) - truth) / (np.abs(truth) + self.floor)
        return np.all(error < 1e-6, axis=1)

    def first(self, samples: int) -> "Case":
        """This case with fewer samples."""
        cut = lambda x: x[:samples]
        args = jax.tree.map(cut, self.args)
        return dataclasses.replace(self, y0=cut(self.y0), args=args, truth=cut(self.truth))


def reached(field: Callable, y0, args, conserved=None, horizon: float = 1e9) -> np.ndarray:
    """The steady states that the dynamics reach, `(samples, n)`."""
    n = y0.shape[1]
    rows = np.zeros((0, n)) if conserved is None else np.asarray(conserved, float)
    projector = np.linalg.pinv(rows) @ rows if len(rows) else np.zeros((n, n))
    value = jax.jit(lambda y, args: field(0.0, y, args))
    slope = jax.jit(jax.jacfwd(lambda y, args: field(0.0, y, args)))
    states = []
    for i, start in enumerate(y0):
        here = jax.tree.map(lambda x, i=i: x[i], args)
        solution = solve_ivp(
            lambda t, y, here=here: np.asarray(value(y, here)),
            (0.0, horizon),
            start,
            method="Radau",
            jac=lambda t, y, here=here: np.asarray(slope(y, here)),
            rtol=1e-7,
            atol=1e-11,
        )
        y = solution.y[:, -1]
        for _ in range(4):
            residual = np.asarray(value(y, here)) - projector @ (y - start)
            y = y - np.linalg.solve(np.asarray(slope(y, here)) - projector, residual)
        moved = np.abs(y - solution.y[:, -1]) / (np.abs(y) + 1e-6)
        if not (solution.success and moved.max() < 1e-3):
            raise RuntimeError(f"sample {i}: the polished state is not the one that was reached")
        states.append(y)
    return np.array(states)


# --- fields -----------------------------------------------------------------------------------

K_368 = -2.2910986
K_44 = -3.8184977


def issue_368(t, y, p):
    first = jnp.expm1(p[2] - y[0] - y[1]) * jnp.exp(p[0])
    return jnp.stack([first, jnp.expm1(K_368 - y[1]) * jnp.exp(p[1])])


def issue_44(t, y, p):
    first = jnp.exp(p[2] - y[0] - y[1] + p[0]) - jnp.exp(p[0])
    return jnp.stack([first, jnp.exp(K_44 - y[1] + p[1]) - jnp.exp(p[1])])


def switch(t, y, args):
    """Bistable: stable at 0.18350342 and 1.81649658, with the ridge at 1/3 between them."""
    return 0.05 + y**2 / (1 + y**2) - 0.45 * y


def toggle(t, y, args):
    """Two genes that repress each other (Gardner, Cantor and Collins 2000), unequally; bistable."""
    return (
        jnp.array([4.0, 3.5]) / (1 + y[::-1] ** jnp.array([2.0, 2.5])) - jnp.array([1.0, 0.8]) * y
    )


def insulin_at_rest(t, y, k):
    return insulin_network(k, y, jnp.zeros_like(y[8]), y[8] / (1 + y[8]))


INSULIN_ROWS = np.array([[1] * 5 + [0] * 4, [0] * 5 + [1, 1, 0, 0], [0] * 7 + [1, 1]], float)


def mass_action(species: int, reactions: int, seed: int) -> tuple[Callable, np.ndarray]:
    """A random reversible network that conserves mass, and its stoichiometry.

    Species are made of 1 to 3 units; A <-> B, A + B <-> C and A + B <-> C + D keep the units, with
    rate constants over four orders of magnitude. Every species takes part."""
    rng = np.random.default_rng(seed)
    units = np.concatenate([[1, 1, 2], rng.integers(1, 4, species - 3)])
    sides: list[tuple[list[int], list[int]]] = []
    while len(sides) < reactions or len({s for pair in sides for x in pair for s in x}) < species:
        left = list(rng.choice(species, rng.integers(1, 3), replace=False))
        right = list(rng.choice(species, rng.integers(1, 3), replace=False))
        if units[left].sum() == units[right].sum() and not set(left) & set(right):
            sides.append((left, right))
    both = [pair for a, b in sides for pair in ((a, b), (b, a))]
    change, used = np.zeros((species, len(both))), np.zeros((2, len(both)), int)
    for column, (left, right) in enumerate(both):
        np.add.at(change[:, column], left, -1)
        np.add.at(change[:, column], right, 1)
        used[: len(left), column] = np.array(left) + 1
    constants = 10 ** rng.uniform(-2, 2, len(both))

    def field(t, y, args):
        z = jnp.concatenate([jnp.ones_like(y[:1]), y])
        return jnp.asarray(change, y.dtype) @ (constants * z[used[0]] * z[used[1]])

    return field, change


# --- cases ------------------------------------------------------------------------------------


def make_368(samples: int = 200) -> Case:
    rng = np.random.default_rng(368)
    p = rng.uniform([-10, 5, -5], [20, 20, 5], (samples, 3))
    truth = np.stack([p[:, 2] - K_368, np.full(samples, K_368)], axis=1)
    y0 = rng.uniform(-5, 5, (samples, 2))
    return Case(name="#368", field=issue_368, y0=y0, args=p, truth=truth)


def make_44(samples: int = 200) -> Case:
    y0 = np.random.default_rng(44).uniform(-50, 50, (samples, 2))
    p = np.tile([3.0, 5.0, 1.0], (samples, 1))
    truth = np.tile([1 - K_44, K_44], (samples, 1))
    return Case(name="optimistix #44", field=issue_44, y0=y0, args=p, truth=truth)


def make_switch(samples: int = 200) -> Case:
    y0 = 10 ** np.random.default_rng(1).uniform(-2, 1, (samples, 1))
    truth = np.where(y0 < 1 / 3, *switch_states())
    none = np.zeros((samples, 0))
    return Case(name="switch", field=switch, y0=y0, args=none, positive=True, truth=truth)


def switch_states() -> np.ndarray:
    """The stable ones, from (y - 1/3) (0.45 y^2 - 0.9 y + 0.15) = 0."""
    return np.sort(np.roots([0.45, -0.9, 0.15]))


def make_toggle(samples: int = 200) -> Case:
    y0 = np.random.default_rng(2).uniform(0, 5, (samples, 2))
    none = np.zeros((samples, 0))
    truth = reached(toggle, y0, none)
    return Case(name="toggle", field=toggle, y0=y0, args=none, positive=True, truth=truth)


def make_insulin(samples: int = 200) -> Case:
    rng = np.random.default_rng(3)
    k = INSULIN.args * np.exp(np.log(3) * rng.normal(size=(samples, 14)))
    y0 = np.tile([10.0, 0, 0, 0, 0, 10, 0, 10, 0], (samples, 1))
    truth = reached(insulin_at_rest, y0, k, INSULIN_ROWS)
    return Case(
        name="insulin",
        field=insulin_at_rest,
        y0=y0,
        args=k,
        conserved=INSULIN_ROWS,
        positive=True,
        truth=truth,
        floor=1e-9,
    )


def make_network(species: int, samples: int = 60) -> Case:
    field, change = mass_action(species, 2 * species, seed=species)
    y0 = np.random.default_rng(4).uniform(0, 2, (samples, species))
    none = np.zeros((samples, 0))
    rows = np.linalg.svd(change)[0][:, np.linalg.matrix_rank(change) :].T
    truth = reached(field, y0, none, rows, horizon=1e6)
    return Case(
        name=f"{species} species",
        field=field,
        y0=y0,
        args=none,
        conserved=rows,
        positive=True,
        truth=truth,
    )


CASES: dict[str, Callable[[], Case]] = {
    "#368": make_368,
    "optimistix #44": make_44,
    "insulin": make_insulin,
    "switch": make_switch,
    "toggle": make_toggle,
    "10 species": lambda: make_network(10),
    "50 species": lambda: make_network(50),
}
