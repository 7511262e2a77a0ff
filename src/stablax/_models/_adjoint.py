"""The discrete adjoint: the backward pass of a solve, over its accepted steps only."""

import functools
from collections.abc import Callable
from typing import Any, final

import diffrax
import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from .._fields import Aside, Guard
from .._lanes import spread
from .._solvers import AbstractRosenbrock
from .._states import all_finite, select, zeros_like
from .._types import Args
from ._forward_only import forward_only
from ._linear_call import linear_call

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


@eqx.filter_custom_jvp
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


@solve.def_jvp
def _solve_jvp(primals, tangents):
    inputs, run, solver, terms, guard = primals
    outputs, trace = forward_only(run(inputs, True), _ONCE)
    moves = jtu.tree_map(lambda x: x is not None, tangents[0], is_leaf=_is_none)
    steps = _Steps(inputs, moves, trace, solver, terms, guard)
    moving = (outputs.rows, outputs.last)
    d_rows, d_last = linear_call(_forward, _backward, steps, tangents[0], moving, _ONCE)
    return outputs, Outputs(d_rows, d_last, jtu.tree_map(lambda _: None, outputs.rest))


class _Steps(eqx.Module):
    """The accepted steps of a solve, to be repeated. `moves`: which inputs have a derivative."""

    inputs: Inputs
    moves: Inputs
    trace: Trace
    solver: diffrax.AbstractSolver
    terms: Callable[[Callable, Any, Any], PyTree]
    guard: Guard | None

    @property
    def parameters(self) -> tuple[PyTree, PyTree]:
        """The field and its args: what moves, and the rest."""
        moves = (self.moves.field, self.moves.args)
        return eqx.partition((self.inputs.field, self.inputs.args), moves)

    def system(self, shift, end, moving) -> tuple[PyTree, Args]:
        field, args = eqx.combine(moving, self.parameters[1])
        return self.terms(field, shift, end), args

    def at(self, k: Array) -> "_Step":
        """Step `k`. Under `vmap` a lane that is done goes on: with its first step or its last, or
        with none."""
        inputs, trace = self.inputs, self.trace
        first, last = k <= 0, k >= trace.count - 1
        before = jnp.maximum(k - 1, 0)
        start = jnp.where(first, inputs.t0, trace.times[before])
        end = jnp.where(last, inputs.t1, trace.times[jnp.maximum(k, 0)])
        end = jnp.where(trace.count > 0, end, inputs.t0)
        y = jtu.tree_map(lambda a, b: jnp.where(first, a, b[before]), inputs.y0, trace.states)
        # The end of a step that was taken up to a jump of the field is recorded behind the jump,
        # whose other side the step must not see. Only the field looks earlier: a step that ends
        # earlier is another one, and on a relaxation oscillation four ulp in each of a thousand
        # steps are an error of 7 % in the gradient. Stages beyond the end stay where they were.
        seen = lax.stop_gradient((end, _just_before(start, end)))
        return _Step(first, last, start, end, y, seen)

    def interpolate(self, dense, start, end, t) -> PyTree[Array]:
        return self.solver.interpolation_cls(t0=start, t1=end, **dense).evaluate(t)

    @property
    def rows(self) -> Array:
        """How many were reached. The others belong to no step."""
        inputs, trace = self.inputs, self.trace
        end = jnp.where(trace.count > 0, trace.times[jnp.maximum(trace.count - 1, 0)], jnp.nan)
        reached = jnp.where(self.is_backwards, inputs.ts >= end, inputs.ts <= end)
        return jnp.sum(jnp.isfinite(inputs.ts) & reached)

    @property
    def is_backwards(self) -> Array:
        return self.inputs.t1 < self.inputs.t0

    def settle(self, aside: Aside, step: "_Step", new: PyTree, old: PyTree) -> tuple[PyTree, Aside]:
        """`new`, if it is finite or nothing better is to be had; else `old`, and where to try."""
        if self.guard is None:
            return new, aside
        guard, finite = self.guard, all_finite(new)

        inside, bounds = guard.clip(step.y), spread(guard.bounds(step.y), step.y)

        def search():
            tried = aside.after(finite, inside, *bounds)
            return select(tried.done, tried.again(), tried), tried.done

        # A branch, since it is rarely taken.
        fine = finite & (aside.how == 0)
        aside, done = lax.cond(fine, lambda: (aside, jnp.ones_like(fine)), search)
        return select(done, new, old), aside


