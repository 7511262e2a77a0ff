"""A contracting field: all solutions converge to each other."""

import math
from typing import Unpack, final

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.linalg import solve_triangular
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from .._fields import Guard
from .._types import Args, ScalarLike, Y, takes, typechecked
from ._inputs import InputArguments, Inputs, LinearInputs
from ._sized import AbstractSizedField, above_zero, check_least, positive, raw_ones, square

# Away from zero, where a root has no derivative; a larger sum only makes a norm smaller.
_POSITIVE = 1e-12


@final
class _Nonexpansive(eqx.Module):
    """A network whose Lipschitz constant in `x` is at most 1, however it is trained.

    Each weight matrix W is used as W diag(sum_k |W^T W|_jk)^(-1/2), whose spectral norm is at most
    1 (Prach and Lampert 2022, Almost-orthogonal layers for efficient general-purpose Lipschitz
    networks, theorem 1), and `tanh` has slopes in [0, 1].
    """

    layers: tuple[eqx.nn.Linear, ...]
    external: LinearInputs

    def __init__(
        self,
        size: int,
        width: int,
        depth: int,
        *,
        key: PRNGKeyArray,
        dtype: DTypeLike | None,
        **inputs: Unpack[InputArguments],
    ):
        check_least(size=(size, 1), width=(width, 1), depth=(depth, 1))
        sizes = [size, *[width] * depth, size]
        *keys, last = jr.split(key, len(sizes))
        self.layers = tuple(
            eqx.nn.Linear(n_in, n_out, key=k, dtype=dtype)
            for n_in, n_out, k in zip(sizes[:-1], sizes[1:], keys, strict=True)
        )
        self.external = LinearInputs(width, key=last, dtype=dtype, **inputs)

    def __call__(self, x: Array, t: ScalarLike, args: Args) -> Array:
        shift = self.external(t, args, x.dtype)
        for layer in self.layers[:-1]:
            x = jnp.tanh(_almost_orthogonal(layer, x) + shift)
            shift = 0.0
        return _almost_orthogonal(self.layers[-1], x)


def _almost_orthogonal(layer: eqx.nn.Linear, x: Array) -> Array:
    weight = layer.weight
    sizes = _POSITIVE + jnp.sum(jnp.abs(weight.T @ weight), axis=1)
    return eqx.tree_at(lambda layer: layer.weight, layer, weight / jnp.sqrt(sizes)[None])(x)


@final
class ContractingField(AbstractSizedField):
    """A field whose solutions converge to each other: in the coordinates z = T y,
    dz/dt = -rate z + S z + stiffness (N(z, [t], [args]) - z),
    with T triangular and S antisymmetric, learned, and N a network of Lipschitz constant 1.

    Guarantee: with M = T^T T (`metric`) and J the Jacobian, M J + J^T M <= -2 rate M at every
    state, time and condition. So the distance of any two solutions in this metric falls at least
    as exp(-rate t): initial states are forgotten, with constant inputs there is one steady state,
    reached from everywhere, and with periodic inputs one periodic solution. Any Lipschitz field
    that contracts by a margin in a constant metric has this form for a large enough stiffness.

    Choose it for filters and relaxing systems, driven ones above all; not where there are
    oscillations of their own, several steady states or conserved quantities.
    Cost: that of an [`MLPField`][], a product of each weight matrix with itself (the larger
    part, if the state is not batched), and a triangular solve.
    References: Lohmiller and Slotine (1998), On contraction analysis for non-linear systems,
    Automatica 34, 683; for the network Prach and Lampert (2022), Almost-orthogonal layers for
    efficient general-purpose Lipschitz networks, ECCV.

    **Arguments:**

    - `size`, `width`, `key`, `time`, `args_size`, `dtype`, `guard`: as in [`MLPField`][]. The
        activation is `tanh`: the guarantee needs slopes between 0 and 1.
    - `depth`: number of hidden layers; >= 1.
    - `rate`: > 0 [1/time]; the least rate at which solutions converge.

    **Attributes:**

    - `metric`: the matrix M, shape `(size, size)`.
    """

    network: _Nonexpansive
    skew: Float[Array, "size size"]
    raw_stiffness: Float[Array, ""]
    raw_scale: Float[Array, " size"]
    shear: Float[Array, " below"]
    rate: float = eqx.field(static=True)
    size: int = eqx.field(static=True)

    @typechecked
    @takes(Inputs)
    def __init__(
        self,
        size: int,
        width: int,
        depth: int,
        *,
        key: PRNGKeyArray,
        rate: float = 0.01,
        dtype: jnp.dtype | type | None = None,
        guard: Guard = Guard(),
        **inputs: Unpack[InputArguments],
    ):
        key, skew = jr.split(key)
        self.network = _Nonexpansive(size, width, depth, key=key, dtype=dtype, **inputs)
        self.skew = square(skew, size, dtype)
        self.raw_stiffness = raw_ones((), dtype)
        self.raw_scale = raw_ones(size, dtype)
        self.shear = jnp.zeros(math.comb(size, 2), dtype)
        self.rate = positive(rate, "rate")
        self.size = size
        self.guard = guard

    def velocity(
        self, t: ScalarLike, x: Float[Array, " size"], args: Args
    ) -> Float[Array, " size"]:
        z = self.to_metric(x)
        turned = self.skew @ z - self.skew.T @ z
        relaxed = above_zero(self.raw_stiffness) * (self.network(z, t, args) - z)
        return self._from_metric(turned + relaxed) - self.rate * x

    def _shear(self) -> Array:
        """A unit lower triangular matrix."""
        below = jnp.tril_indices(self.size, -1)
        return jnp.eye(self.size, dtype=self.shear.dtype).at[below].set(self.shear)

    def to_metric(self, y: Y) -> Float[Array, " size"]:
        """z = T y, in which the distance of two solutions is the Euclidean one."""
        return self._shear() @ (above_zero(self.raw_scale) * self.vector(y))

    def _from_metric(self, z: Array) -> Array:
        solved = solve_triangular(self._shear(), z, lower=True, unit_diagonal=True)
        return solved / above_zero(self.raw_scale)

    @property
    def metric(self) -> Float[Array, "size size"]:
        factor = self._shear() * above_zero(self.raw_scale)[None]
        return factor.T @ factor
