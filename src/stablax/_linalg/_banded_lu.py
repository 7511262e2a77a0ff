"""LU within a band."""

from functools import reduce
from typing import NamedTuple, final

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._lanes import spread
from ._base import AbstractFactorisation
from ._lu import DenseLU, inverse_scale

# Measured (`benchmarks/linear_algebra.py`): up to this size a full factorisation is as fast, with
# few diagonals on a side and with more; and in any case up to so many times the diagonals.
_DENSE_NARROW, _NARROW, _DENSE_WIDE, _DENSE_TIMES = 16, 3, 128, 4

# A pivot below so many units of rounding of the largest is none.
_PIVOT_ULPS = 4

_UNROLLED = 4  # diagonals below the main one up to which the search for a pivot is unrolled


class _Factors(NamedTuple):
    """Of `rows * W * columns`, for W = shift I - J. Those of a small W are `DenseLU`'s instead."""

    lower: Float[Array, "n 2*lower+1"]  # of each step: what was exchanged, multipliers, 1 / pivot
    upper: Float[Array, "n lower+upper"]  # rows of U to the right of its unit diagonal
    rows: Float[Array, " n"]
    columns: Float[Array, " n"]
    is_singular: Bool[Array, ""]


@final
class BandedLU(AbstractFactorisation):
    """Of a [`Banded`][] matrix: LU within the band, with partial pivoting, of the matrix with rows
    and columns scaled to one; in O(n). Where n is small or the band wide, so that the full matrix
    is as fast, as by [`DenseLU`][].

    **Arguments:**

    - `lower`, `upper`: the diagonals below and above the main one.
    """

    lower: int = eqx.field(static=True)
    upper: int = eqx.field(static=True)

    def is_dense(self, size: int) -> bool:
        """Whether a full factorisation is as fast for a state of `size` components."""
        side = max(self.lower, self.upper)
        usual = _DENSE_NARROW if side <= _NARROW else _DENSE_WIDE
        return size <= max(usual, _DENSE_TIMES * side)

    def factorise(self, jacobian, shift, stored):
        if self.is_dense(stored.shape[1]):
            return DenseLU().factorise(jacobian, shift, stored)
        diagonals = jnp.concatenate(
            [-stored[: self.lower], shift - stored[self.lower, None], -stored[self.lower + 1 :]]
        )
        rows = inverse_scale(jnp.max(jnp.abs(diagonals), axis=0))
        scaled = rows[None] * diagonals
        largest = reduce(jnp.maximum, self._by_column(jnp.abs(scaled)))
        columns = inverse_scale(largest)
        scaled = scaled * jnp.stack(shifted(columns, self.lower, self.upper))
        lower, upper = self._eliminate(scaled.T)
        pivots = jnp.abs(1 / lower[:, -1])
        least = _PIVOT_ULPS * jnp.finfo(pivots.dtype).eps * jnp.max(pivots)
        return _Factors(lower, upper, rows, columns, ~jnp.all(pivots > least))

    def apply(self, factors, b, *, transpose):
        if not isinstance(factors, _Factors):
            return DenseLU().apply(factors, b, transpose=transpose)
        if transpose:
            return factors.rows * self._solve_transposed(factors, factors.columns * b)
        return factors.columns * self._solve(factors, factors.rows * b)

    def is_singular(self, factors):
        if not isinstance(factors, _Factors):
            return DenseLU().is_singular(factors)
        return factors.is_singular

    # LU, row by row. Step k looks at rows k .. k + lower, of which it exchanges one with row k.
    # Loop bodies are as small as can be, with few arrays: XLA then compiles the loop as a whole,
    # and a step takes nanoseconds.

    def _eliminate(self, matrix: Float[Array, "n width"]) -> tuple[Array, Array]:
        size = self.lower
        # The columns of a row in the window start at column k: the first rows lack some.
        first = [jnp.pad(matrix[i, size - i :], (0, size - i)) for i in range(size)]
        window = jnp.stack(first) if first else matrix[:0]

        def step(window, new):
            rows = jnp.concatenate([window, new[None]])
            exchanged, rows = _exchange_by_pivot(rows)
            inverse = 1 / rows[0, :1]
            top = rows[0, 1:] * inverse
            window = jnp.pad(rows[1:, 1:] - rows[1:, :1] * top[None], ((0, 0), (0, 1)))
            return window, jnp.concatenate([exchanged, rows[1:, 0], inverse, top])

        # Rows beyond the last are 0 and never pivots.
        _, out = lax.scan(step, window, jnp.pad(matrix[size:], ((0, size), (0, 0))))
        return out[:, : 2 * size + 1], out[:, 2 * size + 1 :]

    def _solve(self, factors: _Factors, b: Array) -> Array:
        size = self.lower

        def forward(window, at):
            step, new = at
            rows = _exchange(step[:size], jnp.concatenate([window, new[None]]))
            value = rows[0] * step[-1]
            return rows[1:] - step[size:-1] * value, value

        def backward(after, at):
            row, value = at
            value = value - jnp.sum(row * after)
            return jnp.concatenate([value[None], after])[:-1], value

        _, x = lax.scan(
            forward, spread(b[:size], factors), (factors.lower, jnp.pad(b[size:], (0, size)))
        )
        return self._sweep(backward, factors, x, reverse=True)

    def _solve_transposed(self, factors: _Factors, b: Array) -> Array:
        size = self.lower

        def forward(known, at):
            # What rows above contribute to this and the next ones.
            row, value = at
            known = jnp.pad(known, (0, 1))
            value = value - known[0]
            return known[1:] + row * value, value

        def backward(window, at):
            step, value = at
            value = (value - jnp.sum(step[size:-1] * window)) * step[-1]
            rows = _exchange(step[:size], jnp.concatenate([value[None], window]), undo=True)
            return rows[:-1], rows[-1]

        x = self._sweep(forward, factors, b, reverse=False)
        # A row is final when it leaves the window, `lower` steps after it was reached.
        start = spread(jnp.zeros(size, b.dtype), factors, x)
        first, rest = lax.scan(backward, start, (factors.lower, x), reverse=True)
        return jnp.concatenate([first, rest[: b.size - size]])

    def _sweep(self, step, factors: _Factors, x: Array, reverse: bool) -> Array:
        start = spread(jnp.zeros(self.lower + self.upper, x.dtype), factors, x)
        return lax.scan(step, start, (factors.upper, x), reverse=reverse)[1]

    def _by_column(self, diagonals: Float[Array, "width n"]) -> list[Array]:
        """Each diagonal by the column of its entries, 0 where it has none."""
        size = diagonals.shape[1]
        return [
            jnp.pad(diagonals[k], (k, len(diagonals) - 1 - k))[self.lower : self.lower + size]
            for k in range(len(diagonals))
        ]


