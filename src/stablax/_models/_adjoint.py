"""The discrete adjoint: the derivative of a solve, over its accepted steps only."""

from collections.abc import Callable, Sequence
from typing import final

import diffrax
import equinox as eqx
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from .._fields import Guard
from .._loop import KeptStep
from .._states import is_none, stop
from ._accepted import AcceptedSteps, Inputs, Steps
from ._forward_only import forward_only
from ._linear_call import linear_call
from ._replay import backward, forward

_ONCE = (
    "`DiscreteAdjoint` has reverse mode once, and first. For second derivatives differentiate the "
    "gradient in forward mode: `jax.hessian(f)`, `jax.jacfwd(jax.grad(f))`, or for the product "
    "with a vector `jax.jvp(jax.grad(f), (x,), (v,))`. For reverse mode over a derivative, "
    "`adjoint=diffrax.DirectAdjoint()`."
)


@final
class DiscreteAdjoint(eqx.Module):
    """The derivative of the steps that were accepted, in stablax's models: both modes.

    The forward pass stores time and state of every accepted step. The derivative takes one step
    after the other, in reverse mode last to first, with the step sizes held fixed. So it
    never meets a rejected step, needs no checkpoints, and costs a few forward passes;
    `diffrax.RecursiveCheckpointAdjoint` differentiates the loop itself, rejected steps and
    control of the step size included, at several times the cost. Both are derivatives of the
    numerical solution ("discretise, then optimise") and agree to the tolerance of the solve.

    Reverse mode (`grad`, `jacrev`, `vjp`) and forward mode (`jvp`, `jacfwd`, `linearize`: what
    Gauss-Newton and Levenberg-Marquardt methods ask for), and forward mode over either:
    `jax.hessian(f)`, products of the Hessian with a vector as `jax.jvp(jax.grad(f), (x,), (v,))`,
    third derivatives. With the steps held fixed a Hessian is symmetric to rounding, and right to
    the tolerance as the gradient is. Not reverse mode over a derivative: see `DirectAdjoint` of
    diffrax. Where only forward mode is asked for, diffrax's `ForwardMode` saves the repetition of
    the steps.

    Where an event ends the solve, time and state of it have their derivatives of all these orders.

    A derivative in `t0` or `ts` at a time at which the field jumps is that of one side. Memory:
    `max_steps * (n + 1)` numbers for a state of n components (`max_steps` rounded up to a power of
    two), under `vmap` for each lane.
    """


class Outputs(eqx.Module):
    """`rows` at `ts`, the state `last` where the solve ended, the last `step` if an event of
    diffrax can be in it, and rows about the `events`; `rest` has no derivative."""

    rows: PyTree[Array]
    last: PyTree[Array]
    step: KeptStep | None
    events: Array | None
    rest: PyTree


@eqx.filter_custom_jvp
def solve(
    inputs: Inputs,
    run: Callable[[Inputs, bool], tuple[Outputs, AcceptedSteps | None]],
    solver: diffrax.AbstractSolver,
    terms: Callable[[Callable, PyTree, Sequence[tuple[Array, Array]]], PyTree],
    guard: Guard | None,
    width: int | None,
) -> Outputs:
    """`run(inputs, False)`, with the derivative of its steps.

    `run(inputs, True)` returns the accepted steps, too. `solver` and `terms(field, shift, seen)`
    are what it solves with. A step whose derivative is not finite (a finite value can have an
    infinite derivative) is differentiated again, aside, in the bounds of `guard`; not if that is
    None. At most `width` lanes of a batch step at once."""
    return run(inputs, False)[0]


@solve.def_jvp
def _solve_jvp(primals, tangents):
    inputs, run, solver, terms, guard, width = primals
    outputs, accepted = forward_only(run(inputs, True), _ONCE)
    moves = jtu.tree_map(lambda x: x is not None, tangents[0], is_leaf=is_none)
    still = lambda tree: jtu.tree_map(lambda _: None, tree)
    dense = None if outputs.step is None else outputs.step.dense
    moving = (outputs.rows, outputs.last, dense, outputs.events)
    steps = Steps(inputs, moves, accepted, solver, terms, guard, width, stop(dense))
    d_rows, d_last, d_dense, d_events = linear_call(
        forward, backward, steps, tangents[0], moving, _ONCE
    )
    d_step = still(outputs.step)
    if d_step is not None:
        d_step = KeptStep(d_step.t0, d_step.t1, d_step.y0, d_dense)
    return outputs, Outputs(d_rows, d_last, d_step, d_events, still(outputs.rest))
