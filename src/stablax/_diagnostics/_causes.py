"""What is wrong, and what to do: each rule looks for one cause."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import diffrax
import jax.tree_util as jtu
import numpy as np

from .._control import Cause
from .._fields import as_guarded
from .._linalg import check_jacobian
from .._results import RESULTS
from .._solvers import AbstractRosenbrock, PatientChord, family_of
from ._observe import Observation, busiest
from ._walls import Wall, find_jump, find_walls


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """One cause, and what to do about it.

    - `cause`: a short name, for programs.
    - `why`: the evidence, in words.
    - `code`: a line to paste: `model` is the model, `y0` and `ts` its inputs, and `sx`, `np`,
        `jnp` and `jax` are stablax, numpy, jax.numpy and jax.
    - `weight`: how likely it is to be the reason for a failure or a slow solve, 0 to 1.
    """

    cause: str
    why: str
    code: str
    weight: float


def ended_with(seen: Observation, *members: RESULTS) -> bool:
    result = int(jtu.tree_leaves(seen.simulation.result)[0])
    return result in [int(jtu.tree_leaves(member)[0]) for member in members]


def suggestions(seen: Observation, condition: float | None) -> tuple[Suggestion, ...]:
    """All causes that were found, the most likely first. `condition`: the condition number of the
    Jacobian at the steady state."""
    found: list[Suggestion] = list(_steady(seen, condition))
    if len(seen.t):
        for rule in _RULES:
            found += rule(seen)
    return tuple(sorted(found, key=lambda s: -s.weight))


def _number(x: Any, digits: int = 3) -> str:
    return f"{float(x):.{digits}g}"


def _model_with(**changes: str) -> str:
    return f"model = sx.with_options(model, {', '.join(f'{k}={v}' for k, v in changes.items())})"


def _guarded(guard: str) -> str:
    return _model_with(field=f"sx.Guarded(model.field, sx.{guard})")


def _preset(seen: Observation, **changes: str) -> str:
    """The controller, with changes."""
    old = seen.model.options.controller
    given = {}
    if isinstance(old, diffrax.AbstractAdaptiveStepSizeController):
        given = dict(rtol=_number(old.rtol), atol=_number(old.atol))
    arguments = ", ".join(f"{k}={v}" for k, v in {**given, **changes}.items())
    return f"sx.StiffPID.preset({arguments})"


def _stiff_for_an_explicit_solver(seen: Observation) -> Iterator[Suggestion]:
    if family_of(seen.model.options.solver) != "explicit":
        return
    order = np.argsort(seen.t[seen.accepted])
    starts, sizes = (x[seen.accepted][order] for x in (seen.t, np.abs(seen.dt)))
    if not len(starts):
        return
    places = np.minimum(np.searchsorted(starts, seen.times), len(starts) - 1)
    held = seen.stiffness.fastest * sizes[places]
    typical = float(np.nanmedian(held))
    if typical > 1.0:
        yield Suggestion(
            "explicit_solver_on_a_stiff_system",
            f"Step size times the fastest rate is {_number(typical)} in the median: the steps of "
            "this explicit solver are as short as its stability needs, not its accuracy.",
            _model_with(solver="sx.Rodas5P()", controller=_preset(seen)),
            1.0 if ended_with(seen, RESULTS.step_budget_spent) else 0.7,
        )


def _walls(seen: Observation) -> Iterator[Suggestion]:
    count = int(np.sum(seen.cause == Cause.not_finite))
    if count == 0:
        return
    places = np.flatnonzero(seen.cause == Cause.not_finite)
    walls = {}
    for place in dict.fromkeys((places[0], places[len(places) // 2], places[-1])):
        for wall in find_walls(seen, float(seen.t[place]), float(seen.dt[place])):
            walls.setdefault((wall.index, wall.side), wall)
    fatal = ended_with(seen, RESULTS.not_finite)
    weight = 0.9 if fatal else 0.6
    if not walls:
        yield Suggestion(
            "field_not_finite",
            f"{count} steps were rejected because they were not finite, and no single component "
            "explains it: look at the field, and at its parameters, near t = "
            f"{_number(seen.t[places[0]], 6)}.",
            'model = sx.with_options(model, trace="print")',
            weight,
        )
        return
    nearest = list(walls.values())[:4]
    told = " and ".join(
        f"{wall.name} is {'above' if wall.side == 'upper' else 'below'} {_number(wall.value, 6)}"
        for wall in nearest
    )
    yield Suggestion(
        "field_not_finite",
        f"{count} steps were rejected because they were not finite. The field is not finite where "
        f"{told}." + (" The solution itself runs into it." if fatal else ""),
        _guarded(_box(seen, nearest)),
        weight,
    )


def _box(seen: Observation, walls: list[Wall]) -> str:
    """A guard that keeps a little off the walls, on the side of the trajectory."""
    bounds = {"lower": np.full(len(seen.names), -np.inf), "upper": np.full(len(seen.names), np.inf)}
    for wall in walls:
        values = seen.states[:, wall.index]
        nearest = values[np.argmin(np.abs(values - wall.value))]
        bounds[wall.side][wall.index] = wall.value + 1e-3 * (nearest - wall.value)
    return (
        "Guard("
        + ", ".join(
            f"{side}={_tree(seen, values)}"
            for side, values in bounds.items()
            if np.isfinite(values).any()
        )
        + ")"
    )


def _tree(seen: Observation, flat: np.ndarray) -> str:
    """Python text of a tree of numpy arrays in the structure of the state."""

    def leaf(x):
        x = np.asarray(x, float)
        if x.ndim == 0:
            return float(f"{x:.8g}") if np.isfinite(x) else None
        far = 10**6  # neither shortened nor wrapped
        text = np.array2string(x, separator=", ", precision=8, threshold=far, max_line_width=far)
        return _Array(text)

    return repr(jtu.tree_map(leaf, seen.unravel(flat)))


class _Array(str):
    def __repr__(self) -> str:
        return f"np.array({self.replace('inf', 'np.inf')})"


def _box_left(seen: Observation) -> Iterator[Suggestion]:
    places = np.flatnonzero(seen.cause == Cause.left_bounds)
    if not len(places):
        return
    guard = as_guarded(seen.model.field).guard
    fatal = ended_with(seen, RESULTS.left_bounds)
    last = places[-1]
    names = ", ".join(dict.fromkeys(seen.names[i] for i in seen.component[places]))
    opened = repr(guard).removesuffix(")").replace(", reject=True", "") + ", reject=False)"
    yield Suggestion(
        "guard_excludes_the_solution" if fatal else "guard_rejects_steps",
        f"{len(places)} steps left the guard's box through {names}"
        + (
            f"; at t = {_number(seen.t[last], 6)} the solution itself does, however small the step."
            if fatal
            else ", and were retried."
        ),
        _guarded(opened),
        0.95 if fatal else 0.2,
    )


def _masked(seen: Observation) -> Iterator[Suggestion]:
    steps = int(seen.simulation.guard.masked_accepted)
    if steps:
        guard = as_guarded(seen.model.field).guard
        yield Suggestion(
            "masked_outputs",
            f"{steps} accepted steps rest on outputs of the field that were not finite, and that "
            f"the guard replaced by {guard.fill:g}: that is not a solution.",
            _guarded("Guard()"),
            0.95,
        )


def _precision(seen: Observation) -> Iterator[Suggestion]:
    eps = float(np.finfo(seen.dtype).eps)
    if seen.rtol >= 100 * eps:
        return
    short = ended_with(
        seen, RESULTS.tolerance_out_of_reach, RESULTS.step_underflow, RESULTS.step_budget_spent
    )
    wider = "; y0 = jnp.asarray(y0, jnp.float64)"
    yield Suggestion(
        "tolerance_beyond_the_dtype",
        f"`rtol` = {seen.rtol:g} is {seen.rtol / eps:.2g} eps of {seen.dtype}: estimates of the "
        "error are rounding.",
        'jax.config.update("jax_enable_x64", True)' + wider
        if seen.dtype != np.float64
        else _model_with(controller='sx.StiffPID.preset("precise")'),
        1.0 if short else 0.5,
    )


def _budget(seen: Observation) -> Iterator[Suggestion]:
    if not ended_with(seen, RESULTS.step_budget_spent):
        return
    left = abs(float(seen.inputs["ts"][-1]) - seen.t[-1]) / abs(seen.dt[-1])
    needed = len(seen.t) + left
    if needed > 1e6:
        return
    enough = int(float(f"{2 * needed:.1g}"))
    yield Suggestion(
        "budget_too_small",
        f"At the last step size the rest takes about {_number(left)} steps.",
        _model_with(max_steps=str(max(enough, 64))),
        0.8 if np.mean(~seen.accepted) < 1 / 3 and left < 100 * len(seen.t) else 0.4,
    )


def _jumps_and_blow_ups(seen: Observation) -> Iterator[Suggestion]:
    underflow = ended_with(seen, RESULTS.step_underflow)
    starts = busiest(seen.t, seen.cause, 2)
    jumps = []
    for start in dict.fromkeys([*starts, seen.t[-1]] if underflow else starts):
        rejected = (seen.t == start) & (seen.cause == Cause.error)
        # Once is how every controller finds the step size.
        if np.sum(rejected) >= 2:
            jump = find_jump(seen, start, float(seen.dt[rejected][0]))
            if jump is not None:
                jumps.append(jump)
    # Two steps may have met the same one.
    in_time = sorted({float(_number(jump.t, 7)) for jump in jumps if jump.in_time})
    weight = 0.9 if underflow else 0.5
    if in_time:
        times = ", ".join(_number(t, 7) for t in in_time)
        yield Suggestion(
            "field_jumps_in_time",
            f"The field jumps at t = {times}, where steps are rejected until they end there.",
            _model_with(controller=_preset(seen, jump_ts=f"({times},)")),
            weight,
        )
    others = [jump for jump in jumps if not jump.in_time]
    if others:
        yield Suggestion(
            "field_jumps_along_the_solution",
            f"The field jumps along the solution near t = {_number(others[0].t, 6)} (in the state, "
            "not in time): a switch, a threshold, a clip. Make it smooth, or use a solver of low "
            "order, which loses least there.",
            _model_with(solver="sx.Rosenbrock23()"),
            weight,
        )
    if underflow and not jumps:
        grown = np.abs(seen.states[-1]) > 1e4 * (np.abs(seen.states[0]) + seen.atol)
        names = ", ".join(name for name, g in zip(seen.names, grown, strict=True) if g)
        if names:
            t = seen.t[-1]
            yield Suggestion(
                "blow_up",
                f"{names} grows without bound as t comes to {_number(t, 8)}: the solution ends "
                "there. If it should not, a sign or a parameter of the field is wrong.",
                f"ts = np.asarray(ts); ts = ts[ts < {_number(t - 0.01 * abs(t), 6)}]",
                0.95,
            )


def _root_finder(seen: Observation) -> Iterator[Suggestion]:
    count = int(np.sum(seen.cause == Cause.stages_unsolved))
    solver = seen.model.options.solver
    if count == 0 or isinstance(solver, AbstractRosenbrock):
        return
    finder = getattr(solver, "root_finder", None)
    if finder is None or isinstance(finder, PatientChord):
        return
    ours = {
        diffrax.Kvaerno3: "sx.kvaerno3()",
        diffrax.Kvaerno5: "sx.kvaerno5()",
        diffrax.KenCarp4: "sx.kencarp4()",
    }.get(type(solver), "sx.Rodas5P()")
    yield Suggestion(
        "root_finder",
        f"{count} of {len(seen.t)} steps were rejected because the root finder "
        f"({type(finder).__name__}) gave up on their stages.",
        _model_with(solver=ours),
        0.9 if ended_with(seen, RESULTS.stages_unsolved, RESULTS.step_budget_spent) else 0.6,
    )


def _jacobian(seen: Observation) -> Iterator[Suggestion]:
    declared = getattr(seen.model.options.solver, "jacobian", None)
    if declared is None:
        return
    place = len(seen.times) // 2
    t = float(seen.times[place])
    y = seen.unravel(seen.states[place] + 1e-3 * (seen.atol + np.abs(seen.states[place])))
    args = seen.conditions.args[int(seen.conditions.at(t))]
    try:
        check_jacobian(seen.model.field, t, y, args, jacobian=declared)
    except ValueError as error:
        yield Suggestion(
            "wrong_jacobian",
            str(error),
            "model = sx.with_options(model, solver=sx."
            f"{type(seen.model.options.solver).__name__}(jacobian=sx.Dense()))",
            1.0,
        )


def _uncontrolled_components(seen: Observation) -> Iterator[Suggestion]:
    largest = np.abs(seen.states).max(axis=0)
    small = (largest > 0) & (largest < 10 * seen.atol)
    if not small.any():
        return
    names = ", ".join(seen.names[i] for i in np.flatnonzero(small)[:5])
    atol = 10.0 ** math.floor(math.log10(max(seen.rtol, 1e-6) * float(largest[small].min())))
    yield Suggestion(
        "badly_scaled_components",
        f"{names} never exceeds {_number(largest[small].max())}, while `atol` is "
        f"{seen.atol:g}: no digit of it is controlled.",
        _model_with(controller=_preset(seen, atol=_number(atol))),
        0.4,
    )


def _many_rejections(seen: Observation) -> Iterator[Suggestion]:
    count = int(np.sum(seen.cause == Cause.error))
    if len(seen.t) > 50 and count > len(seen.t) / 3:
        yield Suggestion(
            "many_rejections",
            f"{count} of {len(seen.t)} steps were rejected for their error.",
            _model_with(controller='sx.StiffPID.preset("robust")'),
            0.3,
        )


def _longest_step(seen: Observation) -> Iterator[Suggestion]:
    dtmax = getattr(seen.model.options.controller, "dtmax", None)
    if dtmax is None or len(seen.t) < 50:
        return
    held = np.mean(np.abs(seen.dt) > 0.999 * float(dtmax))
    if held > 0.5:
        yield Suggestion(
            "dtmax_holds_the_steps",
            f"{held:.0%} of the steps have the largest size, `dtmax` = {float(dtmax):g}.",
            _model_with(controller=_preset(seen)),
            0.5 + 0.4 * ended_with(seen, RESULTS.step_budget_spent),
        )


def _steady(seen: Observation, condition: float | None) -> Iterator[Suggestion]:
    if seen.simulation.steady is None:
        return
    phases = "phases, " if "phases" in seen.inputs else ""
    call = f"simulation = model(y0, ts, {phases}{{}}, throw=False)"
    if ended_with(seen, RESULTS.singular_steady_state):
        yield Suggestion(
            "conserved_quantities_not_declared",
            "The Jacobian is singular at the steady state: quantities are conserved.",
            call.format('conserved="detect"'),
            1.0,
        )
    if ended_with(seen, RESULTS.not_conserved):
        yield Suggestion(
            "not_conserved",
            "A row given as `conserved` is not conserved by the field.",
            call.format('conserved="detect"'),
            1.0,
        )
    if ended_with(seen, RESULTS.no_steady_state):
        yield Suggestion(
            "no_steady_state",
            "No method converged: simulate the condition of the search, and see whether it "
            "settles, oscillates or grows.",
            "simulation = sx.Simulate(model.field)(y0, np.geomspace(1e-2, 1e3, 100), throw=False)",
            1.0,
        )
    if ended_with(seen, RESULTS.unstable_steady_state, RESULTS.ambiguous_steady_state):
        yield Suggestion(
            "unstable_steady_state",
            "The steady state that was found is unstable, or not the one that the dynamics reach.",
            "model = sx.SteadyThenSimulate(model.field, method=sx.Integrate())",
            1.0,
        )
    if condition is not None and condition > 1e-2 / np.finfo(seen.dtype).eps:
        yield Suggestion(
            "ill_conditioned_steady_state",
            f"The condition number of the Jacobian at the steady state is {_number(condition)}: "
            "its sensitivities keep few digits. A quantity may be nearly conserved.",
            "rows = sx.conserved_quantities(model.field, y0)",
            0.5,
        )


_RULES: tuple[Callable[[Observation], Iterator[Suggestion]], ...] = (
    _stiff_for_an_explicit_solver,
    _walls,
    _box_left,
    _masked,
    _precision,
    _budget,
    _jumps_and_blow_ups,
    _root_finder,
    _jacobian,
    _uncontrolled_components,
    _many_rejections,
    _longest_step,
)
