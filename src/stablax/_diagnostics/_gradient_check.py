"""What `check_gradient` returns, and how it is printed."""

import dataclasses
from typing import Any

import numpy as np

from ._report import Advice, Table, as_data, as_rich, as_text, number

SEVERITY = ("right", "undecided", "discontinuous", "wrong", "not finite")  # of a direction


@dataclasses.dataclass(frozen=True)
class DirectionCheck:
    """The derivative in one direction of the parameters, each moved in units of its size.

    - `name`: of the parameter leaf that is moved, or `all #1`, ... for all of them at once.
    - `reverse`, `forward`: by automatic differentiation; nan if a mode is not to be had.
    - `difference`, `uncertainty`: by extrapolated central differences.
    - `noise`: by how much the value of the function scatters.
    - `jump`: the size of a discontinuity of the function within 5 % of the parameters, or 0.
    - `failed`: how many of the evaluations at moved parameters failed.
    - `verdict`: `"right"`, `"wrong"`, `"not finite"`, `"discontinuous"` (there is such a jump, so
        that a derivative says little), or `"undecided"` (the noise hides what could be compared).
    - `central`: the plain differences, at the steps of `GradientCheck.steps`.
    """

    name: str
    reverse: float
    forward: float
    difference: float
    uncertainty: float
    noise: float
    jump: float
    failed: int
    verdict: str
    central: np.ndarray


@dataclasses.dataclass(frozen=True)
class AdjointCheck:
    """The derivative in the direction `all #1` by another adjoint: its `value` (nan if there is
    none), the `verdict` as in [`DirectionCheck`][] or `"not available"`, and a `note`."""

    name: str
    value: float
    verdict: str
    note: str


@dataclasses.dataclass(frozen=True)
class FinerCheck:
    """The function, and its derivative in the direction `all #1`, with a tenth of the tolerances
    and steps of at most 1 % of the time span: its `value`, the `derivative`, and whether both are
    `settled`: 10 `rtol` or less from what they are without."""

    value: float
    derivative: float
    settled: bool


@dataclasses.dataclass(frozen=True)
class GradientCheck:
    """What [`check_gradient`][] found. `print` it, or read its attributes; `to_dict()` gives what
    `json` takes.

    **Attributes:**

    - `verdict`: the worst of those of `directions`; but `"unresolved"` if the function, or its
        derivative, is another at a tenth of the tolerance of its solves. `ok`: whether it is
        `"right"`.
    - `result`: `"gradient_not_finite"` or `"successful"`: the name of a member of [`RESULTS`][].
    - `text`: what was found, in words.
    - `value`: of the function.
    - `directions`, `adjoints`: one [`DirectionCheck`][] for each direction, one [`AdjointCheck`][]
        for each adjoint.
    - `finer`: a [`FinerCheck`][]; `None` without a stablax model that has a tolerance.
    - `steps`: of the differences, in units of the size of the parameters.
    """

    verdict: str
    result: str
    text: str
    value: float
    directions: tuple[DirectionCheck, ...]
    adjoints: tuple[AdjointCheck, ...]
    finer: FinerCheck | None
    steps: np.ndarray

    @property
    def ok(self) -> bool:
        return self.verdict == "right"

    def to_dict(self) -> dict[str, Any]:
        """Everything, as dicts, lists, strings and numbers."""
        return as_data(self)

    def __str__(self) -> str:
        return as_text(self.text, _advice(self), _tables(self))

    def __rich__(self) -> Any:
        return as_rich(self.text, _advice(self), _tables(self))


def in_words(
    verdict: str, checks: tuple[DirectionCheck, ...], value: float, finer: FinerCheck | None
) -> str:
    if verdict == "right":
        return f"The gradient is right in all {len(checks)} directions."
    failed = sum(c.failed for c in checks)
    return _in_words(verdict, checks, value, finer) + (
        f" {failed} evaluations at moved parameters failed." if failed else ""
    )


