"""A Jacobian without structure."""

from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from .._lanes import spread
from .._precision import full_precision, product
from .._states import all_finite
from .._words import short
from ._jacobian import AbstractJacobian, FlatField

# A pivot below so many units in the last place of the entry that it was is made of rounding.
_PIVOT_ULPS = 64

# Up to these sizes; measured by `benchmarks/linear_algebra.py`.
_ELIMINATED = 5
_INVERTED = 24


@final
class Dense(AbstractJacobian):
    """A full Jacobian: n forward-mode columns, or `fn`, and a factorisation that depends on n.

    Up to 5 components the explicit inverse by Gauss-Jordan elimination with partial pivoting in
    plain XLA, which calls nothing; up to 24 the explicit inverse from LU, since for the eight
    solves of a step LAPACK's triangular solves cost more to call than to do; above, LU. In an
    ill-conditioned matrix an inverse leaves larger residuals than LU, but the error of the
    solution, which is what a step of a solver is made of, is as small (Druinsky and Toledo 2012,
    arXiv 1201.6035).

    **Arguments:**

    - `fn`: the Jacobian by hand, `fn(t, y, args) -> (n, n)`, rows and columns in the order of the
        ravelled state; by default automatic differentiation. [`check_jacobian`][] compares the
        two.
    """

    fn: Callable | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.fn is not None and not callable(self.fn):
            raise TypeError(
                f"`fn` must be a function fn(t, y, args) -> (n, n), got {short(self.fn)}."
            )

    def check(self, size: int) -> None:
        pass

    def linearise(self, fn, y):
        value, push = jax.linearize(fn, y)
        eye = spread(jnp.eye(y.size, dtype=y.dtype), y)
        return value, jax.vmap(push, out_axes=1)(eye)

    def multiply(self, stored, x):
        return _product(stored, x)

    def scale(self, stored, factor):
        return factor * stored

    def as_matrix(self, stored):
        return stored

    def factorise(self, shift, stored):
        size = stored.shape[0]
        matrix = shift * jnp.eye(size, dtype=stored.dtype) - stored
        if size <= _ELIMINATED:
            return _inverse(matrix)
        lu, _, permutation = lax.linalg.lu(matrix)
        pivots = _has_digits(jnp.diagonal(lu), matrix[permutation, jnp.arange(size)])
        lu = jnp.where(jnp.all(pivots), lu, jnp.nan)
        if size <= _INVERTED:
            return _lu_inverse(lu, permutation)
        return lu, permutation

    def is_singular(self, factors):
        return ~all_finite(factors)

    def apply(self, factors, b, *, transpose):
        if not isinstance(factors, tuple):
            return _product(factors.T if transpose else factors, b)
        lu, permutation = factors
        return _lu_apply(lu, permutation, b, transpose)


@final
class Equilibrated(AbstractJacobian):
    """A full Jacobian, solved by LU of the matrix with rows and columns scaled to one, so that
    neither the units of the species nor rates over many orders of magnitude decide the pivots.
    For searches, where a matrix can be as singular as it likes and no step size cures it."""

    def check(self, size: int) -> None:
        pass

    def linearise(self, fn, y):
        return Dense().linearise(fn, y)

    def scale(self, stored, factor):
        return factor * stored

    def as_matrix(self, stored):
        return stored

    def multiply(self, stored, x):
        return _product(stored, x)

    def factorise(self, shift, stored):
        matrix = shift * jnp.eye(stored.shape[0], dtype=stored.dtype) - stored
        rows = inverse_scale(jnp.max(jnp.abs(matrix), axis=1))
        scaled = rows[:, None] * matrix
        columns = inverse_scale(jnp.max(jnp.abs(scaled), axis=0))
        lu, exchanges, permutation = lax.linalg.lu(scaled * columns[None, :])
        odd = jnp.sum(exchanges != jnp.arange(exchanges.size, dtype=exchanges.dtype)) % 2 == 1
        return lu, permutation, rows, columns, odd

    def is_singular(self, factors):
        """Whether a pivot is zero to rounding."""
        pivots = jnp.abs(jnp.diag(factors[0]))
        least = pivots.size * jnp.finfo(pivots.dtype).eps * jnp.max(pivots)
        return ~jnp.all(pivots > least)

    def orientation(self, factors: PyTree) -> Array:
        """The sign of the determinant."""
        sign = jnp.prod(jnp.sign(jnp.diag(factors[0])))
        return jnp.where(factors[-1], -sign, sign)

    def apply(self, factors, b, *, transpose):
        lu, permutation, rows, columns, _ = factors
        if transpose:
            rows, columns = columns, rows
        return columns * _lu_apply(lu, permutation, rows * b, transpose)