class _Step(eqx.Module):
    first: Array
    last: Array
    start: Array
    end: Array
    y: PyTree[Array]
    seen: tuple[Array, Array]  # the end, and a time just before it


def _forward(steps: _Steps, tangents: Inputs) -> tuple[PyTree[Array], PyTree[Array]]:
    """The tangents of the rows and of the last state."""
    inputs, count = steps.inputs, steps.trace.count
    solver = for_forward_mode(steps.solver)
    zero_time = jnp.zeros_like(inputs.t0)
    moving, d_moving = steps.parameters[0], (tangents.field, tangents.args)
    d_t0, d_t1 = (zero_time if d is None else d for d in (tangents.t0, tangents.t1))
    d_ts = jnp.zeros_like(inputs.ts) if tangents.ts is None else tangents.ts
    d_y0 = jtu.tree_map(
        lambda d, y: jnp.zeros_like(y) if d is None else d, tangents.y0, inputs.y0, is_leaf=_is_none
    )
    rows = steps.rows

    def body(carry):
        k, row, d_y, d_rows, aside = carry
        step = steps.at(k)
        shift = None if steps.guard is None else aside.shift
        system = functools.partial(steps.system, shift, step.seen)
        repeat = functools.partial(_repeat, solver, system)
        d_start = jnp.where(step.first, d_t0, 0)
        d_end = jnp.where(step.last, d_t1, 0)
        points, d_points = (moving, step.start, step.end, step.y), (d_moving, d_start, d_end, d_y)
        (_, dense), (d_y, d_dense) = eqx.filter_jvp(repeat, points, d_points)

        def in_step(carry):
            t = inputs.ts[jnp.minimum(carry[0], inputs.ts.size - 1)]
            until = jnp.where(steps.is_backwards, t >= step.end, t <= step.end)
            return (carry[0] < rows) & (until | step.last)

        def save(carry):
            row, d_rows = carry
            points = (dense, step.start, step.end, inputs.ts[row])
            _, d_row = jax.jvp(steps.interpolate, points, (d_dense, d_start, d_end, d_ts[row]))
            return row + 1, jtu.tree_map(lambda a, b: a.at[row].set(b), d_rows, d_row)

        new = (k + 1, *lax.while_loop(in_step, save, (row, d_rows)))
        new = (*new[:2], d_y, new[2])
        new, aside = steps.settle(aside, step, new, carry[:-1])
        return *new, aside

    # Rows of a solve without steps are its start.
    still = jtu.tree_map(
        lambda d: jnp.where(count == 0, jnp.broadcast_to(d, (inputs.ts.size, *d.shape)), 0), d_y0
    )
    start = (jnp.zeros_like(count), jnp.zeros_like(rows), d_y0, still, Aside.start(inputs.y0))
    start: Any = spread(start)
    _, _, d_last, d_rows, _ = lax.while_loop(lambda carry: carry[0] < count, body, start)
    return d_rows, d_last


