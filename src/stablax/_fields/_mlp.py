"""Neural vector fields."""

from collections.abc import Callable
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from .._types import typechecked
from ._guard import Guard
from ._guarded import GuardedField


@final
class MLPField(GuardedField):
    """A multilayer perceptron as an autonomous vector field: dy/dt = MLP(y).

    Its only PyTree leaves are weights and biases; the activation is static. Inside the
    `vector_field` of another guarded field, use `network.vector_field(t, y, args)`: one guard is
    enough.

    **Arguments:**

    - `size`: number of components of the state, a vector of shape `(size,)`; >= 1.
    - `width`: neurons in each hidden layer; >= 1.
    - `depth`: number of hidden layers; >= 0 (0: a linear field).
    - `key`: a PRNG key for the initial weights (uniform in +-1/sqrt(inputs), as `eqx.nn.Linear`).
    - `activation`: smooth, elementwise; by default `tanh`, whose bounded output keeps a stiff
        solver's steps sane.
    - `dtype`: of the weights; by default jax's default floating-point type.
    - `guard`: a [`Guard`][]; keyword-only.
    """

    layers: tuple[eqx.nn.Linear, ...]
    activation: Callable = eqx.field(static=True)

    @typechecked
    def __init__(
        self,
        size: int,
        width: int,
        depth: int,
        *,
        key: PRNGKeyArray,
        activation: Callable = jnp.tanh,
        dtype: jnp.dtype | type | None = None,
        guard: Guard = Guard(),
    ):
        for name, value, least in (("size", size, 1), ("width", width, 1), ("depth", depth, 0)):
            if value < least:
                raise ValueError(f"`{name}` must be at least {least}, got {value}.")
        sizes = [size, *[width] * depth, size]
        keys = jr.split(key, len(sizes) - 1)
        self.layers = tuple(
            eqx.nn.Linear(n_in, n_out, key=k, dtype=dtype)
            for n_in, n_out, k in zip(sizes[:-1], sizes[1:], keys, strict=True)
        )
        self.activation = activation
        self.guard = guard

    def vector_field(self, t, y: Float[Array, " size"], args) -> Float[Array, " size"]:
        size = self.layers[0].in_features
        if not isinstance(y, jax.Array) or y.shape != (size,):
            shown = getattr(y, "shape", type(y).__name__)
            raise ValueError(
                f"`MLPField(size={size})` takes a state of shape ({size},), got {shown}."
            )
        *hidden, last = self.layers
        for layer in hidden:
            y = self.activation(layer(y))
        return last(y)
