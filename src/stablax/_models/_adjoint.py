"""The discrete adjoint: the backward pass of a solve, over its accepted steps only."""

import functools
from collections.abc import Callable
from typing import Any, final

import diffrax
import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from .._fields import Aside, Guard
from .._solvers import AbstractRosenbrock
from .._states import all_finite, select
from .._types import Args
from ._forward_only import forward_only

_ONCE = (
    "`DiscreteAdjoint` has reverse mode once. For second derivatives differentiate the gradient in "
    "forward mode: `jax.hessian(f)`, `jax.jacfwd(jax.grad(f))`, or for the product with a vector "
    "`jax.jvp(jax.grad(f), (x,), (v,))`. For reverse mode twice, `adjoint=diffrax.DirectAdjoint()`."
)


@final
class DiscreteAdjoint(eqx.Module):
    """Reverse mode through the steps that were accepted, in stablax's models.

    The forward pass stores time and state of every accepted step. The backward pass takes the
    derivative of one step after the other, last to first, with the step sizes held fixed. So it
    never meets a rejected step, needs no checkpoints, and costs a few forward passes;
    `diffrax.RecursiveCheckpointAdjoint` differentiates the loop itself, rejected steps and
    control of the step size included, at several times the cost. Both are derivatives of the
    numerical solution ("discretise, then optimise") and agree to the tolerance of the solve.

    Reverse mode (`grad`, `jacrev`, `vjp`), and forward mode over it: `jax.hessian(f)`, products of
    the Hessian with a vector as `jax.jvp(jax.grad(f), (x,), (v,))`, third derivatives. With the
    steps held fixed a Hessian is symmetric to rounding, and right to the tolerance as the gradient
    is. Neither forward mode alone nor reverse mode twice: see `ForwardMode` and `DirectAdjoint`
    of diffrax.

    A derivative in `t0` or `ts` at a time at which the field jumps is that of one side. Memory:
    `max_steps * (n + 1)` numbers for a state of n components, under `vmap` for each lane.
    """


class Inputs(eqx.Module):
    """What a solve depends on."""

    field: Callable
    y0: PyTree[Array]
    t0: Array
    t1: Array
    ts: Array
    args: Args


class Outputs(eqx.Module):
    """`rows` at `ts` and the state `last` where the solve ended; `rest` has no derivative."""

    rows: PyTree[Array]
    last: PyTree[Array]
    rest: PyTree


class Trace(eqx.Module):
    """The accepted steps: `times[k]` and `states[k]` at the end of step k."""

    times: Array
    states: PyTree[Array]
    count: Array


@eqx.filter_custom_vjp
def solve(
    inputs: Inputs,
    run: Callable[[Inputs, bool], tuple[Outputs, Trace | None]],
    solver: diffrax.AbstractSolver,
    terms: Callable[[Callable, Any, Any], PyTree],
    guard: Guard | None,
) -> Outputs:
    """`run(inputs, False)`, with the derivative of its steps.

    `run(inputs, True)` returns the trace too. `solver` and `terms(field, shift, end)` are what it
    solves with. A step whose derivative is not finite (a finite value can have an infinite
    derivative) is differentiated again, aside, in the bounds of `guard`; not if that is None."""
    return run(inputs, False)[0]


@solve.def_fwd
def _forward(perturbed, inputs, run, solver, terms, guard):
    outputs, trace = run(inputs, True)
    return outputs, trace


