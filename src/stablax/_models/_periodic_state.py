"""What a search for a periodic state returns."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from .._results import RESULTS, ended
from .._words import called


class PeriodicState(eqx.Module):
    """A state to which the phases of a period lead back, or the reason why there is none.

    **Attributes:**

    - `y`: the state at the start of the period; differentiable by the implicit function theorem in
        all that the phases and the field hold. If `result` is not successful: the last iterate,
        with zero derivative.
    - `result`: a member of [`RESULTS`][].
    - `residual`: the largest component of the last Newton step, relative to the tolerance
        `10 (atol + rtol |y|)`; at most 1 if successful.
    - `num_periods`: how many were simulated.
    """

    y: PyTree[Float[Array, "..."]]
    result: RESULTS
    residual: Float[Array, ""]
    num_periods: Int[Array, ""]

    @staticmethod
    def trivial(y: PyTree[Array]) -> "PeriodicState":
        """One that nobody had to look for."""
        fine: Any = RESULTS.successful
        result = RESULTS.where(jnp.array(True), fine, fine)
        return PeriodicState(y, result, jnp.zeros(()), jnp.zeros((), int))

    def __repr__(self) -> str:
        y, result = eqx.tree_pformat(self.y), ended(self.result)
        return called("PeriodicState", [f"y={y}", f"result={result}"])
