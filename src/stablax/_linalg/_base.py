"""What a Jacobian J looks like, and how one solves with shift I - J."""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PyTree


class FlatField(eqx.Module):
    """A field of flat states, at one time: a function of `y`, `(n,)`, that knows besides how to
    ask for the Jacobian that a user wrote, which takes other variables than the flat state."""

    value: Callable[[Float[Array, " n"]], Float[Array, " n"]]
    by_hand: Callable[[Callable, Float[Array, " n"]], Float[Array, "n n"]]

    def __call__(self, y: Float[Array, " n"]) -> Float[Array, " n"]:
        return self.value(y)


class AbstractFactorisation(eqx.Module):
    """How to solve with W = shift I - J. Abstract: [`DenseLU`][] is one, and a subclass that
    writes all of the methods below is another.

    ```python
    class Reciprocal(sx.AbstractFactorisation):  # of the `Diagonal` of `AbstractJacobian`
        def factorise(self, jacobian, shift, stored):
            return shift - stored

        def apply(self, factors, b, *, transpose):
            return b / factors

        def is_singular(self, factors):
            return ~jnp.all(jnp.isfinite(1 / factors))
    ```

    A value object as a structure is. Never differentiated: the factors are an array, or a PyTree
    of them, of its choice, made by operations of any kind. Called under `jit` and `vmap`.
    """

    @abc.abstractmethod
    def factorise(self, jacobian: "AbstractJacobian", shift: Array, stored: PyTree) -> PyTree:
        """The factors of W, for J as the structure `jacobian` stores it."""

    @abc.abstractmethod
    def apply(self, factors: PyTree, b: Array, *, transpose: bool) -> Array:
        """`W^-1 b`, or `W^-T b`."""

    @abc.abstractmethod
    def is_singular(self, factors: PyTree) -> Bool[Array, ""]:
        """Whether W is singular to rounding, or not finite."""


class AbstractJacobian(eqx.Module):
    """What the Jacobian J of a field looks like, its structure: how J is computed, stored and
    multiplied with. Abstract: [`Dense`][], [`Banded`][], [`Sparse`][] and [`MatrixFree`][] are
    some, and a subclass that writes all of the members below is another. Its `factorisation` says
    how to solve with it: an [`AbstractFactorisation`][], of which [`DenseLU`][] is one for every
    structure.

    ```python
    class Diagonal(sx.AbstractJacobian):  # for components that do not see each other
        factorisation = sx.DenseLU()

        def linearise(self, fn, y):
            return jax.jvp(fn, (y,), (jnp.ones_like(y),))

        def as_matrix(self, stored):
            return jnp.diag(stored)

        def scale(self, stored, factor):
            return factor * stored

        def multiply(self, stored, x):
            return stored * x

        def check(self, size):
            pass
    ```

    A value object: its fields are static, so that it has no PyTree leaves and is equal by content.
    States are flat here, `(n,)`; a PyTree state is ravelled in the order of its leaves. What is
    stored is an array, or a PyTree of them, of the structure's choice. All methods but `check`
    are called under `jit`, `vmap` and derivatives.
    """

    factorisation: eqx.AbstractClassVar[AbstractFactorisation]

    @abc.abstractmethod
    def linearise(
        self, fn: Callable[[Float[Array, " n"]], Float[Array, " n"]], y: Float[Array, " n"]
    ) -> tuple[Float[Array, " n"], PyTree]:
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
    def check(self, size: int) -> None:
        """Raises a `ValueError` that says what is wrong if this structure does not fit a state of
        `size` components."""

    def add(self, stored: PyTree, other: PyTree) -> PyTree:
        """The sum of two, as this structure stores them. By default that of their arrays."""
        return jtu.tree_map(jnp.add, stored, other)


class AbstractMass(abc.ABC):
    """A constant matrix M in the place of I."""

    @abc.abstractmethod
    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """M x."""

    @abc.abstractmethod
    def stored(self, structure: AbstractJacobian, dtype: DTypeLike) -> PyTree:
        """M, as a Jacobian of that `structure` is stored."""


class Factored(eqx.Module):
    """`shift M - J`, factorised once for several right-hand sides; by default M = I.

    The factorisation is frozen and the derivative exact all the same:
    x' = W^-1 (b' - W' x), for W = shift M - J.
    """

    jacobian: AbstractJacobian = eqx.field(static=True)
    shift: Array
    stored: PyTree
    factors: PyTree
    mass: AbstractMass | None = eqx.field(static=True)

    def __init__(
        self,
        jacobian: AbstractJacobian,
        shift: Array,
        stored: PyTree,
        mass: AbstractMass | None = None,
    ):
        self.jacobian = jacobian
        self.shift = shift
        self.stored = stored
        self.mass = mass
        shift, stored = lax.stop_gradient((shift, stored))
        if mass is not None:  # 0 I - (J - shift M)
            less = jacobian.scale(mass.stored(jacobian, shift.dtype), -shift)
            shift, stored = jnp.zeros_like(shift), jacobian.add(stored, less)
        self.factors = jacobian.factorisation.factorise(jacobian, shift, stored)

    def _multiply(self, x: Array) -> Array:
        of_mass = x if self.mass is None else self.mass(x)
        return self.shift * of_mass - self.jacobian.multiply(self.stored, x)

    def solve(self, b: Array) -> Array:
        apply = self.jacobian.factorisation.apply
        return lax.custom_linear_solve(
            self._multiply,
            b,
            lambda _, b: apply(self.factors, b, transpose=False),
            lambda _, b: apply(self.factors, b, transpose=True),
        )

    def solve_frozen(self, b: Array) -> Array:
        """`solve(b)`. Not differentiated, and quicker to trace."""
        return self.jacobian.factorisation.apply(self.factors, b, transpose=False)

    def solve_transposed(self, b: Array) -> Array:
        """`(shift M - J)^-T b`."""
        return jax.linear_transpose(self.solve, b)(b)[0]

    def is_singular(self) -> Bool[Array, ""]:
        return self.jacobian.factorisation.is_singular(self.factors)
