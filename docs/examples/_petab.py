"""Reads measurements of insulin signalling from a JSON file.

The format is a PEtab problem (https://petab.readthedocs.io) in one file. Numbers may be strings.

- `species`, `rhs`, `y0`: names, right-hand sides (which must be the model's) and initial values.
- `constants`: values by name. `conditions`: for each, what replaces `insulin_dose_1`,
  `insulin_dose_2` [nM], `insulin_time_1`, `insulin_time_2` [min] of the constants.
- `parameters`: `parameterId`, `nominalValue` (it overrides the constant of that name),
  `lowerBound`, `upperBound`, `parameterScale`, and `estimate`, "0" for one that is held.
- `observables`: `id`, `formula` and `noise` (the standard deviation), with placeholders
  `observableParameter1_<id>` and `noiseParameter1_<id>`.
- `measurements`: `observableId`, `preequilibrationConditionId`, `simulationConditionId`, `time`
  [min], `measurement`, and what fills the placeholders, `observableParameters` (a scaling factor,
  estimated within its bounds) and `noiseParameters` (taken at its nominal value).

Formulas are evaluated by a small interpreter over `ast`, never by `eval`.
"""

import ast
import dataclasses
import json
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

CONDITION = ("insulin_dose_1", "insulin_dose_2", "insulin_time_1", "insulin_time_2")


class ProblemError(ValueError):
    """What is wrong with a file, in one line; of a long one, which quotes the file, the ends."""

    def __init__(self, message: str, where: str = ""):
        line = " ".join(message.split())
        line = line if len(line) <= 400 else f"{line[:250]} ... {line[-145:]}"
        super().__init__(where + line)


# --- formulas ---------------------------------------------------------------------------------

_OPERATORS: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
}


def _piecewise(*pieces):
    value = math.nan
    for piece, condition in reversed(pieces):
        value = jnp.where(condition, piece, value)
    return value


_FUNCTIONS: dict[str, Callable] = {
    "exp": jnp.exp,
    "log": jnp.log,
    "log10": jnp.log10,
    "sqrt": jnp.sqrt,
    "Piecewise": _piecewise,
}


class Formula:
    """An arithmetic expression over named quantities; `formula(values)` evaluates it.

    `where` it stands is for the message of a `ProblemError`.
    """

    def __init__(self, text: str, where: str):
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ProblemError(f"{where}: cannot read the formula {text!r}") from None
        self.text, self.where = text, where
        called = [n.func for n in ast.walk(self._tree) if isinstance(n, ast.Call)]
        nodes = [n for n in ast.walk(self._tree) if isinstance(n, ast.Name) and n not in called]
        self.names = frozenset(node.id for node in nodes)

    def __call__(self, values: Mapping[str, Any]) -> Any:
        unknown = sorted(self.names - values.keys())
        if unknown:
            raise ProblemError(f"{self.where}: unknown name {unknown[0]!r} in {self.text!r}")
        try:
            value = self._evaluate(self._tree, values)
        except (ArithmeticError, TypeError, ValueError, RecursionError) as error:
            if isinstance(error, ProblemError):
                raise
            raise ProblemError(f"{self.where}: cannot evaluate {self.text!r}") from None
        if isinstance(value, tuple | complex):
            raise ProblemError(f"{self.where}: {self.text!r} is no real number")
        return value

    def _evaluate(self, node: ast.AST, values: Mapping[str, Any]) -> Any:
        visit = lambda child: self._evaluate(child, values)
        match node:
            case ast.Constant(value=bool() as value):
                return value
            case ast.Constant(value=int() | float() as value):
                return float(value)
            case ast.Name(id=name):
                return values[name]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](visit(left), visit(right))
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](visit(operand))
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](visit(left), visit(right))
            case ast.Tuple(elts=elements):
                return tuple(visit(element) for element in elements)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
                return _FUNCTIONS[name](*(visit(arg) for arg in args))
        raise ProblemError(f"{self.where}: {ast.unparse(node)!r} is not allowed in a formula")


