"""scikit-sundae: SUNDIALS' CVODE, called from Python with a field compiled by JAX."""

import importlib.util
from dataclasses import dataclass

import numpy as np

from ._base import Run, clock
from .compiled import CompiledField


@dataclass(frozen=True)
class SundaePeer:
    """`sksundae.cvode.CVODE`, with a banded matrix where the Jacobian is banded."""

    name: str = "scikit-sundae"

    def missing(self) -> str | None:
        return None if importlib.util.find_spec("sksundae") else "scikit-sundae is not installed"

    def prepare(self, problem) -> "SundaeSolver":
        return SundaeSolver(problem)


class SundaeSolver:
    def __init__(self, problem):
        from sksundae.cvode import CVODE

        self.code, self.problem = CVODE, problem
        compiled = CompiledField(problem)
        self.compile_seconds = compiled.compile_seconds

        def field(t, y, out):
            out[:] = compiled.field(t, y)

        def jacobian(t, y, f, out):
            out[:] = compiled.jacobian(t, y)

        def banded(t, y, f, out):
            diagonals = compiled.diagonals(t, y)
            for offset, diagonal in zip(range(-upper, lower + 1), diagonals, strict=True):
                j = np.arange(max(0, -offset), problem.size - max(0, offset))
                out[j + offset, j] = diagonal[j]

        self.field, self.options = field, {"jacfn": jacobian}
        if problem.bands is not None:
            lower, upper = problem.bands
            self.options = {"jacfn": banded, "linsolver": "band", "lband": lower, "uband": upper}

    def __call__(self, rtol: float, repeats: int = 1) -> Run:
        problem, seconds, solution = self.problem, [], None
        for _ in range(repeats):
            began = clock()
            solver = self.code(
                self.field,
                rtol=rtol,
                atol=rtol * problem.floor,
                max_num_steps=100_000,
                **self.options,
            )
            solution = solver.solve(np.append(problem.t0, problem.ts), problem.y0)
            seconds.append(clock() - began)
        ys = np.full((len(problem.ts), problem.size), np.nan)
        ys[: len(solution.y) - 1] = solution.y[1:]
        stats = {"evaluations": solution.nfev, "jacobians": solution.njev}
        # It does not report its steps; BDF takes one or two evaluations for each.
        return Run(bool(solution.success), seconds, ys, 0, stats)


PEERS = [SundaePeer()]
