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


def gated(step: Callable, inputs: tuple, known: Any) -> Any:
    """`step(*inputs, known)`, which returns arrays with a derivative and what has none. `known` is
    a value without a derivative that `step` finds by itself where it is given None, and then with
    one. Where the result is not finite, its derivative is zero; elsewhere it is untouched.

    What `step` closes over would bypass the gate: it belongs into `inputs`."""
    return _gated(step, inputs, known)


@eqx.filter_custom_jvp
def _gated(step, inputs, known):
    return step(*inputs, known)


@_gated.def_jvp
def _gated_jvp(primals, tangents):
    (step, inputs, _), (_, tangents, _) = primals, tangents
    moving = jtu.tree_map(lambda _, x: x is not None, tangents, tangents, is_leaf=_is_none)
    moved, still = eqx.partition(inputs, moving)

    def evaluate(moved):
        return step(*eqx.combine(moved, still), None)

    # One evaluation gives the value, whether it is finite, and the linear map.
    out, push, aside = jax.linearize(evaluate, moved, has_aux=True)
    ok = lax.stop_gradient(all_finite(out))

    def select(x):
        return jnp.where(ok, x, jnp.zeros_like(x))

    out_dot = jtu.tree_map(select, push(jtu.tree_map(select, tangents)))
    return (out, aside), (out_dot, jtu.tree_map(lambda _: None, aside))
