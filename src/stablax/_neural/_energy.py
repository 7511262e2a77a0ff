"""A learned energy."""

from typing import Unpack, final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ._neural_network import NetworkArguments, NeuralNetwork
from ._sized import above_zero, raw_ones


@final
class Energy(eqx.Module):
    """sum_i stiffness_i x_i^2 / 2 + MLP(x), with stiffness >= 1e-3. A network whose activation
    grows at most linearly does so too: the energy then has a minimum, and bounded level sets."""

    network: NeuralNetwork
    raw_stiffness: Float[Array, " size"]

    def __init__(
        self,
        size: int,
        width: int,
        depth: int,
        *,
        key: PRNGKeyArray,
        **network: Unpack[NetworkArguments],
    ):
        self.network = NeuralNetwork(size, 1, width, depth, key=key, **network)
        self.raw_stiffness = raw_ones(size, network.get("dtype"))

    def __call__(self, x: Float[Array, " size"]) -> Float[Array, ""]:
        return jnp.sum(above_zero(self.raw_stiffness) * x**2) / 2 + self.network(x)[0]
