"""One protected diffrax solve: what every model is made of."""

import dataclasses
import functools
from collections.abc import Callable

import diffrax
import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Bool, PyTree

from .._captured import capture, refuse_hidden
from .._control import AdmissibleSteps, Watch
from .._fields import Guard, Guarded, as_guarded, evaluate, evaluate_aside, evaluate_ungated
from .._lanes import differing, spread
from .._loop import KeptStep
from .._results import RESULTS, Cause, is_okay
from .._solvers import AbstractRosenbrock, family_of, for_forward_mode, prepare
from .._states import (
    all_finite,
    component_names,
    finite_or_zero,
    select,
    state_dtype,
    stop,
    zeros_like,
)
from .._types import VF, Args
from ._adjoint import DiscreteAdjoint, Outputs, solve
from ._forward_only import forward_only
from ._replay import Inputs
from ._run import Ended, at_the_event, event_of, run_loop, terms_of
from ._simulation import About, GuardSummary, Simulation
from ._stepping import Pace, Plan
from ._times import last_asked, rows_are_ordered

_FORWARD = (
    "This model was made for forward mode (`jvp`, `jacfwd`), with `adjoint=ForwardMode()`. For "
    "reverse mode (`grad`, `jacrev`) make it with the default, `stablax.DiscreteAdjoint()`, which "
    "has both."
)


def _mask_detector(plan: Plan, controller: AdmissibleSteps, field: Callable) -> Callable:
    """Whether a step over (t0, t1) has a masked stage: repeats it with the outputs unmasked, and
    looks whether the result is finite. Doubles the cost of a step, so only with a `fill`."""
    solver = for_forward_mode(prepare(plan.solver, controller))
    # What the field closes over is a leaf: a hidden input of the loop has no derivative rule.
    return jtu.Partial(_is_masked, solver, field)


def _is_masked(solver: diffrax.AbstractSolver, field: Callable, t0, t1, y0, args) -> Array:
    field, t0, t1, y0, args = stop((field, t0, t1, y0, args))
    terms = terms_of(solver, field)
    state = solver.init(terms, t0, t1, y0, args)
    y1, *_ = solver.step(terms, t0, t1, y0, args, state, False)
    return ~all_finite(y1)


def _rounding(solver: diffrax.AbstractSolver, y0) -> float:
    """By how much the Jacobian of an implicit solver may be perturbed: what its factorisation
    rounds off anyway."""
    if not isinstance(solver, diffrax.AbstractImplicitSolver):
        return 0.0
    size = sum(x.size for x in jtu.tree_leaves(y0))
    return 8 * float(np.sqrt(size) * np.finfo(state_dtype(y0)).eps)


