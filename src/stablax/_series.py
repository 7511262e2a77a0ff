"""`Series`: measurements over time, of several observables under several conditions."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from ._static import Static, is_traced, real_array
from ._types import Explained, NumbersLike, typechecked
from ._words import closest, quoted, short


@final
class Series(eqx.Module):
    """Measurements over time: of one or more observables, under one or more conditions.

    Every condition has times of its own; shorter rows are padded, and what was not measured is
    nan. A PyTree of data, without parameters: pass it to `jax.jit` as an argument.

    ```python
    sx.Series(ts, {"A": measured_a, "B": measured_b})                   # one condition
    sx.Series.from_ragged([ts_1, ts_2], [{"A": a_1}, {"A": a_2}])       # times of different number
    sx.Series.from_table(table, condition="patient", value="concentration")     # of a file
    ```

    **Arguments:**

    - `ts`: times, shape `(times,)` for one condition, or `(conditions, times)`: ascending, with inf
        for those of a shorter row that are not there. Equal times are repeated measurements.
    - `values`: of each observable, by name: the shape of `ts`, nan where nothing was measured.
    - `sigma`: the standard deviation of each measurement, as `values`; or None.
    - `conditions`: what the conditions are called; by default 0, 1, ...

    **Attributes:** `ts`, shape `(conditions, times)`; `values`, and `sigma` or None, of shape
    `(conditions, times, observables)`; `names` of the observables; `conditions`.

    **Raises:** `ValueError` for shapes that do not fit, times that are out of order, infinite
    values, or a `sigma` that is not above 0 where there is a value.
    """

    ts: Float[Array, "conditions times"]
    values: Float[Array, "conditions times observables"]
    sigma: Float[Array, "conditions times observables"] | None
    names: tuple[str, ...] = eqx.field(static=True)
    _conditions: Static

    @typechecked
    def __init__(
        self,
        ts: Explained[NumbersLike],
        values: Explained[Mapping[str, NumbersLike]],
        *,
        sigma: Explained[Mapping[str, NumbersLike] | None] = None,
        conditions: Explained[Sequence[Hashable] | None] = None,
    ):
        times = real_array(ts, "ts")
        if times.ndim not in (1, 2) or times.size == 0:
            raise ValueError(
                "`ts` must have shape (times,) or (conditions, times), and one or more times, got "
                f"shape {times.shape}."
            )
        if not isinstance(values, Mapping) or not values:
            raise TypeError(
                f"`values` must be a dict of the measurements of each observable, {{name: array of "
                f"the shape of `ts`}}, got {short(values)}."
            )
        times, named = np.atleast_2d(times), _all_named(values, "values", times.shape)
        _check_times(times)
        known = np.isfinite(times)[..., None]
        if np.isinf(np.where(known, named, 0)).any():
            raise ValueError("`values` has an infinite measurement. What is missing is nan.")
        named = np.where(known, named, np.nan)
        spread = None
        if sigma is not None:
            if not isinstance(sigma, Mapping) or set(sigma) != set(values):
                raise ValueError(
                    f"`sigma` must have the same observables as `values`, {quoted(list(values))}."
                )
            ordered = {name: sigma[name] for name in values}
            spread = _all_named(ordered, "sigma", np.shape(ts))
            if not (spread > 0)[np.isfinite(named)].all():
                raise ValueError("`sigma` must be above 0 wherever there is a measurement.")
        if conditions is not None and len(conditions) != len(times):
            raise ValueError(
                f"`conditions` has {len(conditions)} names, but there are {len(times)} conditions."
            )
        self.ts, self.values = jnp.asarray(times), jnp.asarray(named)
        self.sigma = None if spread is None else jnp.asarray(spread)
        self.names = tuple(map(str, values))
        self._conditions = Static(
            tuple(range(len(times)) if conditions is None else conditions), "conditions"
        )

    @staticmethod
    @typechecked
    def from_ragged(
        ts: Explained[Sequence[NumbersLike]],
        values: Explained[Sequence[Mapping[str, NumbersLike]]],
        *,
        sigma: Explained[Sequence[Mapping[str, NumbersLike]] | None] = None,
        conditions: Explained[Sequence[Hashable] | None] = None,
    ) -> "Series":
        """Of conditions with times of different number.

        **Arguments:** one entry for each condition:

        - `ts`: its times, shape `(times,)`.
        - `values`, `sigma`: its measurements by name, of the same shape. An observable that is
            not in all conditions was not measured in the others.
        - `conditions`: what it is called.

        **Raises:** as `Series`, with the number of the condition.
        """
        if len(ts) != len(values) or (sigma is not None and len(ts) != len(sigma)):
            raise ValueError(
                f"`ts` has {len(ts)} conditions and `values` {len(values)}: one entry for each."
            )
        if not len(ts):
            raise ValueError("`ts` has no condition.")
        rows = [real_array(t, f"ts[{i}]") for i, t in enumerate(ts)]
        names = tuple(dict.fromkeys(name for one in values for name in one))
        width = max((row.size for row in rows), default=0)

        def padded(x: np.ndarray, fill: float) -> np.ndarray:
            return np.concatenate([x, np.full(width - x.size, fill)])

        def stacked(given: Sequence[Mapping[str, NumbersLike]], what: str) -> dict[str, np.ndarray]:
            out = {name: np.full((len(rows), width), np.nan) for name in names}
            for i, one in enumerate(given):
                for name, x in one.items():
                    x = real_array(x, f"{what}[{i}][{name!r}]")
                    if x.shape != rows[i].shape:
                        raise ValueError(
                            f"`{what}[{i}][{name!r}]` has shape {x.shape}, but `ts[{i}]` has shape "
                            f"{rows[i].shape}."
                        )
                    out[name][i, : x.size] = x
            return out

        for i, row in enumerate(rows):
            if row.ndim != 1:
                raise ValueError(f"`ts[{i}]` must have shape (times,), got shape {row.shape}.")
        return Series(
            np.stack([padded(row, math.inf) for row in rows]),
            stacked(values, "values"),
            sigma=None if sigma is None else stacked(sigma, "sigma"),
            conditions=conditions,
        )

    @staticmethod
    @typechecked
    def from_table(
        table: Explained[Mapping[str, Sequence]],
        *,
        time: str = "time",
        value: str = "measurement",
        observable: str | None = "observable",
        condition: str | None = None,
        sigma: str | None = None,
    ) -> "Series":
        """Of a table with a row for each measurement, in any order: a data frame of pandas, or a
        dict of columns. Repeated measurements stay what they are.

        ```python
        series = sx.Series.from_table(pandas.read_csv("data.csv"), condition="experiment")
        ```

        **Arguments:**

        - `table`: columns by name.
        - `time`, `value`: which of them are times and measurements. An empty or nan value is no
            measurement.
        - `observable`: which says what was measured; None if there is one observable, whose name
            is that of `value`.
        - `condition`: which says under which condition; None if there is one. They come in the
            order in which they are first found.
        - `sigma`: which is the standard deviation; None if there is none.

        **Raises:** `KeyError` for a column that is not there; `ValueError` for one of other length,
        or a cell that is no number.
        """
        column = lambda name: _column(table, name)
        times, measured = (_numbers(column(name), name) for name in (time, value))
        size = len(times)
        what = [value] * size if observable is None else list(map(str, column(observable)))
        where = [0] * size if condition is None else list(column(condition))
        spread = None if sigma is None else _numbers(column(sigma), sigma)
        lengths = {len(x) for x in (times, measured, what, where)}
        if len(lengths) != 1 or not size:
            raise ValueError(f"The columns must have one length above 0, got {sorted(lengths)}.")
        if not np.isfinite(times).all():
            row = int(np.argmin(np.isfinite(times)))
            raise ValueError(f"`{time}` of row {row} (the first is 0) is {times[row]}.")
        names, conditions = tuple(dict.fromkeys(what)), tuple(dict.fromkeys(where))
        # The n-th measurement of an observable at one time goes into the n-th column of that time.
        count: dict[tuple, int] = {}
        places = []
        for key in zip(where, times, what, strict=True):
            places.append(count.get(key, 0))
            count[key] = places[-1] + 1
        rows = []
        for one in conditions:
            mine = [i for i in range(size) if where[i] == one]
            slots = sorted({(times[i], places[i]) for i in mine})
            index = {slot: j for j, slot in enumerate(slots)}
            cells = {name: np.full((2, len(slots)), np.nan) for name in names}
            for i in mine:
                j = index[times[i], places[i]]
                cells[what[i]][:, j] = measured[i], math.nan if spread is None else spread[i]
            rows.append((np.array([t for t, _ in slots]), cells))
        first, second = (
            [{name: cell[k] for name, cell in cells.items()} for _, cells in rows] for k in (0, 1)
        )
        return Series.from_ragged(
            [ts for ts, _ in rows],
            first,
            sigma=None if spread is None else second,
            conditions=conditions,
        )

    @property
    def conditions(self) -> tuple[Hashable, ...] | None:
        """What they are called; None, where that is not known."""
        return self._conditions.tree

    @property
    def measured(self) -> Bool[Array, "conditions times observables"]:
        """Where there is a measurement."""
        return jnp.isfinite(self.values)

    def __len__(self) -> int:
        """The number of conditions."""
        return self.ts.shape[0]

    def take(self, conditions: Int[ArrayLike, " conditions"]) -> "Series":
        """Those of some conditions.

        **Arguments:**

        - `conditions`: their numbers, which may be traced: then it does not know what they are
            called.
        """
        at = lambda x: None if x is None else x[jnp.asarray(conditions)]
        known = None if is_traced(conditions) or self.conditions is None else self.conditions
        names = None if known is None else tuple(known[int(i)] for i in np.asarray(conditions))
        return eqx.tree_at(
            lambda s: (s.ts, s.values, s.sigma, s._conditions),
            self,
            (at(self.ts), at(self.values), at(self.sigma), Static(names, "conditions")),
            is_leaf=lambda x: x is None or isinstance(x, Static),
        )

    def __repr__(self) -> str:
        shape = " conditions, ".join(map(str, self.ts.shape)) + " times"
        if is_traced(self):
            return f"Series({shape}, of {quoted(self.names)})"
        count = int(np.isfinite(np.asarray(self.values)).sum())
        return f"Series({count} measurements: {shape} at most, of {quoted(self.names)})"


def _all_named(given: Mapping[str, Any], what: str, shape: tuple[int, ...]) -> np.ndarray:
    """Arrays of one shape as one of shape `(conditions, times, names)`."""
    columns = []
    for name, x in given.items():
        x = real_array(x, f"{what}[{name!r}]")
        if x.shape != shape:
            raise ValueError(
                f"`{what}[{name!r}]` has shape {x.shape}, but `ts` has shape {shape}: one number "
                "for each time, nan where there is none."
            )
        columns.append(np.atleast_2d(x))
    return np.stack(columns, axis=-1)


def _check_times(times: np.ndarray) -> None:
    for i, row in enumerate(times):
        known = np.isfinite(row)
        asked = row[known]
        if not known.any() or (known[1:] & ~known[:-1]).any() or (np.diff(asked) < 0).any():
            raise ValueError(
                f"The times of condition {i} (the first is 0) must be ascending, with inf at the "
                f"end where there are none; got {np.array2string(row, threshold=8)}."
            )


def _column(table: Mapping[str, Sequence], name: str) -> Sequence:
    try:
        return list(table[name])
    except KeyError:
        raise KeyError(f"There is no column `{name}`. {closest(name, map(str, table))}") from None


def _numbers(column: Sequence, name: str) -> np.ndarray:
    out = np.full(len(column), np.nan)
    for i, cell in enumerate(column):
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            continue
        try:
            out[i] = float(cell)
        except (TypeError, ValueError):
            raise ValueError(
                f"`{name}` of row {i} (the first is 0) is {short(cell)}, which is no number."
            ) from None
    return out
