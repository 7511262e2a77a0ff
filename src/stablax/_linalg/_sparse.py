"""A Jacobian with few non-zero entries, anywhere."""

from collections.abc import Sequence
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sps
from scipy.sparse.csgraph import reverse_cuthill_mckee

from .._lanes import spread
from .._static import is_traced
from .._words import short
from ._banded import Banded
from ._banded_lu import BandedLU
from ._base import AbstractFactorisation, AbstractJacobian
from ._lu import DenseLU


class _Pattern:
    """Where the entries are, and all that follows from it. Equal by content."""

    def __init__(self, rows: np.ndarray, columns: np.ndarray, size: int):
        # Sorted by row and without duplicates.
        flat = np.unique(rows.astype(np.int64) * size + columns)
        self.rows, self.columns = np.divmod(flat, max(size, 1))
        self.size = size
        self._key = (size, flat.tobytes())
        matrix = sps.coo_array(
            (np.ones(flat.size, bool), (self.rows, self.columns)), shape=(size, size)
        ).tocsc()
        self.colour = _colour(matrix.indptr, matrix.indices)
        # New position i holds old component `order[i]`.
        self.order = np.asarray(reverse_cuthill_mckee(matrix.tocsr(), symmetric_mode=False))
        self.place = np.argsort(self.order)
        offset = self.place[self.columns] - self.place[self.rows]
        self.lower = max(0, -int(offset.min(initial=0)))
        self.upper = max(0, int(offset.max(initial=0)))
        for array in (self.rows, self.columns, self.colour, self.order, self.place):
            array.setflags(write=False)

    def band(self) -> np.ndarray:
        """(lower + upper + 1, n): which stored entry is on that diagonal of the reordered
        matrix; where there is none, one past the last."""
        out = np.full((self.lower + self.upper + 1, self.size), self.rows.size)
        row, column = self.place[self.rows], self.place[self.columns]
        out[column - row + self.lower, row] = np.arange(self.rows.size)
        return out

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return type(other) is _Pattern and self._key == other._key

    def __repr__(self) -> str:
        return f"<{self.rows.size} entries of {self.size} x {self.size}>"


