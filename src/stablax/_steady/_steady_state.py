"""What a search for a steady state returns."""

import equinox as eqx
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._results import RESULTS, STATUS, ended
from .._words import called


class SteadyState(eqx.Module):
    """A steady state of a field, or the reason why there is none.

    **Attributes:**

    - `y`: the state; differentiable by the implicit function theorem in all that the field, its
        `args` and (through conserved quantities) `y0` hold. If `result` is not successful: the
        last finite iterate, with zero derivative.
    - `residual`: how far it is from steady: the largest component of the Newton step there,
        relative to `|y| + atol / rtol`. Dimensionless; at most `rtol` times a few if successful.
    - `result`: a member of [`RESULTS`][].
    - `component`: the component that is farthest from steady (its index in `ravel_pytree` order).
    - `method`: index of the stage whose result this is; `method_name` is its name.
    - `statuses`: how each stage ended, one member of [`STATUS`][] for each; [`explain`][] says it
        in words.
    - `warm`: whether it was found from the `guess`.
    - `num_steps`: steps of all stages together.
    - `stable`: whether the eigenvalues of the Jacobian, restricted to the conserved manifold,
        all have a negative real part. `False` where the Jacobian is not finite, `None` where it
        was not computed (by default for more than 100 components).
    - `stages`: the names of the stages.
    """

    y: PyTree[Float[Array, "..."]]
    residual: Float[Array, ""]
    result: RESULTS
    method: Int[Array, ""]
    statuses: tuple[STATUS, ...]
    warm: Bool[Array, ""]
    num_steps: Int[Array, ""]
    component: Int[Array, ""]
    stable: Bool[Array, ""] | None
    stages: tuple[str, ...] = eqx.field(static=True)

    def __repr__(self) -> str:
        y, result = eqx.tree_pformat(self.y), ended(self.result)
        return called("SteadyState", [f"y={y}", f"result={result}"])

    @property
    def method_name(self) -> str | np.ndarray:
        """The name of the stage that won (names in an array for a batch)."""
        names = np.asarray(self.stages)[np.asarray(self.method)]
        return str(names) if names.ndim == 0 else names
