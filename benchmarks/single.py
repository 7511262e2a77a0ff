"""Single solves and their gradients: error against time and against steps."""

import dataclasses
import sys
from collections.abc import Callable
from functools import partial

import harness
import numpy as np
import references
from peers import PEERS, Run

import stablax as sx

TARGET = 1e-6


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much to measure: down to which error, by which factor of the tolerance, up to how many
    seconds for one solve, and how many seconds of repeats for each."""

    stop: float = 1e-7
    factor: float = 10**0.5
    limit: float = 20.0
    budget: float = 1.0


QUICK = Effort(stop=3e-7, factor=10.0, limit=5.0, budget=0.1)


GRADIENTS = ("Rodas5P", "Kvaerno5 fixed", "Kvaerno5")


class Timed:
    """Collects points to be timed together, after all are known."""

    def __init__(self):
        self.points: list[dict] = []
        self.calls: list[Callable[[], float]] = []

    def add(self, solver, points: list[dict]) -> list[dict]:
        for point in points:
            if point["ok"]:
                self.points.append(point)
                self.calls.append(partial(harness.warm, solver, point["rtol"]))
        return points

    def run(self, budget: float) -> None:
        medians = harness.interleaved(self.calls, budget)
        for point, seconds in zip(self.points, medians, strict=True):
            point["seconds"] = seconds


def measure(problem, names, parts, effort: Effort) -> dict:
    """All of the peers `names` on one problem: `{"forward": {name: ...}, "gradient": {...}}`.

    Each is swept over tolerances first. Then all solves are timed in turn, round after round.
    """
    reference = references.load(problem)
    timed = Timed()
    results = {"forward": {}, "gradient": {}}
    for name in names:
        print(f"  {name}", file=sys.stderr, flush=True)
        solver = PEERS[name].prepare(problem)
        if solver is None:
            continue
        points = harness.sweep(
            solver,
            lambda run: problem.error(run.ys, reference["ys"]),
            start=0.1,
            # scipy's codes are a hundred times slower, and get fewer tolerances.
            factor=max(effort.factor, 10.0) if name.startswith("scipy") else effort.factor,
            stop=effort.stop,
            limit=effort.limit,
        )
        results["forward"][name] = {
            "compile_seconds": solver.compile_seconds,
            "points": timed.add(solver, points),
        }
        if "gradient" in parts and name in GRADIENTS:
            results["gradient"][name] = gradient(problem, name, points, reference, effort, timed)
    timed.run(effort.budget)
    return results


def _failing_as_data(solver):
    """A gradient may raise at one tolerance and not at another."""

    def run(rtol):
        try:
            return solver(rtol)
        except Exception:
            return Run(False, [0.0], np.array(np.nan), 0)

    return run


def gradient(problem, name, forward, reference, effort: Effort, timed: Timed) -> dict:
    """The gradient by one peer. Where it raises or is not finite with the bare field, which is
    recorded, the field is guarded."""
    reached = [point for point in forward if point["error"]]
    if not reached:
        return {"points": [], "failure": "no successful solve"}
    near = min(reached, key=lambda point: abs(np.log(point["error"] / TARGET)))
    expected = 10 * near["first_seconds"]
    if expected > 2 * effort.limit:
        return {"points": [], "failure": f"left out: would take about {expected:.0f} s"}
    loss = partial(references.loss, scale=reference["scale"])
    result: dict = {"guarded": False}
    along = references.directions(problem)
    size = np.max(np.abs(reference["slopes"]))

    def error(run):
        gap = np.asarray(references.project(run.ys, along)) - reference["slopes"]
        return float(np.max(np.abs(gap)) / size)

    def attempt(problem):
        """A solver, its first run, and what went wrong."""
        solver = PEERS[name].prepare_gradient(problem, loss, near["steps"])
        try:
            run = solver(near["rtol"])
            return solver, run, None if np.isfinite(error(run)) else "not finite"
        except Exception as raised:
            return solver, None, type(raised).__name__

    solver, run, result["failure"] = attempt(problem)
    if result["failure"]:
        result["guarded"] = True
        guarded = dataclasses.replace(problem, field=sx.Guarded(problem.field))
        solver, run, failure = attempt(guarded)
        if failure or run is None:
            return {"points": [], "failure": f"{failure}, guarded as well"}
    result["first_gradient_seconds"] = solver.compile_seconds + run.seconds[0]
    result["compile_seconds"] = solver.compile_seconds
    result["temporary_bytes"] = solver.temporary_bytes
    # Around the tolerance at which the solution has the target error.
    points = harness.sweep(
        _failing_as_data(solver),
        error,
        start=near["rtol"] * 10,
        factor=effort.factor,
        stop=effort.stop * 3,
        limit=effort.limit,
        at_least=near["rtol"] / effort.factor,
    )
    forward_error = {point["rtol"]: point["error"] for point in forward}
    for point in points:
        closest = min(forward_error, key=lambda rtol: abs(np.log(rtol / point["rtol"])))
        point["forward_error"] = forward_error[closest]
    result["points"] = timed.add(solver, points)
    return result