# --- the problem ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Observable:
    """What is measured: a formula over species, time `t` and constants, linear in one scaling
    factor, its `placeholder`."""

    name: str
    formula: Formula
    placeholder: str | None
    constants: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __call__(self, values: Mapping[str, Any]) -> tuple[Any, Any]:
        """`(offset, slope)`: the observable is offset + scaling factor * slope."""
        values = {**self.constants, **values}
        if self.placeholder is None:
            return self.formula(values), 0.0
        offset = self.formula({**values, self.placeholder: 0.0})
        return offset, self.formula({**values, self.placeholder: 1.0}) - offset


@dataclass(frozen=True, eq=False)
class Problem:
    """What to simulate, and what to compare it with. All arrays are numpy's.

    - `y0`: the state that fixes the conserved totals, shape `(species,)`.
    - `insulin`: doses [nM] and times [min] of two steps, each of shape `(conditions, 2)`;
      `steady`: those before the experiment, each of shape `(2,)`.
    - `ts`: the common time grid [min], shape `(times,)`.
    - `measured`, `sigma`: the data and their standard deviations, shape `(rows,)`;
      `condition`, `time`, `observable`, `scale`: for each row, its index into the conditions,
      `ts`, `observables` and the scaling factors.
    - `scale_bounds`: limits of the scaling factors, shape `(scales, 2)`.
    - `log_k`, `bounds`: log10 of the reference rate constants, shape `(rates,)`, and their limits,
      shape `(rates, 2)`.
    """

    y0: np.ndarray
    insulin: tuple[np.ndarray, np.ndarray]
    steady: tuple[np.ndarray, np.ndarray]
    ts: np.ndarray
    measured: np.ndarray
    sigma: np.ndarray
    condition: np.ndarray
    time: np.ndarray
    observable: np.ndarray
    scale: np.ndarray
    observables: tuple[Observable, ...]
    scale_bounds: np.ndarray
    log_k: np.ndarray
    bounds: np.ndarray


# --- the file ---------------------------------------------------------------------------------


def read(
    path: str | Path, species: Sequence[str], rates: Sequence[str], field: Callable, rows: str
) -> Problem:
    """Reads a problem for a model of insulin signalling.

    **Arguments:**

    - `species`, `rates`: the names of the model's states and rate constants.
    - `field`: `field(log_k, t, y, (doses, times))`, with which the file's `rhs` must agree.
    - `rows`: `"measurements"`, or `"simulated"` for the published simulation.

    **Raises:** `ProblemError` with one line that says what is wrong with the file.
    """
    try:
        file = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ProblemError(f"cannot be read: {error.strerror}", f"{path}: ") from None
    except (ValueError, RecursionError) as error:
        raise ProblemError(f"is no JSON: {error}", f"{path}: ") from None
    try:
        return _problem(file, tuple(species), tuple(rates), field, rows)
    except ProblemError as error:
        raise ProblemError(str(error), f"{path}: ") from None


