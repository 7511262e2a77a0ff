"""A solver around another."""

from typing import Any

import diffrax
import equinox as eqx


class AbstractWrapped(diffrax.AbstractWrappedSolver):
    """What is of `solver`, for one that takes its steps in another way."""

    solver: eqx.AbstractVar[diffrax.AbstractSolver]

    @property
    def term_structure(self):
        return self.solver.term_structure

    @property
    def interpolation_cls(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.solver.interpolation_cls

    # What diffrax sets on an implicit, and on a Runge-Kutta method.
    @property
    def root_finder(self) -> Any:
        return getattr(self.solver, "root_finder", None)

    @property
    def scan_kind(self):
        return getattr(self.solver, "scan_kind", "bounded")

    def order(self, terms):
        return self.solver.order(terms)

    def error_order(self, terms):
        return self.solver.error_order(terms)

    def func(self, terms, t0, y0, args):
        return self.solver.func(terms, t0, y0, args)
