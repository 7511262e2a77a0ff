"""What protects the derivative of a solve, all of it, in the order in which it acts: from the
inputs of a call to what it returns. Which of it a model has is chosen here.

1. **The inputs of the call**, with `throw=True`: a derivative in one of them that is not finite is
   an error. `inputs_with_finite_derivative` in `_failure.py`.
2. **What controls is constant**: the pace and the event (`stop` in `integrate`), and the times
   between which the steps are chosen (in `run_loop`).
3. **Nothing is hidden**: what the field closes over is an input like the others, since it would
   bypass what follows. `closed_inputs`.
4. **An evaluation of the field** has a gate (`_fields/_gate.py`) where rejected steps are
   differentiated, as by the adjoints of diffrax, and where the root finder of an implicit method
   differentiates the field, and raises. Elsewhere 6 is enough. `_vector_field`.
5. **A step that was tried** has a gate, too, in a Rosenbrock method (`_solvers/_gate.py`).
6. **A step that was accepted**, with `DiscreteAdjoint` and no gate in the field: if its derivative
   is not finite it is taken again, at a point aside (`_fields/_aside.py`, searched for in
   `step_by_step` of `_replay.py`), with its values kept: the stages of a Rosenbrock method,
   elsewhere those of the field (`evaluate_aside`). `differentiable`.
7. **The mode of differentiation** that an adjoint has not is a `TypeError` that says which has:
   reverse of `ForwardMode` in `differentiable`, reverse over another of `DiscreteAdjoint` in
   `_adjoint.py`, forward of the others in `_call.py` (`explain_forward_mode`).
8. **A failed sample** has no derivative, however far it came: none of its steps is repeated
   (`differentiable`), and what it returns is constant (`of_successful`).
9. **What it returns is finite**: `finite_or_zero` of the states (`_solve.py`, `_run_phases.py`) and
   of the slopes at both ends of a solve (`_run.py`).
10. **The outputs of the call**, with `throw=True`, as the inputs. `raise_on_failure`, and
    `raise_on_failed_lanes` of a batch, in `_explain.py`.
"""

import functools
from collections.abc import Callable
from typing import TypeVar

import diffrax
import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
from jaxtyping import Array, PyTree

from .._captured import Captured, capture, refuse_hidden
from .._control import AdmissibleSteps
from .._fields import (
    Guard,
    Guarded,
    GuardedField,
    as_guarded,
    evaluate,
    evaluate_aside,
    evaluate_ungated,
)
from .._lanes import differing, spread
from .._results import RESULTS, is_okay
from .._solvers import AbstractRosenbrock, prepare, right_side_of
from .._states import state_dtype, stop
from ._accepted import AcceptedSteps, Inputs
from ._adjoint import DiscreteAdjoint, Outputs, solve
from ._forward_only import forward_only
from ._run import terms_of
from ._stepping import Plan

# Times sqrt(n) eps: what a factorisation with pivoting rounds off, in the size of a row.
_FACTORISATION = 8

_T = TypeVar("_T")
_Run = Callable[[Inputs, bool], tuple[Outputs, AcceptedSteps | None]]

_FORWARD = (
    "This model was made for forward mode (`jvp`, `jacfwd`), with `adjoint=ForwardMode()`. For "
    "reverse mode (`grad`, `jacrev`) make it with the default, `stablax.DiscreteAdjoint()`, which "
    "has both."
)


def closed_inputs(
    plan: Plan, seen: tuple, others: tuple, inflow: PyTree[Array] | None
) -> tuple[Captured, tuple, tuple]:
    """The field of a solve as a function of `(t, y, args, shift)` that closes over nothing, with
    what it has `seen`, `(field, t0, y0, args)`, and the other inputs. With an `inflow`, that is
    added to dy/dt.

    Under `shard_map` all that a loop works with differs between devices as one of them does: else
    the derivative in what does not is summed over the devices in every step."""
    seen, others = spread((seen, others))
    field, t0, y0, args = seen
    # The user's Python code is traced once, and what it closes over becomes an explicit input.
    own = _vector_field(plan, as_guarded(field), y0)
    fed = own
    if inflow is not None:
        added = right_side_of(plan.solver, inflow)
        fed = lambda *at: optax.tree.add(own(*at), added)
    closed = capture(fed, t0, y0, args, optax.tree.zeros_like(y0))
    if differing(closed) - differing(y0):  # what it closes over differs, and nothing else
        rest, others = spread((seen[1:], others), closed)
        return closed_inputs(plan, (field, *rest), others, inflow)
    refuse_hidden(closed, differing(y0))
    return closed, seen, others


def _vector_field(plan: Plan, guarded: GuardedField | Guarded, y0: PyTree[Array]) -> Callable:
    """`guarded` as a function of `(t, y, args, shift)`, with the derivative that `plan` needs."""
    if not _steps_aside(plan):
        rounding = _rounding(plan.solver, y0)
        return lambda t, y, args, shift: evaluate(guarded, t, y, args, rounding)
    if not isinstance(plan.solver, AbstractRosenbrock):
        return functools.partial(evaluate_aside, guarded)
    return functools.partial(evaluate_ungated, guarded, tangent=not guarded.guard.is_kept)


def _steps_aside(plan: Plan) -> bool:
    """Whether a derivative that is not finite is taken aside, a step at a time, behind no gate."""
    implicit = isinstance(plan.solver, diffrax.AbstractImplicitSolver)
    return isinstance(plan.adjoint, DiscreteAdjoint) and not implicit


def _rounding(solver: diffrax.AbstractSolver, y0: PyTree[Array]) -> float:
    """By how much the Jacobian of an implicit solver may be perturbed: what its factorisation
    rounds off anyway."""
    if not isinstance(solver, diffrax.AbstractImplicitSolver):
        return 0.0
    size = sum(x.size for x in jtu.tree_leaves(y0))
    return _FACTORISATION * float(np.sqrt(size) * np.finfo(state_dtype(y0)).eps)


def differentiable(
    run: _Run, plan: Plan, controller: AdmissibleSteps, guard: Guard, inputs: Inputs
) -> Outputs:
    """What `run(inputs, False)` leaves, with the derivative that the adjoint of `plan` has."""
    if isinstance(plan.adjoint, DiscreteAdjoint):
        return solve(
            inputs,
            jtu.Partial(_without_failed_steps, run),
            prepare(plan.solver, controller, guard),
            jtu.Partial(terms_of, plan.solver),
            guard if _steps_aside(plan) else None,
            plan.width,
        )
    outputs, _ = run(inputs, False)
    if isinstance(plan.adjoint, diffrax.ForwardMode):
        moving = (outputs.rows, outputs.last, outputs.step, outputs.events)
        rows, last, step, events = forward_only(moving, _FORWARD)
        return Outputs(rows, last, step, events, outputs.rest)
    return outputs


def _without_failed_steps(
    run: _Run, inputs: Inputs, record: bool
) -> tuple[Outputs, AcceptedSteps | None]:
    outputs, accepted = run(inputs, record)
    if accepted is not None:
        count = jnp.where(is_okay(outputs.rest.result), accepted.count, 0)
        accepted = eqx.tree_at(lambda accepted: accepted.count, accepted, count)
    return outputs, accepted


def of_successful(result: RESULTS, tree: _T) -> _T:
    """`tree`, which has no derivative where the `result` of the sample is a failure."""
    return optax.tree.where(is_okay(result), tree, stop(tree))
