"""A neural vector field."""

import math
from typing import Unpack, final

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

from .._fields import Guard
from .._static import Frozen
from .._types import Args, Explained, NumbersLike, ScalarLike, takes, typechecked
from .._words import short
from ._inputs import Inputs
from ._neural_network import DrivenNetworkArguments, NetworkOptions, NeuralNetwork
from ._sized import AbstractSizedField, like, positive_vector


@final
class MLPField(AbstractSizedField):
    """A multilayer perceptron as a vector field: dy/dt = output_scale * MLP(y, [t], [args]).

    The last layer starts small, so that training starts near y' = 0, where every solve is cheap
    and no trajectory runs away. Its only PyTree leaves are weights and biases; the activation is
    static. Inside the `vector_field` of another guarded field, use
    `network.vector_field(t, y, args)`: one guard is enough.

    Guarantee: none about where trajectories go. Choose it where data cover all that will be asked
    of it; for long extrapolation choose a field that is stable by construction; for states of
    different sizes put it into a [`ScaledNeuralField`][].

    **Arguments:**

    - `size`: number of components of the state, >= 1: a vector of shape `(size,)`, or a PyTree of
        `size` components in total.
    - `width`: neurons in each hidden layer; >= 1.
    - `depth`: number of hidden layers; >= 0 (0: a linear field).
    - `key`: a PRNG key for the initial weights (uniform in +-1/sqrt(inputs), as `eqx.nn.Linear`).
    - `activation`: smooth, elementwise; by default `tanh`, whose bounded output keeps a stiff
        solver's steps sane. `jax.nn.gelu` and `jax.nn.softplus` are smooth as well; the kinks of
        `relu` cost a solver rejected steps.
    - `time`: whether `t` is an input; by default not: the field is autonomous.
    - `args_size`: how many numbers `args` (any PyTree) holds in total, all of them inputs; by
        default 0: `args` is not looked at.
    - `output_scale`: > 0, the size of dy/dt [state/time]: a number, or one for each component.
        Static.
    - `initial_scale`: >= 0; the last layer's initial weights and biases are multiplied by it.
    - `dtype`: of the weights; by default jax's default floating-point type.
    - `guard`: a [`Guard`][]; keyword-only.

    **Raises:** `ValueError` for a number out of range, a state of another size, or `args` with
    another number of numbers.
    """

    network: NeuralNetwork
    output_scale: Frozen
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
        output_scale: Explained[NumbersLike] = 1.0,
        initial_scale: float = 0.01,
        guard: Guard = Guard(),
        **network: Unpack[DrivenNetworkArguments],
    ):
        if not (math.isfinite(initial_scale) and initial_scale >= 0):
            raise ValueError(
                f"`initial_scale` must be finite and >= 0, got {short(initial_scale)}."
            )
        self.network = NeuralNetwork(
            size, size, width, depth, key=key, initial_scale=initial_scale, **network
        )
        self.output_scale = positive_vector(output_scale, size, "output_scale")
        self.size = size
        self.guard = guard

    def velocity(
        self, t: ScalarLike, x: Float[Array, " size"], args: Args
    ) -> Float[Array, " size"]:
        return like(self.output_scale, x) * self.network(x, t, args)