def _problem(file: Any, species: tuple, rates: tuple, field: Callable, kind: str) -> Problem:
    if _get(file, "species", list) != list(species):
        raise ProblemError(f"'species' are not those of this model, {', '.join(species)}")
    y0 = np.array([_number(text, "'y0'") for text in _get(file, "y0", list)])
    if y0.shape != (len(species),) or y0.min() < 0:
        raise ProblemError(f"'y0' needs {len(species)} numbers >= 0")
    constants, limits = _parameters(file)
    log_k, bounds = _rate_constants(rates, constants, limits)

    rows = _get(file, kind, list)
    if not rows:
        raise ProblemError(f"{kind!r} is empty")

    def column(key: str, default: str | None = None) -> list[str]:
        return [str(_get(r, key, object, f"{kind}[{i}]", default)) for i, r in enumerate(rows)]

    def numbers(key: str) -> np.ndarray:
        return np.array([_number(text, f"{kind}: {key!r}") for text in column(key)])

    # Conditions: what was applied before, and during, the experiment.
    names, condition = _index(column("simulationConditionId"))
    before, _ = _index(column("preequilibrationConditionId"))
    if len(before) != 1:
        raise ProblemError("all rows need the same 'preequilibrationConditionId'")
    insulin = np.array([_insulin(file, name, constants) for name in (*before, *names)])
    ts, time = np.unique(numbers("time"), return_inverse=True)
    if ts[0] < 0 or ts[-1] == 0:
        raise ProblemError("the experiment starts at 'time' 0, and some rows must be later")
    _check_rhs(file, species, constants, insulin, lambda *a: field(log_k, *a))

    # Observables, their scaling factors and their noise.
    formulas = {_get(o, "id", str, "an observable"): o for o in _get(file, "observables", list)}
    observable_names, observable = _index(column("observableId"))
    entries = [_get(formulas, name, dict, "'observables'") for name in observable_names]
    observables = tuple(_observable(entry, species, constants) for entry in entries)
    scale_names, scale = _index(column("observableParameters", ""))
    noise = [Formula(_get(e, "noise", str), f"noise of {e['id']!r}") for e in entries]
    sigma = np.empty(len(rows))
    for row, (i, text) in enumerate(zip(observable, column("noiseParameters", ""), strict=True)):
        placeholder = _placeholder("noise", observable_names[i])
        sigma[row] = noise[i]({**constants, placeholder: _value(text, constants)})
    if not ((sigma > 0) & np.isfinite(sigma)).all():
        raise ProblemError("a standard deviation ('noise') is not positive and finite")
    return Problem(
        y0=y0,
        insulin=(insulin[1:, :2], insulin[1:, 2:]),
        steady=(insulin[0, :2], insulin[0, 2:]),
        ts=ts,
        measured=numbers("measurement" if kind == "measurements" else "simulation"),
        sigma=sigma,
        condition=condition,
        time=time,
        observable=observable,
        scale=scale,
        observables=observables,
        scale_bounds=np.array([limits.get(n) or [_value(n, constants)] * 2 for n in scale_names]),
        log_k=log_k,
        bounds=bounds,
    )


def _get(container: Any, key: str, kind: type, where: str = "the file", default: Any = None) -> Any:
    value = container.get(key, default) if isinstance(container, dict) else None
    if value is None:
        raise ProblemError(f"{where} has no {key!r}")
    if not isinstance(value, kind):
        raise ProblemError(f"{where}: {key!r} is no {kind.__name__}")
    return value


def _number(text: Any, where: str) -> float:
    try:
        value = math.nan if isinstance(text, bool) else float(text)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise ProblemError(f"{where}: {text!r} is no finite number")
    return value


def _value(text: str, constants: Mapping[str, float]) -> float:
    """What stands for a placeholder: a parameter's name, a number, or nothing."""
    return constants[text] if text in constants else _number(text or 1.0, "a placeholder")


