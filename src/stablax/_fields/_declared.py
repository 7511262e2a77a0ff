"""What a field declares that it conserves."""

import functools
from typing import Any

import numpy as np

from .._linalg import left_null_space
from .._static import Frozen, concrete_array
from ._coordinates import AbstractCoordinates
from ._guarded import Guarded


def declared_conserved(field: Any) -> Frozen | None:
    """Rows L with L f = 0 that a field declares as `conserved`, or that follow from its
    `stoichiometry`; None if it declares neither. Of a field in other coordinates, what the field
    inside declares."""
    if isinstance(field, AbstractCoordinates):
        return declared_conserved(field.field)
    if isinstance(field, Guarded):
        field = field.fn
    for name in ("conserved", "stoichiometry"):
        declared = getattr(field, name, None)
        if declared is None or callable(declared):
            continue
        what = f"{type(field).__name__}.{name}"
        matrix = concrete_array(declared, what)
        if name == "conserved":
            return Frozen(matrix)
        if matrix.ndim != 2 or not np.isfinite(matrix).all():
            raise ValueError(
                f"`{what}` has shape {matrix.shape}; it must be a finite matrix with one row for "
                "each species and one column for each reaction."
            )
        return conserved_by(Frozen(matrix))
    return None


@functools.lru_cache(maxsize=128)
def conserved_by(stoichiometry: Frozen) -> Frozen:
    """The rows of the left null space of a stoichiometric matrix."""
    return Frozen(left_null_space(stoichiometry.value))
