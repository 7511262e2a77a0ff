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
from jaxtyping import Array, Bool, PyTree

from .._fields import Aside, Guard
from .._lanes import spread
from .._loop import KeptStep, for_forward_mode
from .._solvers import AbstractRosenbrock
from .._states import all_finite, select, stop, zeros_like
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

    Where an event ends the solve, time and state of it have their derivatives of all these orders.

    A derivative in `t0` or `ts` at a time at which the field jumps is that of one side. Memory:
    `max_steps * (n + 1)` numbers for a state of n components (`max_steps` rounded up to a power of
    two), under `vmap` for each lane.
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
    """`rows` at `ts`, the state `last` where the solve ended, and the last `step` if an event can
    be in it; `rest` has no derivative."""

    rows: PyTree[Array]
    last: PyTree[Array]
    step: KeptStep | None
    rest: PyTree


class Trace(eqx.Module):
    """The accepted steps: `times[k]` and `states[k]` at the end of step k; and whether the last
    one reaches the end that was asked for."""

    times: Array
    states: PyTree[Array]
    count: Array
    arrives: Bool[Array, ""]


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
    still = lambda tree: jtu.tree_map(lambda _: None, tree)
    dense = None if outputs.step is None else outputs.step.dense
    moving = (outputs.rows, outputs.last, dense)
    steps = _Steps(inputs, moves, trace, solver, terms, guard, stop(dense))
    d_rows, d_last, d_dense = linear_call(_forward, _backward, steps, tangents[0], moving, _ONCE)
    d_step = still(outputs.step)
    if d_step is not None:
        d_step = KeptStep(d_step.t0, d_step.t1, d_step.y0, d_dense)
    return outputs, Outputs(d_rows, d_last, d_step, still(outputs.rest))


class _Steps(eqx.Module):
    """The accepted steps of a solve, to be repeated. `moves`: which inputs have a derivative.
    `dense`: of the last step, if that has one, too."""

    inputs: Inputs
    moves: Inputs
    trace: Trace
    solver: diffrax.AbstractSolver
    terms: Callable[[Callable, Any, Any], PyTree]
    guard: Guard | None
    dense: PyTree[Array] | None

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
        arrives = last & trace.arrives
        end = jnp.where(arrives, inputs.t1, trace.times[jnp.maximum(k, 0)])
        end = jnp.where(trace.count > 0, end, inputs.t0)
        y = jtu.tree_map(lambda a, b: jnp.where(first, a, b[before]), inputs.y0, trace.states)
        # The end of a step that was taken up to a jump of the field is recorded behind the jump,
        # whose other side the step must not see. Only the field looks earlier: a step that ends
        # earlier is another one, and on a relaxation oscillation four ulp in each of a thousand
        # steps are an error of 7 % in the gradient. Stages beyond the end stay where they were.
        seen = lax.stop_gradient((end, _just_before(start, end)))
        return _Step(first, last, arrives, start, end, y, seen)

    def interpolate(self, dense, start, end, t) -> PyTree[Array]:
        return self.solver.interpolation_cls(t0=start, t1=end, **dense).evaluate(t)

    def held(self, dense) -> PyTree[Array] | None:
        """What a step that is taken aside keeps of the step as it was: the stages of a Rosenbrock
        method. For other methods it is the field that keeps its value; see `evaluate_aside`."""
        return dense["stages"] if isinstance(self.solver, AbstractRosenbrock) else None

    def blank(self) -> PyTree[Array] | None:
        """Of the structure of `held`."""
        if not isinstance(self.solver, AbstractRosenbrock):
            return None
        stages = self.solver.tableau.stages
        blank = jtu.tree_map(lambda y: jnp.zeros((stages, *y.shape), y.dtype), self.inputs.y0)
        return spread(blank, self.inputs)

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


