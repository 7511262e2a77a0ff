"""Steady states: the search, its methods, and what a field conserves."""

from ._steady import (
    AbstractSteadyMethod as AbstractSteadyMethod,
    Attempt as Attempt,
    Chain as Chain,
    ConservedQuantities as ConservedQuantities,
    Integrate as Integrate,
    Newton as Newton,
    PseudoTransient as PseudoTransient,
    SteadyProblem as SteadyProblem,
    SteadyState as SteadyState,
    WarmStart as WarmStart,
    conserved_quantities as conserved_quantities,
    find_steady_state as find_steady_state,
)
