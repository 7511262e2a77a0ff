"""What a fit returns."""

import equinox as eqx
import numpy as np
from jaxtyping import PyTree

ENDINGS = {
    "converged": "The optimiser has converged.",
    "steps": "All steps were taken; the optimiser has not converged.",
    "patience": "The validation has not improved for as long as `patience` allows.",
    "callback": "A callback has stopped it.",
    "failed": "The loss is not finite at the start, so that there is no direction to go.",
}


class Fit(eqx.Module):
    """What [`fit`][] has found.

    **Attributes:**

    - `parameters`: the best, in the structure of the start: those with the least value, or with the
        least validation; with batches and without validation the last.
    - `value`: that of the objective there, or of the validation, if there is one; with batches and
        without validation that of the last batch.
    - `values`: of each step, shape `(steps,)`: before it; nan or inf where it failed. An optimiser
        of optimistix reports the last value that it had accepted.
    - `validations`: shape `(validations,)`, and `validated` after how many steps each was, of the
        same shape.
    - `steps`: how many were taken.
    - `ended`: `"converged"`, `"steps"`, `"patience"`, `"callback"` or `"failed"`.
    - `unused`: in how many steps value or gradient were not finite, so that none was made.
    """

    parameters: PyTree
    value: float = eqx.field(static=True)
    values: np.ndarray
    validations: np.ndarray
    validated: np.ndarray
    steps: int = eqx.field(static=True)
    ended: str = eqx.field(static=True)
    unused: int = eqx.field(static=True)

    def explain(self) -> str:
        """How it ended, in words."""
        lines = [f"{ENDINGS[self.ended]} {self.steps} steps, value {self.value:.6g}."]
        if self.validations.size:
            best = int(np.nanargmin(self.validations))
            lines.append(
                f"The best validation is {self.validations[best]:.6g}, after "
                f"{self.validated[best]} steps."
            )
        if self.unused:
            lines.append(
                f"In {self.unused} of them the loss or its gradient was not finite, and the "
                "parameters stayed; `objective.evaluate(...).explain()` says why."
            )
        return " ".join(lines)

    def __repr__(self) -> str:
        return f"Fit: {self.explain()}\n{self.parameters!r}"
