"""A solver that remembers its last step."""

import diffrax

from .._loop import KeptStep
from .._solvers import AbstractWrapped


class KeepsStep(AbstractWrapped):
    """`solver`, whose state is followed by the [`KeptStep`][] that was accepted last. Before the
    first it has no length."""

    solver: diffrax.AbstractSolver

    def init(self, terms, t0, t1, y0, args):
        state = self.solver.init(terms, t0, t1, y0, args)
        return state, KeptStep.none(self.solver, terms, t0, t1, y0, args, state)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        state, _ = solver_state
        y1, error, dense, state, result = self.solver.step(
            terms, t0, t1, y0, args, state, made_jump
        )
        return y1, error, dense, (state, KeptStep(t0, t1, y0, dense)), result
