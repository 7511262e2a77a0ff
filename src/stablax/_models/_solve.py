"""One protected diffrax solve: what every model is made of."""

import functools
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Bool, PyTree

from .._control import AdmissibleSteps, Cause, StiffPID, Watch, admissible
from .._fields import Guard, Guarded, as_guarded, evaluate, evaluate_aside
from .._pickling import FROM_CONTROLLER
from .._results import RESULTS, is_okay
from .._solvers import family_of, is_implicit
from .._states import all_finite, component_names, finite_or_zero, select, state_dtype, stop
from .._static import is_traced
from .._types import VF, Args
from ._adjoint import DiscreteAdjoint, Inputs, Outputs, Trace, add, for_forward_mode, solve
from ._event import EventOf
from ._forward_only import forward_only
from ._kept_step import KeepsStep, KeptStep
from ._options import SolveOptions, is_imex
from ._simulation import About, GuardSummary, Simulation

_FORWARD = (
    "This model was made for forward mode (`jvp`, `jacfwd`), with `adjoint=ForwardMode()`. For "
    "reverse mode (`grad`, `jacrev`) make it with the default, `stablax.DiscreteAdjoint()`, which "
    "has both; with an event, with `diffrax.DirectAdjoint()`."
)


class _Field(eqx.Module):
    closed: Callable
    shift: PyTree | None
    end: Any

    def __call__(self, t, y, args):
        if self.end is not None:
            end, before = self.end
            at_end = jnp.abs(t - end) <= jnp.abs(before - end)
            t = t + lax.stop_gradient(jnp.where(at_end, before - t, 0))
        return self.closed(t, y, args, _zeros(y) if self.shift is None else self.shift)


def _terms(solver: diffrax.AbstractSolver, field: Callable, shift: Any = None, end: Any = None):
    """The terms of a `field(t, y, args, shift)` (by default zeros). With `end`, the end of a step
    and a time just before it, the field is evaluated before instead of at the end."""
    field = _Field(field, shift, end)
    if is_imex(solver):
        zero = diffrax.ODETerm(lambda t, y, args: _zeros(y))
        return diffrax.MultiTerm(zero, diffrax.ODETerm(field))
    return diffrax.ODETerm(field)


def steps_of(
    options: SolveOptions,
    guard: Guard,
    dtype: np.dtype,
    masks: Any = None,
    watch: Watch | None = None,
) -> AdmissibleSteps:
    """The controller that runs, for a state of `dtype`."""
    controller, limit, atols = options.controller, None, None
    if isinstance(controller, StiffPID):
        limit, atols = controller.factormax_after_rejection, controller.atols
        controller = controller.for_dtype(dtype).control_law(dtype)
    implicit = is_implicit(options.solver)
    return admissible(controller, guard, dtype, masks, implicit, limit, watch, atols)


def _zeros(y: PyTree) -> PyTree:
    return jtu.tree_map(jnp.zeros_like, y)


def _mask_detector(options: SolveOptions, field: Callable, dtype: np.dtype):
    """Whether a step over (t0, t1) has a masked stage: repeats it with the outputs unmasked, and
    looks whether the result is finite. Doubles the cost of a step, so only with a `fill`."""
    controller = steps_of(options, Guard(), dtype)
    solver = for_forward_mode(_with_tolerances(options.solver, controller))
    terms = _terms(solver, stop(field))

    def masks(t0, t1, y0, args):
        y0, args = stop((y0, args))
        t0, t1 = stop((t0, t1))
        state = solver.init(terms, t0, t1, y0, args)
        y1, *_ = solver.step(terms, t0, t1, y0, args, state, False)
        finite = [jnp.all(jnp.isfinite(x)) for x in jtu.tree_leaves(y1)]
        return ~jnp.all(jnp.stack(finite))

    return masks


def _with_tolerances(solver, controller: AdmissibleSteps):
    """`solver` with the tolerances of its root finder taken from the controller, as diffrax does
    inside `diffeqsolve`."""
    if isinstance(solver, diffrax.AbstractImplicitSolver):
        finder = solver.root_finder
        unset = [n for n in ("rtol", "atol", "norm") if getattr(finder, n) is FROM_CONTROLLER]
        solver = eqx.tree_at(
            lambda s: tuple(getattr(s.root_finder, n) for n in unset),
            solver,
            tuple(getattr(controller, n) for n in unset),
        )
    return solver


