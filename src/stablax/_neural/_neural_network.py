"""The multilayer perceptron that neural fields are made of."""

from collections.abc import Callable
from typing import TypedDict, Unpack, final

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array, Float, PRNGKeyArray

from .._types import Args, ScalarLike, chosen
from .._words import shown
from ._inputs import InputArguments, Inputs
from ._sized import check_least


class NetworkArguments(TypedDict, total=False):
    """`NetworkOptions` for editors and type checkers."""

    activation: Callable
    dtype: jnp.dtype | type | None


class DrivenNetworkArguments(NetworkArguments, InputArguments, total=False):
    """Of a network that takes inputs besides the state."""


@final
class NetworkOptions(eqx.Module):
    """What a network is made of: names, types and defaults of the arguments of neural fields."""

    activation: Callable = eqx.field(static=True, default=jnp.tanh)
    dtype: jnp.dtype | type | None = eqx.field(static=True, default=None)


@final
class NeuralNetwork(eqx.Module):
    """A multilayer perceptron from a vector, and optionally time and `args`, to a vector."""

    layers: tuple[eqx.nn.Linear, ...]
    inputs: Inputs
    activation: Callable = eqx.field(static=True)

    def __init__(
        self,
        size_in: int,
        size_out: int,
        width: int,
        depth: int,
        *,
        key: PRNGKeyArray,
        initial_scale: float = 1.0,
        **network: Unpack[DrivenNetworkArguments],
    ):
        check_least(size=(size_in, 1), width=(width, 1), depth=(depth, 0))
        options = chosen(NetworkOptions, network)
        self.inputs = chosen(Inputs, network)
        self.activation = options.activation
        sizes = [size_in + self.inputs.length, *[width] * depth, size_out]
        keys = jr.split(key, len(sizes) - 1)
        *hidden, last = (
            eqx.nn.Linear(n_in, n_out, key=k, dtype=options.dtype)
            for n_in, n_out, k in zip(sizes[:-1], sizes[1:], keys, strict=True)
        )
        self.layers = (*hidden, jtu.tree_map(lambda x: initial_scale * x, last))

    def __call__(
        self, x: Float[Array, " in"], t: ScalarLike | None = None, args: Args = None
    ) -> Array:
        if self.inputs.length:
            x = jnp.concatenate([x, self.inputs(t, args, x.dtype)])
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer(x))
        return last(x)

    def __repr__(self) -> str:
        sizes = [self.layers[0].in_features, *(layer.out_features for layer in self.layers)]
        name = getattr(self.activation, "__name__", shown(self.activation))
        return f"NeuralNetwork({' -> '.join(map(str, sizes))}, {name})"
