"""The inverse of softplus."""

from typing import final

import jax.nn as jnn
import jax.numpy as jnp

from .._fields import Guard
from .._linalg import JacobianLike
from .._types import VF, Explained, YLike, typechecked
from ._base import AbstractCoordinates, not_below, positive_sizes


@final
class SoftplusField(AbstractCoordinates):
    """A field in the inverse of softplus: y = s log(1 + exp u), u = log(exp(y / s) - 1).

    For positive states: logarithmic where y is small against the `scale` s, and y itself, in
    units of s, where it is large. The chain rule is (1 + exp(-u)) f / s. As with a [`LogField`][],
    y must stay above 0.

    See [`AbstractCoordinates`][] for guards, steady states and conserved quantities.

    **Arguments:**

    - `field`: any callable `f(t, y, args)`, guarded or not.
    - `scale`: s > 0 in the units of y, as `offset` of a [`LogField`][]; by default 1.
    - `guard`, `jacobian`: as in [`LogField`][].
    """

    @typechecked
    def __init__(
        self,
        field: VF,
        *,
        scale: Explained[YLike] = 1.0,
        guard: Guard | None = None,
        jacobian: Explained[JacobianLike] = None,
    ):
        super().__init__(field, positive_sizes(scale, "scale"), guard=guard, jacobian=jacobian)

    def to_leaf(self, y, size, xp):
        z = y / size
        return z + xp.log(-xp.expm1(-z))  # log(expm1(z)) without overflow

    def from_leaf(self, u, size):
        return size * jnn.softplus(u)

    def slope_leaf(self, u, size):
        return (1 + jnp.exp(-u)) / size

    def representable(self, u):
        return not_below(u)
