"""A step of diffrax's explicit Runge-Kutta methods, to be differentiated.

diffrax runs the stages in a loop of its own, which neither mode of differentiation takes through a
`shard_map`, and whose reverse mode is slow. The tableau is all that a step needs.
"""

from typing import Any, TypeGuard

import diffrax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree

from .._lanes import spread
from .._types import Args


def is_repeatable(solver: diffrax.AbstractSolver) -> TypeGuard[diffrax.AbstractERK]:
    """Whether its step is that of its tableau."""
    erk = diffrax.AbstractERK
    return isinstance(solver, erk) and type(solver).step is erk.step


def repeat_explicit(
    solver: diffrax.AbstractERK, terms: diffrax.AbstractTerm, t0: Array, t1: Array, y0, args: Args
) -> tuple[PyTree[Array], dict[str, PyTree[Array]]]:
    """The state at `t1` and the dense output, as `solver.step` has them."""
    tableau: Any = solver.tableau
    stages = tableau.num_stages
    dtype = jtu.tree_leaves(y0)[0].dtype
    lower = np.zeros((stages, stages))
    for i, row in enumerate(tableau.a_lower):
        lower[i + 1, : i + 1] = row
    places = np.concatenate([[tableau.c1 or 0.0], tableau.c])
    control = terms.contr(t0, t1)

    def at(weights, ks):
        """`y0` and the weighted slopes."""
        weigh = lambda k: jnp.sum(weights.reshape(-1, *[1] * (k.ndim - 1)) * k, axis=0)
        return jtu.tree_map(lambda y, k: y + weigh(k), y0, ks)

    def stage(ks, of):
        i, weights, place = of
        t = jnp.where(place == 1, t1, t0 + place * (t1 - t0))
        k = terms.vf_prod(t, at(weights, ks), args, control)
        return jtu.tree_map(lambda ks, k: ks.at[i].set(k), ks, k), None

    blank = jtu.tree_map(lambda y: jnp.zeros((stages, *y.shape), y.dtype), y0)
    table = np.arange(stages), jnp.asarray(lower, dtype), jnp.asarray(places, t0.dtype)
    ks, _ = lax.scan(stage, spread(blank, y0, terms, t0, t1, args), table)
    y1 = at(jnp.asarray(tableau.b_sol, dtype), ks)
    return y1, dict(y0=y0, y1=y1, k=ks)