def _backward(steps: _Steps, cotangents: tuple[PyTree[Array], PyTree[Array]]) -> Inputs:
    """The cotangents of the inputs that move, from those of the rows and of the last state."""
    inputs, solver, count = steps.inputs, steps.solver, steps.trace.count
    moving = steps.parameters[0]
    d_rows, d_last = cotangents
    # Rows of a solve without steps are its start.
    d_last = jtu.tree_map(
        lambda d, rows: d + jnp.where(count == 0, jnp.sum(rows, axis=0), 0), d_last, d_rows
    )
    zero_time = jnp.zeros_like(inputs.t0)

    def body(carry):
        k, row, d_y, d_moving, d_ts, d_start, d_end, aside = carry
        step = steps.at(k)
        start, end = step.start, step.end
        shift = None if steps.guard is None else aside.shift
        system = functools.partial(steps.system, shift, step.seen)
        dense, pull = _replay(solver, system, moving, start, end, step.y)

        def in_step(carry):
            row = carry[0]
            t = inputs.ts[jnp.maximum(row, 0)]
            later = jnp.where(steps.is_backwards, t < start, t > start)
            return (row >= 0) & (later | step.first)

        def save(carry):
            row, d_dense, d_start, d_stop, d_ts = carry
            _, pull_row = eqx.filter_vjp(steps.interpolate, dense, start, end, inputs.ts[row])
            more = pull_row(jtu.tree_map(lambda x: x[row], d_rows))
            d_dense, d_start, d_stop = add((d_dense, d_start, d_stop), more[:3])
            d_ts = jtu.tree_map(lambda d: d.at[row].set(more[3]), d_ts)
            return row - 1, d_dense, d_start, d_stop, d_ts

        saved = spread((row, zeros_like(dense), zero_time, zero_time, d_ts))
        row, d_dense, d_start, d_stop, d_ts = lax.while_loop(in_step, save, saved)
        more, step_start, step_end, d_y = pull(d_y, d_dense)
        d_end = jnp.where(step.last, d_stop + step_end, d_end)
        d_start = d_start + step_start
        new = (k - 1, row, d_y, add(d_moving, more), d_ts, d_start, d_end)
        new, aside = steps.settle(aside, step, new, carry[:-1])
        return *new, aside

    start = (
        count - 1,
        steps.rows - 1,
        d_last,
        zeros_like(moving),
        # In a batch a scatter costs more than the step: only where somebody asks for it.
        jnp.zeros_like(inputs.ts) if steps.moves.ts else None,
        zero_time,
        zero_time,
        Aside.start(inputs.y0),
    )
    start: Any = spread(start)
    _, _, d_y0, d_moving, d_ts, d_t0, d_t1, _ = lax.while_loop(lambda c: c[0] >= 0, body, start)
    d_field, d_args = d_moving
    d_inputs = Inputs(d_field, d_y0, d_t0, d_t1, d_ts, d_args)
    return eqx.filter(d_inputs, steps.moves)


def _repeat(solver: diffrax.AbstractSolver, system: Callable, moving, start, end, y):
    """A step from `start` to `end`: the new state, and its dense output."""
    terms, args = system(moving)
    if isinstance(solver, AbstractRosenbrock):
        return solver.repeat(terms, start, end, y, args)
    state = solver.init(terms, start, end, y, args)
    y1, _, dense, *_ = solver.step(terms, start, end, y, args, state, False)
    return y1, dense


def _replay(solver: diffrax.AbstractSolver, system: Callable, moving, start, end, y):
    """A step from `start` to `end`: its dense output, and a function from the cotangents of the
    new state and of the dense output to those of `(moving, start, end, y)`."""
    if isinstance(solver, AbstractRosenbrock):
        return solver.replay(system, moving, start, end, y)

    repeat = functools.partial(_repeat, solver, system)
    (_, dense), pull = eqx.filter_vjp(repeat, moving, start, end, y)
    return dense, lambda d_end, d_dense: pull((d_end, d_dense))


def for_forward_mode(solver: diffrax.AbstractSolver) -> diffrax.AbstractSolver:
    """diffrax's default loop over the stages of a Runge-Kutta method has reverse mode only."""
    if isinstance(solver, diffrax.AbstractRungeKutta):
        solver = eqx.tree_at(lambda s: s.scan_kind, solver, "lax", is_leaf=_is_none)
    return solver


def _just_before(start: Array, end: Array) -> Array:
    """A time before `end` by more than what its record and its computation as the last stage of
    the step round off."""
    size = jnp.maximum(jnp.abs(start), jnp.abs(end))
    return end - 4 * jnp.finfo(end.dtype).eps * jnp.sign(end - start) * size


def _is_none(x: Any) -> bool:
    return x is None


def add(a: PyTree, b: PyTree) -> PyTree:
    """`a + b`, where `b` has None for zero."""

    def leaf(x, y):
        return x if y is None else x + y

    return jtu.tree_map(leaf, a, b, is_leaf=_is_none)
