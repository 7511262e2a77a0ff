"""pydiffsol: diffsol's BDF and ESDIRK34 in Rust, with fields in its own language, DiffSL, compiled
by LLVM together with their derivatives."""

import importlib.util
from dataclasses import dataclass

import numpy as np
import problems

from ._base import Run, clock

FIELDS = {
    "Robertson": "-k0*y0 + k1*y1*y2, k0*y0 - k1*y1*y2 - k2*y1*y1, k2*y1*y1",
    "van der Pol": "y1, k0*((1 - y0*y0)*y1) - y0",
    "OREGO": "k0*(y1 + y0*(1 - k1*y0 - y1)), (y2 - (1 + y0)*y1)/k0, k2*(y0 - y2)",
    "#368": f"(exp(k2 - y0 - y1) - 1)*exp(k0), (exp({problems.K_AFTER} - y1) - 1)*exp(k1)",
}
TURNED = [f"k5*y{by}*y{i}/(k6 + y{i})" for by, i in ((1, 2), (1, 3), (4, 5), (4, 6))]
BACK = [f"{v}*y{i}/(k8 + y{i})" for v, i in (("k7", 4), ("k7", 3), ("k9", 7), ("k9", 6))]
RATES = (
    "k0*y0*y0*y0*y0*sqrt(y1)",
    "k1*y2*y3",
    "k1/k4*y0*y4",
    "k2*y0*y3*y3",
    "k3*k6*k6*y0*y0*y3*y3*sqrt(y1)",
)
FIRST, SECOND = "k0*y0/((1 + y7/k1)*(k2 + y0))", "k3*y1/(k4 + y1)"
FIELDS |= {
    "chemical Akzo Nobel": (
        "-2*{0} + {1} - {2} - {3}, -0.5*{0} - {3} - 0.5*{4} + k5*(k7/k8 - y1), {0} - {1} + {2}, "
        "-{1} + {2} - 2*{3}, {1} - {2} + {4}"
    ).format(*RATES),
    "Field-Noyes": "(k2*y1 - y0*y1 + y0*(1 - y0))/k0, (k3*y2 - k2*y1 - y0*y1)/k1, y0 - y2",
    "MAPK cascade": (
        f"{SECOND} - {FIRST}, {FIRST} - {SECOND}, {BACK[1]} - {TURNED[0]}, "
        f"{TURNED[0]} + {BACK[0]} - {TURNED[1]} - {BACK[1]}, {TURNED[1]} - {BACK[0]}, "
        f"{BACK[3]} - {TURNED[2]}, {TURNED[2]} + {BACK[2]} - {TURNED[3]} - {BACK[3]}, "
        f"{TURNED[3]} - {BACK[2]}"
    ),
}
NETWORKS = {
    "HIRES": (problems.NETWORKS["HIRES"], []),
    "E5": (problems.NETWORKS["E5"], []),
    "POLLU": (problems.NETWORKS["POLLU"], []),
    "insulin": (problems.NETWORKS["insulin"], [str(problems.INSULIN_DOSE), "(y8/(1 + y8))"]),
}


def network(net, extras) -> str:
    """The components of the field of a reaction network."""
    size = len(net.change)
    factors = ["1", *(f"y{i}" for i in range(size)), *extras]
    rates = [f"k{j}*{factors[a]}*{factors[b]}" for j, (a, b) in enumerate(net.used.T)]
    rows = []
    for row in net.change:
        terms = [f"({change:g})*{rates[j]}" for j, change in enumerate(row) if change]
        rows.append(" + ".join(terms) or "0")
    return ", ".join(rows)


def brusselator(size: int) -> str:
    value = lambda i: f"y{i}" if 0 <= i < size else ("1" if i % 2 == 0 else "3")
    rows = []
    for i in range(size):
        u, v = (f"y{i}", f"y{i + 1}") if i % 2 == 0 else (f"y{i - 1}", f"y{i}")
        reaction = f"k0 + {u}*{u}*{v} - (k1 + 1)*{u}" if i % 2 == 0 else f"k1*{u} - {u}*{u}*{v}"
        scale = (size / 2 + 1) ** 2
        rows.append(f"{reaction} + k2*{scale!r}*({value(i + 2)} - 2*y{i} + {value(i - 2)})")
    return ", ".join(rows)


def components(problem) -> str | None:
    if problem.name in FIELDS:
        return FIELDS[problem.name]
    if problem.name in NETWORKS:
        return network(*NETWORKS[problem.name])
    return brusselator(problem.size) if problem.bands is not None else None


@dataclass(frozen=True)
class DiffsolPeer:
    """One of diffsol's methods; matrices are dense, or sparse where the Jacobian is banded."""

    name: str
    method: str

    def missing(self) -> str | None:
        return None if importlib.util.find_spec("pydiffsol") else "pydiffsol is not installed"

    def prepare(self, problem) -> "DiffsolSolver | None":
        return DiffsolSolver(problem, self.method) if components(problem) else None


class DiffsolSolver:
    def __init__(self, problem, method: str):
        import pydiffsol

        self.problem = problem
        self.parameters = np.asarray(problem.args, float).reshape(-1)
        given = ", ".join(f"k{i} = {float(k)!r}" for i, k in enumerate(self.parameters))
        start = ", ".join(f"y{i} = {float(y)!r}" for i, y in enumerate(problem.y0))
        code = f"in_i {{ {given} }}\nu_i {{ {start} }}\nF_i {{ {components(problem)} }}"
        began = clock()
        self.ode = pydiffsol.Ode(
            code,
            matrix_type=pydiffsol.nalgebra_dense
            if problem.bands is None
            else pydiffsol.faer_sparse,
            ode_solver=getattr(pydiffsol, method),
        )
        self.compile_seconds = clock() - began
        self.ode.h0 = 1e-3 * float(problem.ts[0])  # its own first step is 1, whatever the problem

    def __call__(self, rtol: float, repeats: int = 1) -> Run:
        problem, ode, seconds = self.problem, self.ode, []
        ts = np.asarray(problem.ts, float)
        ode.rtol, ode.atol = rtol, rtol * problem.floor
        ys = np.full((len(ts), problem.size), np.nan)
        for _ in range(repeats):
            began = clock()
            try:
                ys = ode.solve_dense(self.parameters, ts).ys.T
            except Exception:
                return Run(False, [clock() - began], ys, 0)
            seconds.append(clock() - began)
        return Run(True, seconds, ys, 0)  # it does not report its steps


PEERS = [DiffsolPeer("pydiffsol BDF", "bdf"), DiffsolPeer("pydiffsol ESDIRK34", "esdirk34")]
