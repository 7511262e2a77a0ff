"""A Jacobian without structure."""

from collections.abc import Callable
from typing import ClassVar, final

import equinox as eqx
import jax
import jax.numpy as jnp

from .._lanes import spread
from .._precision import full_precision
from .._words import short
from ._base import AbstractFactorisation, AbstractJacobian, FlatField
from ._lu import DenseLU, small_product


@final
class Dense(AbstractJacobian):
    """A full Jacobian: n forward-mode columns, or `fn`. Solved by [`DenseLU`][].

    **Arguments:**

    - `fn`: the Jacobian by hand, `fn(t, y, args) -> (n, n)`, rows and columns in the order of the
        ravelled state; by default automatic differentiation. [`check_jacobian`][] compares the
        two.
    """

    factorisation: ClassVar[AbstractFactorisation] = DenseLU()

    fn: Callable | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.fn is not None and not callable(self.fn):
            raise TypeError(
                f"`fn` must be a function fn(t, y, args) -> (n, n), got {short(self.fn)}."
            )

    def check(self, size: int) -> None:
        pass

    def linearise(self, fn, y):
        if self.fn is None:
            value, push = jax.linearize(fn, y)
            eye = spread(jnp.eye(y.size, dtype=y.dtype), y)
            return value, jax.vmap(push, out_axes=1)(eye)
        if not isinstance(fn, FlatField):
            raise TypeError(
                f"`Dense(fn)` evaluates its `fn` at t, y and args, which {short(fn)} does not "
                "know: it must be what `linearise` of a structure is called with by a method."
            )
        with full_precision():
            matrix = jnp.asarray(fn.by_hand(self.fn, y))
        if matrix.shape != (y.size, y.size):
            raise ValueError(
                f"`jacobian` returned shape {matrix.shape} for a state of {y.size} components; it "
                f"must be ({y.size}, {y.size}), in the order of the ravelled state."
            )
        return fn(y), matrix.astype(y.dtype)

    def multiply(self, stored, x):
        return small_product(stored, x)

    def scale(self, stored, factor):
        return factor * stored

    def as_matrix(self, stored):
        return stored


JacobianLike = AbstractJacobian | Callable | None
"""What a user may give as `jacobian=...`."""


def as_jacobian(given: JacobianLike) -> AbstractJacobian | None:
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