def _exchange_by_pivot(rows: Float[Array, "m width"]) -> tuple[Float[Array, " m-1"], Array]:
    """`rows` with the one of the largest first entry on top, and which one that was: as flags of
    the exchanges with the top one after another."""
    size = len(rows)
    if size > _UNROLLED + 1:
        pivot = jnp.argmax(jnp.abs(rows[:, 0]))
        flags = (jnp.arange(1, size) == pivot).astype(rows.dtype)
        return flags, _exchange(flags, rows)
    each = list(rows)
    flags = []
    for i in range(1, size):
        is_larger = jnp.abs(each[i][0]) > jnp.abs(each[0][0])
        flags.append(is_larger.astype(rows.dtype))
        each[0], each[i] = (
            jnp.where(is_larger, each[i], each[0]),
            jnp.where(is_larger, each[0], each[i]),
        )
    return jnp.stack(flags) if flags else rows[:0, 0], jnp.stack(each)


def _exchange(flags: Float[Array, " m-1"], rows: Array, undo: bool = False) -> Array:
    """Exchanges the first row with each flagged one, in order (or in reverse, to undo it)."""
    size = len(rows)
    if size > _UNROLLED + 1:  # at most one is flagged
        flagged = flags.reshape(-1, *(1,) * (rows.ndim - 1)) > 0
        top = jnp.where(
            jnp.any(flags > 0), jnp.sum(jnp.where(flagged, rows[1:], 0), axis=0), rows[0]
        )
        return jnp.concatenate([top[None], jnp.where(flagged, rows[:1], rows[1:])])
    each = list(rows)
    for i in reversed(range(1, size)) if undo else range(1, size):
        flag = flags[i - 1] > 0
        each[0], each[i] = jnp.where(flag, each[i], each[0]), jnp.where(flag, each[0], each[i])
    return jnp.stack(each)


def shifted(x: Array, lower: int, upper: int) -> list[Array]:
    """`x[i + k]` for k = -lower .. upper, 0 where there is none."""
    padded = jnp.pad(x, (lower, upper))
    return [padded[k : k + x.size] for k in range(lower + upper + 1)]
