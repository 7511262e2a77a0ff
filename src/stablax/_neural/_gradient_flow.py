"""Downhill in a learned potential."""

from typing import Unpack, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._fields import Guard
from .._types import Args, ScalarLike, Y, takes, typechecked
from ._energy import Energy
from ._neural_network import NetworkArguments, NetworkOptions
from ._sized import AbstractSizedField, positive


@final
class GradientFlowField(AbstractSizedField):
    """Downhill in a learned potential: dy/dt = -(L L^T + rate I) grad V(y),
    V(y) = sum_i k_i y_i^2 / 2 + MLP(y), with L and k > 0 learned.

    Guarantee: dV/dt <= -rate |grad V|^2 at every state. V has bounded level sets, so every
    solution is bounded and ends at critical points of V: there are no cycles and no chaos.
    There may be several steady states.

    Choose it for systems that settle, into one of several states above all (cell fates,
    conformations, memories); not for oscillations, decaying ones included.
    Cost: about three times that of an [`MLPField`][] (the gradient of a network).
    Reference: Hirsch, Smale and Devaney (2013), Differential equations, dynamical systems, and an
    introduction to chaos, section 9.3.

    **Arguments:**

    - `size`, `width`, `depth`, `key`, `dtype`, `guard`: as in [`MLPField`][].
    - `activation`: smooth, elementwise, growing at most linearly; by default `tanh`.
    - `rate`: > 0; the least speed per slope of the potential.
    """

    energy: Energy
    mobility: Float[Array, "size size"]
    rate: float = eqx.field(static=True)
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
        rate: float = 0.01,
        guard: Guard = Guard(),
        **network: Unpack[NetworkArguments],
    ):
        self.energy = Energy(size, width, depth, key=key, **network)
        self.mobility = jnp.eye(size, dtype=network.get("dtype"))
        self.rate = positive(rate, "rate")
        self.size = size
        self.guard = guard

    def velocity(
        self, t: ScalarLike, x: Float[Array, " size"], args: Args
    ) -> Float[Array, " size"]:
        slope = jax.grad(self.energy)(x)
        return -(self.mobility @ (self.mobility.T @ slope)) - self.rate * slope

    def potential(self, y: Y) -> Float[Array, ""]:
        """V(y), which never rises along a solution."""
        return self.energy(self.vector(y))
