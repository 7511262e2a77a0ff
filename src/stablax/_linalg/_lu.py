"""LU of the full matrix: for a structure of any kind."""

from typing import final

import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from .._lanes import spread
from .._precision import product
from .._states import all_finite
from ._base import AbstractFactorisation

# A pivot below so many units in the last place of the entry that it was is made of rounding.
_PIVOT_ULPS = 64

# Up to these sizes; measured by `benchmarks/linear_algebra.py`.
_ELIMINATED = 5
_INVERTED = 24


@final
class DenseLU(AbstractFactorisation):
    """Of the full matrix, for any structure, in a way that depends on the number n of components.

    Up to 5 components the explicit inverse by Gauss-Jordan elimination with partial pivoting in
    plain XLA, which calls nothing; up to 24 the explicit inverse from LU, since for the eight
    solves of a step LAPACK's triangular solves cost more to call than to do; above, LU. In an
    ill-conditioned matrix an inverse leaves larger residuals than LU, but the error of the
    solution, which is what a step of a solver is made of, is as small (Druinsky and Toledo 2012,
    arXiv 1201.6035).
    """

    def factorise(self, jacobian, shift, stored):
        matrix = _system(jacobian.as_matrix(stored), shift)
        size = len(matrix)
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
            return small_product(factors.T if transpose else factors, b)
        lu, permutation = factors
        return _lu_apply(lu, permutation, b, transpose)


@final
class EquilibratedLU(AbstractFactorisation):
    """LU of the full matrix with rows and columns scaled to one, so that neither the units of the
    species nor rates over many orders of magnitude decide the pivots. For searches, where a
    matrix can be as singular as it likes and no step size cures it."""

    def factorise(self, jacobian, shift, stored):
        matrix = _system(jacobian.as_matrix(stored), shift)
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


def inverse_scale(magnitude: Array) -> Array:
    return jnp.where((magnitude > 0) & jnp.isfinite(magnitude), 1 / magnitude, 1)


def _system(matrix: Float[Array, "n n"], shift: Array) -> Float[Array, "n n"]:
    """W = shift I - J."""
    return shift * jnp.eye(len(matrix), dtype=matrix.dtype) - matrix


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


def small_product(matrix: Array, x: Array) -> Array:
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
