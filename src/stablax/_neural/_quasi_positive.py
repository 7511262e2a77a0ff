"""A field that cannot leave the positive states."""

from collections.abc import Callable
from typing import Unpack, final

import equinox as eqx
import jax.nn as jnn
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._fields import Guard
from .._types import Args, ScalarLike, Y, takes, typechecked
from ._inputs import Inputs
from ._neural_network import DrivenNetworkArguments, NetworkOptions, NeuralNetwork
from ._sized import AbstractSizedField


def _identity(x: Array) -> Array:
    return x


@final
class QuasiPositiveField(AbstractSizedField):
    """Production and degradation: dy_i/dt = P_i(y, [t], [args]) - D_i(y, [t], [args]) y_i, with
    P and D positive, from a network.

    Guarantee: dy_i/dt >= 0 wherever y_i = 0, so that no component of a solution that starts
    without negative ones becomes negative. Every Lipschitz field with this property is of this
    form. Solutions need not be bounded.

    Choose it for concentrations, populations, counts. The solver's error can still undershoot
    zero: the default guard, `Guard(lower=0.0)`, rejects steps that do so by more than the
    tolerance, and its network never sees a negative state.
    Cost: that of an [`MLPField`][] with twice the outputs.
    Reference: Haddad, Chellaboina and Hui (2010), Nonnegative and compartmental dynamical systems,
    Princeton, chapter 2 ("essentially nonnegative"; others say quasi-positive).

    **Arguments:**

    - `size`, `width`, `depth`, `key`, `activation`, `time`, `args_size`, `dtype`: as in
        [`MLPField`][].
    - `features`: elementwise, what of the state the network sees; by default the state itself. For
        concentrations over many decades `lambda y: jnp.log(y + floor)` with a floor near the
        smallest of them. Static.
    - `rate`: elementwise, a positive function that makes P and D from the network's outputs; by
        default `softplus`. `jnp.exp` for rates over many decades. Static.
    - `guard`: a [`Guard`][]; keyword-only; by default `Guard(lower=0.0)`.
    """

    network: NeuralNetwork
    features: Callable = eqx.field(static=True)
    rate: Callable = eqx.field(static=True)
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
        features: Callable = _identity,
        rate: Callable = jnn.softplus,
        guard: Guard = Guard(lower=0.0),
        **network: Unpack[DrivenNetworkArguments],
    ):
        self.network = NeuralNetwork(size, 2 * size, width, depth, key=key, **network)
        self.features = features
        self.rate = rate
        self.size = size
        self.guard = guard

    def velocity(
        self, t: ScalarLike, x: Float[Array, " size"], args: Args
    ) -> Float[Array, " size"]:
        production, degradation = self.rates(t, x, args)
        return production - degradation * x

    def rates(
        self, t: ScalarLike, y: Y, args: Args
    ) -> tuple[Float[Array, " size"], Float[Array, " size"]]:
        """P [state/time] and D [1/time] at the state `y`, all positive, as vectors."""
        outputs = self.network(self.features(self.vector(y)), t, args)
        production, degradation = jnp.split(self.rate(outputs), 2)
        return production, degradation
