"""`Solved`: a factor, an offset or a standard deviation that is computed and not searched for."""

import math
from typing import final

import equinox as eqx

from .._types import typechecked


@final
class Solved(eqx.Module):
    """In place of a number of an [`Observable`][]: the one that makes the likelihood largest, in
    closed form, in every evaluation.

    So a fit has fewer parameters to search for, and these are always at their best (hierarchical
    optimisation: Schmiester et al. 2020, Bioinformatics 36, 594). Value, gradient and further
    derivatives are those of the objective in which they are at their best.

    **Arguments:**

    - `name`: observables with the same have one in common; by default each has its own.
    - `lower`, `upper`: bounds of a scale. By default, 0 and inf.
    - `each_condition`: whether every condition has its own.
    """

    name: str | None = eqx.field(static=True)
    lower: float = eqx.field(static=True)
    upper: float = eqx.field(static=True)
    each_condition: bool = eqx.field(static=True)

    @typechecked
    def __init__(
        self,
        name: str | None = None,
        *,
        lower: float = 0.0,
        upper: float = math.inf,
        each_condition: bool = False,
    ):
        if not lower < upper:
            raise ValueError(f"`lower` must be below `upper`, got {lower} and {upper}.")
        self.name, self.lower, self.upper = name, float(lower), float(upper)
        self.each_condition = each_condition

    def __repr__(self) -> str:
        parts = [] if self.name is None else [repr(self.name)]
        if (self.lower, self.upper) != (0.0, math.inf):
            parts.append(f"lower={self.lower:g}, upper={self.upper:g}")
        parts += ["each_condition=True"] if self.each_condition else []
        return f"Solved({', '.join(parts)})"
