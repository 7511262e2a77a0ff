"""The small interface between a method that needs (shift I - J)^-1 and what J looks like."""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.lax as lax
from jaxtyping import Array, Bool, Float, PyTree

FlatField = Callable[[Float[Array, " n"]], Float[Array, " n"]]


class AbstractJacobian(eqx.Module):
    """How the Jacobian J of a field is computed, stored and solved with: its structure. Abstract:
    [`Dense`][], [`Banded`][], [`Sparse`][] and [`MatrixFree`][] are some, and a subclass that
    writes all of the methods below is another.

    ```python
    class Diagonal(sx.AbstractJacobian):  # for components that do not see each other
        def linearise(self, fn, y):
            return jax.jvp(fn, (y,), (jnp.ones_like(y),))

        def as_matrix(self, stored):
            return jnp.diag(stored)

        def scale(self, stored, factor):
            return factor * stored

        def multiply(self, stored, x):
            return stored * x

        def factorise(self, shift, stored):
            return shift - stored

        def apply(self, factors, b, *, transpose):
            return b / factors

        def is_singular(self, factors):
            return ~jnp.all(jnp.isfinite(1 / factors))

        def check(self, size):
            pass
    ```

    A value object: its fields are static, so that it has no PyTree leaves and is equal by content.
    States are flat here, `(n,)`; a PyTree state is ravelled in the order of its leaves. What is
    stored and the factors are arrays, or PyTrees of them, of the structure's choice. All methods
    but `check` are called under `jit`, `vmap` and derivatives.
    """

    @abc.abstractmethod
    def linearise(self, fn: FlatField, y: Array) -> tuple[Array, PyTree]:
        """`fn(y)`, and J at `y` as this structure stores it. It is differentiated, in both modes:
        use JAX's `jvp`, `linearize` or `jacfwd`."""

    @abc.abstractmethod
    def as_matrix(self, stored: PyTree) -> Float[Array, "n n"]:
        """J as a full matrix."""

    @abc.abstractmethod
    def scale(self, stored: PyTree, factor: Array) -> PyTree:
        """`factor * J`, as this structure stores it."""

    @abc.abstractmethod
    def multiply(self, stored: PyTree, x: Array) -> Array:
        """`J @ x`, linear in `stored` and in `x`."""

    @abc.abstractmethod
    def factorise(self, shift: Array, stored: PyTree) -> PyTree:
        """The factors of `shift I - J`. Never differentiated."""

    @abc.abstractmethod
    def apply(self, factors: PyTree, b: Array, *, transpose: bool) -> Array:
        """`(shift I - J)^-1 b`, or `(shift I - J)^-T b`. Never differentiated."""

    @abc.abstractmethod
    def is_singular(self, factors: PyTree) -> Bool[Array, ""]:
        """Whether the matrix of these factors is singular to rounding, or not finite."""

    @abc.abstractmethod
    def check(self, size: int) -> None:
        """Raises a `ValueError` that says what is wrong if this structure does not fit a state of
        `size` components."""


class Factored(eqx.Module):
    """`shift I - J`, factorised once for several right-hand sides.

    The factorisation is frozen and the derivative exact all the same:
    x' = W^-1 (b' - W' x), for W = shift I - J.
    """

    structure: AbstractJacobian = eqx.field(static=True)
    shift: Array
    stored: PyTree
    factors: PyTree

    def __init__(self, structure: AbstractJacobian, shift: Array, stored: PyTree):
        self.structure = structure
        self.shift = shift
        self.stored = stored
        self.factors = structure.factorise(*lax.stop_gradient((shift, stored)))

    def solve(self, b: Array) -> Array:
        return lax.custom_linear_solve(
            lambda x: self.shift * x - self.structure.multiply(self.stored, x),
            b,
            lambda _, b: self.structure.apply(self.factors, b, transpose=False),
            lambda _, b: self.structure.apply(self.factors, b, transpose=True),
        )

    def solve_frozen(self, b: Array) -> Array:
        """`solve(b)`. Not differentiated, and quicker to trace."""
        return self.structure.apply(self.factors, b, transpose=False)

    def solve_transposed(self, b: Array) -> Array:
        """`(shift I - J)^-T b`."""
        return jax.linear_transpose(self.solve, b)(b)[0]

    def is_singular(self) -> Bool[Array, ""]:
        return self.structure.is_singular(self.factors)
