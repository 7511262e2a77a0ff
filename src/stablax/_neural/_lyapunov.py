"""A field with one equilibrium, which every solution reaches."""

from collections.abc import Callable
from typing import Unpack, final

import equinox as eqx
import jax
import jax.lax as lax
import jax.nn as jnn
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from .._fields import Guard
from .._static import Frozen, real_array
from .._types import Args, ScalarLike, Y, YLike, takes, typechecked
from ._neural_network import NetworkArguments, NetworkOptions, NeuralNetwork
from ._sized import AbstractSizedField, check_least, like, positive, square


@final
class _Convex(eqx.Module):
    """A convex function of a vector: an input convex neural network (Amos, Xu and Kolter 2017).
    Weights from layer to layer are positive, the activation is convex and rises."""

    inputs: tuple[eqx.nn.Linear, ...]
    between: tuple[Float[Array, "width width"], ...]
    last: Float[Array, " width"]

    def __init__(self, size, width, depth, *, key, dtype):
        *keys, between = jr.split(key, depth + 1)
        self.inputs = tuple(eqx.nn.Linear(size, width, key=k, dtype=dtype) for k in keys)
        self.between = tuple(square(k, width, dtype) for k in jr.split(between, depth)[1:])
        self.last = jnp.zeros(width, dtype)

    def __call__(self, x: Array) -> Array:
        return self.value_and_slope(x)[0]

    def value_and_slope(self, x: Array) -> tuple[Array, Array]:
        """The value and its gradient: by hand, since the field is made of the gradient, and solvers
        differentiate it once more."""
        first, *others = self.inputs
        between = [_positive(weight) for weight in self.between]
        z, bend = _rectifier(first(x))
        bends = [bend]
        for layer, weight in zip(others, between, strict=True):
            z, bend = _rectifier(weight @ z + layer(x))
            bends.append(bend)

        last = _positive(self.last)
        back = bends[-1] * last
        slope = self.inputs[-1].weight.T @ back
        for i in range(len(others) - 1, -1, -1):
            back = bends[i] * (between[i].T @ back)
            slope = slope + self.inputs[i].weight.T @ back
        return jnp.sum(last * z), slope


def _rectifier(x: Array) -> tuple[Array, Array]:
    """Squareplus (Barron 2021) and its derivative: smooth, convex and rising."""
    # Far out, where the square overflows, the root is |x| to rounding.
    far = jnp.abs(x) > jnp.finfo(x.dtype).eps ** -1
    root = jnp.where(far, jnp.abs(x), jnp.sqrt(jnp.where(far, 0, x) ** 2 + 4))
    return (x + root) / 2, (1 + x / root) / 2


def _positive(weight: Array) -> Array:
    """Positive weights whose sum does not grow with the number of inputs."""
    return jnn.softplus(weight) / weight.shape[-1]


