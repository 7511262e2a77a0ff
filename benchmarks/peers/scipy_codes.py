"""scipy's stiff solvers, with the field and its Jacobian compiled by JAX.

Where the Jacobian is banded they are told: BDF and Radau by a sparse matrix, LSODA by its bands.
"""

import time
from dataclasses import dataclass

import numpy as np
from scipy.integrate import BDF, LSODA, Radau, solve_ivp
from scipy.sparse import dia_array

from ._base import Run, clock
from .compiled import CompiledField

LIMIT = 60.0  # seconds for one solve


@dataclass(frozen=True)
class ScipyPeer:
    """`scipy.integrate.solve_ivp` with one of its implicit methods."""

    name: str
    method: type

    def missing(self) -> str | None:
        return None

    def prepare(self, problem) -> "ScipySolver":
        return ScipySolver(self.method, problem)


class ScipySolver:
    def __init__(self, method, problem):
        class Counting(method):
            steps = 0

            def _step_impl(self):
                Counting.steps += 1
                return super()._step_impl()

        self.problem, self.method = problem, Counting
        self.compiled = compiled = CompiledField(problem)
        self.compile_seconds = compiled.compile_seconds
        self.options = {"jac": compiled.jacobian}
        if problem.bands is not None:
            (lower, upper), shape = problem.bands, (problem.size, problem.size)
            if method is LSODA:
                self.options = {"jac": compiled.diagonals, "lband": lower, "uband": upper}
            else:
                offsets = upper - np.arange(lower + upper + 1)
                sparse = lambda t, y: dia_array((compiled.diagonals(t, y), offsets), shape=shape)
                self.options = {"jac": lambda t, y: sparse(t, y).tocsc()}

    def __call__(self, rtol: float, repeats: int = 1) -> Run:
        seconds = []
        for _ in range(repeats):
            began = clock()
            self.method.steps = 0
            self.compiled.deadline = time.perf_counter() + LIMIT
            ok, ys, stats = self._solve(rtol)
            seconds.append(clock() - began)
        return Run(ok, seconds, ys, self.method.steps, stats)

    def _solve(self, rtol):
        problem = self.problem
        try:
            solution = solve_ivp(
                self.compiled.field,
                (problem.t0, problem.t1),
                problem.y0,
                method=self.method,
                t_eval=problem.ts,
                rtol=rtol,
                atol=rtol * problem.floor,
                **self.options,
            )
        except TimeoutError:
            return False, np.full((len(problem.ts), problem.size), np.nan), {}
        stats = {"evaluations": solution.nfev, "jacobians": solution.njev}
        return solution.success, solution.y.T, stats


PEERS = [
    ScipyPeer("scipy BDF", BDF),
    ScipyPeer("scipy Radau", Radau),
    ScipyPeer("scipy LSODA", LSODA),
]
