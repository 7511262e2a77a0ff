"""A Jacobian that is never formed."""

from collections.abc import Callable
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
from jax.typing import DTypeLike

from .._static import Static
from .._words import short
from ._base import AbstractFactorisation, AbstractJacobian

# To which GMRES solves, relative: well below what a stage needs, well above rounding.
_TOLERANCE = {64: 1e-8, 32: 1e-5}


@final
class MatrixFree(AbstractJacobian):
    """A Jacobian that is known by its products only, and an iterative linear solver.

    For states of many thousand components without a narrow band, where no factorisation fits
    into memory or time. Each iteration costs one forward-mode product. Nothing is
    preconditioned: the number of iterations grows with the stiffness that a step meets, so try
    [`Banded`][] and [`Sparse`][] first.

    A solve that does not converge gives nan, which rejects the step: a smaller one is easier.

    **Arguments:**

    - `solver`: a Lineax solver for a square operator without structure. By default
        `lineax.GMRES` with a relative and absolute tolerance of 1e-8 in float64 and 1e-5 in
        float32, both relative to the largest component of the right-hand side. The methods
        assume exact solves: their accuracy needs a tolerance well below the step controller's.

    **Raises:** `TypeError` if `solver` is no Lineax solver.
    """

    _solver: Static | None = eqx.field(static=True)

    def __init__(self, solver: lx.AbstractLinearSolver | None = None):
        if solver is not None and not isinstance(solver, lx.AbstractLinearSolver):
            raise TypeError(
                f"`solver` must be a Lineax solver, for instance `lineax.GMRES(rtol=1e-8, "
                f"atol=1e-8)`, got {short(solver)}."
            )
        self._solver = None if solver is None else Static(solver, "solver")

    @property
    def solver(self) -> lx.AbstractLinearSolver | None:
        return None if self._solver is None else self._solver.tree

    def check(self, size: int) -> None:
        pass

    # J is stored as the function that multiplies with it.

    def linearise(self, fn, y):
        value, push = jax.linearize(fn, y)
        return value, _Product(push, jax.ShapeDtypeStruct(y.shape, y.dtype))

    def as_matrix(self, stored):
        eye = jnp.eye(stored.like.shape[0], dtype=stored.like.dtype)
        return jax.vmap(stored.push, out_axes=1)(eye)

    def scale(self, stored, factor):
        return _Product(jtu.Partial(_scaled, stored.push, factor), stored.like)

    def add(self, stored, other):
        return _Product(jtu.Partial(_summed, stored.push, other.push), stored.like)

    def multiply(self, stored, x):
        return stored.push(x)

    @property
    def factorisation(self) -> "Iterative":
        return Iterative(self._solver)


@final
class Iterative(AbstractFactorisation):
    """No factorisation: each solve is an iteration with products. Of [`MatrixFree`][]."""

    solver: Static | None = eqx.field(static=True)

    def factorise(self, jacobian, shift, stored):
        return shift, stored

    def apply(self, factors, b, *, transpose):
        shift, stored = factors
        like = jax.ShapeDtypeStruct(b.shape, b.dtype)

        def product(x):
            return shift * x - stored.push(x)

        if transpose:
            pull = jax.linear_transpose(product, like)
            operator = lx.FunctionLinearOperator(lambda x: pull(x)[0], like)
        else:
            operator = lx.FunctionLinearOperator(product, like)
        solver = _default(b.dtype) if self.solver is None else self.solver.tree
        # With a right-hand side of magnitude one, an absolute tolerance has no units.
        magnitude = jnp.max(jnp.abs(b))
        magnitude = jnp.where(magnitude > 0, magnitude, 1)
        solution = lx.linear_solve(operator, b / magnitude, solver, throw=False)
        is_solved = solution.result == lx.RESULTS.successful
        return jnp.where(is_solved, magnitude * solution.value, jnp.nan)

    def is_singular(self, factors):
        # What only a solve can tell is nan in its solution.
        return ~jnp.isfinite(factors[0])


def _default(dtype: DTypeLike) -> lx.AbstractLinearSolver:
    tolerance = _TOLERANCE[64 if jnp.finfo(dtype).bits > 32 else 32]
    return lx.GMRES(rtol=tolerance, atol=tolerance)


def _scaled(push, factor, x):
    return factor * push(x)


def _summed(push, other, x):
    return push(x) + other(x)


class _Product(eqx.Module):
    """`x -> J x`, and what x looks like."""

    push: Callable
    like: jax.ShapeDtypeStruct = eqx.field(static=True)
