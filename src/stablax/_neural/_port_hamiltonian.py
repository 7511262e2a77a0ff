"""Energy that is moved and lost, never made."""

from typing import Unpack, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from .._fields import Guard
from .._types import Args, ScalarLike, Y, takes, typechecked
from ._energy import Energy
from ._inputs import Inputs
from ._neural_network import NetworkArguments, NetworkOptions, NeuralNetwork
from ._sized import AbstractSizedField, check_least, positive, square


@final
class PortHamiltonianField(AbstractSizedField):
    """A port-Hamiltonian system with dissipation: dy/dt = (J(y) - R(y)) grad H(y) + G u,
    H(y) = sum_i k_i y_i^2 / 2 + MLP(y), with J antisymmetric, R = L L^T + damping I, and k > 0;
    J and L come from a network, G is a matrix, u are the numbers of `args`.

    Guarantee: dH/dt <= -damping |grad H|^2 + u . `output(y)` at every state: energy comes in
    through the ports only. H has bounded level sets; so without ports every solution is bounded, H
    falls along it, and it ends at critical points of H.

    Choose it for mechanical, electrical and other systems with an energy, for decaying
    oscillations above all. Not for oscillations that sustain themselves.
    Cost: about four times that of an [`MLPField`][], and a last layer of
    width x 2 size^2: for up to some tens of components.
    References: van der Schaft and Jeltsema (2014), Port-Hamiltonian systems theory: an
    introductory overview, Found. Trends Syst. Control 1, 173; learned, Desai et al. (2021),
    Port-Hamiltonian neural networks for learning explicit time-dependent dynamical systems, Phys.
    Rev. E 104, 034312.

    **Arguments:**

    - `size`, `width`, `depth`, `key`, `dtype`, `guard`: as in [`MLPField`][].
    - `activation`: smooth, elementwise, growing at most linearly; by default `tanh`.
    - `args_size`: number of ports: how many numbers `args` holds in total; by default 0.
    - `damping`: > 0; the least rate of dissipation.
    """

    energy: Energy
    structure: NeuralNetwork
    ports: Float[Array, "size ports"] | None
    inputs: Inputs
    damping: float = eqx.field(static=True)
    size: int = eqx.field(static=True)

    @typechecked
    @takes(NetworkOptions)
    def __init__(
        self,
        size: int,
        width: int,
        depth: int,
        *,
        key: PRNGKeyArray,
        args_size: int = 0,
        damping: float = 0.01,
        guard: Guard = Guard(),
        **network: Unpack[NetworkArguments],
    ):
        check_least(size=(size, 1))
        self.inputs = Inputs(args_size=args_size)
        first, second, third = jr.split(key, 3)
        self.energy = Energy(size, width, depth, key=first, **network)
        self.structure = NeuralNetwork(size, 2 * size**2, width, depth, key=second, **network)
        ports = square(third, max(size, args_size), network.get("dtype"))[:size, :args_size]
        self.ports = ports if args_size else None
        self.damping = positive(damping, "damping")
        self.size = size
        self.guard = guard

    def velocity(
        self, t: ScalarLike, x: Float[Array, " size"], args: Args
    ) -> Float[Array, " size"]:
        slope = jax.grad(self.energy)(x)
        exchange, loss = self.structure(x).reshape(2, self.size, self.size)
        out = exchange @ slope - exchange.T @ slope
        out = out - loss @ (loss.T @ slope) - self.damping * slope
        if self.ports is None:
            return out
        return out + self.ports @ self.inputs(t, args, x.dtype)

    def hamiltonian(self, y: Y) -> Float[Array, ""]:
        """H(y), which never rises along a solution without inputs."""
        return self.energy(self.vector(y))

    def output(self, y: Y) -> Float[Array, " ports"]:
        """G^T grad H(y): with the inputs u, u . output is the power that comes in."""
        x = self.vector(y)
        if self.ports is None:
            return jnp.zeros(0, x.dtype)
        return self.ports.T @ jax.grad(self.energy)(x)