class _Step(eqx.Module):
    first: Array
    last: Array
    arrives: Array  # at the end that was asked for
    start: Array
    end: Array
    y: PyTree[Array]
    seen: tuple[Array, Array]  # the end, and a time just before it


class _Forth(eqx.Module):
    row: Array
    d_y: PyTree[Array]
    d_rows: PyTree[Array]
    d_dense: PyTree[Array] | None  # of the step before


def _forward(steps: _Steps, tangents: Inputs) -> tuple[PyTree, PyTree, PyTree]:
    """The tangents of the rows, of the last state, and of the dense output of the last step."""
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

    def take(k: Array, at: _Forth, aside) -> tuple[_Forth, Any]:
        step, (shift, held) = steps.at(k), aside
        system = functools.partial(steps.system, shift, step.seen)
        repeat = functools.partial(_repeat, solver, system, held)
        d_start = jnp.where(step.first, d_t0, 0)
        d_end = jnp.where(step.arrives, d_t1, 0)
        points, d_points = (
            (moving, step.start, step.end, step.y),
            (d_moving, d_start, d_end, at.d_y),
        )
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

        row, d_rows = lax.while_loop(in_step, save, (at.row, at.d_rows))
        kept = None if steps.dense is None else d_dense
        return _Forth(row, d_y, d_rows, kept), steps.held(dense)

    # Rows of a solve without steps are its start.
    still = jtu.tree_map(
        lambda d: jnp.where(count == 0, jnp.broadcast_to(d, (inputs.ts.size, *d.shape)), 0), d_y0
    )
    start = _Forth(jnp.zeros_like(rows), d_y0, still, zeros_like(steps.dense))
    end = _step_by_step(steps, lambda i: i, take, start)
    return end.d_rows, end.d_y, end.d_dense


class _Back(eqx.Module):
    row: Array
    d_y: PyTree[Array]
    d_moving: PyTree[Array]
    d_start: Array
    d_end: Array
    d_ts: Array | None


def _backward(steps: _Steps, cotangents: tuple[PyTree, PyTree, PyTree]) -> Inputs:
    """The cotangents of the inputs that move, from those of the rows, of the last state, and of
    the dense output of the last step."""
    inputs, solver, count = steps.inputs, steps.solver, steps.trace.count
    moving = steps.parameters[0]
    d_rows, d_last, d_kept = cotangents
    # Rows of a solve without steps are its start.
    d_last = jtu.tree_map(
        lambda d, rows: d + jnp.where(count == 0, jnp.sum(rows, axis=0), 0), d_last, d_rows
    )
    zero_time = jnp.zeros_like(inputs.t0)

    def take(k: Array, at: _Back, aside) -> tuple[_Back, Any]:
        step, (shift, held) = steps.at(k), aside
        start, end = step.start, step.end
        system = functools.partial(steps.system, shift, step.seen)
        dense, pull = _replay(solver, system, held, moving, start, end, step.y)

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

        d_dense = zeros_like(dense)
        if d_kept is not None:
            d_dense = select(step.last, d_kept, d_dense)
        saved = spread((at.row, d_dense, zero_time, zero_time, at.d_ts))
        row, d_dense, d_start, d_stop, d_ts = lax.while_loop(in_step, save, saved)
        more, step_start, step_end, d_y = pull(at.d_y, d_dense)
        d_end = jnp.where(step.arrives, d_stop + step_end, at.d_end)
        d_start = d_start + step_start
        new = _Back(row, d_y, add(at.d_moving, more), d_start, d_end, d_ts)
        return new, steps.held(dense)

    # In a batch a scatter costs more than the step: only where somebody asks for it.
    d_ts = jnp.zeros_like(inputs.ts) if steps.moves.ts else None
    start = _Back(steps.rows - 1, d_last, zeros_like(moving), zero_time, zero_time, d_ts)
    end = _step_by_step(steps, lambda i: count - 1 - i, take, start)
    d_field, d_args = end.d_moving
    d_inputs = Inputs(d_field, end.d_y, end.d_start, end.d_end, end.d_ts, d_args)
    return eqx.filter(d_inputs, steps.moves)