def inverse_scale(size: Array) -> Array:
    return jnp.where((size > 0) & jnp.isfinite(size), 1 / size, 1)


def _lu_apply(lu: Array, permutation: Array, b: Array, transpose: bool) -> Array:
    if transpose:
        x = lax.linalg.triangular_solve(lu, b[:, None], left_side=True, transpose_a=True)
        x = lax.linalg.triangular_solve(
            lu, x, left_side=True, lower=True, transpose_a=True, unit_diagonal=True
        )
        return jnp.zeros_like(b).at[permutation].set(x[:, 0], unique_indices=True)
    x = b[permutation][:, None]
    x = lax.linalg.triangular_solve(lu, x, left_side=True, lower=True, unit_diagonal=True)
    return lax.linalg.triangular_solve(lu, x, left_side=True)[:, 0]


def _lu_inverse(lu: Array, permutation: Array) -> Array:
    """Row by row: then X A - I is small, and X b as accurate as a solve with the factors. With
    the inverse column by column it is A X - I that is small, which X b has no use for."""
    x = lax.linalg.triangular_solve(lu, jnp.eye(len(lu), dtype=lu.dtype))
    x = lax.linalg.triangular_solve(lu, x, lower=True, unit_diagonal=True)
    return jnp.zeros_like(x).at[:, permutation].set(x, unique_indices=True)


def as_jacobian(given: Any) -> AbstractJacobian | None:
    """What a user may give as `jacobian=...`."""
    if given is None or isinstance(given, AbstractJacobian):
        return given
    if callable(given):
        return Dense(given)
    raise TypeError(
        "`jacobian` must be a structure (`Banded(lower, upper)`, `Sparse(pattern)`, "
        "`MatrixFree()`, `Dense()`), a function fn(t, y, args) -> (n, n), or None; got "
        f"{short(given)}."
    )


def linearise(
    structure: AbstractJacobian,
    fn: FlatField,
    y: Array,
    by_hand: Callable[[Callable], Array],
) -> tuple[Array, PyTree]:
    """`fn(y)` and its Jacobian as `structure` stores it. A Jacobian written by the user takes
    other variables than the flat state: `by_hand` evaluates it."""
    if not (isinstance(structure, Dense) and structure.fn is not None):
        return structure.linearise(fn, y)
    with full_precision():
        matrix = jnp.asarray(by_hand(structure.fn))
    if matrix.shape != (y.size, y.size):
        raise ValueError(
            f"`jacobian` returned shape {matrix.shape} for a state of {y.size} components; it "
            f"must be ({y.size}, {y.size}), in the order of the ravelled state."
        )
    return fn(y), matrix.astype(y.dtype)


def _product(matrix: Array, x: Array) -> Array:
    # A sum fuses with its neighbours, which for a small matrix matters more than a fast product.
    if x.size <= _INVERTED:
        return jnp.sum(matrix * x[None, :], axis=1)
    return product(matrix, x)


def _has_digits(pivot: Array, original: Array) -> Bool[Array, "..."]:
    """Whether elimination has left a digit of the entry that became a pivot. Entry by entry, since
    neither rows nor columns need have one scale. Where none is left, as of I - h J with a conserved
    quantity and h |J| above 1 / eps, a solution would be made of rounding."""
    return jnp.abs(pivot) > _PIVOT_ULPS * jnp.finfo(pivot.dtype).eps * jnp.abs(original)


def _inverse(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Gauss-Jordan elimination in place, with partial pivoting and without exchanging rows. Not
    finite where the matrix is singular to rounding."""
    size = matrix.shape[0]
    index = jnp.arange(size)

    def eliminate(k, carry):
        work, pivots, regular = carry
        column = work[:, k]
        used = jnp.any((index[None, :] < k) & (pivots[None, :] == index[:, None]), axis=1)
        pivot = jnp.argmax(jnp.where(used, -1, jnp.abs(column)))
        regular = regular & _has_digits(work[pivot, k], matrix[pivot, k])
        row = jnp.where(index == k, 1, work[pivot]) / work[pivot, k]
        work = jnp.where(index[None, :] == k, 0, work)
        rest = work - jnp.where(index == pivot, 0, column)[:, None] * row[None, :]
        work = jnp.where((index == pivot)[:, None], row[None, :], rest)
        return work, pivots.at[k].set(pivot), regular

    start = (matrix, jnp.zeros(size, index.dtype), jnp.array(True))
    work, pivots, regular = lax.fori_loop(0, size, eliminate, spread(start))
    # Row `pivots[k]` solves for unknown k, and column k belongs to equation `pivots[k]`.
    work = jnp.where(regular, work[pivots], jnp.nan)
    return jnp.zeros_like(work).at[:, pivots].set(work, unique_indices=True)
