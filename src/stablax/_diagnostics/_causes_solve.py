"""Causes in how it is solved: solver, root finder, Jacobian, tolerances, budget."""

import math
from collections.abc import Iterator

import diffrax
import numpy as np

from .._fields import check_jacobian
from .._results import RESULTS, Cause
from .._solvers import AbstractRosenbrock, PatientChord, family_of
from ._observe import Observation
from ._report import number
from ._suggestion import (
    CERTAIN,
    LIKELY,
    MINOR,
    POSSIBLE,
    PROBABLE,
    Suggestion,
    ended_with,
    model_with,
    preset,
)


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
            f"Step size times the fastest rate is {number(typical)} in the median: the steps of "
            "this explicit solver are as short as its stability needs, not its accuracy.",
            model_with(solver="sx.Rodas5P()", controller=preset(seen)),
            CERTAIN if ended_with(seen, RESULTS.step_budget_spent) else PROBABLE,
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
        else model_with(controller='sx.StiffPID.preset("precise")'),
        CERTAIN if short else POSSIBLE,
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
        f"At the last step size the rest takes about {number(left)} steps.",
        model_with(max_steps=str(max(enough, 64))),
        PROBABLE if np.mean(~seen.accepted) < 1 / 3 and left < 100 * len(seen.t) else MINOR,
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
        model_with(solver=ours),
        LIKELY
        if ended_with(seen, RESULTS.stages_unsolved, RESULTS.step_budget_spent)
        else PROBABLE,
    )


def _jacobian(seen: Observation) -> Iterator[Suggestion]:
    declared = getattr(seen.model.options.solver, "jacobian", None)
    if declared is None:
        return
    place = len(seen.times) // 2
    t = float(seen.times[place])
    y = seen.unravel(seen.states[place] + 1e-3 * (seen.atols + np.abs(seen.states[place])))
    args = seen.conditions.args[int(seen.conditions.at(t))]
    try:
        check_jacobian(seen.model.field, t, y, args, jacobian=declared)
    except ValueError as error:
        yield Suggestion(
            "wrong_jacobian",
            str(error),
            "model = sx.with_options(model, solver=sx."
            f"{type(seen.model.options.solver).__name__}(jacobian=sx.Dense()))",
            CERTAIN,
        )


def _uncontrolled_components(seen: Observation) -> Iterator[Suggestion]:
    largest = np.abs(seen.states).max(axis=0)
    small = (largest > 0) & (largest < 10 * seen.atols)
    if not small.any():
        return
    names = ", ".join(seen.names[i] for i in np.flatnonzero(small)[:5])
    atol = 10.0 ** math.floor(math.log10(max(seen.rtol, 1e-6) * float(largest[small].min())))
    yield Suggestion(
        "badly_scaled_components",
        f"{names} never exceeds {number(largest[small].max())}, while `atol` is "
        f"{seen.atols[small].max():g}: no digit of it is controlled.",
        model_with(controller=preset(seen, atol=number(atol))),
        MINOR,
    )


def _many_rejections(seen: Observation) -> Iterator[Suggestion]:
    count = int(np.sum(seen.cause == Cause.error))
    if len(seen.t) > 50 and count > len(seen.t) / 3:
        yield Suggestion(
            "many_rejections",
            f"{count} of {len(seen.t)} steps were rejected for their error.",
            model_with(controller='sx.StiffPID.preset("robust")'),
            MINOR,
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
            model_with(controller=preset(seen)),
            LIKELY if ended_with(seen, RESULTS.step_budget_spent) else POSSIBLE,
        )


SOLVE_RULES = (
    _stiff_for_an_explicit_solver,
    _precision,
    _budget,
    _root_finder,
    _jacobian,
    _uncontrolled_components,
    _many_rejections,
    _longest_step,
)
