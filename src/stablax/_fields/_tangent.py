"""A field that goes on outside of its box along its tangent."""

from collections.abc import Callable
from typing import final

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import Array, PyTree

from .._lanes import only_where, spread
from .._states import add, all_finite, any_nonzero, stop
from .._types import Args, ScalarLike, Y
from ._gate import close


@final
class AlongTangent(eqx.Module):
    """f(c) + J(c) (y - c) at c = `inside`, for y - c = `outside`. A component in which that is not
    finite at the bound itself, at `clipped`, has an infinite slope there, and stays f(c).

    Where nothing is outside, in no lane, `fn` alone is evaluated; under derivatives its own."""

    fn: Callable
    outside: PyTree[Array]
    clipped: PyTree[Array]

    def __call__(self, t: ScalarLike, inside: Y, args: Args) -> PyTree:
        closed = close(self.fn, t, inside, args)
        return _continued(closed, t, inside, args, self.outside, self.clipped)


def _call(fn, t, y, args):
    return fn(t, y, args)


def _slope(fn, t, y, args, outside):
    return jax.jvp(lambda y: fn(t, y, args), (y,), (outside,))[1]


def _slopes(fn, t, inside, args, outside, clipped) -> tuple[PyTree, PyTree]:
    """J (y - c) at `inside`, and in which components it is to be used."""
    # Under one `vmap`: the user's code is traced, and compiled, once.
    points = jtu.tree_map(lambda *ys: jnp.stack(ys), clipped, inside)
    both = jax.vmap(lambda y: _slope(fn, t, y, args, outside))(points)
    usable = jtu.tree_map(lambda x: jnp.all(jnp.isfinite(x), axis=0), both)
    return jtu.tree_map(lambda x: x[1], both), usable


def _tangent(fn, t, inside, args, outside, clipped) -> PyTree:
    slopes, usable = _slopes(fn, t, inside, args, outside, clipped)
    return jtu.tree_map(lambda x, use: jnp.where(use, x, 0), slopes, usable)


@eqx.filter_custom_jvp
def _continued(fn, t, inside, args, outside, clipped):
    value = fn(t, inside, args)
    more = only_where(
        any_nonzero(outside),
        lambda: _tangent(fn, t, inside, args, outside, clipped),
        spread(optax.tree.zeros_like(value), fn, t, inside, args, outside),
    )
    return jtu.tree_map(lambda v, m: jnp.where(m == 0, v, v + m), value, more)


@_continued.def_jvp
def _continued_jvp(primals, tangents):
    fn, t, inside, args, outside, _ = primals
    d_fn, d_t, d_inside, d_args, d_outside, _ = tangents
    out = _continued(*primals)

    # J (dc + d(y - c)), for what is inside and what is outside alike; ...
    d_y = add(d_inside, d_outside)
    _, d_out = eqx.filter_jvp(_call, (fn, t, inside, args), (d_fn, d_t, d_y, d_args))

    # ... and what J itself changes by. Its linear map is selected away at both ends (see `_gate`):
    # in a batch it is computed in lanes that are inside, too.
    def change():
        slopes, usable = stop(_slopes(*primals))
        good = is_out & all_finite(slopes)
        moving = (d_fn, d_t, d_inside, d_args)
        moving = jtu.tree_map(lambda x: jnp.where(good, x, 0), moving)
        fixed = lambda fn, t, y, args: _slope(fn, t, y, args, outside)
        more = eqx.filter_jvp(fixed, (fn, t, inside, args), moving)[1]
        more = jtu.tree_map(_given, out, more)
        more = jtu.tree_map(lambda x, use: jnp.where(use & good, x, 0), more, usable)
        return spread(more, primals, tangents)

    # No loop of at most one turn: that has no reverse mode.
    is_out = any_nonzero(outside)
    nothing = spread(optax.tree.zeros_like(out), primals, tangents)
    more = lax.cond(is_out, change, lambda: nothing)
    return out, add(d_out, more)


def _given(value, tangent):
    return jnp.zeros_like(value) if tangent is None else tangent
