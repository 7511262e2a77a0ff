"""The root problem whose solution is the steady state."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._linalg import AbstractJacobian, Equilibrated, Factored, linearise


class SteadyProblem(eqx.Module):
    """F(y) = f(y) - P (y - y0), on flat states, with P the projector onto the conserved
    quantities (rows L with L f = 0).

    F is square, has the right root (f = 0 and L y = L y0) and a Jacobian J - P that is
    non-singular there though J is singular. Its sign keeps a stable state stable.
    """

    field: Any  # flat state -> flat dy/dt
    y0: Float[Array, " n"]
    projector: Float[Array, "n n"]
    lower: Float[Array, " n"]
    upper: Float[Array, " n"]
    rtol: float = eqx.field(static=True)
    atol: float = eqx.field(static=True)
    rejects: bool = eqx.field(static=True)
    structure: AbstractJacobian = eqx.field(static=True)
    by_hand: Any  # evaluates a Jacobian written by the user, `by_hand(fn, y)`

    def residual(self, y: Array) -> Array:
        return self.field(y) - self.projector @ (y - self.y0)

    def linearise(self, y: Array) -> tuple[Array, Array]:
        """F and its Jacobian at `y`."""
        flux, stored = linearise(
            self.structure, self.field, y, lambda jacobian: self.by_hand(jacobian, y)
        )
        value = flux - self.projector @ (y - self.y0)
        return value, self.structure.as_matrix(stored) - self.projector

    def factorise(self, jacobian: Array, shift: Any = 0.0) -> Factored:
        """`shift I - jacobian`, factorised."""
        return Factored(Equilibrated(), jnp.asarray(shift, jacobian.dtype), jacobian)

    def size(self, step: Array, y: Array) -> Array:
        """The largest component of `step` relative to the state: below `rtol`, every component
        is converged to `rtol |y| + atol`."""
        return jnp.max(jnp.abs(step) / (jnp.abs(y) + self.atol / self.rtol))

    def clip(self, y: Array) -> Array:
        return jnp.clip(y, self.lower, self.upper)

    def inside(self, y: Array) -> Bool[Array, ""]:
        if not self.rejects:
            return jnp.array(True)
        # As wide as the box is for a trajectory at usual tolerances, so that its end can start a
        # search.
        slack = lambda b: 1e3 * (self.atol + self.rtol * jnp.abs(jnp.where(jnp.isfinite(b), b, 0)))
        return jnp.all(
            (y >= self.lower - slack(self.lower)) & (y <= self.upper + slack(self.upper))
        )

    def leak(self, y: Array, flux: Array, jacobian: Array) -> Array:
        """|P f| per component, in units of what rounding leaves of it (`jacobian` of f): above 1,
        something is not conserved. Relative to the fluxes inside f and not to f, which is all
        rounding at a steady state and small on a slow leak."""
        inside = jnp.abs(self.projector) @ (jnp.abs(jacobian) @ jnp.abs(y) + jnp.abs(flux))
        rounding = 64 * y.size * jnp.finfo(y.dtype).eps * inside
        return jnp.abs(self.projector @ flux) / jnp.maximum(rounding, jnp.finfo(y.dtype).tiny)

    def conserves(self) -> Bool[Array, ""]:
        """Whether the field keeps the conserved quantities (P f = 0), at `y0` and next to it."""
        size = jnp.exp(0.5 * jnp.sin(1.0 + jnp.arange(self.y0.size, dtype=self.y0.dtype)))

        def at(y):
            flux, jacobian = self.linearise(y)
            flux = flux + self.projector @ (y - self.y0)
            leak = self.leak(y, flux, jacobian + self.projector)
            return jnp.all(leak <= 1) | ~jnp.all(jnp.isfinite(leak))

        return jnp.all(jax.vmap(at)(jnp.stack([self.y0, self.clip(self.y0 * size)])))

    def keeps_conserved(self, y: Array) -> Bool[Array, ""]:
        # Where L f = 0 does not hold, F has roots at which y has left the manifold and f is not 0.
        drift = self.projector @ (y - self.y0)
        scale = jnp.abs(self.projector) @ (jnp.abs(y) + jnp.abs(self.y0))
        return jnp.all(jnp.abs(drift) <= jnp.sqrt(self.rtol) * scale + self.atol)