def _run(
    options: SolveOptions, controller: AdmissibleSteps, inputs: Inputs, record: bool
) -> tuple[Outputs, Trace | None]:
    dt0 = options.dt0
    if dt0 is not None:
        dtype = state_dtype(inputs.y0)
        dt0 = jnp.where(inputs.t1 < inputs.t0, -abs(dt0), abs(dt0)).astype(dtype)
    # The derivative is taken with the steps held fixed. What moves with the times are the start,
    # the end, and the points of the dense output.
    t0, t1 = lax.stop_gradient((inputs.t0, inputs.t1))
    # Without a step to take nothing moves.
    start, end = (jnp.where(t0 == t1, 0, t) for t in (-inputs.t0, inputs.t1))
    y0 = _with_time(inputs.y0, start, inputs.t0, inputs.field, inputs.args)
    subs = [diffrax.SubSaveAt(ts=inputs.ts), diffrax.SubSaveAt(t1=True)]
    if record:
        subs.append(diffrax.SubSaveAt(steps=True))
    adjoint = options.adjoint
    if isinstance(adjoint, DiscreteAdjoint):
        adjoint = diffrax.ForwardMode()  # the loop that costs least
    solver, saveat = options.solver, diffrax.SaveAt(subs=subs, controller_state=True)
    settings: dict[str, Any] = dict(
        terms=_terms(solver, inputs.field),
        solver=solver,
        t0=t0,
        t1=t1,
        dt0=dt0,
        saveat=saveat,
        stepsize_controller=controller,
        max_steps=options.max_steps,
    )
    way = jnp.where(inputs.t1 < inputs.t0, -1, 1)
    event = None
    if options.event is not None:
        event = EventOf(options.event, settings, way, inputs.t0, inputs.y0, inputs.args)
        if event.is_located:
            saveat = diffrax.SaveAt(subs=subs, controller_state=True, solver_state=True)
            settings = {**settings, "solver": KeepsStep(solver), "saveat": saveat}
    solution = diffrax.diffeqsolve(
        **settings,
        y0=y0,
        args=inputs.args,
        adjoint=adjoint,
        event=None if event is None else event.for_loop(),
        throw=False,
        progress_meter=options.progress_meter,
    )
    ts, ys = solution.ts, solution.ys
    assert ts is not None and ys is not None
    state: Any = solution.controller_state
    result: Any = RESULTS.promote(solution.result)
    saved, t, last = ts[0], ts[1][0], jtu.tree_map(lambda x: x[0], ys[1])
    at_end = _with_time(last, end, inputs.t1, inputs.field, inputs.args)
    last = select(result == RESULTS.successful, at_end, last)
    if event is not None and event.is_located:
        solver_state: Any = solution.solver_state
        t, last, result = _at_the_event(
            event, solver, inputs.args, solver_state[1], t, last, result
        )
        saved = jnp.where(way * saved > way * t, jnp.nan, saved)
    result = _verdict(controller, inputs.y0, state.record, result)
    rest = (state.record, state.watched, saved, t, solution.stats, result)
    outputs = Outputs(ys[0], last, rest)
    if not record:
        return outputs, None
    # A failed sample has no derivative at all, however far it came.
    count = jnp.where(is_okay(result), solution.stats["num_accepted_steps"], 0)
    return outputs, Trace(ts[2], ys[2], count)


@eqx.filter_custom_jvp
def _with_time(y, forth, t, field: Callable, args: Args):
    """`y` at time `t`, which moves along its slope as `forth` does."""
    return y


@_with_time.def_jvp
def _with_time_jvp(primals, tangents):
    (y, _, t, field, args), (d_y, d_forth, *_) = primals, tangents
    if d_forth is not None:
        # A start that has no slope is that of a sample that fails.
        slope = finite_or_zero(field(t, y, args, _zeros(y)))
        d_y = add(jtu.tree_map(lambda dy: dy * d_forth.astype(dy.dtype), slope), d_y)
    return y, d_y


