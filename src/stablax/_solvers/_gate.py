"""The step gate: a step that is not finite contributes nothing to a gradient.

A rejected step has a cotangent of zero, which a nan in its Jacobian turns into nan. Here the
linear map of a whole step that is not finite is selected away, at both ends, so that its
transpose is too (https://github.com/patrick-kidger/diffrax/issues/368).
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PyTree

from .._captured import capture
from .._states import all_finite, is_none


def gated(fn: Callable, inputs: tuple) -> PyTree:
    """`fn(*inputs)`. Where a floating-point array of the result is not finite, its derivative is
    zero; elsewhere it is untouched. Costs nothing unless it is differentiated, and then no second
    evaluation."""
    # What it closes over would bypass the gate, so it becomes an explicit input.
    closed = capture(fn, *inputs)

    def step(closed, inputs, _):
        return eqx.partition(closed(*inputs), eqx.is_inexact_array)

    return eqx.combine(*gated_step(step, (closed, inputs), None))


def gated_step(step: Callable, inputs: tuple, known: PyTree) -> tuple[PyTree, PyTree]:
    """`step(*inputs, known)`: arrays with a derivative, which is zero where one of them is not
    finite, and what has none. `known` is a value that `step` finds by itself, and with its
    derivative, where it is given None. What `step` closes over bypasses the gate."""
    return _gated(step, inputs, known)


@eqx.filter_custom_jvp
def _gated(step, inputs, known):
    return step(*inputs, known)


@_gated.def_jvp
def _gated_jvp(primals, tangents):
    (step, inputs, _), (_, tangents, _) = primals, tangents
    moving = jtu.tree_map(lambda _, x: x is not None, tangents, tangents, is_leaf=is_none)
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
