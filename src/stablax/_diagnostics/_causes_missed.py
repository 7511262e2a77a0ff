"""Causes that no solve can see: what lies between its steps, and what its errors add up to."""

from collections.abc import Iterator

from ._finer import FinerReport
from ._observe import Observation
from ._report import number
from ._sampled import missed_events, stepped_over
from ._suggestion import PROBABLE, SEEN, Suggestion, model_with, preset, with_times


def _stepped_over(seen: Observation) -> Iterator[Suggestion]:
    skipped = sorted(stepped_over(seen), key=lambda s: -s.change)[:8]
    if not skipped:
        return
    skipped.sort(key=lambda s: abs(s.begin - float(seen.t[0])))
    places = ", ".join(f"[{number(s.begin, 6)}, {number(s.end, 6)}]" for s in skipped)
    most = max(skipped, key=lambda s: s.change)
    shortest = min(abs(s.end - s.begin) for s in skipped)
    edges = [float(number(t, 7)) for s in skipped for t in (s.begin, s.end)]
    yield Suggestion(
        "stepped_over",
        f"The steps went over something in the field, within t = {places}: no stage of a step "
        f"falls there, and the derivative of {most.name} is another there, which moves it by about "
        f"{number(most.change)}. No error estimate can see it. Step to where it begins and ends "
        f"(`step_ts`; `jump_ts` if the field jumps there; phases), or hold the steps below its "
        f"length (`dtmax={number(shortest / 2)}`).",
        model_with(controller=preset(seen, step_ts=with_times(seen, "step_ts", edges))),
        SEEN,
    )


def _events(seen: Observation) -> Iterator[Suggestion]:
    missed = missed_events(seen)
    if not missed:
        return
    places = ", ".join(f"{number(a, 6)} and {number(b, 6)}" for a, b in missed[:8])
    shortest = min(abs(b - a) for a, b in missed)
    yield Suggestion(
        "event_stepped_over",
        f"The condition of the event is met between t = {places}, and no longer at the end of the "
        "same step: it is looked at there only. Hold the steps below that time.",
        model_with(controller=preset(seen, dtmax=number(shortest / 2))),
        SEEN,
    )


MISSED_RULES = (_stepped_over, _events)


# By how many times `rtol` of its size a value may move at a tenth of the tolerance, and by how
# many a derivative; and as which part of its size each may at most, whatever the tolerance.
_VALUE, _DERIVATIVE, _MOST = 1e3, 1e4, 0.1


def global_error(seen: Observation, finer: FinerReport) -> Iterator[Suggestion]:
    """The error of the whole solve, which may be far larger than that of a step."""
    code = model_with(
        controller=preset(seen, rtol=number(1e-3 * seen.rtol), atol=number(1e-3 * seen.atol))
    )
    if not finer.successful:
        why = f"At a tenth of the tolerances the solve does not end well: {finer.result}. The "
        why += "solution depends on its tolerance."
        yield Suggestion("global_error", why, code, PROBABLE)
        return
    too_far = finer.factor > min(_VALUE, _MOST / seen.rtol)
    if not too_far and not finer.derivative > min(_DERIVATIVE * seen.rtol, _MOST):
        return
    first = finer.components[0]
    most = max(finer.components, key=lambda m: m.derivative)
    yield Suggestion(
        "global_error",
        f"At a tenth of the tolerances {first.name} moves by {number(first.value)} of "
        f"{number(first.size)}, {number(finer.factor)} times `rtol`, and the derivative of "
        f"{most.name} by {number(100 * finer.derivative)} %. A tolerance holds for a step; here "
        "the errors of the steps grow along the solution, and a derivative, or a loss in which "
        "large derivatives cancel, has fewer digits than the states. Solve at smaller tolerances, "
        "until `check_gradient` of the loss finds it settled.",
        code,
        PROBABLE,
    )
