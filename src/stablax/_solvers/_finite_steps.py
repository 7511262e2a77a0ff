"""The step gate: a step that is not finite contributes nothing to a gradient."""

from typing import final

import diffrax
import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu

from .._captured import capture
from .._states import all_finite, is_none, stop_unless
from .._words import short
from ._wrapped import AbstractWrapped


@final
class FiniteSteps(AbstractWrapped):
    """Wraps an explicit diffrax solver so that a step whose result is not finite cannot ruin a
    gradient; for plain `diffrax.diffeqsolve`, with any field, guarded or not.

    A rejected step has a cotangent of zero, which a nan in its Jacobian turns into nan. Here the
    linear map of a whole step that is not finite is selected away. Steps that are finite are
    untouched, in value and in derivative. A step that is not finite reports an infinite error
    and a state of nan, which any adaptive controller rejects (a state of inf would lock
    `diffrax.PIDController`).

    Forward and reverse mode; `RecursiveCheckpointAdjoint`, `DirectAdjoint` and `ForwardMode`.
    stablax's models protect every field from the inside and do not need it.

    **Arguments:**

    - `solver`: an explicit solver of an ODE, such as `diffrax.Tsit5()`. Implicit and IMEX
        solvers cannot be gated at the step, since the derivative of their root finder raises
        before anything can be selected away.

    **Raises:** `TypeError` for an implicit solver; wrap its field with [`Guarded`][] instead.
    """

    solver: diffrax.AbstractSolver

    def __init__(self, solver: diffrax.AbstractSolver):
        name = type(solver).__name__
        if not isinstance(solver, diffrax.AbstractSolver):
            raise TypeError(f"`solver` must be a diffrax solver, got {short(solver)}.")
        if isinstance(solver, diffrax.AbstractWrappedSolver):
            raise TypeError(f"`FiniteSteps({name}(...))`: wrap the innermost solver instead.")
        if isinstance(solver, diffrax.AbstractImplicitSolver):
            raise TypeError(
                f"`FiniteSteps({name}())` cannot protect an implicit solver: the derivative of its "
                "root finder raises before a step can be selected away. Wrap the field instead: "
                "`diffrax.ODETerm(stablax.Guarded(field))`."
            )
        if isinstance(solver, diffrax.AbstractRungeKutta):
            # diffrax's default loop over the stages refuses forward mode, which the gate uses.
            solver = eqx.tree_at(lambda s: s.scan_kind, solver, "bounded", is_leaf=is_none)
        self.solver = solver

    @property
    def term_compatible_contr_kwargs(self):
        return self.solver.term_compatible_contr_kwargs

    def strong_order(self, terms):
        return self.solver.strong_order(terms)

    def init(self, terms, t0, t1, y0, args):
        return self.solver.init(terms, t0, t1, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        def step(t0, t1, y0, args, solver_state, made_jump):
            return self.solver.step(terms, t0, t1, y0, args, solver_state, made_jump)

        inputs = (t0, t1, y0, args, solver_state, made_jump)
        # What the field closes over would bypass the gate, so it becomes an explicit input.
        closed = capture(step, *inputs)
        y1, error, dense, state, result = _gated_step(closed, inputs)
        ok = all_finite((y1, error, dense))
        y1 = jtu.tree_map(lambda x: jnp.where(ok, x, jnp.nan), y1)
        if error is not None:
            error = jtu.tree_map(lambda x: jnp.where(ok, x, jnp.inf), error)
        return y1, error, dense, state, result


@eqx.filter_custom_jvp
def _gated_step(closed, inputs):
    return closed(*inputs)


@_gated_step.def_jvp
def _gated_step_jvp(primals, tangents):
    out = _gated_step(*primals)
    y1, error, dense, *_ = out
    ok = lax.stop_gradient(all_finite((y1, error, dense)))

    def gated(x):
        return None if x is None else jnp.where(ok, x, jnp.zeros_like(x))

    primals = stop_unless(ok, primals)
    tangents = jtu.tree_map(gated, tangents, is_leaf=is_none)
    _, out_dot = eqx.filter_jvp(lambda closed, inputs: closed(*inputs), primals, tangents)
    return out, jtu.tree_map(gated, out_dot, is_leaf=is_none)