def _index(texts: list[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """The distinct texts in order, and the index of each."""
    names = tuple(dict.fromkeys(texts))
    return names, np.array([names.index(text) for text in texts])


def _placeholder(kind: str, observable: str) -> str:
    return f"{kind}Parameter1_{observable}"


def _parameters(file: Any) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """The value of every constant and parameter, and the limits of the parameters.

    A parameter's nominal value overrides the constant of its name.
    """
    given = _get(file, "constants", dict)
    constants = {name: _number(text, f"constant {name!r}") for name, text in given.items()}
    limits = {}
    for parameter in _get(file, "parameters", list):
        name = _get(parameter, "parameterId", str, "a parameter")
        get = lambda key, p=parameter, n=name: _number(p.get(key), f"parameter {n!r}: {key!r}")
        constants[name] = get("nominalValue")
        if parameter.get("parameterScale", "lin") not in ("lin", "log", "log10"):
            raise ProblemError(f"parameter {name!r}: unknown 'parameterScale'")
        if str(parameter.get("estimate", "1")) == "0":
            limits[name] = (constants[name], constants[name])
        else:
            limits[name] = (get("lowerBound"), get("upperBound"))
        if limits[name][0] > limits[name][1]:
            raise ProblemError(f"parameter {name!r}: 'lowerBound' is above 'upperBound'")
    return constants, limits


def _rate_constants(rates: tuple, constants: dict, limits: dict) -> tuple[np.ndarray, np.ndarray]:
    """log10 of the rate constants and of their limits. They are fitted on that scale, whatever
    `parameterScale` says; one that is no parameter is held."""
    missing = [name for name in rates if name not in constants]
    if missing:
        raise ProblemError(f"neither 'parameters' nor 'constants' has {missing[0]!r}")
    k = np.array([constants[name] for name in rates])
    bounds = np.array([limits.get(name, (constants[name],) * 2) for name in rates])
    if not min(k.min(), bounds.min()) > 0:
        raise ProblemError("rate constants and their bounds must be positive")
    return np.log10(k), np.log10(bounds)


def _insulin(file: Any, name: str, constants: Mapping[str, float]) -> list[float]:
    overrides = _get(_get(file, "conditions", dict), name, dict, "'conditions'")
    unknown = sorted(overrides.keys() - set(CONDITION))
    if unknown:
        raise ProblemError(f"condition {name!r} sets {unknown[0]!r}, which is no dose of insulin")
    given = {**constants, **overrides}
    values = [_number(given.get(key), f"condition {name!r}: {key!r}") for key in CONDITION]
    if min(values) < 0:
        raise ProblemError(f"condition {name!r}: doses and times must be >= 0")
    return values


def _observable(entry: dict, species: tuple, constants: Mapping[str, float]) -> Observable:
    name = entry["id"]
    if entry.get("transform", "lin") != "lin":
        raise ProblemError(f"observable {name!r}: only the transform 'lin' is supported")
    formula = Formula(_get(entry, "formula", str, f"observable {name!r}"), f"observable {name!r}")
    placeholder = _placeholder("observable", name)
    scaled = placeholder if placeholder in formula.names else None
    observable = Observable(name, formula, scaled, constants)
    trial = {"t": 5.0, **{s: 1.0 + 0.1 * i for i, s in enumerate(species)}}
    offset, slope = observable(trial)
    if not np.isfinite([offset, slope]).all():
        raise ProblemError(f"observable {name!r} is not finite")
    if not np.isclose(formula({**constants, **trial, placeholder: 2.0}), offset + 2 * slope):
        raise ProblemError(f"observable {name!r} is not linear in {placeholder!r}")
    return observable


def _check_rhs(file: Any, species: tuple, constants: dict, insulin: np.ndarray, field) -> None:
    """Raises if the file's right-hand side is not the model's."""
    rhs = [Formula(str(text), "'rhs'") for text in _get(file, "rhs", list)]
    if len(rhs) != len(species):
        raise ProblemError(f"'rhs' needs {len(species)} formulas")
    t, y = 5.0, 1.0 + 0.1 * np.arange(len(species))
    for condition in insulin:
        values = {**constants, **dict(zip(CONDITION, condition, strict=True)), "t": t}
        theirs = np.array([float(f({**values, **dict(zip(species, y, strict=True))})) for f in rhs])
        ours = np.asarray(field(t, jnp.asarray(y), (condition[:2], condition[2:])))
        wrong = ~np.isclose(ours, theirs, rtol=1e-9, atol=1e-12 * np.abs(ours).max())
        if wrong.any():
            name = species[int(np.argmax(wrong))]
            raise ProblemError(f"'rhs' of {name} is not this model's")
