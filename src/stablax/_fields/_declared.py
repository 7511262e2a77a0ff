"""What a field says of itself, besides what it is: asked here and nowhere else."""

import functools
from typing import Any

import numpy as np
from jaxtyping import PyTree

from .._linalg import AbstractJacobian, left_null_space
from .._states import component_names
from .._static import Frozen, concrete_array
from .._types import VF
from ._guarded import Guarded, as_guarded


def _attribute(field: VF, name: str) -> tuple[Any, str]:
    """An attribute of the user's own field, or `None`, and what to call it. A method of that name
    declares nothing."""
    own: Any = field.fn if isinstance(field, Guarded) else field
    declared = getattr(own, name, None)
    return None if callable(declared) else declared, f"{type(own).__name__}.{name}"


def declared_species(field: VF) -> tuple[str, ...] | None:
    """The names of the components, if the field has them as `species`."""
    return _attribute(field, "species")[0]


def names_of(field: VF, y: PyTree) -> tuple[str, ...]:
    """The names of the components of `y`: those that the field declares, or their places."""
    names = tuple(component_names(y))
    species = declared_species(field)
    if isinstance(species, tuple | list) and len(species) == len(names):
        return tuple(map(str, species))
    return names


def declared_jacobian(field: VF) -> AbstractJacobian | None:
    """The structure of the Jacobian that a guarded field has, or `None` (dense)."""
    return as_guarded(field).jacobian


def declared_conserved(field: VF) -> Frozen | None:
    """Rows L with L f = 0 that a field declares as `conserved`, or that follow from its
    `stoichiometry`; None if it declares neither. Of a field in other coordinates, what the field
    inside declares, in the components of its state."""
    given, what = _attribute(field, "conserved")
    if given is not None:
        return Frozen(concrete_array(given, what))
    given, what = _attribute(field, "stoichiometry")
    if given is None:
        return None
    matrix = concrete_array(given, what)
    if matrix.ndim != 2 or not np.isfinite(matrix).all():
        raise ValueError(
            f"`{what}` has shape {matrix.shape}; it must be a finite matrix with one row for "
            "each species and one column for each reaction."
        )
    return conserved_by(Frozen(matrix))


@functools.lru_cache(maxsize=128)
def conserved_by(stoichiometry: Frozen) -> Frozen:
    """The rows of the left null space of a stoichiometric matrix."""
    return Frozen(left_null_space(stoichiometry.value))
