"""What saturable rates are made of, with exact derivatives of all orders, at zero and far above
one too: jax's own quotient and power lose them there to 0 * inf, overflow or cancellation."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

# An exponent below so many units in the last place is zero: what is left of n - n.
_ZERO_ULPS = 8


@eqx.filter_custom_jvp
def share(part: Array, rest: Array) -> Array:
    """part / (part + rest)."""
    return part / (part + rest)


@share.def_jvp
def _share_jvp(primals, tangents):
    part, rest = primals
    per_total = 1 / (part + rest)
    # Not the difference of two quotients, which cancel where `part` is much the larger.
    slopes = (share(rest, part) * per_total, -share(part, rest) * per_total)
    return share(part, rest), _along(slopes, tangents)


def arcsinh(x: Array) -> Array:
    """The inverse of sinh; jax's has the slope 0 where the square of `x` overflows."""
    magnitude = jnp.abs(x)
    far = magnitude > jnp.finfo(x.dtype).eps ** -0.5
    above = jnp.sign(x) * (jnp.log(jnp.where(far, magnitude, 1)) + np.log(2).astype(x.dtype))
    return jnp.where(far, above, jnp.arcsinh(jnp.where(far, 0, x)))


def power(x: Array, scale: Array | float, n: Array | float) -> Array:
    """(x / scale)^n for x >= 0 and scale > 0, with n > 0 where x is below `scale`, and n < 0 where
    it is above.

    A derivative that is infinite (at 0, of order above n), or so large that its square is, is that
    at x = sqrt(eps) scale."""
    return _power(x, scale, n, 0, 0)


@eqx.filter_custom_jvp
def _power(x, scale, n, order: int, logs: int):
    """(x / scale)^n log(x / scale)^logs / scale^order: a family that is closed under
    differentiation, so that no derivative of it is 0 * inf."""
    limits = jnp.finfo(jnp.result_type(x))
    least = limits.eps**0.5
    ratio = jnp.minimum(x / scale, limits.max)
    # The derivative of order n of the n-th power is a constant, but exp(log(n)) is not quite n.
    n = jnp.where(jnp.abs(n) < _ZERO_ULPS * limits.eps, 0, n)
    out = ratio**n
    too_large = out > limits.max**0.5
    out = jnp.where(too_large, jnp.exp(n * np.log(least).astype(out.dtype)), out)
    if logs:
        out = out * jnp.log(jnp.where(ratio > 0, ratio, least)) ** logs
    for _ in range(order):
        out = out / scale
    return out


@_power.def_jvp
def _power_jvp(primals, tangents):
    x, scale, n, order, logs = primals

    def slope(in_n, factor):
        """Of both factors that hold x / scale."""
        by_power = factor * _power(x, scale, in_n, order + 1, logs)
        return by_power + logs * _power(x, scale, in_n, order + 1, logs - 1) if logs else by_power

    slopes = (
        lambda: slope(n - 1, n),
        lambda: -slope(n, n + order),
        lambda: _power(x, scale, n, order, logs + 1),
    )
    return _power(*primals), _along(slopes, tangents[:3])


def _along(slopes, tangents) -> Array:
    """The sum of those products that have a tangent."""
    terms = [
        (slope() if callable(slope) else slope) * tangent
        for slope, tangent in zip(slopes, tangents, strict=True)
        if tangent is not None
    ]
    return sum(terms[1:], terms[0])
