"""`Patients`: from a table of doses and measurements, as pharmacometricians have them."""

from collections.abc import Mapping
from typing import Any, TypedDict, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._types import Explained, typechecked
from .._words import clipped, closest, quoted, short
from ._given import Dose, Infusion, Place, Reset
from ._schedule import Schedule

# What is a column of its own; any other is a covariate.
_COLUMNS = "ID TIME AMT RATE DUR II ADDL SS CMT EVID DV MDV".split()
_OBSERVED, _DOSED, _OTHER, _RESET, _RESET_AND_DOSED = range(5)


@final
class Patients(eqx.Module):
    """What was given to patients, and what was measured.

    ```python
    patients = sx.Patients.of_table(pandas.read_csv("study.csv"))


    def one(schedule, ts, weight):
        phases = schedule.phases(field, y0, end=72.0, args={"weight": weight})
        return model(y0, ts, phases, throw=False)


    simulations = jax.vmap(one)(patients.schedule, patients.ts, patients.covariates["WT"])
    ```

    **Attributes:** with a leading axis, the patients, in the order of the table.

    - `schedule`: a stack of [`Schedule`][]s.
    - `ts`: the times of measurement [time], shape `(patients, measurements)`; inf where a patient
        has fewer.
    - `values`: what was measured (column DV), of the same shape; nan there.
    - `t0`: the time of the first row of each patient, shape `(patients,)`: where the simulation of
        one starts whose times do not begin at 0, `schedule.phases(..., t0=t0)` and
        `model(..., t0=t0)`.
    - `place`: into which compartment (column CMT) each belongs, an index into `places`; -1 there.
    - `covariates`: a dict of the other columns that hold numbers, the first value of each patient,
        shape `(patients,)`.
    - `ids`: the patients; static.
    - `places`: the compartments of measurements; static.
    """

    schedule: Schedule
    ts: Float[Array, "patients measurements"]
    values: Float[Array, "patients measurements"]
    t0: Float[Array, " patients"]
    place: Array
    covariates: dict[str, Float[Array, " patients"]]
    ids: tuple[Any, ...] = eqx.field(static=True)
    places: tuple[Place, ...] = eqx.field(static=True)

    @property
    def is_measured(self) -> Bool[Array, "patients measurements"]:
        """Where there is a measurement."""
        return jnp.isfinite(self.ts)

    @staticmethod
    @typechecked
    def of_table(
        table: Explained[Mapping[str, Any]],
        *,
        compartments: Mapping[Any, Place] | None = None,
    ) -> "Patients":
        """Reads a table of events in the columns of NONMEM.

        | column | |
        |---|---|
        | ID | the patient |
        | TIME | since the start of the patient's record [time]; does not decrease |
        | DV | what was measured; without the column only the times are read |
        | EVID | 0 a measurement, 1 a dose, 2 nothing, 3 a reset, 4 a reset and a dose |
        | MDV | 1 in rows with EVID 0 of which DV is none |
        | AMT | the amount of a dose |
        | RATE, DUR | of an infusion: its rate [amount/time], or its duration [time]; else 0 |
        | ADDL, II | so many more doses, and the time between them |
        | SS | 1: the dose is one of a regimen at steady state, every II; else 0 |
        | CMT | the compartment: its number, from 1 on, or its name; by default (and for 0) 1 |

        Names of columns may be in lower case. Of them TIME is required; without ID all rows are
        one patient's; without EVID rows with an AMT are doses, and others measurements. What is
        missing in a row is nan, None, `"."` or empty.

        **Arguments:**

        - `table`: columns by name, arrays or lists of one length: a dict, or a pandas
            `DataFrame`.
        - `compartments`: what CMT means, if not a number or a name in the state: places of
            [`Dose`][] by the values of the column, such as `{1: "gut", 2: "plasma"}`.

        **Returns:** `Patients`. A measurement at the time of a dose is before or after it as the
        `boundary` of the model says. Where a dose is at steady state, its patient starts from
        [`Schedule.at_steady_state`][].

        **Raises:** `ValueError` or `TypeError` for columns and rows that do not fit, with the
        number of the row (the first is 0).
        """
        columns = _columns(table)
        rows, no_values = range(len(columns["TIME"])), "DV" not in columns
        places = dict(compartments or {})
        by_id: dict[Any, list[int]] = {}
        for k in rows:
            patient = columns["ID"][k]
            if _is_missing(patient):
                raise ValueError(f"ID is missing in row {k}.")
            own = by_id.setdefault(patient, [])
            if own and own[-1] != k - 1:
                raise ValueError(
                    f"Row {k} is of the patient {short(patient)}, as row {own[-1]}, and others are "
                    "between: the rows of a patient follow each other."
                )
            own.append(k)
        row_of = lambda k: _Row(k, {name: column[k] for name, column in columns.items()})
        schedules, measured, starts = [], [], []
        for own in by_id.values():
            doses, found, before = [], [], -np.inf
            for k in own:
                row = row_of(k)
                t = row.number("TIME", None)
                if t < before:
                    raise ValueError(
                        f"TIME falls from {before:g} to {t:g} in row {k}: the rows of a patient "
                        "follow each other in time, from the start of a record that goes on."
                    )
                before = t
                if row.steady and t != row_of(own[0]).number("TIME", None):
                    raise ValueError(
                        f"SS is 1 in row {k}, at {t:g}: known is a regimen at steady state from "
                        "the first row of a patient on."
                    )
                place = row.place(places)
                doses += row.given(place)
                if row.is_measurement:
                    found.append((t, row.number("DV", np.nan if no_values else None), place))
            starts.append(row_of(own[0]).number("TIME", None))
            schedules.append(Schedule(doses))
            measured.append(found)
        size = max(1, *map(len, measured))
        known = tuple(dict.fromkeys(place for found in measured for *_, place in found))
        ts = np.full((len(by_id), size), np.inf)
        values, numbers = np.full(ts.shape, np.nan), np.full(ts.shape, -1)
        for i, found in enumerate(measured):
            for j, (t, value, place) in enumerate(found):
                ts[i, j], values[i, j], numbers[i, j] = t, value, known.index(place)
        covariates = {
            name: jnp.array([_number(column[own[0]], name, own[0]) for own in by_id.values()])
            for name, column in columns.items()
            if name not in _COLUMNS and _is_numeric(column)
        }
        return Patients(
            schedule=Schedule.stack(schedules),
            ts=jnp.asarray(ts),
            values=jnp.asarray(values),
            t0=jnp.asarray(starts, float),
            place=jnp.asarray(numbers),
            covariates=covariates,
            ids=tuple(by_id),
            places=known,
        )