class _Progress(eqx.Module):
    """How far a pass has come: `at` after `done` steps."""

    at: Any
    done: Array
    width: Array  # how many steps to take next
    bad: Array  # not finite after so many steps, as far as that is known
    aside: Aside
    held: Any  # of the next step


def _step_by_step(steps: _Steps, order: Callable, take: Callable, start: Any) -> Any:
    """`at, held = take(k, at, (shift, held))` for each step k, in the `order` in which step i of
    the pass is step k of the solve, from `start`.

    What is not finite stays so to the end of a pass. So it is looked for there, and not in each
    step, which would cost a third of a pass: only then shorter runs find the step at fault, and
    that one is taken again, aside, until it is finite or nothing better is to be had."""
    start = spread(start, steps.inputs)
    count, guard = steps.trace.count, steps.guard
    blank = steps.blank()

    def run(at, first, end, aside):
        def step(carry):
            i, at, _ = carry
            return i + 1, *take(order(i), at, aside)

        _, at, held = lax.while_loop(lambda carry: carry[0] < end, step, (first, at, blank))
        return at, held

    if guard is None:
        return run(start, jnp.zeros_like(count), count, (None, None))[0]

    def body(progress: _Progress) -> _Progress:
        done, aside = progress.done, progress.aside
        end = jnp.minimum(done + progress.width, count)
        is_one, was_aside = end - done == 1, aside.how != 0
        held = None if blank is None else (was_aside, progress.held)
        at, held = run(progress.at, done, end, (aside.shift, held))
        held = select(was_aside, progress.held, held)
        finite = all_finite(at)
        keep = jnp.where(is_one, aside.is_last(finite), finite)

        y = steps.at(order(done)).y
        tried = aside.after(finite, guard.clip(y), *spread(guard.bounds(y), y))
        tried = select(tried.done, tried.again(), tried)
        aside = select(is_one & ~(finite & ~was_aside), tried, aside)

        at, done = select(keep, (at, end), (progress.at, done))
        none = count + 1
        bad = jnp.where(keep, jnp.where(was_aside, none, progress.bad), end)
        # Steps that are at fault come together.
        width = jnp.where(keep, jnp.where(was_aside, 1, 2 * progress.width), progress.width // 2)
        width = jnp.where(bad < none, jnp.minimum(width, (bad - done) // 2), width)
        width = jnp.where(aside.how != 0, 1, jnp.maximum(width, 1))
        return _Progress(at, done, width, bad, aside, held)

    none = jnp.zeros_like(count)
    progress = _Progress(start, none, count, count + 1, Aside.start(steps.inputs.y0), blank)
    is_left = lambda progress: progress.done < count
    return lax.while_loop(is_left, body, spread(progress)).at


def _repeat(solver: diffrax.AbstractSolver, system: Callable, held, moving, start, end, y):
    """A step from `start` to `end`: the new state, and its dense output."""
    terms, args = system(moving)
    if isinstance(solver, AbstractRosenbrock):
        return solver.repeat(terms, start, end, y, args, held)
    state = solver.init(terms, start, end, y, args)
    y1, _, dense, *_ = solver.step(terms, start, end, y, args, state, False)
    return y1, dense


def _replay(solver: diffrax.AbstractSolver, system: Callable, held, moving, start, end, y):
    """A step from `start` to `end`: its dense output, and a function from the cotangents of the
    new state and of the dense output to those of `(moving, start, end, y)`."""
    if isinstance(solver, AbstractRosenbrock):
        return solver.replay(system, moving, start, end, y, held)

    repeat = functools.partial(_repeat, solver, system, held)
    (_, dense), pull = eqx.filter_vjp(repeat, moving, start, end, y)
    return dense, lambda d_end, d_dense: pull((d_end, d_dense))


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
