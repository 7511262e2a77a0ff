"""Other units."""

from typing import final

import jax.numpy as jnp

from .._fields import Guard
from .._linalg import JacobianLike
from .._types import VF, Explained, YLike, typechecked
from ._base import AbstractCoordinates, positive_sizes


@final
class ScaledField(AbstractCoordinates):
    """A field in other units: u = y / s.

    For components of very different sizes: in units of their typical values, one tolerance suits
    all, and so do the weights of a network.

    See [`AbstractCoordinates`][] for guards, steady states and conserved quantities.

    **Arguments:**

    - `field`: any callable `f(t, y, args)`, guarded or not.
    - `scale`: s > 0, the typical size of y: a number, an array that broadcasts to a leaf of the
        state, or a PyTree of them (a prefix of the state).
    - `guard`, `jacobian`: as in [`LogField`][].
    """

    @typechecked
    def __init__(
        self,
        field: VF,
        scale: Explained[YLike],
        *,
        guard: Guard | None = None,
        jacobian: Explained[JacobianLike] = None,
    ):
        super().__init__(field, positive_sizes(scale, "scale"), guard=guard, jacobian=jacobian)

    def to_leaf(self, y, size, xp):
        return y / size

    def from_leaf(self, u, size):
        return size * u

    def slope_leaf(self, u, size):
        return jnp.asarray(1 / size)

    def representable(self, u):
        return u
