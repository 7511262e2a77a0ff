"""`diagnose`: why a model fails, or is slow."""

import dataclasses
from typing import Any

import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from .._fields import as_guarded
from .._models import AbstractModel, Simulation, explain
from .._parameters import natural
from .._results import Cause, is_okay, name_of
from .._solvers import family_of
from .._types import typechecked
from ._causes import suggestions
from ._causes_missed import global_error
from ._finer import FinerReport, solve_finer
from ._observe import Observation, bind, observe, settled
from ._report import Advice, Table, as_data, as_rich, as_text, number
from ._stiffness import jacobian_at
from ._suggestion import POSSIBLE, Suggestion


@dataclasses.dataclass(frozen=True)
class StepReport:
    """The steps of a solve.

    - `solver`, `family`: of the solver.
    - `accepted`: how many. `rejected`: how many, by cause (the names of [`Cause`][]).
    - `smallest`, `smallest_at`: the smallest step size that was accepted [time], and where.
    - `typical`: the median of the accepted ones [time].
    - `trouble`: for each cause of rejection the first time, and the component that was worst
        most often.
    """

    solver: str
    family: str
    accepted: int
    rejected: dict[str, int]
    smallest: float
    smallest_at: float
    typical: float
    trouble: dict[str, tuple[float, str]]


@dataclasses.dataclass(frozen=True)
class StiffnessReport:
    """Rates along the trajectory, at `times`: arrays; see [`Stiffness`][].

    - `largest_ratio`, `largest_ratio_at`: the largest stiffness ratio, and where.
    """

    times: np.ndarray
    ratio: np.ndarray
    fastest: np.ndarray
    slowest: np.ndarray
    growth: np.ndarray
    largest_ratio: float
    largest_ratio_at: float


@dataclasses.dataclass(frozen=True)
class ComponentReport:
    """One component along the trajectory.

    - `smallest`, `largest`: its magnitude. `digits`: how many of its digits the tolerances control
        where it is largest. `worst_in`: in how many rejected steps it was the worst.
    - `clipped`, `masked`: in how many accepted steps the guard clipped it, or masked its output.
    """

    name: str
    smallest: float
    largest: float
    digits: float
    worst_in: int
    clipped: int
    masked: int


@dataclasses.dataclass(frozen=True)
class PrecisionReport:
    """The tolerances beside what the dtype resolves: `rtol_in_eps` is `rtol` in units of eps."""

    dtype: str
    rtol: float
    atol: float
    rtol_in_eps: float


@dataclasses.dataclass(frozen=True)
class SteadyReport:
    """The steady state that a simulation starts from.

    - `text`: how the search ended. `residual`: see [`SteadyState`][]. `stable`: whether it is.
    - `condition`: the condition number of the Jacobian there, conserved quantities left out;
        nan if it is not finite. `conserved`: the number of those.
    - `eigenvalues`: of that Jacobian, shape `(size,)`, complex.
    """

    text: str
    residual: float
    stable: bool | None
    condition: float
    conserved: int
    eigenvalues: np.ndarray


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What [`diagnose`][] found. `print` it (with tables by rich where it is installed), or
    read its attributes; `to_dict()` gives what `json` takes.

    **Attributes:**

    - `successful`, `result`, `text`: how the solve ended: whether well, the name of the member of
        [`RESULTS`][], and in words.
    - `suggestions`: what to do, the most likely cause first: a tuple of [`Suggestion`][]s.
    - `steps`, `stiffness`, `components`, `precision`, `steady`: the evidence; `steady` is `None`
        for a model without a steady state.
    - `finer`: a [`FinerReport`][]: by how much value and derivative move at a tenth of the
        tolerances; `None` where it was not looked at (see [`diagnose`][]).
    - `simulation`: the [`Simulation`][] with its `steps`, for the pictures of `stablax.plot`; its
        `ts` are those at which the solve was looked at.
    """

    successful: bool
    result: str
    text: str
    suggestions: tuple[Suggestion, ...]
    steps: StepReport
    stiffness: StiffnessReport
    components: tuple[ComponentReport, ...]
    precision: PrecisionReport
    steady: SteadyReport | None
    finer: FinerReport | None
    simulation: Simulation = dataclasses.field(repr=False)

    @property
    def causes(self) -> tuple[str, ...]:
        """The names of the causes, the most likely first."""
        return tuple(s.cause for s in self.suggestions)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the simulation, as dicts, lists, strings and numbers."""
        named = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del named["simulation"]
        return as_data(named)

    def __str__(self) -> str:
        return as_text(self.text, _advice(self), _tables(self))

    def __rich__(self) -> Any:
        return as_rich(self.text, _advice(self), _tables(self))