def _in_words(verdict, checks, value: float, finer: FinerCheck | None) -> str:
    if verdict == "unresolved":
        assert finer is not None
        if not np.isfinite([finer.value, finer.derivative]).all():
            return "At a tenth of the tolerances of its solves the function is not to be had."
        return (
            "The function depends on the tolerance of its solves: at a tenth of it, with steps of "
            f"at most 1 % of the time span, it is {number(finer.value, 6)} instead of "
            f"{number(value, 6)}, and its derivative in {checks[0].name} "
            f"{number(finer.derivative)} instead of {number(checks[0].forward)}."
        )
    bad = [c for c in checks if c.verdict == verdict]
    # The leaves say more than the directions of all parameters.
    where = ", ".join([c.name for c in bad if not c.name.startswith("all #")] or [bad[0].name])
    if verdict == "not finite":
        return f"The gradient is not finite, in {where}."
    if verdict == "discontinuous":
        jump = max(c.jump for c in bad)
        return f"The function jumps, by {number(jump)}, near these parameters ({where})."
    if verdict == "undecided" and not all(np.isfinite(c.difference) for c in bad):
        return f"There is no difference to compare the gradient with, in {where}."
    if verdict == "undecided":
        return (
            f"The noise of the function (about {max(c.noise for c in bad):.1g}) hides its "
            f"derivative in {where}, so that it is neither confirmed nor refuted."
        )
    return f"The gradient is wrong in {where}."


def _advice(check: GradientCheck) -> list[Advice]:
    precise = 'model = sx.with_options(model, controller=sx.StiffPID.preset("precise"))'
    if check.verdict == "unresolved":
        why = "either the errors of the steps grow along the solution (take smaller tolerances, "
        why += "until value and gradient stay), or the steps go over something: a pulse, a switch, "
        why += "an event that comes and goes within a step (`jump_ts`, `dtmax`, phases). "
        why += "`stablax.diagnose` tells which."
        return [Advice("unresolved", why, precise)]
    bad = [c for c in check.directions if c.verdict == check.verdict]
    right = [a.name for a in check.adjoints if a.verdict == "right"]
    if check.verdict == "undecided":
        why = "the function scatters by the tolerance of its solver; a smaller one decides."
        return [Advice("noise", why, precise)]
    if check.verdict == "discontinuous":
        why = "a number of steps, an event or a threshold changes the value by a jump. In plain "
        why += "diffrax an event is smooth only if it is solved for: `Event(f, root_finder)`."
        return [Advice("jump", why, "")]
    if check.verdict == "right":
        return []
    if right:
        why = f"{' and '.join(right)} would be right."
        return [Advice("adjoint", why, f"adjoint = diffrax.{right[0]}()")]
    if check.verdict == "not finite":
        why = "a derivative is infinite or nan, in the field, in a linear solve, or in the loss."
        line = "model = sx.with_options(model, field=sx.Guarded(model.field, sx.Guard()))"
        return [Advice("gradient not finite", why, line)]
    zero = [c.name for c in bad if c.reverse == 0]
    if zero:
        why = f"in {', '.join(zero)} it is exactly 0, though the function changes: something stops "
        why += "the gradient."
        why += " Look for `stop_gradient`, `round`, `argmin`, comparisons and numpy in its way. A "
        why += "time at which a field switches, `where(t < tau, ...)`, has its derivative as the "
        why += "end of a phase: `Phase(t1=tau)`."
        return [Advice("stopped gradient", why, "")]
    why = "no adjoint agrees with the function: it depends on parameters in a way that is not "
    why += "differentiated (the time of an event, a root found implicitly where it is singular)."
    return [Advice("derivative", why, "")]


def _tables(check: GradientCheck) -> list[Table]:
    rows = [
        (c.name, number(c.reverse), number(c.forward))
        + (f"{c.difference:.6g} ± {c.uncertainty:.1g}", number(c.noise), c.verdict)
        for c in check.directions
    ]
    header = ("direction", "reverse", "forward", "differences", "noise", "verdict")
    tables = [Table(f"Gradient of a value of {check.value:.6g}", rows, header)]
    if check.adjoints:
        rows = [(a.name, number(a.value), a.verdict, a.note) for a in check.adjoints]
        header = ("adjoint", "all #1", "verdict", "")
        tables.append(Table("Adjoints", rows, header))
    return tables
