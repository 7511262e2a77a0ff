"""A stable linear part and a bounded network."""

from typing import Unpack, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from .._fields import Guard
from .._static import Frozen
from .._types import Args, Explained, NumbersLike, ScalarLike, Y, takes, typechecked
from ._inputs import Inputs
from ._neural_network import DrivenNetworkArguments, NetworkOptions, NeuralNetwork
from ._sized import AbstractSizedField, like, positive, positive_vector, square


@final
class DampedField(AbstractSizedField):
    """A stable linear part and a bounded network:
    dy/dt = A (y - center) + bound * tanh(MLP(y, [t], [args])).

    A = (S - D) Q with S antisymmetric, D - rate I and Q - I positive semidefinite, all learned:
    every stable matrix is of this form for a small enough rate, non-normal ones included.

    Guarantee: all eigenvalues of A have real parts <= -rate; and whatever the network does, every
    solution enters the ball |y - center| <= `radius` and the set V(y) <= radius^2 / 2 is never
    left again, where V is `lyapunov`. Inside, anything may happen: oscillations, chaos, several
    steady states. Holds for inputs that change with time, too.

    Choose it where trajectories must not run away, and little else is known.
    Cost: that of an [`MLPField`][] and six products of a matrix and a vector.
    Reference: Linot et al. (2023), Stabilized neural ordinary differential equations for long-time
    forecasting of dynamical systems, J. Comput. Phys. 474, 111838, where A is a given damping.

    **Arguments:**

    - `size`, `width`, `depth`, `key`, `activation`, `time`, `args_size`, `dtype`, `guard`: as in
        [`MLPField`][].
    - `rate`: > 0 [1/time]; the least rate at which the linear part decays.
    - `bound`: > 0 [state/time]; the most that the network adds to dy/dt: a number, or one for each
        component.

    **Attributes:**

    - `linear`: the matrix A, shape `(size, size)`.
    - `radius`: of the ball that every solution enters, |bound| / rate [state].
    """

    network: NeuralNetwork
    center: Float[Array, " size"]
    skew: Float[Array, "size size"]
    dissipation: Float[Array, "size size"]
    metric_factor: Float[Array, "size size"]
    bound: Frozen
    rate: float = eqx.field(static=True)
    size: int = eqx.field(static=True)

    @typechecked
    @takes(NetworkOptions, Inputs)
    def __init__(
        self,
        size: int,
        width: int,
        depth: int,
        *,
        key: PRNGKeyArray,
        rate: float = 0.01,
        bound: Explained[NumbersLike] = 1.0,
        guard: Guard = Guard(),
        **network: Unpack[DrivenNetworkArguments],
    ):
        keys = jr.split(key, 4)
        self.network = NeuralNetwork(size, size, width, depth, key=keys[0], **network)
        dtype = network.get("dtype")
        self.skew, self.dissipation, self.metric_factor = (square(k, size, dtype) for k in keys[1:])
        self.center = jnp.zeros(size, dtype)
        self.bound = positive_vector(bound, size, "bound")
        self.rate = positive(rate, "rate")
        self.size = size
        self.guard = guard

    def velocity(
        self, t: ScalarLike, x: Float[Array, " size"], args: Args
    ) -> Float[Array, " size"]:
        return self._damp(x - self.center) + like(self.bound, x) * jnp.tanh(
            self.network(x, t, args)
        )

    def _metric(self, x: Array) -> Array:
        """Q x"""
        return x + self.metric_factor @ (self.metric_factor.T @ x)

    def _damp(self, x: Array) -> Array:
        """A x"""
        x = self._metric(x)
        turned = self.skew @ x - self.skew.T @ x
        return turned - self.rate * x - self.dissipation @ (self.dissipation.T @ x)

    @property
    def linear(self) -> Float[Array, "size size"]:
        unit_vectors = jnp.eye(self.size, dtype=self.skew.dtype)
        return jax.vmap(self._damp, in_axes=1, out_axes=1)(unit_vectors)

    @property
    def radius(self) -> Float[Array, ""]:
        return jnp.linalg.norm(like(self.bound, self.skew)) / self.rate

    def lyapunov(self, y: Y) -> Float[Array, ""]:
        """V(y) = (y - center)^T Q (y - center) / 2, which falls wherever it is above
        radius^2 / 2. At least |y - center|^2 / 2."""
        x = self.vector(y) - self.center
        return x @ self._metric(x) / 2
