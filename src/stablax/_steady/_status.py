"""How a stage of a search ended."""

from typing import Any

import equinox as eqx
import jax
import numpy as np


class STATUS(eqx.Enumeration):
    """How a stage of a search for a steady state ended; see `SteadyState.statuses`."""

    not_needed = "was not needed"
    converged = "converged"
    ambiguous = "converged, but to a state that the dynamics may not reach"
    diverged = "diverged"
    singular = "ended where the Jacobian is singular"
    out_of_steps = "ran out of steps"
    left_bounds = "ended at or beyond the bounds"
    not_finite = "met values that are not finite"
    unstable = "ended at an unstable steady state"


def in_words(stages: tuple[str, ...], statuses: Any) -> str:
    """`Newton diverged, PseudoTransient converged`, for concrete statuses; what was not needed is
    left out."""
    told = [STATUS[jax.tree.map(lambda x: np.asarray(int(x)), s)] for s in statuses]
    return ", ".join(
        f"{stage} {text}"
        for stage, text in zip(stages, told, strict=True)
        if text != STATUS[STATUS.not_needed]
    )