def _verdict(controller: AdmissibleSteps, y0, record, ended: RESULTS) -> RESULTS:
    """How a solve from `y0` ended, whose loop `ended` so."""
    guard = controller.guard
    result = _promote(ended, record, resolves(controller.rtol, state_dtype(y0)))
    if guard.fill is not None and guard.reject:
        # Accepted steps come before whatever ended the solve.
        result = RESULTS.where(record.masked_accepted > 0, RESULTS.masked, result)
    starts_finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jtu.tree_leaves(y0)]))
    result = RESULTS.where(is_okay(result) & ~starts_finite, RESULTS.not_finite, result)
    if guard.reject and guard.is_bounded:
        # Where no step was asked for, no step has looked.
        inside = controller.contains(y0)
        result = RESULTS.where(is_okay(result) & ~inside, RESULTS.left_bounds, result)
    return result


def _at_the_event(event: EventOf, solver, args: Args, step: KeptStep, t, y, result):
    """Time, state and result of a solve that ended at the end `t` of the `step` with its event."""
    found = event.find(solver, step, y, args, result == RESULTS.event_occurred)
    result = RESULTS.where(found.crossed & ~found.located, RESULTS.event_not_located, result)
    # Where the state itself is not finite, that is what failed.
    is_lost = found.not_finite & all_finite(y)
    result = RESULTS.where(is_lost, RESULTS.event_not_finite, result)
    return (*select(found.crossed & found.located, (found.t, found.y), (t, y)), result)


def _rounding(solver: diffrax.AbstractSolver, y0) -> float:
    """By how much the Jacobian of an implicit solver may be perturbed: what its factorisation
    rounds off anyway."""
    if not isinstance(solver, diffrax.AbstractImplicitSolver):
        return 0.0
    size = sum(x.size for x in jtu.tree_leaves(y0))
    return 8 * float(np.sqrt(size) * np.finfo(state_dtype(y0)).eps)


def integrate(
    field: VF,
    options: SolveOptions,
    y0,
    ts: Array,
    t0: Array,
    args: Args,
    active: Bool[Array, ""] | None = None,
    t1: Array | None = None,
) -> tuple[Simulation, PyTree[Array]]:
    """Solves from `y0` at `t0` to `t1`, by default `ts[-1]`, saving at `ts`; a caller that gives
    `t1` has looked at the times, and the last of its `ts` may be nan, which are not reached. Where
    not `active`, takes no step. Returns the last state, too."""
    dtype = state_dtype(y0)
    guarded = as_guarded(field)
    guard = guarded.guard
    # The user's Python code is traced once, and what it closes over becomes an explicit input.
    discrete = isinstance(options.adjoint, DiscreteAdjoint)
    repeats = discrete and not isinstance(options.solver, diffrax.AbstractImplicitSolver)
    if repeats:  # what steps aside is the backward pass
        vector_field = functools.partial(evaluate_aside, guarded)
    else:
        rounding = _rounding(options.solver, y0)
        vector_field = lambda t, y, args, shift: evaluate(guarded, t, y, args, rounding)
    closed = eqx.filter_closure_convert(vector_field, t0, y0, args, _zeros(y0))
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
        bare = eqx.filter_closure_convert(
            lambda t, y, args, shift: unmasked(t, y, args),
            *stop((t0, y0, args)),
            _zeros(y0),
        )
        masks = _mask_detector(options, bare, dtype)
        outputs_masked = functools.partial(_outputs_masked, bare)
    if t1 is None:
        ordered, t1 = times_are_ordered(t0, ts), ts[-1]
    else:
        ordered = jnp.array(True)
    active = ordered if active is None else active & ordered
    # Without a step to take the solve is from `t0` to `t0`.
    end = jnp.where(active, t1, t0)
    save = jnp.where(active | jnp.isnan(ts), ts, t0)
    names = names_of(field, y0)
    watch = _watch(options, guard, outputs_masked, names)
    controller = steps_of(options, guard, dtype, masks, watch)
    run = jtu.Partial(_run, options, controller)
    inputs = Inputs(closed, y0, t0, end, save, args)
    if discrete:
        solver = _with_tolerances(options.solver, controller)
        outputs = solve(
            inputs, run, solver, jtu.Partial(_terms, solver), guard if repeats else None
        )
    else:
        outputs, _ = run(inputs, False)
    if isinstance(options.adjoint, diffrax.ForwardMode):
        moves = lambda o: (o.rows, o.last)
        outputs = eqx.tree_at(moves, outputs, forward_only(moves(outputs), _FORWARD))
    about = About(names, family_of(options.solver))
    simulation = _summarise(outputs, about, ts, end, active, ordered)
    last = finite_or_zero(outputs.last)
    return simulation, select(is_okay(simulation.result), last, lax.stop_gradient(last))


