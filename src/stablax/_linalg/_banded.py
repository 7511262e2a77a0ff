"""A Jacobian that couples neighbours only."""

import operator
from functools import reduce
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._lanes import spread
from .._words import short
from ._banded_lu import BandedLU, shifted
from ._base import AbstractJacobian


def _count(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"`{name}` must be an integer >= 0, got {short(value)}.")
    if value < 0:
        raise ValueError(f"`{name}` is a number of diagonals and must be >= 0, got {value}.")
    return int(value)


@final
class Banded(AbstractJacobian):
    """A Jacobian with `J[i, j] = 0` for `j < i - lower` and for `j > i + upper`.

    For a field in which each component depends on its neighbours only: a partial differential
    equation in one dimension, a chain of compartments. With several species per cell, order the
    components cell by cell (`u0, v0, u1, v1, ...`), not species by species: two species with
    nearest-neighbour diffusion are then `Banded(2, 2)`.

    The Jacobian costs `lower + upper + 1` forward-mode columns instead of n, and a factorisation
    or a solve O(n): LU within the band, with partial pivoting, of the matrix with rows and
    columns scaled to one (units do not decide the pivots). Where n is small or the band wide,
    so that the full matrix is as fast, it is factorised as a full one ([`DenseLU`][]).

    Elimination goes from row to row: it compiles to a tight loop on a CPU, but on a GPU each row
    is a launch, which only a large batch makes up for.

    **Arguments:**

    - `lower`, `upper`: how many diagonals below and above the main one may be non-zero.

    An entry outside the band is not noticed: its derivative is added to an entry inside. Use
    [`check_jacobian`][] once.

    **Raises:** `TypeError` if `lower` or `upper` is no integer, `ValueError` if it is negative;
    in a solve, `ValueError` if the state has no more than `lower` or `upper` components.
    """

    lower: int = eqx.field(static=True)
    upper: int = eqx.field(static=True)

    def __init__(self, lower: int, upper: int):
        self.lower = _count(lower, "lower")
        self.upper = _count(upper, "upper")

    @property
    def width(self) -> int:
        """The number of diagonals."""
        return self.lower + self.upper + 1

    @property
    def factorisation(self) -> BandedLU:
        return BandedLU(self.lower, self.upper)

    def check(self, size: int) -> None:
        for name, value in (("lower", self.lower), ("upper", self.upper)):
            if value >= size:
                raise ValueError(
                    f"`Banded({self.lower}, {self.upper})`: a state of {size} components has at "
                    f"most {size - 1} diagonals on either side, got {name}={value}. Lower it, or "
                    "use `Dense()`."
                )

    # J is stored as its diagonals: `stored[k, i] = J[i, i + k - lower]`, 0 outside the matrix.

    def linearise(self, fn, y):
        value, push = jax.linearize(fn, y)
        size, width = y.size, self.width
        # Columns `width` apart share no row: the sum of each such set comes from one product.
        colour = np.arange(size) % width
        seeds = spread(jnp.asarray(colour == np.arange(width)[:, None], y.dtype), y)
        columns = jax.vmap(push)(seeds)
        column = np.arange(size) + np.arange(-self.lower, self.upper + 1)[:, None]
        stored = columns[column % width, np.arange(size)]
        return value, jnp.where((column >= 0) & (column < size), stored, 0)

    def as_matrix(self, stored):
        size = stored.shape[1]
        row = np.arange(size)
        column = row + np.arange(-self.lower, self.upper + 1)[:, None]
        # Beyond the matrix, the diagonals fall into columns that are cut off.
        full = jnp.zeros((size, size + self.width - 1), stored.dtype)
        full = full.at[row, column + self.lower].set(stored, unique_indices=True)
        return full[:, self.lower : self.lower + size]

    def scale(self, stored, factor):
        return factor * stored

    def multiply(self, stored, x):
        return _multiply(stored, x, self.lower)


def _multiply(diagonals: Float[Array, "width n"], x: Array, lower: int) -> Array:
    neighbours = shifted(x, lower, len(diagonals) - 1 - lower)
    return reduce(operator.add, [row * y for row, y in zip(diagonals, neighbours, strict=True)])
