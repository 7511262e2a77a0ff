"""Where the inputs of a field have kinks and jumps, and what it does to a state if those move."""

from collections.abc import Callable, Iterable

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PyTree

from .._fields import Input, knots_of
from .._lanes import only_where, spread
from .._states import or_zero
from .._types import Args


class Knots(eqx.Module):
    """The knots of all inputs of a field, in no order; what is inf is none. At those that `jump`
    the field has two values."""

    ts: Float[Array, " knots"]
    jump: Bool[np.ndarray | Array, " knots"] | None  # None if none of them can

    @staticmethod
    def of(inputs: Iterable[Input], dtype: np.dtype) -> "Knots | None":
        """Of `inputs`, of which one may be given several times."""
        inputs = list({id(one.ts): one for one in inputs}.values())
        if not inputs:
            return None
        ts = [knots_of(jnp.asarray(one.ts)).astype(dtype) for one in inputs]
        jump = None
        if any(any(one.jumps_at) for one in inputs):
            jump = jnp.concatenate([_jumps(*pair) for pair in zip(inputs, ts, strict=True)])
        return Knots(jnp.concatenate([jnp.ravel(x) for x in ts]), jump)

    @property
    def jumps(self) -> Float[Array, " knots"] | None:
        """Those at which the field has two values."""
        return None if self.jump is None else jnp.where(self.jump, self.ts, jnp.inf)


def _jumps(one: Input, ts: Array) -> Bool[Array, " knots"]:
    first, between, last = one.jumps_at
    place = jnp.arange(ts.shape[-1])
    end = jnp.sum(jnp.isfinite(ts), axis=-1, keepdims=True) - 1
    return jnp.ravel(jnp.where(place == 0, first, jnp.where(place == end, last, between)))


def is_at(jumps: Float[Array, " knots"], t: Array, way: Array) -> Bool[Array, " knots"]:
    """Which of the `jumps` a step ended at, if the next one begins at `t`: just behind, or on it
    at the end of a solve. `way`: 1, or -1 backwards in time."""
    jumps, t = lax.stop_gradient((jumps, t))
    return jnp.isfinite(jumps) & ((_behind(jumps, way) == t) | (jumps == t))


def _behind(t: Array, way: Array) -> Array:
    """The next number on the way."""
    return jnp.nextafter(t, jnp.inf * way.astype(t.dtype))


def moved(
    field: Callable, jumps: Float[Array, " knots"], t: Array, y: PyTree[Array], args: Args, way
) -> PyTree[Array]:
    """`y` where a step ended at one of the `jumps`, as a function of when that is: from there on
    under the field before it until then, and back under the field behind it.

    As it is then now both ways have no length, and this is `y`; its derivatives, of first and
    second order, are those of two steps of the midpoint rule."""
    here = is_at(jumps, t, way)
    knot = lax.stop_gradient(jnp.max(jnp.where(here, jumps, -jnp.inf)))
    of_all = jnp.where(here, jumps, 0)
    by = jnp.sum(of_all - lax.stop_gradient(of_all)) / jnp.sum(here).astype(jumps.dtype)
    before, behind = _behind(knot, -way), _behind(knot, way)
    times = jnp.stack([before, before + by / 2, behind + by, behind + by / 2])
    lengths = jnp.stack([by / 2, by, -by / 2, -by])

    def stage(carry, x):
        start, at = carry
        time, length, is_last = x
        slope = field(time, at, args, optax.tree.zeros_like(at))
        at = jtu.tree_map(lambda y, dy: y + length.astype(y.dtype) * dy, start, slope)
        return (optax.tree.where(is_last, at, start), at), None

    stages = (times, lengths, np.array([False, True, False, True]))
    start, stages = spread(((y, y), stages), field, jumps, t, args)
    (y, _), _ = lax.scan(stage, start, stages)
    return y


@eqx.filter_custom_jvp
def past_jumps(
    y: PyTree[Array], jumps: Float[Array, " knots"], t: Array, field: Callable, args: Args, way
) -> PyTree[Array]:
    """`y` where a step ended, from where the next begins at `t`: with the derivative of [`moved`][]
    if that was at one of the `jumps`. Forward mode only."""
    return y


@past_jumps.def_jvp
def _past_jumps_jvp(primals, tangents):
    (y, jumps, t, field, args, way), (d_y, d_jumps, _, d_field, d_args, _) = primals, tangents
    if d_jumps is None:
        return y, d_y
    d_y = or_zero(d_y, y)

    def move():
        points, d_points = (field, jumps, y, args), (d_field, d_jumps, d_y, d_args)
        at = lambda field, jumps, y, args: moved(field, jumps, t, y, args, way)
        return eqx.filter_jvp(at, points, d_points)[1]

    return y, only_where(jnp.any(is_at(jumps, t, way)), move, d_y)


@eqx.filter_custom_jvp
def without_derivative(tree: PyTree, jumps: Array, message: str) -> PyTree:
    """`tree`, whose derivative in `jumps` is a `TypeError` with `message`."""
    return tree


@without_derivative.def_jvp
def _without_derivative_jvp(primals, tangents):
    (tree, _, message), (d_tree, d_jumps, _) = primals, tangents
    if d_jumps is not None:
        raise TypeError(message)
    return tree, d_tree
