"""The multilayer perceptron that neural fields are made of."""

from collections.abc import Callable
from typing import final

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from .._types import Args, ScalarLike
from .._words import short, shown
from ._sized import check_least


def external_inputs(
    t: ScalarLike | None, args: Args, time: bool, args_size: int, dtype: DTypeLike
) -> Array:
    """What a network takes besides the state: `t` if `time`, and the `args_size` numbers of
    `args`, in one vector."""
    parts = [jnp.asarray(t, dtype).reshape(1)] if time else []
    if args_size:
        leaves = jtu.tree_leaves(args)
        for leaf in leaves:
            if not eqx.is_array_like(leaf):
                raise TypeError(
                    f"`args` holds {short(leaf)}, which is no number: with `args_size={args_size}` "
                    "the network takes all of `args` as its inputs."
                )
        numbers = [jnp.asarray(x, dtype).reshape(-1) for x in leaves]
        total = sum(x.size for x in numbers)
        if total != args_size:
            raise ValueError(
                f"`args` holds {total} numbers in total, but the network was made with "
                f"`args_size={args_size}`."
            )
        parts += numbers
    return jnp.concatenate(parts) if parts else jnp.zeros(0, dtype)


@final
class NeuralNetwork(eqx.Module):
    """A multilayer perceptron from a vector, and optionally time and `args`, to a vector."""

    layers: tuple[eqx.nn.Linear, ...]
    activation: Callable = eqx.field(static=True)
    time: bool = eqx.field(static=True)
    args_size: int = eqx.field(static=True)

    def __init__(
        self,
        size_in: int,
        size_out: int,
        width: int,
        depth: int,
        *,
        key: PRNGKeyArray,
        activation: Callable,
        dtype: DTypeLike | None,
        initial_scale: float = 1.0,
        time: bool = False,
        args_size: int = 0,
    ):
        check_least(size=(size_in, 1), width=(width, 1), depth=(depth, 0), args_size=(args_size, 0))
        sizes = [size_in + time + args_size, *[width] * depth, size_out]
        keys = jr.split(key, len(sizes) - 1)
        *hidden, last = (
            eqx.nn.Linear(n_in, n_out, key=k, dtype=dtype)
            for n_in, n_out, k in zip(sizes[:-1], sizes[1:], keys, strict=True)
        )
        self.layers = (*hidden, jtu.tree_map(lambda x: initial_scale * x, last))
        self.activation = activation
        self.time = time
        self.args_size = args_size

    def __call__(
        self, x: Float[Array, " in"], t: ScalarLike | None = None, args: Args = None
    ) -> Array:
        if self.time or self.args_size:
            inputs = external_inputs(t, args, self.time, self.args_size, x.dtype)
            x = jnp.concatenate([x, inputs])
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer(x))
        return last(x)

    def __repr__(self) -> str:
        sizes = [self.layers[0].in_features, *(layer.out_features for layer in self.layers)]
        name = getattr(self.activation, "__name__", shown(self.activation))
        return f"NeuralNetwork({' -> '.join(map(str, sizes))}, {name})"