def integrate(
    field: VF,
    plan: Plan,
    pace: Pace,
    y0,
    ts: Array,
    t0: Array,
    args: Args,
    active: Bool[Array, ""] | None = None,
    t1: Array | None = None,
) -> tuple[Simulation, PyTree[Array]]:
    """Solves from `y0` at `t0` to `t1`, by default the last of `ts`, saving at `ts`, of which the
    last may be nan or inf: those are not asked for. A caller that gives `t1` has looked at the
    times. Where not `active`, takes no step. Returns the last state, too."""
    # Under `shard_map` all that a loop works with differs between devices as one of them does:
    # else the derivative in what does not is summed over the devices in every step.
    given = (field, stop(pace), y0, ts, t0, args, active, t1)
    field, pace, y0, ts, t0, args, active, t1 = spread(given)
    guarded = as_guarded(field)
    guard = guarded.guard
    # The user's Python code is traced once, and what it closes over becomes an explicit input.
    discrete = isinstance(plan.adjoint, DiscreteAdjoint)
    repeats = discrete and not isinstance(plan.solver, diffrax.AbstractImplicitSolver)
    if repeats:  # what steps aside is the derivative of a step
        holds = isinstance(plan.solver, AbstractRosenbrock)
        vector_field = functools.partial(evaluate_ungated if holds else evaluate_aside, guarded)
    else:
        rounding = _rounding(plan.solver, y0)
        vector_field = lambda t, y, args, shift: evaluate(guarded, t, y, args, rounding)
    closed = capture(vector_field, t0, y0, args, zeros_like(y0))
    if differing(closed) - differing(y0):  # what it closes over differs, and nothing else
        return integrate(field, plan, *spread(given[1:], closed))
    refuse_hidden(closed, differing(y0))
    if guard.fill is None:
        masks = outputs_masked = None
    else:
        bare = eqx.tree_at(
            lambda g: g.guard,
            guarded,
            Guard(guard.lower, guard.upper, pull=guard.pull, reject=guard.reject),
            is_leaf=lambda x: isinstance(x, Guard),
        )
        unmasked = bare
        bare = capture(
            lambda t, y, args, shift: unmasked(t, y, args),
            *stop((t0, y0, args)),
            zeros_like(y0),
        )
        masks = _mask_detector(plan, pace.controller, bare)
        outputs_masked = jtu.Partial(_outputs_masked, bare)
    asked, ordered = jnp.isfinite(ts), jnp.array(True)
    if t1 is None:
        ordered, t1 = rows_are_ordered(t0, ts), last_asked(ts)
    assert t1 is not None
    going = ordered if active is None else active & ordered
    # Without a step to take the solve is from `t0` to `t0`.
    end = jnp.where(going, t1, t0)
    # Our loop takes what is nan as never; diffrax's saves it at the end.
    never = jnp.nan if plan.on_own_loop else end
    save = jnp.where(asked, jnp.where(going, ts, t0), never)
    names = names_of(field, y0)
    watch = _watch(plan, guard, outputs_masked, names)
    controller = dataclasses.replace(pace.controller, masks=masks, watch=watch)
    inputs = Inputs(closed, y0, t0, end, save, args)
    event = event_of(plan, pace, inputs)
    # Whether a step is the last has no derivative.
    run = jtu.Partial(run_loop, plan, pace.replace(controller), stop(event))
    if discrete:
        solver = prepare(plan.solver, controller)
        terms = jtu.Partial(terms_of, plan.solver)
        outputs = solve(inputs, run, solver, terms, guard if repeats else None, plan.width)
    else:
        outputs, _ = run(inputs, False)
    if isinstance(plan.adjoint, diffrax.ForwardMode):
        moving = (outputs.rows, outputs.last, outputs.step)
        rows, last, step = forward_only(moving, _FORWARD)
        outputs = Outputs(rows, last, step, outputs.rest)
    if outputs.step is not None:
        step = outputs.step
        assert event is not None
        if discrete:  # the first step moves with the start
            begins = outputs.rest.stats["num_accepted_steps"] == 1
            start = jnp.where(begins, t0 * event.way, step.t0)
            step = KeptStep(start, step.t1, step.y0, step.dense)
        outputs = at_the_event(event, plan, inputs, outputs, step)
    about = About(names, family_of(plan.solver))
    simulation = _summarise(outputs, about, ts, end, going & asked, ordered)
    last = finite_or_zero(outputs.last)
    return simulation, select(is_okay(simulation.result), last, lax.stop_gradient(last))


def names_of(field: VF, y0) -> tuple[str, ...]:
    """The names of the components: those that the field declares as `species`, or their places
    in the state."""
    names = tuple(component_names(y0))
    species = getattr(field.fn if isinstance(field, Guarded) else field, "species", None)
    if isinstance(species, tuple | list) and len(species) == len(names):
        return tuple(map(str, species))
    return names


def _outputs_masked(field: Callable, t, y, args):
    return jtu.tree_map(lambda dy: ~jnp.isfinite(dy), field(t, y, args, zeros_like(y)))


def _watch(plan: Plan, guard: Guard, outputs_masked, names) -> Watch | None:
    if not plan.telemetry and plan.trace is None:
        return None
    return Watch(
        guard=guard if plan.telemetry else None,
        outputs=outputs_masked,
        capacity=plan.capacity if plan.trace == "record" else 0,
        prints=plan.trace == "print",
        names=names,
    )


def _summarise(outputs: Outputs, about: About, ts, end, active, ordered) -> Simulation:
    rows, last = outputs.rows, outputs.last
    ended: Ended = outputs.rest
    record, watched, statistics = ended.record, ended.watched, ended.stats
    result = RESULTS.where(ordered, ended.result, RESULTS.bad_times)
    reached = jnp.isfinite(ended.saved) & active

    def fill_row(row, last):
        row_reached = reached.reshape(-1, *[1] * (row.ndim - 1))
        return jnp.where(row_reached & jnp.isfinite(row), row, last)

    ys = finite_or_zero(jtu.tree_map(fill_row, rows, last))
    # The loop's own time has no derivative in `end`.
    t1 = jnp.where(result == RESULTS.successful, end, ended.t)
    # A failed sample has no gradient at all, however far it came.
    ys, t1 = select(is_okay(result), (ys, t1), lax.stop_gradient((ys, t1)))
    stats = {
        **{k: statistics[k] for k in ("num_steps", "num_accepted_steps", "num_rejected_steps")},
        "max_steps": statistics["max_steps"],
        "t": ended.t,
        "dt": record.dt,
        "component": jnp.where(record.cause == Cause.none.value, -1, record.component),
    }
    stats = stop(jtu.tree_map(jnp.asarray, stats))
    summary = GuardSummary(
        rejected_not_finite=record.not_finite,
        rejected_outside=record.outside,
        masked=record.masked,
        masked_accepted=record.masked_accepted,
        accepted=None if watched is None else watched.guard,
    )
    log = None if watched is None else watched.log
    return Simulation(ts, ys, reached, t1, None, result, stats, summary, log, about)
