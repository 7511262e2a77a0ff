"""Logarithms."""

from typing import final

import equinox as eqx
import jax.numpy as jnp

from .._fields import Guard
from .._linalg import JacobianLike
from .._types import VF, Explained, YLike, typechecked
from ._base import AbstractCoordinates, not_below, positive_sizes


@final
class LogField(AbstractCoordinates):
    """A field in logarithms: u = log y, or with an `offset` s, u = log(1 + y / s).

    For positive states over many orders of magnitude: y cannot become negative, and a tolerance of
    u is a relative tolerance of y. Without offset, y must stay above 0, and a component that
    falls to 0 goes to -inf, stiffly. With one, u is linear in y below s, logarithmic above, and
    finite at y = 0. The chain rule is exp(-u) f(exp(u)), in `expm1` and `log1p` with an offset;
    below the smallest normal number (1e-308; float32: 1e-38) f / y is what it is there.

    See [`AbstractCoordinates`][] for guards, steady states and conserved quantities.

    **Arguments:**

    - `field`: any callable `f(t, y, args)`, guarded or not.
    - `offset`: `None`, or s > 0 in the units of y: a number, an array that broadcasts to a leaf of
        the state, or a PyTree of them (a prefix of the state).
    - `guard`: in the new coordinates; by default that of `field`, translated.
    - `jacobian`: as in [`GuardedField`][], of du/dt; by default dense.
    """

    shifted: bool = eqx.field(static=True)

    @typechecked
    def __init__(
        self,
        field: VF,
        *,
        offset: Explained[YLike | None] = None,
        guard: Guard | None = None,
        jacobian: Explained[JacobianLike] = None,
    ):
        self.shifted = offset is not None
        size = positive_sizes(1.0 if offset is None else offset, "offset")
        super().__init__(field, size, guard=guard, jacobian=jacobian)

    def to_leaf(self, y, size, xp):
        return xp.log1p(y / size) if self.shifted else xp.log(y)

    def from_leaf(self, u, size):
        return size * jnp.expm1(u) if self.shifted else jnp.exp(u)

    def slope_leaf(self, u, size):
        return jnp.exp(-u) / size if self.shifted else jnp.exp(-u)

    def representable(self, u):
        return not_below(u)