@typechecked
def diagnose(model: AbstractModel, *inputs: PyTree, **keywords: PyTree) -> Diagnosis:
    """Why a model fails on these inputs, or is slow: solves them, watches every step, looks at the
    field along the trajectory, and says what to change.

    ```python
    print(sx.diagnose(model, y0, ts, args=args))
    ```

    It compiles and solves anew (twice), and looks at Jacobians of the field: for debugging, outside
    `jit`, with one sample. If the solve ends well, and nothing is found that should be cured first
    (no weight of 0.5), it solves once more, at a tenth of the tolerances; and if the states move,
    twice more with their derivatives. So the global error is looked for last.

    **Arguments:**

    - `model`: a [`Simulate`][], a [`SteadyThenSimulate`][] or a [`SimulatePhases`][].
    - `inputs`, `keywords`: those of a call of the model; `throw` does not matter.

    **Returns:** a [`Diagnosis`][].

    **Raises:** what the model raises for inputs that do not fit; `TypeError` under `jit`.
    """
    model, inputs, keywords = natural((model, inputs, keywords))
    seen = observe(*settled(model, bind(model, inputs, keywords)))
    simulation = seen.simulation
    successful = bool(is_okay(simulation.result))
    steady = _steady_report(seen)
    found = suggestions(seen, None if steady is None else steady.condition)
    finer = None
    if successful and not any(s.weight >= POSSIBLE for s in found):
        finer = solve_finer(seen)
        found += [] if finer is None else global_error(seen, finer)
    return Diagnosis(
        successful=successful,
        result=name_of(simulation.result),
        text=explain(simulation),
        suggestions=tuple(sorted(found, key=lambda s: -s.weight)),
        steps=_step_report(seen),
        stiffness=_stiffness_report(seen),
        components=_component_reports(seen),
        precision=PrecisionReport(
            str(seen.dtype),
            seen.rtol,
            seen.atol,
            seen.rtol / float(np.finfo(seen.dtype).eps),
        ),
        steady=steady,
        finer=finer,
        simulation=simulation,
    )


def _step_report(seen: Observation) -> StepReport:
    solver = seen.model.options.solver
    sizes, starts = np.abs(seen.dt[seen.accepted]), seen.t[seen.accepted]
    least = int(np.argmin(sizes)) if len(sizes) else -1
    trouble = {}
    for cause in Cause:
        places = np.flatnonzero(seen.cause == cause)
        if cause != Cause.none and len(places):
            often = int(np.argmax(np.bincount(seen.component[places])))
            trouble[cause.name] = (float(seen.t[places[0]]), seen.names[often])
    return StepReport(
        solver=type(solver).__name__,
        family=family_of(solver),
        accepted=len(sizes),
        rejected={c.name: int(np.sum(seen.cause == c)) for c in Cause if c != Cause.none},
        smallest=float(sizes[least]) if len(sizes) else float("nan"),
        smallest_at=float(starts[least]) if len(sizes) else float("nan"),
        typical=float(np.median(sizes)) if len(sizes) else float("nan"),
        trouble=trouble,
    )


def _stiffness_report(seen: Observation) -> StiffnessReport:
    profile = seen.stiffness
    ratio = np.asarray(profile.ratio)
    most = int(np.argmax(np.where(np.isnan(ratio), -1, ratio)))
    return StiffnessReport(
        times=seen.times,
        ratio=ratio,
        fastest=np.asarray(profile.fastest),
        slowest=np.asarray(profile.slowest),
        growth=np.asarray(profile.growth),
        largest_ratio=float(ratio[most]),
        largest_ratio_at=float(seen.times[most]),
    )


