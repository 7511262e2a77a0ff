"""A solver that remembers its last step."""

from typing import Any

import diffrax

from .._loop import KeptStep


class KeepsStep(diffrax.AbstractWrappedSolver):
    """`solver`, whose state is followed by the [`KeptStep`][] that was accepted last. Before the
    first it has no length."""

    solver: diffrax.AbstractSolver

    @property
    def term_structure(self):
        return self.solver.term_structure

    @property
    def interpolation_cls(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.solver.interpolation_cls

    # What diffrax sets on an implicit, and on a Runge-Kutta method.
    @property
    def root_finder(self):
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

    def init(self, terms, t0, t1, y0, args):
        state = self.solver.init(terms, t0, t1, y0, args)
        return state, KeptStep.none(self.solver, terms, t0, t1, y0, args, state)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        state, _ = solver_state
        y1, error, dense, state, result = self.solver.step(
            terms, t0, t1, y0, args, state, made_jump
        )
        return y1, error, dense, (state, KeptStep(t0, t1, y0, dense)), result
