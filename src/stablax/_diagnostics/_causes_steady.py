"""Causes in the steady state that a simulation starts from."""

from collections.abc import Iterator

import numpy as np

from .._results import RESULTS
from ._observe import Observation
from ._report import number
from ._suggestion import CERTAIN, POSSIBLE, Suggestion, ended_with


def steady_causes(seen: Observation, condition: float | None) -> Iterator[Suggestion]:
    """`condition`: the condition number of the Jacobian at the steady state."""
    if seen.simulation.steady is None:
        return
    phases = "phases, " if "phases" in seen.inputs else ""
    call = f"simulation = model(y0, ts, {phases}{{}}, throw=False)"
    if ended_with(seen, RESULTS.singular_steady_state):
        yield Suggestion(
            "conserved_quantities_not_declared",
            "The Jacobian is singular at the steady state: quantities are conserved.",
            call.format('conserved="detect"'),
            CERTAIN,
        )
    if ended_with(seen, RESULTS.not_conserved):
        yield Suggestion(
            "not_conserved",
            "A row given as `conserved` is not conserved by the field.",
            call.format('conserved="detect"'),
            CERTAIN,
        )
    if ended_with(seen, RESULTS.no_steady_state):
        yield Suggestion(
            "no_steady_state",
            "No method converged: simulate the condition of the search, and see whether it "
            "settles, oscillates or grows.",
            "simulation = sx.Simulate(model.field)(y0, np.geomspace(1e-2, 1e3, 100), throw=False)",
            CERTAIN,
        )
    if ended_with(seen, RESULTS.unstable_steady_state, RESULTS.ambiguous_steady_state):
        yield Suggestion(
            "unstable_steady_state",
            "The steady state that was found is unstable, or not the one that the dynamics reach.",
            "model = sx.SteadyThenSimulate(model.field, method=sx.Integrate())",
            CERTAIN,
        )
    if condition is not None and condition > 1e-2 / np.finfo(seen.dtype).eps:
        yield Suggestion(
            "ill_conditioned_steady_state",
            f"The condition number of the Jacobian at the steady state is {number(condition)}: "
            "its sensitivities keep few digits. A quantity may be nearly conserved.",
            "rows = sx.conserved_quantities(model.field, y0)",
            POSSIBLE,
        )
