"""The step gate: a step that is not finite contributes nothing to a gradient.

A rejected step has a cotangent of zero, which a nan in its Jacobian turns into nan. Here the
linear map of a whole step that is not finite is selected away, at both ends, so that its
transpose is too (https://github.com/patrick-kidger/diffrax/issues/368).
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu

from .._states import all_finite


def _is_none(x: Any) -> bool:
    return x is None


def gated(step: Callable, inputs: tuple) -> Any:
    """`step(*inputs)`. Where a floating-point array of the result is not finite, its derivative
    is zero; elsewhere it is untouched. Costs nothing unless it is differentiated, and then no
    second evaluation."""
    # What the field closes over would bypass the gate, so it becomes an explicit input.
    return _gated(eqx.filter_closure_convert(step, *inputs), inputs)


@eqx.filter_custom_jvp
def _gated(closed, inputs):
    return closed(*inputs)


@_gated.def_jvp
def _gated_jvp(primals, tangents):
    (closed, inputs), tangents = primals, tuple(tangents)
    moving = jtu.tree_map(lambda _, x: x is not None, tangents, tangents, is_leaf=_is_none)
    moved, still = eqx.partition((closed, inputs), moving)

    def evaluate(moved):
        closed, inputs = eqx.combine(moved, still)
        return eqx.partition(closed(*inputs), eqx.is_inexact_array)

    # One evaluation gives the value, whether it is finite, and the linear map.
    out, push, rest = jax.linearize(evaluate, moved, has_aux=True)
    ok = lax.stop_gradient(all_finite(out))

    def select(x):
        return jnp.where(ok, x, jnp.zeros_like(x))

    out_dot = jtu.tree_map(select, push(jtu.tree_map(select, tangents)))
    return eqx.combine(out, rest), eqx.combine(out_dot, jtu.tree_map(lambda _: None, rest))