def _colour(starts: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """A colour for each column of a compressed matrix: two columns of one colour share no row.
    Greedy, the columns with the most entries first."""
    size = len(starts) - 1
    rows_of = np.split(indices, starts[1:-1])
    # The colours that each row has seen, as the bits of an integer.
    seen = [0] * size
    colour = np.zeros(size, int)
    for column in np.argsort([-len(rows) for rows in rows_of], kind="stable"):
        taken = 0
        for row in rows_of[column].tolist():
            taken |= seen[row]
        free = ~taken & (taken + 1)
        colour[column] = free.bit_length() - 1
        for row in rows_of[column].tolist():
            seen[row] |= free
    return colour


def _indices(x: Any, name: str, size: int) -> np.ndarray:
    array = np.asarray(x)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise TypeError(
            f"`{name}` of `Sparse((rows, columns, n))` must be a list of integers, got an array "
            f"of dtype {array.dtype} and shape {array.shape}."
        )
    outside = array[(array < 0) | (array >= size)]
    if outside.size:
        raise ValueError(
            f"`{name}` of `Sparse((rows, columns, {size}))` must lie in 0 .. {size - 1}, got "
            f"{int(outside[0])}."
        )
    return array.astype(np.int64)


def _read(pattern: Any) -> _Pattern:
    if is_traced(pattern):
        raise TypeError(
            "`pattern` is a traced array, which cannot be held statically. Build it with numpy, "
            "outside `jit`, `grad` and `vmap`."
        )
    if isinstance(pattern, _Pattern):
        return pattern
    if isinstance(pattern, tuple):
        if len(pattern) != 3 or isinstance(pattern[2], bool) or np.ndim(pattern[2]) != 0:
            raise TypeError(
                "`pattern` as a tuple is `(rows, columns, n)`, with two lists of indices and the "
                f"number of components; got {len(pattern)} entries."
            )
        size = pattern[2]
        if not isinstance(size, int | np.integer):
            raise TypeError(
                f"`n` of `Sparse((rows, columns, n))` must be an integer, got {short(size)}."
            )
        if size < 1:
            raise ValueError(f"`n` of `Sparse((rows, columns, n))` must be >= 1, got {size}.")
        rows = _indices(pattern[0], "rows", int(size))
        columns = _indices(pattern[1], "columns", int(size))
        if rows.size != columns.size:
            raise ValueError(
                "`rows` and `columns` of `Sparse((rows, columns, n))` belong together: got "
                f"{rows.size} and {columns.size} of them."
            )
        return _Pattern(rows, columns, int(size))
    if sps.issparse(pattern):
        shape = pattern.shape
        # Explicitly stored zeros are entries of the pattern.
        entries = pattern.tocoo()
        found = (entries.row, entries.col) if len(shape) == 2 else ((), ())
    else:
        array = np.asarray(pattern)
        shape = array.shape
        if not (array.dtype == bool or np.issubdtype(array.dtype, np.number)):
            raise TypeError(
                "`pattern` must be a boolean (n, n) array, a scipy sparse matrix or a tuple "
                f"(rows, columns, n), got {type(pattern).__name__}."
            )
        found = np.nonzero(array) if array.ndim == 2 else ((), ())
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 1:
        raise ValueError(
            "`pattern` must be square, one row and one column for each component of the state; "
            f"got shape {shape}."
        )
    return _Pattern(np.asarray(found[0]), np.asarray(found[1]), int(shape[0]))


@final
class Sparse(AbstractJacobian):
    """A Jacobian whose non-zero entries are known in advance.

    For a large reaction network, or a partial differential equation in two dimensions: each
    component depends on few others, but not on its neighbours in the state. Where it does, use
    [`Banded`][].

    The Jacobian costs one forward-mode column for each *colour*: columns that share no row are
    computed together (see `colours`). To factorise, components are reordered so that the
    entries lie in a band (reverse Cuthill-McKee; see `bands`), which is solved as by
    [`Banded`][], in O(n b^2) for b diagonals on its wider side; if it is nearly as wide as the
    matrix, as a full one ([`DenseLU`][]), in O(n^3).

    **Arguments:**

    - `pattern`: entry (i, j) says whether dy_i/dt depends on y_j. A boolean array (n, n) (of
        another array, the non-zero entries count), a scipy sparse matrix (all stored entries
        count), or `(rows, columns, n)` with two lists of indices. The diagonal need not be given
        where it is zero.

    A missing entry is not noticed: its derivative is added to another entry, or lost. Use
    [`check_jacobian`][] once. An entry too many costs time only.

    **Raises:** `TypeError` if `pattern` is none of these or is traced, `ValueError` if it is not
    square or an index is outside; in a solve, `ValueError` if it has another size than the
    state.
    """

    pattern: _Pattern = eqx.field(static=True)

    def __init__(self, pattern: Any | tuple[Sequence[int], Sequence[int], int]):
        self.pattern = _read(pattern)

    @property
    def colours(self) -> int:
        """How many forward-mode columns the Jacobian takes."""
        return int(self.pattern.colour.max()) + 1

    @property
    def bands(self) -> tuple[int, int]:
        """How many diagonals the reordered Jacobian has below and above the main one."""
        return self.pattern.lower, self.pattern.upper

    def check(self, size: int) -> None:
        if size != self.pattern.size:
            n = self.pattern.size
            raise ValueError(
                f"`Sparse(pattern)`: the pattern is {n} x {n}, but the state has {size} "
                "components. Rows and columns are the components in the order of the ravelled "
                "state (`jax.flatten_util.ravel_pytree`)."
            )

    # J is stored as its entries, (entries,), sorted by row.

    def linearise(self, fn, y):
        value, push = jax.linearize(fn, y)
        colour = self.pattern.colour
        seeds = spread(jnp.asarray(colour == np.arange(self.colours)[:, None], y.dtype), y)
        columns = jax.vmap(push)(seeds)
        return value, columns[colour[self.pattern.columns], self.pattern.rows]

    def as_matrix(self, stored):
        at = self.pattern.rows, self.pattern.columns
        full = jnp.zeros((self.pattern.size, self.pattern.size), stored.dtype)
        return full.at[at].set(stored, unique_indices=True)

    def multiply(self, stored, x):
        return jax.ops.segment_sum(
            stored * x[self.pattern.columns],
            self.pattern.rows,
            self.pattern.size,
            indices_are_sorted=True,
        )

    def scale(self, stored, factor):
        return factor * stored

    @property
    def factorisation(self) -> "ReorderedLU":
        return ReorderedLU(self.pattern)


@final
class ReorderedLU(AbstractFactorisation):
    """Of a [`Sparse`][] matrix with its components reordered: `BandedLU`, or [`DenseLU`][]."""

    pattern: _Pattern = eqx.field(static=True)

    def factorise(self, jacobian, shift, stored):
        if self._is_dense:
            return DenseLU().factorise(jacobian, shift, stored)
        entries = jnp.concatenate([stored, jnp.zeros_like(stored, shape=(1,))])
        band = Banded(self.pattern.lower, self.pattern.upper)
        return self._banded.factorise(band, shift, entries[self.pattern.band()])

    def apply(self, factors, b, *, transpose):
        if self._is_dense:
            return DenseLU().apply(factors, b, transpose=transpose)
        x = self._banded.apply(factors, b[self.pattern.order], transpose=transpose)
        return x[self.pattern.place]

    def is_singular(self, factors):
        return (DenseLU() if self._is_dense else self._banded).is_singular(factors)

    @property
    def _banded(self) -> BandedLU:
        return BandedLU(self.pattern.lower, self.pattern.upper)

    @property
    def _is_dense(self) -> bool:
        return self._banded.is_dense(self.pattern.size)