def times_are_ordered(t0: Array, ts: Array) -> Bool[Array, ""]:
    """Whether the times are finite and go in one direction."""
    times = jnp.concatenate([t0[None], ts])
    steps = jnp.diff(times)
    return jnp.all(jnp.isfinite(times)) & (jnp.all(steps >= 0) | jnp.all(steps <= 0))


def names_of(field: VF, y0) -> tuple[str, ...]:
    """The names of the components: those that the field declares as `species`, or their places
    in the state."""
    names = tuple(component_names(y0))
    species = getattr(field.fn if isinstance(field, Guarded) else field, "species", None)
    if isinstance(species, tuple | list) and len(species) == len(names):
        return tuple(map(str, species))
    return names


def _outputs_masked(field: Callable, t, y, args):
    return jtu.tree_map(lambda dy: ~jnp.isfinite(dy), field(t, y, args, _zeros(y)))


def _watch(options: SolveOptions, guard: Guard, outputs_masked, names) -> Watch | None:
    if not options.telemetry and options.trace is None:
        return None
    return Watch(
        guard=guard if options.telemetry else None,
        outputs=outputs_masked,
        capacity=options.max_steps if options.trace == "record" else 0,
        prints=options.trace == "print",
        names=names,
    )


def _summarise(outputs: Outputs, about: About, ts, end, active, ordered) -> Simulation:
    rows, last = outputs.rows, outputs.last
    record, watched, saved_ts, stopped_at, statistics, result = outputs.rest
    result = RESULTS.where(ordered, result, RESULTS.bad_times)
    reached = jnp.isfinite(saved_ts) & active

    def fill_row(row, last):
        row_reached = reached.reshape(-1, *[1] * (row.ndim - 1))
        return jnp.where(row_reached & jnp.isfinite(row), row, last)

    ys = finite_or_zero(jtu.tree_map(fill_row, rows, last))
    # The loop's own time has no derivative in `end`.
    t1 = jnp.where(result == RESULTS.successful, end, stopped_at)
    # A failed sample has no gradient at all, however far it came.
    ys, t1 = select(is_okay(result), (ys, t1), lax.stop_gradient((ys, t1)))
    stats = {
        **{k: statistics[k] for k in ("num_steps", "num_accepted_steps", "num_rejected_steps")},
        "max_steps": statistics["max_steps"],
        "t": stopped_at,
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


def resolves(rtol: Any, dtype: np.dtype) -> bool:
    """Whether a state of `dtype` has the digits that `rtol` asks for."""
    return is_traced(rtol) or float(rtol) >= 10 * float(np.finfo(dtype).eps)


def _promote(promoted: Any, record, resolved: bool) -> RESULTS:
    """diffrax's result, with `dt_min_reached` replaced by the cause of the last rejection."""
    spent = promoted == RESULTS.max_steps_reached
    promoted = RESULTS.where(spent, RESULTS.step_budget_spent, promoted)
    underflow = promoted == RESULTS.dt_min_reached
    for cause, member in (
        (Cause.none, RESULTS.step_underflow),
        (Cause.error, RESULTS.step_underflow),
        (Cause.not_finite, RESULTS.not_finite),
        (Cause.left_bounds, RESULTS.left_bounds),
        (Cause.stages_unsolved, RESULTS.stages_unsolved),
    ):
        promoted = RESULTS.where(underflow & (record.cause == cause.value), member, promoted)
    if not resolved:
        rounding = (promoted == RESULTS.step_underflow) | spent
        promoted = RESULTS.where(rounding, RESULTS.tolerance_out_of_reach, promoted)
    return promoted
