"""The derivative of a steady state: the implicit function theorem."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp

from .._linalg import Dense, EquilibratedLU
from .._precision import product


class Residual(eqx.Module):
    """F as a function of all that its root depends on."""

    flat_field: Callable = eqx.field(static=True)
    detected: bool = eqx.field(static=True)

    def __call__(self, inputs, projector, y):
        closed, y0, t, args = inputs
        return self.flat_field(closed, y, t, args) - product(projector, y - y0)

    def varied(self, inputs, projector, jacobian, y):
        """F at `y` as a function of the inputs, the change of a detected P included.

        That is the derivative of -P (y - y0) in P: with y - y0 = J z, from P J = 0 follows
        -dP J z = P dJ z.
        """
        fixed = lambda inputs: self(inputs, projector, y)
        if not self.detected:
            return fixed
        _, y0, *_ = inputs
        of_field = jacobian + projector
        z = lax.stop_gradient(product(jnp.linalg.pinv(of_field), y - y0))

        def with_projector(inputs):
            closed, _, t, args = inputs
            along = jax.jvp(lambda y: self.flat_field(closed, y, t, args), (y,), (z,))[1]
            return fixed(inputs) + product(projector, along)

        return with_projector


@eqx.filter_custom_jvp
def differentiable(y, ok, projector, inputs, jacobian, residual):
    """`y`, the root of `residual`, as a function of the inputs; constant where not `ok`.
    `jacobian`: that of F at the root, which the search has computed."""
    return y


@differentiable.def_jvp
def _jvp(primals, tangents):
    """dy = -F_y^-1 F_inputs d(inputs).

    One factorisation, of the Jacobian that the search has left; in the derivative of the
    derivative the Jacobian is that of `matvec`, which is exact.
    """
    y, ok, projector, inputs, jacobian, residual = primals
    y = differentiable(*primals)
    vary = residual.varied(inputs, projector, jacobian, y)
    _, right = eqx.filter_jvp(vary, (inputs,), (tangents[3],))
    factors = EquilibratedLU().factorise(
        Dense(), jnp.zeros((), y.dtype), lax.stop_gradient(jacobian)
    )

    def matvec(x):
        along = jax.jvp(lambda y: residual(inputs, projector, y), (y,), (x,))[1]
        return jnp.where(ok, -along, x)

    dy = lax.custom_linear_solve(
        matvec,
        jnp.where(ok, right, 0),
        lambda _, b: EquilibratedLU().apply(factors, b, transpose=False),
        lambda _, b: EquilibratedLU().apply(factors, b, transpose=True),
    )
    return y, jnp.where(ok, dy, 0)