def _columns(table: Mapping[str, Any]) -> dict[str, list]:
    """Those of `table`, the known ones by their names."""
    try:
        given = {str(name): _cells(table[name]) for name in table}
    except (TypeError, IndexError, KeyError):
        raise TypeError(
            f"`table` must map names of columns to arrays, as a dict or a pandas `DataFrame` does, "
            f"got {short(table)}."
        ) from None
    columns = {}
    for name, column in given.items():
        known = name.upper() if name.upper() in _COLUMNS else name
        if known in columns:
            raise ValueError(f"`table` has the column {known} twice.")
        columns[known] = column
    if "TIME" not in columns:
        raise ValueError(f"`table` has no column TIME. {closest('TIME', given)}")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ValueError(f"The columns of `table` must have one length, above 0, got {lengths}.")
    columns.setdefault("ID", [1] * lengths["TIME"])
    return columns


def _cells(column: Any) -> list:
    """Of numbers those of Python."""
    return column.tolist() if hasattr(column, "tolist") else list(column)


class _Again(TypedDict):
    every: float | None
    count: int
    steady: bool


class _Row:
    """A row of a table."""

    def __init__(self, number: int, cells: dict[str, Any]):
        self.k = number
        self.cells = cells
        known = (self.number(name, 0.0) for name in ("AMT", "RATE", "DUR", "II", "ADDL", "SS"))
        self.amount, self.rate, self.duration, self.every, self.more, self.steady = known
        kind = self.number("EVID", float(_DOSED if self.amount else _OBSERVED))
        if kind not in range(5):
            raise ValueError(f"EVID is {kind:g} in row {number}, but 0 to 4 are known.")
        self.kind = int(kind)
        if self.steady and (self.steady != 1 or not self.every):
            raise ValueError(
                f"SS is {self.steady:g} and II is {self.every:g} in row {number}: known are an SS "
                "of 0, and of 1 with the time between the doses as II, above 0."
            )
        self._check_dose()

    def _check_dose(self) -> None:
        k, is_dose = self.k, self.kind in (_DOSED, _RESET_AND_DOSED)
        if self.amount and not is_dose:
            raise ValueError(f"Row {k} has an AMT of {self.amount:g}, but an EVID of {self.kind}.")
        if is_dose and not self.amount:
            raise ValueError(f"Row {k} has an EVID of {self.kind}, which is a dose, but no AMT.")
        known = dict(AMT=self.amount, RATE=self.rate, DUR=self.duration, II=self.every)
        for name, value in known.items():
            if value < 0:
                raise ValueError(
                    f"{name} is {value:g} in row {k}. What is estimated is no number in a table: "
                    "make the `Infusion` with a duration of your own."
                    if name == "RATE"
                    else f"{name} is {value:g} in row {k}, but must not be negative."
                )
        if self.rate and self.duration and not np.isclose(self.rate * self.duration, self.amount):
            raise ValueError(
                f"Row {k} has an AMT of {self.amount:g}, a RATE of {self.rate:g} and a DUR of "
                f"{self.duration:g}, which contradict each other: give one of RATE and DUR."
            )
        if self.more < 0 or self.more != round(self.more) or (self.more and not self.every):
            raise ValueError(
                f"Row {k} has an ADDL of {self.more:g} and an II of {self.every:g}: so many more "
                "doses, a whole number, and the time between them, above 0."
            )

    def number(self, name: str, default: float | None) -> float:
        """That in a column; if it is missing the default, or without one an error."""
        value = _number(self.cells.get(name), name, self.k)
        if not np.isnan(value):
            return value
        if default is None:
            raise ValueError(
                f"{name} is missing in row {self.k}."
                + (" A row without a measurement has an MDV of 1." if name == "DV" else "")
            )
        return default

    @property
    def is_measurement(self) -> bool:
        return self.kind == _OBSERVED and not self.number("MDV", 0.0)

    def place(self, places: Mapping[Any, Place]) -> Place:
        """The compartment."""
        given = self.cells.get("CMT")
        if _is_missing(given) or _same(given, 0):
            given = 1
        for known, place in places.items():
            if _same(known, given):
                return place
        if places:
            raise ValueError(
                f"CMT is {short(given)} in row {self.k}, but `compartments` has "
                f"{clipped(quoted(list(map(str, places))))}."
            )
        try:
            number = float(str(given))
        except ValueError:
            return str(given)
        if number != round(number) or number < 1:
            raise ValueError(
                f"CMT is {number:g} in row {self.k}: compartments are counted from 1 on."
            )
        return int(number) - 1

    def given(self, place: Place) -> list[Dose | Infusion | Reset]:
        t, out = self.number("TIME", None), []
        # A regimen at steady state begins with its own state.
        if self.kind in (_RESET, _RESET_AND_DOSED) and not self.steady:
            out.append(Reset(t))
        if self.kind in (_DOSED, _RESET_AND_DOSED):
            every, count = self.every if self.more or self.steady else None, int(self.more) + 1
            again = _Again(every=every, count=count, steady=bool(self.steady))
            if self.rate or self.duration:
                duration = self.duration or self.amount / self.rate
                out.append(Infusion(t, self.amount, duration, place, **again))
            else:
                out.append(Dose(t, self.amount, place, **again))
        return out


def _same(a: Any, b: Any) -> bool:
    """Whether they are the same number, or the same name."""
    try:
        return float(a) == float(b)
    except (TypeError, ValueError):
        return str(a) == str(b)


def _is_numeric(column: list) -> bool:
    """Whether it holds numbers only, as far as it holds anything."""
    try:
        return all(_is_missing(value) or np.isfinite(float(value)) for value in column)
    except (TypeError, ValueError):
        return False


def _is_missing(value: Any) -> bool:
    return value is None or str(value).strip() in ("", ".", "nan", "None", "<NA>", "NaN", "NA")


def _number(value: Any, name: str, k: int) -> float:
    """What a cell holds; nan if nothing."""
    if _is_missing(value):
        return np.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {short(value)} in row {k}, which is no number.") from None
    if not np.isfinite(number):
        raise ValueError(f"{name} is {number} in row {k}.")
    return number