def _component_reports(seen: Observation) -> tuple[ComponentReport, ...]:
    """Those that the tolerances control least come first."""
    magnitude = np.abs(seen.states)
    counts = seen.simulation.guard.accepted
    assert counts is not None
    clipped, masked = (np.asarray(ravel_pytree(x)[0]) for x in (counts.clipped, counts.masked))
    worst = np.bincount(seen.component[~seen.accepted], minlength=len(seen.names))
    with np.errstate(divide="ignore"):
        digits = -np.log10(seen.rtol + seen.atols / magnitude.max(axis=0))
    reports = [
        ComponentReport(
            name,
            float(magnitude[:, i].min()),
            float(magnitude[:, i].max()),
            float(digits[i]),
            int(worst[i]),
            int(clipped[i]),
            int(masked[i]),
        )
        for i, name in enumerate(seen.names)
    ]
    return tuple(sorted(reports, key=lambda r: (r.digits, -r.worst_in)))


def _steady_report(seen: Observation) -> SteadyReport | None:
    steady = seen.simulation.steady
    if steady is None:
        return None
    args = seen.inputs.get("steady_args")
    jacobian = np.asarray(jacobian_at(as_guarded(seen.model.field), seen.start, steady.y, args))
    condition, conserved = float("nan"), 0
    eigenvalues = np.full(len(jacobian), np.nan + 0j)
    if np.isfinite(jacobian).all():
        singular = np.linalg.svd(jacobian, compute_uv=False)
        rounding = len(jacobian) * np.finfo(seen.dtype).eps * singular[0]
        kept = singular[singular > rounding]
        conserved = len(singular) - len(kept)
        condition = float(kept[0] / kept[-1]) if len(kept) else float("nan")
        eigenvalues = np.linalg.eigvals(jacobian)
    return SteadyReport(
        text=explain(steady),
        residual=float(steady.residual),
        stable=None if steady.stable is None else bool(steady.stable),
        condition=condition,
        conserved=conserved,
        eigenvalues=eigenvalues,
    )


def _advice(d: Diagnosis) -> list[Advice]:
    return [Advice(s.cause.replace("_", " "), s.why, s.code) for s in d.suggestions]


def _tables(d: Diagnosis) -> list[Table]:
    tables = []
    steps, total = d.steps, d.steps.accepted + sum(d.steps.rejected.values())
    rows = [("tried", f"{total} by {steps.solver} ({steps.family}), {steps.accepted} accepted")]
    for cause, count in steps.rejected.items():
        if count:
            t, name = steps.trouble[cause]
            why = cause.replace("_", " ")
            rows.append((f"rejected: {why}", f"{count}, first at t = {t:.6g}, mostly {name}"))
    if steps.accepted:
        rows.append(("smallest", f"{number(steps.smallest)} at t = {steps.smallest_at:.6g}"))
        rows.append(("median", number(steps.typical)))
    tables.append(Table("Steps", rows))
    s = d.stiffness
    shown = np.unique(np.linspace(0, len(s.times) - 1, 6).astype(int))
    rows = [
        tuple(number(x[i]) for x in (s.times, s.ratio, s.fastest, s.slowest, s.growth))
        for i in shown
    ]
    title = f"Stiffness along the trajectory (ratio at most {number(s.largest_ratio)})"
    tables.append(Table(title, rows, ("t", "ratio", "fastest decay", "slowest", "growth")))
    rows = [
        (c.name, number(c.smallest), number(c.largest), f"{c.digits:.1f}")
        + tuple(map(str, (c.worst_in, c.clipped, c.masked)))
        for c in d.components[:8]
    ]
    header = ("component", "least |y|", "largest |y|", "digits", "worst in", "clipped", "masked")
    left = len(d.components) - len(rows)
    title = "Components, least controlled first" + (f" ({left} more)" if left else "")
    tables.append(Table(title, rows, header))
    p = d.precision
    rows = [(p.dtype, f"rtol = {p.rtol:g} ({p.rtol_in_eps:.2g} eps), atol = {p.atol:g}")]
    tables.append(Table("Precision", rows))
    if d.finer is not None:
        rows = [
            (m.name, number(m.value), number(m.size), f"{100 * m.derivative:.2g} %")
            for m in d.finer.components[:8]
        ]
        title = f"At a tenth of the tolerances ({d.finer.result.replace('_', ' ')})"
        tables.append(Table(title, rows, ("component", "moves by", "of", "its derivative by")))
    if d.steady is not None:
        rows = [
            ("search", d.steady.text),
            ("residual", number(d.steady.residual)),
            ("stable", {True: "yes", False: "no", None: "not computed"}[d.steady.stable]),
            ("condition number", number(d.steady.condition)),
            ("conserved quantities", str(d.steady.conserved)),
        ]
        tables.append(Table("Steady state", rows))
    return tables