@final
class LyapunovField(AbstractSizedField):
    """A field with one equilibrium, which every solution reaches: with x = y - equilibrium,
    dx/dt = -rate x + the part of MLP(y) - MLP(equilibrium) that does not climb V(y),
    V(y) = convexity |x|^2 / 2 + a learned convex function whose minimum, 0, is the equilibrium.

    Guarantee: dV/dt <= -rate V at every state, so that V falls at least as exp(-rate t), and y
    tends to the equilibrium from everywhere, in a spiral where the network says so.
    The field is smooth away from the equilibrium, and there it is continuous, but has a
    slope for each direction: its derivative at exactly that point is given as -rate I.

    Choose it for systems with one resting state, known or not, to which they return, oscillating
    or not; not where there are several, or conserved quantities.
    Cost: about six times that of an [`MLPField`][] (the network and the gradient of the convex
    function, at the state and at the equilibrium).
    Reference: Manek and Kolter (2019), Learning stable deep dynamics models, NeurIPS. Here V is
    made from the convex network by subtracting its tangent at the equilibrium (instead of a
    rectifier), the network from its value there (so that it is an equilibrium), and the
    projection is smooth.

    **Arguments:**

    - `size`, `width`, `key`, `activation`, `dtype`, `guard`: as in [`MLPField`][].
    - `depth`: number of hidden layers of both networks; >= 1.
    - `equilibrium`: where solutions end, in the structure of the state: given, it is never
        trained. `None` (the default): learned, from 0.
    - `rate`: > 0 [1/time]; the least rate at which V falls.
    - `convexity`: > 0; how far V is from flat at least.
    """

    network: NeuralNetwork
    convex: _Convex
    equilibrium: Float[Array, " size"] | Frozen
    rate: float = eqx.field(static=True)
    convexity: float = eqx.field(static=True)
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
        equilibrium: YLike | None = None,
        rate: float = 0.01,
        convexity: float = 0.1,
        guard: Guard = Guard(),
        **network: Unpack[NetworkArguments],
    ):
        check_least(size=(size, 1), width=(width, 1), depth=(depth, 1))
        first, second = jr.split(key)
        dtype = network.get("dtype")
        self.network = NeuralNetwork(size, size, width, depth, key=first, **network)
        self.convex = _Convex(size, width, depth, key=second, dtype=dtype)
        self.equilibrium = (
            jnp.zeros(size, dtype) if equilibrium is None else _given(equilibrium, size)
        )
        self.rate = positive(rate, "rate")
        self.convexity = positive(convexity, "convexity")
        self.size = size
        self.guard = guard

    def velocity(
        self, t: ScalarLike, x: Float[Array, " size"], args: Args
    ) -> Float[Array, " size"]:
        away = x - self._origin(x)
        learned = self._change(self.network, x)
        slope = self._change(lambda x: self.convex.value_and_slope(x)[1], x)
        slope = slope + self.convexity * away
        return _without_climbing(learned, slope, self.rate * away) - self.rate * away

    def lyapunov(self, y: Y) -> Float[Array, ""]:
        """V(y): 0 at the equilibrium, positive elsewhere, convex, and falling along every
        solution at least as exp(-rate t)."""
        x = self.vector(y)
        origin = self._origin(x)
        away = x - origin
        value, slope = self.convex.value_and_slope(origin)
        return self.convex(x) - value - slope @ away + self.convexity * away @ away / 2

    def _change(self, fn: Callable[[Array], Array], x: Array) -> Array:
        """`fn(x)` less that at the equilibrium. One program for both: else they are rounded in
        different ways, and where `x` is the equilibrium to rounding that would be all that is."""
        at_x, at_origin = jax.vmap(fn)(jnp.stack([x, self._origin(x)]))
        return at_x - at_origin

    def _origin(self, x: Array) -> Array:
        given = self.equilibrium
        return like(given, x) if isinstance(given, Frozen) else given


def _given(equilibrium: PyTree[ArrayLike], size: int) -> Frozen:
    leaves = [real_array(x, "equilibrium").ravel() for x in jtu.tree_leaves(equilibrium)]
    value = np.concatenate(leaves)
    if value.shape != (size,):
        raise ValueError(
            f"`equilibrium` has {value.size} components, but `size` is {size}: it is a state."
        )
    return Frozen(value)


def _without_climbing(h: Array, slope: Array, decay: Array) -> Array:
    """`h` without more of its part along `slope` than makes h . slope <= 0.

    With u the unit vector along `slope`, h - u s, where s = (h.u + sqrt((h.u)^2 + w^2)) / 2
    is above max(h.u, 0), and smooth for w > 0. w = u . `decay`, which is what V falls by anyway,
    has the units of a rate of y and is 0 at the equilibrium only.
    """
    # By numbers near one, since near the equilibrium, and far out, squares are 0 or infinite. No
    # derivative of the sizes: a unit vector has none in the length, and a root is homogeneous.
    size = _size(slope)
    slope = slope / size
    steepness = jnp.sum(slope**2)
    # At the equilibrium the differences that `h` and `slope` are may be rounded to other than 0.
    at_rest = jnp.all(decay == 0) | (steepness == 0)
    # Each root is kept from 0, where it has no derivative.
    # A product: XLA makes one of the quotient where this is differentiated, with another last bit.
    unit = slope * (1 / jnp.sqrt(jnp.where(steepness == 0, 1, steepness)))
    climb, width = jnp.sum(unit * h), jnp.sum(unit * decay)
    size = _size(jnp.stack([climb, width]))
    radicand = (climb / size) ** 2 + (width / size) ** 2
    root = size * jnp.sqrt(jnp.where(radicand == 0, 1, radicand))
    excess = (climb + jnp.where(radicand == 0, jnp.abs(climb), root)) / 2
    return jnp.where(at_rest, 0, h - unit * excess)


def _size(x: Array) -> Array:
    """The largest of |x| to a factor of 2, without a derivative: a power of 2, by which quotients
    and products are exact; 1 for zeros."""
    largest = lax.stop_gradient(jnp.max(jnp.abs(x)))
    power = jnp.ldexp(jnp.ones_like(largest), jnp.frexp(largest)[1])
    return jnp.where(largest < jnp.finfo(x.dtype).tiny, 1, power)
