"""A neural field that is stiff."""

import jax.numpy as jnp
import numpy as np

from ._chemistry import ROBERTSON
from ._problem import Problem


def mlp(layers, x):
    """A multilayer perceptron with tanh activations; `layers` are `(weight, bias)`."""
    for weight, bias in layers[:-1]:
        x = jnp.tanh(weight @ x + bias)
    weight, bias = layers[-1]
    return weight @ x + bias


def random_layers(rng, sizes):
    """Weights and biases of random networks, as numpy arrays."""
    return tuple(
        (rng.normal(size=(m, n)) / np.sqrt(n), 0.1 * rng.normal(size=m))
        for n, m in zip(sizes[:-1], sizes[1:], strict=True)
    )


_CHANGE = np.array([[-1.0, 1.0, 0.0], [1.0, -1.0, -1.0], [0.0, 0.0, 1.0]])
_SCALE = np.array([1.0, 1e-5, 1.0])


def neural_robertson(t, y, args):
    """Robertson's reactions, each rate constant multiplied by exp(network(y / scale))."""
    k, layers = args
    rates = k * jnp.stack([y[0], y[1] * y[2], y[1] ** 2])
    scaled = y / jnp.asarray(_SCALE, y.dtype)
    return jnp.asarray(_CHANGE, y.dtype) @ (rates * jnp.exp(mlp(layers, scaled)))


NEURAL_ROBERTSON = Problem(
    name="neural Robertson",
    field=neural_robertson,
    y0=ROBERTSON.y0,
    args=(ROBERTSON.args, random_layers(np.random.default_rng(5), [3, 8, 8, 3])),
    t1=1e5,
    ts=np.geomspace(1e-5, 1e5, 50),
    floor=1e-6,
    spread=0.1,
    source="Robertson's reactions with a random network (seed 5) in the rates; times as in Kim et "
    "al. (2021), Chaos 31, 093122",
)
