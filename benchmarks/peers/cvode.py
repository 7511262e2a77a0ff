"""CVODE (SUNDIALS) with right-hand side and Jacobian in C, compiled for this machine.

Needs gcc and libsundials-dev. The C code of reaction networks is written from the same tables as
their field in JAX; that of the others is in `fields.c`. Times are taken in C.
"""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.tree_util as jtu
import numpy as np
import problems

from ._base import Run

FLAGS = ["-O3", "-march=native", "-fPIC", "-shared"]
LIBRARIES = ["-lsundials_cvode", "-lsundials_nvecserial", "-lm"]

# C functions of problems that are no networks; and networks, with what drives their reactions: the
# expressions of the extras, and the derivative of each as {state: expression}.
FIELDS = {
    "Robertson": "robertson",
    "van der Pol": "van_der_pol",
    "OREGO": "oregonator",
    "#368": "issue_368",
    "neural": "neural",
    "Brusselator 80": "brusselator_80",
    "Brusselator 400": "brusselator_400",
}
NETWORKS = {
    "HIRES": ("hires", problems.NETWORKS["HIRES"], [], []),
    "E5": ("e5", problems.NETWORKS["E5"], [], []),
    "POLLU": ("pollu", problems.NETWORKS["POLLU"], [], []),
    "insulin": (
        "insulin",
        problems.NETWORKS["insulin"],
        [str(problems.INSULIN_DOSE), "y[8] / (1 + y[8])"],
        [{}, {8: "1 / ((1 + y[8]) * (1 + y[8]))"}],
    ),
}


def _sum(terms: list[tuple[float, str]]) -> str:
    return " + ".join(name if factor == 1 else f"{factor:g} * {name}" for factor, name in terms)


def write_network(name: str, network, extras: list[str], slopes: list[dict[int, str]]) -> str:
    """Straight-line C for a network, as a C programmer would have it generated."""
    size = len(network.change)
    factors = ["1.0", *(f"y[{i}]" for i in range(size)), *(f"e{i}" for i in range(len(extras)))]
    shared = [f"  double e{i} = {text};" for i, text in enumerate(extras)]
    rates, partials, entries = [], [], {}
    for j, pair in enumerate(network.used.T):
        rates.append(f"  double r{j} = k[{j}] * {factors[pair[0]]} * {factors[pair[1]]};")
        for this, other in (pair, pair[::-1]):
            if this == 0:
                continue
            slope = {this - 1: "1.0"} if this <= size else slopes[this - size - 1]
            for state, text in slope.items():
                variable = f"d{len(partials)}"
                partials.append(f"  double {variable} = k[{j}] * {factors[other]} * {text};")
                for row in np.flatnonzero(network.change[:, j]):
                    entry = entries.setdefault((state, row), [])
                    entry.append((network.change[row, j], variable))
    lines = [
        f"  f[{i}] = {_sum([(c, f'r{j}') for j, c in enumerate(row) if c]) or '0'};"
        for i, row in enumerate(network.change)
    ]
    columns = [f"  J[{j}][{i}] = {_sum(terms)};" for (j, i), terms in entries.items()]
    begin = "(double t, const double *y, const double *k, double "
    field = [f"void {name}{begin}*f) {{", *shared, *rates, *lines, "}"]
    jacobian = [f"void {name}_jacobian{begin}**J) {{", *shared, *partials, *columns, "}"]
    return "\n".join([*field, *jacobian, ""])


@functools.cache
def library() -> ctypes.CDLL:
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        generated, target = Path(folder) / "networks.c", Path(folder) / "peers.so"
        generated.write_text("".join(write_network(*network) for network in NETWORKS.values()))
        sources = [here / "cvode.c", here / "fields.c", generated]
        subprocess.run(["gcc", *FLAGS, *sources, "-o", target, *LIBRARIES], check=True)
        return ctypes.CDLL(str(target))


def _pointer(array):
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_double))


