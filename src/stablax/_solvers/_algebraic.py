"""M dy/dt = f with a singular M: what follows from a state besides a step.

With N the projector onto the left null space of M, N f = 0 is algebraic. Its derivative along the
solution, N (J dy/dt + df/dt) = 0, has that part of dy/dt that M does not see, if M + N J is
regular: if the system has index 1 (Hairer and Wanner 1996, Solving ODEs II, VI.1).
"""

from collections.abc import Callable

import jax
import jax.lax as lax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, PyTree

from .._lanes import spread
from .._linalg import AbstractJacobian, Dense, Factored, Mass
from .._states import all_finite
from .._types import Args

_MAX_STEPS = 50
_SMALLEST_FRACTION = 0.5**20
# Units of rounding of the largest component within which a step of Newton's method may be nothing
# but rounding; after so many of those the next is.
_TINY, _TINY_STEPS = 1000, 2


def slope(
    mass: Mass, structure: AbstractJacobian, field: Callable, t: Array, y: PyTree[Array], args: Args
) -> PyTree[Array]:
    """dy/dt at a consistent state, for M dy/dt = `field(t, y, args)`."""
    flat, unravel = ravel_pytree(y)
    value = lambda t, flat: ravel_pytree(field(t, unravel(flat), args))[0]
    if not mass.is_singular:
        return unravel(mass.slopes(value(t, flat)))
    f, drift = jax.jvp(lambda t: value(t, flat), (t,), (jnp.ones_like(t),))
    right = f - mass.algebraic(f + drift)
    bend = lambda x: mass(x) + mass.algebraic(value(t, x))
    return unravel(_system(mass, structure, bend, flat).solve(right))


def find_consistent(
    mass: Mass, structure: AbstractJacobian, field: Callable, t: Array, y: PyTree[Array], args: Args
) -> tuple[PyTree[Array], Bool[Array, ""]]:
    """The state near `y`, with the same M y, at which the algebraic equations hold, and whether
    that was found. By Newton's method, damped so that the next step by the same factorisation is
    shorter (Deuflhard 2004, Newton Methods for Nonlinear Problems, 3.3). Has no derivative."""
    start, unravel = ravel_pytree(y)
    eps = jnp.finfo(start.dtype).eps
    residual = _residual(mass, field, t, start, unravel, args)

    def newton(carry):
        _, k, tiny, flat = carry
        system = _system(mass, structure, residual, flat)
        step = -system.solve_frozen(residual(flat))
        # In units of half of the digits.
        unit = jnp.sqrt(eps) * jnp.maximum(jnp.abs(flat), jnp.abs(step))
        length = lambda step: jnp.max(jnp.where(step == 0, 0, jnp.abs(step) / unit))
        whole = length(step)
        # What is zero but for rounding does not get shorter. Then all else has converged.
        is_tiny = jnp.max(jnp.abs(step)) <= _TINY * eps * jnp.max(jnp.abs(flat))
        tiny = jnp.where(is_tiny, tiny + 1, 0)
        converged = (whole <= 1) | (tiny > _TINY_STEPS)

        def too_long(part):
            following = system.solve_frozen(residual(flat + part * step))
            shorter = length(following) <= (1 - part / 4) * whole
            return ~(shorter | converged | is_tiny) & (part > _SMALLEST_FRACTION)

        one = spread(jnp.ones((), flat.dtype), flat)
        part = lax.while_loop(too_long, lambda part: part / 2, one)
        lost = jnp.isnan(whole) | (part <= _SMALLEST_FRACTION)
        flat = jnp.where(lost, flat, flat + part * step)
        return converged, jnp.where(lost, _MAX_STEPS, k + 1), tiny, flat

    goes_on = lambda carry: ~carry[0] & (carry[1] < _MAX_STEPS)
    begin = (jnp.array(False), jnp.array(0), jnp.array(0), start)
    found, _, _, flat = lax.while_loop(goes_on, newton, spread(begin, start, t, args))
    return unravel(_with_kept(mass, start, flat)), found & all_finite(flat)


def as_consistent(
    mass: Mass,
    structure: AbstractJacobian,
    field: Callable,
    t: Array,
    y: PyTree[Array],
    args: Args,
    found: PyTree[Array],
) -> PyTree[Array]:
    """What was `found` from `y`, with its derivative. Of that of `y` only that of M y counts."""
    start, unravel = ravel_pytree(y)

    def tangent(linear, right):
        return _system(mass, structure, linear, jnp.zeros_like(right)).solve(right)

    flat = lax.custom_root(
        _residual(mass, field, t, start, unravel, args),
        lax.stop_gradient(ravel_pytree(found)[0]),
        lambda _, found: found,
        tangent,
    )
    return unravel(_with_kept(mass, start, flat))


def _residual(mass: Mass, field: Callable, t: Array, start: Array, unravel, args) -> Callable:
    def residual(flat):
        f = ravel_pytree(field(t, unravel(flat), args))[0]
        return mass(flat - start) + mass.algebraic(f)

    return residual


def _with_kept(mass: Mass, start: Array, flat: Array) -> Array:
    """Not even by a rounding error a component changes that has an equation of its own."""
    if not mass.is_diagonal:
        return flat
    return jnp.where(mass.numbers != 0, start, flat)


def _system(mass: Mass, structure: AbstractJacobian, fn: Callable, flat: Array) -> Factored:
    """The Jacobian of `fn`, M + N J, factorised."""
    if isinstance(structure, Dense) or not mass.is_diagonal:
        structure = Dense()  # N J may have entries that J has not; by hand there is only J
    _, stored = structure.linearise(fn, flat)
    minus = jnp.asarray(-1, flat.dtype)
    return Factored(structure, jnp.zeros((), flat.dtype), structure.scale(stored, minus))
