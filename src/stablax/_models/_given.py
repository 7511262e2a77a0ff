"""What is given to a patient: doses, infusions, resets; and their times and amounts, all in one."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._parameters import Parameter, natural
from .._static import is_real, is_traced, refuse_masked
from .._types import Explained, NumbersLike, typechecked
from .._words import clipped, closest, short

Place = str | int


class Given(eqx.Module):
    """What is given into the components `into` (numbers of `places`) at `t`, over `duration`."""

    t: Float[Array, " n"]
    amount: Float[Array, " n"]
    duration: Float[Array, " n"]
    into: Int[Array, " n"]
    period: Float[Array, " n"]  # of what begins a regimen at steady state; of others inf
    places: tuple[Place, ...] = eqx.field(static=True)
    begins_steady: bool = eqx.field(static=True)  # whether a period can be finite

    @staticmethod
    def of(doses: Sequence["Dose | Infusion"]) -> "Given":
        parts = [(jnp.zeros(0),) * 4, *(dose.given() for dose in doses)]
        places = tuple(dict.fromkeys(dose.regimen.into for dose in doses))
        into = [
            np.full(part[0].size, places.index(dose.regimen.into))
            for dose, part in zip(doses, parts[1:], strict=True)
        ]
        into = np.concatenate([np.zeros(0, int), *into])
        t, amount, duration, period = map(jnp.concatenate, zip(*parts, strict=True))
        begins_steady = any(dose.regimen.steady for dose in doses)
        return Given(t, amount, duration, jnp.asarray(into), period, places, begins_steady)

    @property
    def size(self) -> int:
        return self.t.shape[-1]

    def padded(self, size: int, places: tuple[Place, ...], begins_steady: bool) -> "Given":
        """With so many, of which the last are never given, another order of `places`, ..."""
        pad = lambda x, value: jnp.concatenate([x, jnp.full(size - self.size, value, x.dtype)])
        numbers = jnp.array([places.index(place) for place in self.places] or [0])
        t, amount, duration = pad(self.t, jnp.inf), pad(self.amount, 0), pad(self.duration, 1)
        into, period = pad(numbers[self.into], 0), pad(self.period, jnp.inf)
        return Given(t, amount, duration, into, period, places, begins_steady)

    @property
    def steady(self) -> "Given":
        """Only what begins a regimen at steady state, as what is given."""
        t = jnp.where(jnp.isfinite(self.period), self.t, jnp.inf)
        return dataclasses.replace(self, t=t, begins_steady=False)

    @property
    def begun(self) -> "Given":
        """What is given if a regimen has begun."""
        return dataclasses.replace(self, begins_steady=False)

    def adjusted(self, lag, part, duration, into: Place | None) -> "Given":
        """Later by `lag`, and by two factors more, of what is given `into` a place, or of all."""
        number = -1 if into not in self.places else self.places.index(into)
        is_meant = (self.into == number) | (into is None)
        t = jnp.where(duration > 0, self.t + lag, jnp.nan)
        return dataclasses.replace(
            self,
            t=jnp.where(is_meant, t, self.t),
            amount=jnp.where(is_meant, self.amount * part, self.amount),
            duration=jnp.where(is_meant, self.duration * duration, self.duration),
        )

    def within(self, t0: Array, period: Array) -> Bool[Array, " n"]:
        """Which begin and end within the one `period` from `t0`; and what is never given."""
        begins = (t0 <= self.t) & (self.t < t0 + period) & (self.period == period)
        return begins & (self.t + self.duration <= t0 + period) | (self.t == jnp.inf)

    def placed(self, names: tuple[str, ...]) -> Int[Array, " n"]:
        """The components."""
        return jnp.array([_component(place, names) for place in self.places] or [0])[self.into]


class Regimen(eqx.Module):
    """What doses and infusions have in common: how much, into what, when, again how often."""

    t: Array
    amount: Array
    into: Place = eqx.field(static=True)
    lag: Array
    bioavailability: Array
    every: Array | None
    count: int = eqx.field(static=True)
    steady: bool = eqx.field(static=True)

    def __init__(self, t, amount, into, lag, bioavailability, every, count: int, steady: bool):
        self.t, self.amount = as_numbers(t, "t"), as_numbers(amount, "amount")
        self.into = _as_place(into)
        self.lag = as_numbers(lag, "lag")
        self.bioavailability = as_numbers(bioavailability, "bioavailability")
        self.every, self.count, self.steady = _repeats(every, count, steady), count, steady

    def given(self, kind: str, duration: Array | None) -> tuple[Array, ...]:
        """Times, amounts, durations and periods of all repetitions, of each shape `(n,)`; an error
        calls it a `kind`."""
        named = dict(
            t=self.t,
            amount=self.amount,
            duration=jnp.zeros(()) if duration is None else duration,
            lag=self.lag,
            bioavailability=self.bioavailability,
            every=jnp.ones(()) if self.every is None else self.every,
        )
        named = natural(named)
        sizes = {x.size for x in named.values() if x.ndim}
        if len(sizes) > 1:
            shapes = ", ".join(f"{name} {x.shape}" for name, x in named.items() if x.ndim)
            raise ValueError(
                f"The arrays of a `{kind}` must have one entry for each dose, got {shapes}."
            )
        wide = [jnp.broadcast_to(x, (*(sizes or {1}),)) for x in named.values()]
        t, amount, duration, lag, part, every = wide
        # What is traced has no error: no solve goes through times that are nan.
        possible = (every > 0) & ((duration > 0) | (kind == "Dose"))
        t = jnp.where(possible, t + lag, jnp.nan)
        times = t[:, None] + every[:, None] * jnp.arange(self.count, dtype=every.dtype)[None]
        many = lambda x: jnp.repeat(x, self.count)
        period = jnp.full(times.shape, jnp.inf, times.dtype)
        if self.steady:
            period = period.at[:, 0].set(every)
        return jnp.ravel(times), many(amount * part), many(duration), jnp.ravel(period)


@final
class Dose(eqx.Module):
    """An amount that is given at once: a bolus, a tablet.

    ```python
    sx.Dose(0.0, 100.0, into="gut", lag=0.5, bioavailability=0.8, every=12.0, count=6)
    ```

    **Arguments:** numbers, which may be traced; or arrays of shape `(doses,)`, one for each of
    several doses.

    - `t`: when it is given [time].
    - `amount`: by how much the component rises, in its unit (of one that is a concentration,
        amount/volume).
    - `into`: the component: a name, of a species that the field declares or of an entry of a state
        that is a dict; or its place in the state. By default the first.
    - `lag`: how much later it arrives [time].
    - `bioavailability`: the part of `amount` that does.
    - `every`, `count`: the same again every so often [time], `count` times in all; static `count`.
    - `steady`: whether the first is one of many before it, so often that the state repeats itself;
        static. Then a simulation starts from that state, see [`Schedule.at_steady_state`][].

    **Raises:** `ValueError` or `TypeError` for what is no number, not finite, or does not fit.
    """

    regimen: Regimen

    @typechecked
    def __init__(
        self,
        t: Explained[NumbersLike],
        amount: Explained[NumbersLike],
        into: Explained[Place] = 0,
        *,
        lag: Explained[NumbersLike] = 0.0,
        bioavailability: Explained[NumbersLike] = 1.0,
        every: Explained[NumbersLike | None] = None,
        count: int = 1,
        steady: bool = False,
    ):
        self.regimen = Regimen(t, amount, into, lag, bioavailability, every, count, steady)
        self.given()  # raises if they do not fit each other

    def given(self) -> tuple[Array, ...]:
        """Times, amounts, durations and periods of all repetitions, of each shape `(n,)`."""
        return self.regimen.given("Dose", None)


@final
class Infusion(eqx.Module):
    """An amount that is given at a constant rate over a time.

    **Arguments:** as [`Dose`][]; the `amount` is that of the whole infusion, and

    - `duration`: > 0; over which time [time]. Of an infusion with a known rate, `amount / rate`.

    **Raises:** as [`Dose`][].
    """

    regimen: Regimen
    duration: Array

    @typechecked
    def __init__(
        self,
        t: Explained[NumbersLike],
        amount: Explained[NumbersLike],
        duration: Explained[NumbersLike],
        into: Explained[Place] = 0,
        *,
        lag: Explained[NumbersLike] = 0.0,
        bioavailability: Explained[NumbersLike] = 1.0,
        every: Explained[NumbersLike | None] = None,
        count: int = 1,
        steady: bool = False,
    ):
        self.regimen = Regimen(t, amount, into, lag, bioavailability, every, count, steady)
        self.duration = as_positive(duration, "duration")
        self.given()  # raises if they do not fit each other

    def given(self) -> tuple[Array, ...]:
        """Times, amounts, durations and periods of all repetitions, of each shape `(n,)`."""
        return self.regimen.given("Infusion", self.duration)


@final
class Reset(eqx.Module):
    """The state becomes what it was at the start, and infusions end.

    **Arguments:**

    - `t`: when [time]; a number, or an array of shape `(resets,)`. Of what is given at the same
        time it comes first.
    """

    t: Array

    @typechecked
    def __init__(self, t: Explained[NumbersLike]):
        self.t = as_numbers(t, "t")


def as_numbers(x: object, name: str) -> Any:
    """An array, or the [`Parameter`][] that was given."""
    if isinstance(x, Parameter):
        as_numbers(x.value, name)  # raises
        return x
    refuse_masked(x, name)
    given: Any = x if eqx.is_array(x) else np.asarray(x)
    if not is_real(given.dtype):
        raise TypeError(f"`{name}` must be a number, or an array of numbers, got {short(x)}.")
    if given.ndim > 1 or given.size == 0:
        raise ValueError(
            f"`{name}` must be a number, or one for each of several doses, got shape {given.shape}."
        )
    if not is_traced(given) and not np.isfinite(given).all():
        raise ValueError(f"`{name}` must be finite, got {short(x)}.")
    return jnp.asarray(given, float)


def as_positive(x: object, name: str) -> Any:
    given = as_numbers(x, name)
    number = natural(given)
    if not is_traced(number) and not (np.asarray(number) > 0).all():
        raise ValueError(f"`{name}` must be above 0, got {short(x)}.")
    return given


def _as_place(into: object) -> Place:
    if not isinstance(into, str | int | np.integer) or isinstance(into, bool):
        raise TypeError(
            f"`into` must be the name of a component or its place in the state, got {short(into)}."
        )
    return into if isinstance(into, str) else int(into)


def _repeats(every: object, count: int, steady: bool) -> Array | None:
    if count < 1:
        raise ValueError(f"`count` must be at least 1, got {count}.")
    if (every is None) != (count == 1 and not steady):
        raise ValueError(
            "`every` is the time between `count` > 1 doses, or those of a regimen at steady state: "
            f"give both or none, got every={short(every)}, count={count} and steady={steady}."
        )
    return None if every is None else as_positive(every, "every")


def _component(place: Place, names: tuple[str, ...]) -> int:
    """Where it is in the flat state."""
    if isinstance(place, int):
        if not -len(names) <= place < len(names):
            raise ValueError(f"`into` is {place}, but the state has {len(names)} components.")
        return place % len(names)
    names = tuple(re.sub(r"^\['([^'\]]*)'\]$", r"\1", name) for name in names)  # of a dict
    if place in names:
        return names.index(place)
    raise ValueError(
        f"`into` is `{clipped(place)}`, which is no component. {closest(place, names)}"
    )