def flat_parameters(problem, args, lanes: bool = False) -> np.ndarray:
    """The parameters as the C code takes them, one row for each lane if there are `lanes`."""
    constants = getattr(problem.field, "linear", np.zeros(0))
    leaves = [np.asarray(leaf, float) for leaf in jtu.tree_leaves(args)]
    if not lanes:
        return np.concatenate([leaf.ravel() for leaf in (*leaves, constants)])
    count = len(leaves[0])
    return np.ascontiguousarray(np.concatenate([x.reshape(count, -1) for x in leaves], axis=1))


@dataclass(frozen=True)
class CvodePeer:
    """CVODE with a dense or a banded matrix."""

    name: str
    banded: bool

    def missing(self) -> str | None:
        if shutil.which("gcc") is None:
            return "no gcc"
        if not any(Path(p).exists() for p in ("/usr/include/cvode", "/usr/local/include/cvode")):
            return "no libsundials-dev"
        return None

    def prepare(self, problem) -> "CvodeSolver | None":
        known = problem.name in FIELDS or problem.name in NETWORKS
        if not known or (self.banded and problem.bands is None):
            return None
        return CvodeSolver(problem, self.banded)

    def prepare_batch(self, problem, lanes: int) -> "CvodeSolver | None":
        """`problem.perturb`, one lane after the other."""
        solver = self.prepare(problem)
        if solver is not None:
            y0, args = problem.perturb(jax.random.key(1), lanes)
            solver.lanes, solver.y0 = lanes, np.ascontiguousarray(y0)
            solver.parameters = flat_parameters(problem, args, lanes=problem.varies == "args")
        return solver


class CvodeSolver:
    compile_seconds = 0.0
    lanes = 1

    def __init__(self, problem, banded: bool):
        self.problem = problem
        self.bands = (ctypes.c_int * 2)(*problem.bands) if banded else None
        code = library()
        name = FIELDS.get(problem.name) or NETWORKS[problem.name][0]
        self.functions = (getattr(code, name), getattr(code, f"{name}_jacobian"))
        self.solve_lanes = code.solve_lanes
        self.y0 = np.asarray(problem.y0, float)
        self.parameters = flat_parameters(problem, problem.args)

    def __call__(self, rtol: float, repeats: int = 1) -> Run:
        return self.solve(rtol, self.y0, self.parameters, repeats)

    def solve(self, rtol, y0, parameters, repeats: int = 1) -> Run:
        """Solves all lanes one after the other; `y0` and `parameters` have a leading axis, or are
        shared. The `Run` holds the first lane."""
        problem, lanes = self.problem, self.lanes
        ys = np.full((lanes, len(problem.ts), problem.size), np.nan)
        seconds, stats = np.zeros(repeats), np.zeros(4, np.int64)
        ts = np.asarray(problem.ts, float)
        failed = self.solve_lanes(
            *self.functions,
            ctypes.c_int(problem.size),
            self.bands,
            ctypes.c_int(lanes),
            ctypes.c_int(repeats),
            _pointer(parameters),
            ctypes.c_long(parameters.shape[1] if parameters.ndim > 1 else 0),
            _pointer(y0),
            ctypes.c_long(y0.shape[1] if y0.ndim > 1 else 0),
            ctypes.c_double(problem.t0),
            _pointer(ts),
            ctypes.c_int(len(ts)),
            ctypes.c_double(rtol),
            ctypes.c_double(rtol * problem.floor),
            ctypes.c_long(100_000),
            _pointer(ys),
            _pointer(seconds),
            stats.ctypes.data_as(ctypes.POINTER(ctypes.c_long)),
        )
        names = ("accepted", "failed", "evaluations", "jacobians")
        report = dict(zip(names, map(int, stats), strict=True))
        steps = report["accepted"] + report["failed"]
        return Run(failed == 0, seconds.tolist(), ys[0], steps, report)


PEERS = [CvodePeer("CVODE in C", banded=False), CvodePeer("CVODE in C banded", banded=True)]