@solve.def_bwd
def _backward(trace: Trace, grads: Outputs, perturbed, inputs: Inputs, run, solver, terms, guard):
    moving, still = eqx.partition((inputs.field, inputs.args), eqx.is_inexact_array)

    def system(shift, end, moving):
        field, args = eqx.combine(moving, still)
        return terms(field, shift, end), args

    def interpolate(dense, start, end, t):
        return solver.interpolation_cls(t0=start, t1=end, **dense).evaluate(t)

    def at(tree, k):
        return jtu.tree_map(lambda x: x[k], tree)

    backwards = inputs.t1 < inputs.t0
    d_rows = _materialise(grads.rows, inputs.y0, inputs.ts.shape)
    d_last = _materialise(grads.last, inputs.y0, ())
    # Rows of a solve without steps are its start.
    d_last = jtu.tree_map(
        lambda d, rows: d + jnp.where(trace.count == 0, jnp.sum(rows, axis=0), 0), d_last, d_rows
    )
    zero_time = jnp.zeros_like(inputs.t0)

    def cond(carry):
        return carry[0] >= 0

    def body(carry):
        k, row, d_y, d_moving, d_ts, d_start, d_end, aside = carry
        # Under `vmap` a lane that is done goes on: with its first step, or with none.
        first, last = k <= 0, k == trace.count - 1
        before = jnp.maximum(k - 1, 0)
        start = jnp.where(first, inputs.t0, trace.times[before])
        end = jnp.where(last, inputs.t1, trace.times[jnp.maximum(k, 0)])
        end = jnp.where(trace.count > 0, end, inputs.t0)
        y = jtu.tree_map(lambda a, b: jnp.where(first, a, b), inputs.y0, at(trace.states, before))
        # The end of a step that was taken up to a jump of the field is recorded behind the jump,
        # whose other side the step must not see. Only the field looks earlier: a step that ends
        # earlier is another one, and on a relaxation oscillation four ulp in each of a thousand
        # steps are an error of 7 % in the gradient. Stages beyond the end stay where they were.
        seen = lax.stop_gradient((end, _just_before(start, end)))
        shift = None if guard is None else aside.shift
        dense, pull = _replay(solver, functools.partial(system, shift, seen), moving, start, end, y)

        def in_step(carry):
            row = carry[0]
            t = inputs.ts[jnp.maximum(row, 0)]
            later = jnp.where(backwards, t < start, t > start)
            return (row >= 0) & (later | first)

        def save(carry):
            row, d_dense, d_start, d_stop, d_ts = carry
            _, pull_row = eqx.filter_vjp(interpolate, dense, start, end, inputs.ts[row])
            more = pull_row(at(d_rows, row))
            d_dense, d_start, d_stop = add((d_dense, d_start, d_stop), more[:3])
            return row - 1, d_dense, d_start, d_stop, d_ts.at[row].set(more[3])

        zeros = _zeros(dense)
        saved = (row, zeros, zero_time, zero_time, d_ts)
        row, d_dense, d_start, d_stop, d_ts = lax.while_loop(in_step, save, saved)
        more, step_start, step_end, d_y = pull(d_y, d_dense)
        d_end = jnp.where(last, d_stop + step_end, d_end)
        d_start = d_start + step_start
        new = (k - 1, row, d_y, add(d_moving, more), d_ts, d_start, d_end)
        if guard is None:
            return *new, aside
        finite = all_finite(new)

        def search():
            tried = aside.after(finite, guard.clip(y), *guard.bounds(y))
            return select(tried.done, tried.again(), tried), tried.done

        # A branch, since it is rarely taken.
        fine = finite & (aside.how == 0)
        aside, done = lax.cond(fine, lambda: (aside, jnp.array(True)), search)
        return *select(done, new, carry[:-1]), aside

    start = (
        trace.count - 1,
        # Rows that were not reached belong to no step.
        jnp.sum(jnp.isfinite(inputs.ts) & _reached(inputs, trace)) - 1,
        d_last,
        _zeros(moving),
        jnp.zeros_like(inputs.ts),
        zero_time,
        zero_time,
        Aside.start(inputs.y0),
    )
    _, _, d_y0, d_moving, d_ts, d_t0, d_t1, _ = lax.while_loop(cond, body, start)
    d_field, d_args = d_moving
    return forward_only(Inputs(d_field, d_y0, d_t0, d_t1, d_ts, d_args), _ONCE)


def _replay(solver: diffrax.AbstractSolver, system: Callable, moving, start, end, y):
    """A step from `start` to `end`: its dense output, and a function from the cotangents of the
    new state and of the dense output to those of `(moving, start, end, y)`."""
    if isinstance(solver, AbstractRosenbrock):
        return solver.replay(system, moving, start, end, y)

    def take(moving, start, end, y):
        terms, args = system(moving)
        state = solver.init(terms, start, end, y, args)
        y1, _, dense, *_ = solver.step(terms, start, end, y, args, state, False)
        return y1, dense

    (_, dense), pull = eqx.filter_vjp(take, moving, start, end, y)
    return dense, lambda d_end, d_dense: pull((d_end, d_dense))


def _just_before(start: Array, end: Array) -> Array:
    """A time before `end` by more than what its record and its computation as the last stage of
    the step round off."""
    size = jnp.maximum(jnp.abs(start), jnp.abs(end))
    return end - 4 * jnp.finfo(end.dtype).eps * jnp.sign(end - start) * size


def _reached(inputs: Inputs, trace: Trace) -> Array:
    end = jnp.where(trace.count > 0, trace.times[jnp.maximum(trace.count - 1, 0)], jnp.nan)
    return jnp.where(inputs.t1 < inputs.t0, inputs.ts >= end, inputs.ts <= end)


def _materialise(grads: Any, like: PyTree, shape: tuple[int, ...]) -> PyTree[Array]:
    def leaf(x, y):
        return jnp.zeros((*shape, *y.shape), y.dtype) if x is None else x

    return jtu.tree_map(leaf, grads, like, is_leaf=lambda x: x is None)


def _zeros(tree: PyTree) -> PyTree:
    return jtu.tree_map(jnp.zeros_like, tree)


def add(a: PyTree, b: PyTree) -> PyTree:
    """`a + b`, where `b` has None for zero."""

    def leaf(x, y):
        return x if y is None else x + y

    return jtu.tree_map(leaf, a, b, is_leaf=lambda x: x is None)
