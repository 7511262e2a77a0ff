"""How a solve ended, in stablax's words."""

import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import ArrayLike, Bool

from .._control import AdmissibleSteps, StepRecord
from .._results import RESULTS, Cause, is_okay, translated
from .._states import state_dtype


def verdict(controller: AdmissibleSteps, y0, record, ended: RESULTS) -> RESULTS:
    """How a solve from `y0` ended, whose loop `ended` so."""
    guard = controller.guard
    resolved = controller.rtol >= 10 * float(np.finfo(state_dtype(y0)).eps)
    result = _in_our_words(ended, record, resolved)
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


def _in_our_words(ended: RESULTS, record: StepRecord, resolved: Bool[ArrayLike, ""]) -> RESULTS:
    """diffrax's result, with `dt_min_reached` replaced by the cause of the last rejection."""
    spent = ended == RESULTS.max_steps_reached
    underflow = ended == RESULTS.dt_min_reached
    why = translated(record.cause, Cause, RESULTS, RESULTS.step_underflow)
    result = RESULTS.where(spent, RESULTS.step_budget_spent, ended)
    result = RESULTS.where(underflow, why, result)
    rounding = ((result == RESULTS.step_underflow) | spent) & ~jnp.asarray(resolved)
    return RESULTS.where(rounding, RESULTS.tolerance_out_of_reach, result)
