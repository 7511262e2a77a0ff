"""An antisymmetric layer with damping."""

from typing import Unpack, final

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from .._fields import Guard
from .._types import Args, ScalarLike, Y, takes, typechecked
from ._inputs import InputArguments, Inputs, LinearInputs
from ._sized import AbstractSizedField, above_zero, check_least, positive, raw_ones, square


@final
class AntisymmetricField(AbstractSizedField):
    """One antisymmetric layer with damping: dy/dt = speed * tanh(A y + U u + b),
    A = W - W^T - damping I, with speed > 0; u are `t` and the numbers of `args`, if asked for.

    Guarantee: at every state all eigenvalues of the Jacobian have negative real parts; no
    component moves faster than its speed; and with constant inputs V(y) = sum_i speed_i
    log cosh(A y + U u + b)_i falls, dV/dt = -damping |dy/dt|^2, so that every solution ends at
    the one equilibrium, where A y + U u + b = 0.

    Choose it as a cheap layer for long times, such as a recurrent network or hidden states: with
    small damping it remembers long, and neither explodes nor forgets. Not for dynamics in
    detail: it has little more than size^2 parameters.
    Cost: two products of a matrix and a vector.
    References: Haber and Ruthotto (2018), Stable architectures for deep neural networks, Inverse
    Problems 34, 014004; Chang et al. (2019), AntisymmetricRNN: a dynamical system view on
    recurrent neural networks, ICLR.

    **Arguments:**

    - `size`, `key`, `time`, `args_size`, `dtype`, `guard`: as in [`MLPField`][].
    - `damping`: > 0 [1/state]; how far the eigenvalues of A are from the imaginary axis.
    """

    weight: Float[Array, "size size"]
    bias: Float[Array, " size"]
    raw_speed: Float[Array, " size"]
    external: LinearInputs
    damping: float = eqx.field(static=True)
    size: int = eqx.field(static=True)

    @typechecked
    @takes(Inputs)
    def __init__(
        self,
        size: int,
        *,
        key: PRNGKeyArray,
        damping: float = 0.01,
        dtype: jnp.dtype | type | None = None,
        guard: Guard = Guard(),
        **inputs: Unpack[InputArguments],
    ):
        check_least(size=(size, 1))
        first, second = jr.split(key)
        self.weight = square(first, size, dtype)
        self.bias = jnp.zeros(size, dtype)
        self.raw_speed = raw_ones(size, dtype)
        self.external = LinearInputs(size, key=second, dtype=dtype, **inputs)
        self.damping = positive(damping, "damping")
        self.size = size
        self.guard = guard

    def velocity(
        self, t: ScalarLike, x: Float[Array, " size"], args: Args
    ) -> Float[Array, " size"]:
        return above_zero(self.raw_speed) * jnp.tanh(self._drive(t, x, args))

    def _drive(self, t: ScalarLike, x: Array, args: Args) -> Array:
        out = self.weight @ x - self.weight.T @ x - self.damping * x + self.bias
        return out + self.external(t, args, x.dtype)

    def lyapunov(self, y: Y, args: Args = None, *, t: ScalarLike = 0.0) -> Float[Array, ""]:
        """V(y) >= 0, which falls along every solution while `args` and `t`, as far as they are
        inputs, do not change."""
        drive = self._drive(t, self.vector(y), args)
        log_cosh = jnp.logaddexp(drive, -drive) - jnp.log(2.0).astype(drive.dtype)
        return jnp.sum(above_zero(self.raw_speed) * log_cosh)
