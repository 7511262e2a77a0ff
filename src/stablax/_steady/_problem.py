"""The root problem whose solution is the steady state."""

from typing import Any

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from .._fields import Aside
from .._lanes import spread
from .._linalg import AbstractJacobian, FlatField
from .._precision import product
from .._states import all_finite
from .._types import ScalarLike

_SLACK = 1e3  # tolerances of a search that a trajectory at usual tolerances may be off

_TOLERANCES = {64: (1e-9, 1e-12), 32: (1e-4, 1e-7)}  # `rtol` and `atol`, by bits
# What a leak may be, in units of rounding of the fluxes inside f. Singular vectors of an
# ill-conditioned Jacobian have three digits less than declared rows.
_ROUNDING, _ROUNDING_DETECTED = 64, 6.4e4


def default_tolerances(
    rtol: ScalarLike | None, atol: ScalarLike | None, dtype: np.dtype
) -> tuple[Any, Any]:
    """Tolerances of a steady state for a dtype; given ones are kept."""
    usual = _TOLERANCES[64 if dtype == np.float64 else 32]
    return usual[0] if rtol is None else rtol, usual[1] if atol is None else atol


def in_box(
    y: Array, lower: ArrayLike, upper: ArrayLike, rtol: ArrayLike, atol: ArrayLike
) -> Bool[Array, ""]:
    """Whether `y` is between bounds, as wide as they are for a trajectory at usual tolerances, so
    that the end of one can start a search."""
    slack = lambda b: _SLACK * (atol + rtol * jnp.where(jnp.isfinite(b), jnp.abs(b), 0))
    return jnp.all((y >= lower - slack(lower)) & (y <= upper + slack(upper)))


class SteadyProblem(eqx.Module):
    """F(y) = f(y) - P (y - y0), on flat states, with P the projector onto the conserved
    quantities (rows L with L f = 0): what a search for a steady state is given.

    F is square, has the right root (f = 0 and L y = L y0) and a Jacobian J - P that is
    non-singular there though J is singular. Its sign keeps a stable state stable.

    **Attributes:**

    - `field`: f, from a flat state to its flat derivative; non-autonomous fields are frozen.
    - `start`: where to begin, `(n,)`.
    - `y0`: what fixes the conserved totals, `(n,)`.
    - `projector`: P, `(n, n)`.
    - `lower`, `upper`: the box in which a steady state has to be, `(n,)`, +-inf for none.
    - `rtol`, `atol`: the tolerance of each component.
    - `max_steps`: the most steps that a search may take: an integer array, or a Python integer
        where a stage of the chain is a solver of optimistix, which needs it so.
    - `guessed`: whether `start` is a guess, near the steady state if it is good. Where it is not,
        it should cost little: `budget`, at most `max_steps`, is what the search may take from it.
    - `width`: how many lanes of a batch step at once at most, if not all.
    """

    field: FlatField
    start: Float[Array, " n"]
    y0: Float[Array, " n"]
    projector: Float[Array, "n n"]
    lower: Float[Array | np.ndarray, " n"]
    upper: Float[Array | np.ndarray, " n"]
    # The bounds of the guard, whether or not a steady state has to be inside.
    walls: tuple[Float[Array | np.ndarray, " n"], ...]
    guessed: Bool[Array, ""]
    budget: Int[Array, ""]
    rtol: Float[Array, ""]
    atol: Float[Array, ""]
    max_steps: Any
    detected: bool = eqx.field(static=True)  # whether the projector is
    structure: AbstractJacobian = eqx.field(static=True)
    width: int | None = eqx.field(static=True)

    def residual(self, y: Float[Array, " n"]) -> Float[Array, " n"]:
        """F at `y`."""
        return self.field(y) - product(self.projector, y - self.y0)

    def linearise(self, y: Float[Array, " n"]) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
        """F and its Jacobian at `y`."""
        return self.constrained(y, *self.linearise_field(y))

    def constrained(self, y: Array, flux: Array, jacobian: Array) -> tuple[Array, Array]:
        """F and its Jacobian at `y`, from those of f."""
        return flux - product(self.projector, y - self.y0), jacobian - self.projector

    def unseen(self) -> tuple[Array, Array]:
        """Of the shapes of f and its Jacobian. What nobody has looked at is no steady state."""
        n, dtype = self.start.size, self.start.dtype
        return spread((jnp.full(n, jnp.nan, dtype), jnp.full((n, n), jnp.nan, dtype)), self.start)

    def linearise_field(self, y: Array) -> tuple[Array, Array]:
        """f and its Jacobian at `y`. A finite value can have an infinite derivative (a root at
        zero): then the Jacobian is that next to `y`, inside the guard's bounds."""

        def at(y):
            flux, stored = self.structure.linearise(self.field, y)
            return flux, self.structure.as_matrix(stored)

        def body(carry):
            aside, flux, _ = carry
            new_flux, jacobian = at(y + aside.shift(y, *self.walls))
            flux = jnp.where(aside.moves, flux, new_flux)
            # Where the field itself is not finite, there is nothing to find.
            finite = all_finite(jacobian) | ~all_finite(flux)
            return aside.after(finite), flux, jacobian

        # A loop, so that the field stands here once.
        start = spread((Aside.start(y), *self.unseen()), y)
        _, flux, jacobian = lax.while_loop(lambda carry: ~carry[0].done, body, start)
        return flux, jacobian

    def length(self, step: Array, y: Array) -> Array:
        """The largest component of `step` relative to the state: below `rtol`, every component
        is converged to `rtol |y| + atol`."""
        return jnp.max(jnp.abs(step) / (jnp.abs(y) + self.atol / self.rtol))

    def clip(self, y: Array) -> Array:
        return jnp.clip(y, self.lower, self.upper)

    def inside(self, y: Array) -> Bool[Array, ""]:
        """Whether `y` is in the box."""
        return in_box(y, self.lower, self.upper, self.rtol, self.atol)

    def leak(self, y: Array, flux: Array, jacobian: Array) -> Array:
        """|P f| per component, in units of what rounding leaves of it (`jacobian` of f): above 1,
        something is not conserved. Relative to the fluxes inside f and not to f, which is all
        rounding at a steady state and small on a slow leak."""
        inside = product(
            jnp.abs(self.projector), product(jnp.abs(jacobian), jnp.abs(y)) + jnp.abs(flux)
        )
        digits = _ROUNDING_DETECTED if self.detected else _ROUNDING
        rounding = digits * y.size * jnp.finfo(y.dtype).eps * inside
        return jnp.abs(product(self.projector, flux)) / jnp.maximum(
            rounding, jnp.finfo(y.dtype).tiny
        )

    def keeps_conserved(self, y: Array) -> Bool[Array, ""]:
        # Where L f = 0 does not hold, F has roots at which y has left the manifold and f is not 0.
        drift = product(self.projector, y - self.y0)
        scale = product(jnp.abs(self.projector), jnp.abs(y) + jnp.abs(self.y0))
        return jnp.all(jnp.abs(drift) <= jnp.sqrt(self.rtol) * scale + self.atol)
