"""A field whose value is its own and whose derivative cannot be non-finite.

Reverse mode computes `J^T ct`; where `J` holds nan or inf a zero cotangent becomes nan, and so
one rejected step ruins the gradient of a solve that succeeded
(https://github.com/patrick-kidger/diffrax/issues/368). A mask on the output cannot cure it. Here
the linear map as a whole is selected away, at its input and at its output, so that its transpose
is too. Nothing may bypass that selection, so whatever the field closes over is made an explicit
input first.
"""

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, PyTree

from .._captured import capture
from .._lanes import spread
from .._states import all_finite, is_none, stop, stop_unless
from .._static import is_traced
from .._types import VF, Args, ScalarLike, Y
from ._aside import Aside


def gate(
    fn: VF, t: ScalarLike, y: Y, args: Args, lower: PyTree, upper: PyTree, rounding: float = 0.0
) -> PyTree:
    """`fn(t, y, args)`, with a derivative that is `fn`'s wherever `fn` and its derivative are
    finite, and finite everywhere else: there it is taken at a point next to `y` inside the
    bounds, or is zero if that does not help.

    Costs nothing but the call itself unless it is differentiated; then, one Jacobian-vector
    product more (the test whether the derivative is finite).

    `rounding` is for implicit solvers, which factorise I - h J: where only `y` is perturbed, J is
    made more negative on its diagonal by that fraction of its rows' size, a few units in the last
    place. So where I is lost against h J (a conserved quantity at an extreme rate) the matrix is
    still not singular to the last bit, on which diffrax's root finder would raise.
    """
    return _gated(close(fn, t, y, args), t, y, args, lower, upper, rounding)


def close(fn: VF, t: ScalarLike, y: Y, args: Args) -> VF:
    """`fn` without hidden inputs: what it closes over is a leaf of the result."""
    closed = capture(fn, t, y, args)
    known = {id(x) for x in jtu.tree_leaves(fn)}
    hidden = any(is_traced(x) and id(x) not in known for x in jtu.tree_leaves(closed))
    staged = is_traced(jnp.zeros(()))
    # Eagerly, each operation of `fn` is compiled by itself, and those of a converted `fn` in
    # other units: the results differ in the last bit. So there `fn` itself is called.
    return closed if hidden or staged else fn


def derivative_is_finite(fn: VF, t: ScalarLike, y: Y, args: Args) -> Bool[Array, ""]:
    """Whether `fn` and its derivatives (in the state, and in all that `fn` and `args` hold) are
    finite at `y`."""
    inputs = (close(fn, t, y, args), t, y, args)
    ones = jtu.tree_map(jnp.ones_like, eqx.filter(inputs, eqx.is_inexact_array))
    out, probe = eqx.filter_jvp(_call, inputs, ones)
    return all_finite((out, probe))


def _call(closed, t, y, args):
    return closed(t, y, args)


@eqx.filter_custom_jvp
def _gated(closed, t, y, args, lower, upper, rounding):
    return closed(t, y, args)


def _map_tangents(fn, tangents):
    return jtu.tree_map(lambda x: None if x is None else fn(x), tangents, is_leaf=is_none)


@_gated.def_jvp
def _gated_jvp(primals, tangents):
    closed, t, y, args, lower, upper, rounding = primals
    out = _gated(*primals)
    tangents = tuple(tangents[:4])
    only_y = not jtu.tree_leaves((tangents[:2], tangents[3]))

    # A direction without zeros meets every column, so the product is finite in all components
    # only if the whole derivative is; and an uneven one is in no null space by accident.
    direction = (
        *_map_tangents(jnp.ones_like, tangents[:2]),
        _map_tangents(_uneven, tangents[2]),
        _map_tangents(jnp.ones_like, tangents[3]),
    )
    frozen = stop((closed, t, y, args))

    def usable(y):
        value, slope = eqx.filter_jvp(_call, (*frozen[:2], y, frozen[3]), direction)
        good = all_finite((value, slope))
        if rounding != 0:
            # What overflows in the products of a factorisation is as bad as what is not finite.
            good = good & all_finite(jtu.tree_map(jnp.square, slope))
        return good, slope

    here, slope = usable(frozen[2])

    point = lambda aside: aside.shift(frozen[2], lower, upper)
    aside = lax.while_loop(
        lambda aside: ~aside.done,
        lambda aside: aside.after(usable(_add(frozen[2], point(aside)))[0]),
        spread(Aside.start(y, done=here), frozen),
    )
    shift, ok = point(aside), aside.helps

    # The value is unchanged where `ok`; its own derivative (second order) is selected away too.
    closed, t, args = stop_unless(ok, (closed, t, args))
    y = _add(y, shift)
    tangents = _map_tangents(lambda x: jnp.where(ok, x, 0), tangents)
    _, out_dot = eqx.filter_jvp(_call, (closed, t, y, args), tangents)
    if rounding != 0 and only_y:

        def perturb(dot, row, dy):  # None: no dependence
            if row is None or dy is None:
                return dot
            return dot - rounding * jnp.where(here, jnp.abs(row), 0) * dy

        out_dot = jtu.tree_map(perturb, out_dot, slope, tangents[2], is_leaf=is_none)
    return out, jtu.tree_map(lambda x: jnp.where(ok, x, 0), out_dot)


def _add(y: Y, shift: Y) -> Y:
    return jtu.tree_map(jnp.add, y, shift)


def _uneven(x: Array) -> Array:
    return spread(1 + jnp.sin(1 + jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape) / 2, x)
