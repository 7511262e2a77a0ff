"""`Problem`: a field with all that is needed to solve it, and its solution."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files

import jax
import jax.random as jr
import jax.tree_util as jtu
import numpy as np

from .._types import Args, ScalarLike

_STORED = json.loads(files("stablax.problems").joinpath("references.json").read_text())


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """An initial value problem with its solution.

    **Attributes:**

    - `name`: its usual name.
    - `field`: f(t, y, args), for `y` of shape `(n,)`; it follows the dtype of `y`.
    - `y0`, `t0`, `t1`, `ts`: start and end, and the times at which the solution is compared; `y0`
        of shape `(n,)`, `ts` of shape `(times,)`.
    - `args`: its parameters, a PyTree of arrays.
    - `reference`: the solution at `ts`, shape `(times, n)`; of problems without a closed form from
        `references.json`, made by `benchmarks/references.py`: scipy's Radau at rtol 1e-12, compared
        with two other codes.
    - `floor`: what counts as zero. An error is |y - reference| / (floor + |reference|), and the
        absolute tolerance of every solver is `rtol * floor`.
    - `bands`: `(lower, upper)` bandwidths of the Jacobian, or None where it is dense.
    - `mass`: M of M dy/dt = f, for `Rodas5P(mass=...)`: a matrix, or its diagonal; None where it is
        the identity.
    - `varies`: what differs between the lanes of a batch. `"args"`: each parameter is multiplied
        by exp(`spread` * normal); `"y0"`: `spread` * normal is added to the start.
    - `float32`: whether single precision can represent it.
    - `source`: where it is published.
    """

    name: str
    field: Callable[[ScalarLike, jax.Array, Args], jax.Array]
    y0: np.ndarray
    args: Args
    t0: float = 0.0
    t1: float
    ts: np.ndarray
    reference: np.ndarray = None  # pyright: ignore[reportAssignmentType]
    floor: float
    bands: tuple[int, int] | None = None
    mass: np.ndarray | None = None
    varies: str = "args"
    spread: float = 0.2
    float32: bool = True
    source: str

    def __post_init__(self):
        missing = self.reference is None  # pyright: ignore[reportUnnecessaryComparison]
        if missing and self.name in _STORED:
            object.__setattr__(self, "reference", np.array(_STORED[self.name]["ys"]))

    @property
    def size(self) -> int:
        """How many components."""
        return len(self.y0)

    def perturb(self, key, lanes: int) -> tuple[np.ndarray, Args]:
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

    def error(self, ys, reference=None) -> float:
        """Largest error of `ys`, shape `(times, n)`, over times and components, against the
        reference (its own, or another); inf where `ys` is not finite."""
        reference = self.reference if reference is None else reference
        errors = np.abs(np.asarray(ys) - reference) / (self.floor + np.abs(reference))
        return float(np.max(errors)) if np.all(np.isfinite(errors)) else float("inf")
