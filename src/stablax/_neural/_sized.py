"""What fields of a fixed number of components share: the state as one vector, and checks."""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import final

import equinox as eqx
import jax.nn as jnn
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .._fields import Guard, GuardedField
from .._states import as_state, same_shape_and_dtype
from .._static import Frozen, real_array
from .._types import Args, NumbersLike, ScalarLike, Y
from .._words import called, short, shown


class AbstractSizedField(GuardedField):
    """A guarded field of `size` components. The state is a vector of shape `(size,)` or any PyTree
    of `size` components in total, in the order of `ravel_pytree`."""

    size: eqx.AbstractVar[int]

    @abc.abstractmethod
    def velocity(
        self, t: ScalarLike, x: Float[Array, " size"], args: Args
    ) -> Float[Array, " size"]:
        """dy/dt with the state as one vector `x`."""

    @final
    def vector_field(self, t: ScalarLike, y: Y, args: Args) -> PyTree:
        x, unravel = self._flat(y)
        out = self.velocity(t, x, args)
        same_shape_and_dtype(out, x, f"`{type(self).__name__}`")
        return unravel(out)

    @final
    def vector(self, y: Y) -> Float[Array, " size"]:
        """The components of the state as one vector."""
        return self._flat(y)[0]

    def __repr__(self) -> str:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.repr}
        usual = {"guard": Guard(), "jacobian": None}
        parts = (f"{n}={shown(x)}" for n, x in fields.items() if n not in usual or x != usual[n])
        return called(type(self).__name__, parts)

    def _flat(self, y: Y) -> tuple[Array, Callable]:
        y = as_state(y, "y")
        x, unravel = ravel_pytree(y)
        if x.size != self.size:
            is_array = jtu.treedef_is_leaf(jtu.tree_structure(y))
            given = y.shape if is_array else f"a PyTree of {x.size} in total"
            raise ValueError(
                f"`{type(self).__name__}(size={self.size})` takes a state of shape "
                f"({self.size},), got {given}. (Or a PyTree with {self.size} components in total.)"
            )
        return x, unravel


def check_least(**values: tuple[int, int]) -> None:
    """`name=(value, least)`: raises unless value >= least."""
    for name, (value, least) in values.items():
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}.")


def positive(value: float, name: str) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"`{name}` must be a finite number > 0, got {short(value)}.")
    return float(value)


def positive_vector(value: NumbersLike, size: int, name: str) -> Frozen:
    """A number > 0 for each of `size` components; a single one is for all of them."""
    given = real_array(value, name)
    if given.shape not in ((), (size,)):
        raise ValueError(
            f"`{name}` must be a number or one for each of the {size} components, got "
            f"{short(value)}."
        )
    if not (np.isfinite(given) & (given > 0)).all():
        raise ValueError(f"`{name}` must be finite and > 0, got {short(value)}.")
    return Frozen(np.broadcast_to(given, (size,)))


def like(constant: Frozen, x: Array) -> Array:
    """A constant in the dtype of the state: numpy's double would promote single precision."""
    return jnp.asarray(constant.value, x.dtype)


_FLOOR = 1e-3


def raw_ones(shape: int | tuple[int, ...], dtype: DTypeLike | None) -> Array:
    """Parameters for which `above_zero` is 1."""
    return jnp.full(shape, math.log(math.expm1(1 - _FLOOR)), jnp.zeros((), dtype).dtype)


def above_zero(raw: Array) -> Array:
    """Trainable numbers that stay above 1e-3, and grow no faster than their parameters: after a
    large step of an optimiser, an exponential is infinite."""
    return jnn.softplus(raw) + _FLOOR


def square(key: PRNGKeyArray, size: int, dtype: DTypeLike | None) -> Float[Array, "size size"]:
    """An initial matrix, as that of `eqx.nn.Linear`."""
    limit = 1 / math.sqrt(size)
    dtype = jnp.zeros((), dtype).dtype
    return jr.uniform(key, (size, size), dtype, minval=-limit, maxval=limit)
