"""A root between two times."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array

# Bisection alone needs 53 in float64; interpolation that is of no use costs a few more.
_MOST = 128


class _Bracket(NamedTuple):
    """The root is between `x1`, the latest point, and `x2`; `x3` is the one before them."""

    x1: Array
    x2: Array
    x3: Array
    f1: Array
    f2: Array
    f3: Array
    count: Any

    @property
    def best(self) -> Array:
        return jnp.where(jnp.abs(self.f1) < jnp.abs(self.f2), self.x1, self.x2)

    @property
    def is_exact(self):
        return (self.f1 == 0) | (self.f2 == 0)


def bracketed_root(f: Callable[[Array], Array], a: Array, b: Array, f_a: Array, f_b: Array):
    """A root of `f` between `a` and `b`, to their resolution. `f_a` and `f_b` are the values there,
    of opposite sign or zero. No derivative: see `jax.lax.custom_root`.

    Inverse quadratic interpolation where it is safe, bisection where not (Chandrupatla 1997, Adv.
    Eng. Software 28, 145): one evaluation a step, six to ten for a smooth function.
    """
    resolution = 2 * jnp.finfo(a.dtype).eps * jnp.maximum(jnp.abs(a), jnp.abs(b))

    def least(s: _Bracket):
        """The smallest part of the bracket that can be told from its ends."""
        return resolution / jnp.abs(s.x2 - s.x1)

    def searching(s: _Bracket):
        return (s.count < _MOST) & (least(s) <= 0.5) & ~s.is_exact

    def narrow(s: _Bracket):
        xi, phi = (s.x1 - s.x2) / (s.x3 - s.x2), (s.f1 - s.f2) / (s.f3 - s.f2)
        is_safe = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
        quadratic = s.f1 / (s.f2 - s.f1) * s.f3 / (s.f2 - s.f3) + (s.x3 - s.x1) / (
            s.x2 - s.x1
        ) * s.f1 / (s.f3 - s.f1) * s.f2 / (s.f3 - s.f2)
        part = jnp.clip(jnp.where(is_safe, quadratic, 0.5), least(s), 1 - least(s))
        x = s.x1 + part * (s.x2 - s.x1)
        value = f(x)
        keep = jnp.sign(value) == jnp.sign(s.f1)
        x2, f2 = jnp.where(keep, s.x2, s.x1), jnp.where(keep, s.f2, s.f1)
        x3, f3 = jnp.where(keep, s.x1, s.x2), jnp.where(keep, s.f1, s.f2)
        return _Bracket(x, x2, x3, value, f2, f3, s.count + 1)

    # With the third point on the second, the first step is a bisection.
    start = _Bracket(a, b, b, f_a, f_b, f_b, jnp.array(0))
    return lax.while_loop(searching, narrow, start).best
