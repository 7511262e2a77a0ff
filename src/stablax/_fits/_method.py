"""Optimisers of optax and of optimistix, one step at a time."""

import abc
from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
import optimistix as optx
from jaxtyping import Array, Bool, Float, PyTree

from .._parameters import Parameters
from .._states import all_finite
from .._static import Static

Loss = Callable[[PyTree, Any], tuple[Array, Array]]
"""Of parameters and a batch: what an optimiser makes small (a number, or residuals), and the value
that is reported."""


class Place(eqx.Module):
    """Where an optimiser is.

    - `params`: where it goes on, in its own coordinates.
    - `seen`, `value`: parameters at which the loss was evaluated, and what it was.
    - `is_used`: whether there was something to follow.
    - `is_done`: whether the optimiser has converged, or can go no further.
    """

    params: PyTree
    seen: PyTree
    value: Float[Array, ""]
    is_used: Bool[Array, ""]
    is_done: Bool[Array, ""]
    state: PyTree


class AbstractMethod(eqx.Module):
    """An optimiser."""

    @abc.abstractmethod
    def begin(self, loss: Loss, params: PyTree, batch: PyTree) -> Place:
        """Before the first step."""

    @abc.abstractmethod
    def step(self, loss: Loss, place: Place, batch: PyTree) -> Place:
        """After one more."""

    @abc.abstractmethod
    def params_of(self, place: Place) -> PyTree:
        """Where it goes on, as parameters."""


def _place(params: PyTree, seen: PyTree, state: PyTree) -> Place:
    no = jnp.array(False)
    return Place(params, seen, jnp.array(jnp.inf), no, no, state)


@final
class Descent(AbstractMethod):
    """One of optax. What leaves the bounds of a table is put back on them. Its state has the last
    parameters at which there was something to follow, too."""

    optimiser: Static

    def begin(self, loss, params, batch):
        return _place(params, params, (self.optimiser.tree.init(params), params))

    def step(self, loss, place, batch):
        value_of = lambda params: loss(params, batch)
        (out, value), gradient = jax.value_and_grad(value_of, has_aux=True)(place.params)
        is_used = jnp.isfinite(out) & all_finite(gradient)
        # Line searches ask for more than the gradient; the others let it be.
        update = optax.with_extra_args_support(self.optimiser.tree).update
        before, good = place.state
        updates, after = update(
            gradient,
            before,
            place.params,
            value=out,
            grad=gradient,
            value_fn=lambda params: value_of(params)[0],
        )
        moved = optax.apply_updates(place.params, updates)
        moved = moved.clipped() if isinstance(moved, Parameters) else moved
        # Of all samples it would be the same again: half the way back. Another batch may do.
        stay = place.params
        back = stay if batch is not None else jtu.tree_map(lambda a, b: (a + b) / 2, good, stay)
        stuck = (back, (before, good))
        moved, state = optax.tree.where(is_used, (moved, (after, stay)), stuck)
        return Place(moved, stay, value, is_used, jnp.array(False), state)

    def params_of(self, place):
        return place.params


@final
class Search(AbstractMethod):
    """One of optimistix: a minimiser, or of least squares. It knows no bounds, and a table is
    searched in coordinates without."""

    solver: Static
    options: Static

    def _function(self, loss: Loss) -> Callable:
        def fn(z, batch):
            seen = _bounded(z)
            out, value = loss(seen, batch)
            return out, (value, seen)

        return fn

    def begin(self, loss, params, batch):
        fn = self._function(loss)
        z = params.unbounded() if isinstance(params, Parameters) else params
        structs = eqx.filter_eval_shape(fn, z, batch)
        options = dict(self.options.tree)
        state = self.solver.tree.init(fn, z, batch, options, *structs, frozenset())
        return _place(z, params, state)

    def step(self, loss, place, batch):
        given = (batch, dict(self.options.tree))
        fn, solver = self._function(loss), self.solver.tree
        z, state, (value, seen) = solver.step(fn, place.params, *given, place.state, frozenset())
        done, result = solver.terminate(fn, z, *given, state, frozenset())
        done |= result != optx.RESULTS.successful
        return Place(z, seen, value, jnp.isfinite(value), done, state)

    def params_of(self, place):
        return _bounded(place.params)


def _bounded(z: PyTree) -> PyTree:
    return z.bounded() if isinstance(z, Parameters) else z
