"""`Schedule`: what is given to a patient when, as the phases of a model."""

import re
from collections.abc import Sequence
from typing import Any, Unpack, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from .._fields import names_of
from .._states import as_args, as_state
from .._static import is_real, is_traced, refuse_masked
from .._types import VF, Args, Explained, NumbersLike, ScalarLike, YLike, typechecked
from .._words import clipped, closest, short
from ._dose import AbstractDose, AddDose
from ._phase import Phase, PhaseArguments

Place = str | int


class _Given(eqx.Module):
    """What is given into the components `into` (numbers of `places`) at `t`, over `duration`."""

    t: Float[Array, " n"]
    amount: Float[Array, " n"]
    duration: Float[Array, " n"]
    into: Int[Array, " n"]
    places: tuple[Place, ...] = eqx.field(static=True)

    @staticmethod
    def of(doses: Sequence["Dose | Infusion"]) -> "_Given":
        parts = [(jnp.zeros(0),) * 3, *(dose.given() for dose in doses)]
        places = tuple(dict.fromkeys(dose.into for dose in doses))
        into = [
            np.full(part[0].size, places.index(dose.into))
            for dose, part in zip(doses, parts[1:], strict=True)
        ]
        into = np.concatenate([np.zeros(0, int), *into])
        t, amount, duration = map(jnp.concatenate, zip(*parts, strict=True))
        return _Given(t, amount, duration, jnp.asarray(into), places)

    @property
    def size(self) -> int:
        return self.t.shape[-1]

    def padded(self, size: int, places: tuple[Place, ...]) -> "_Given":
        """With so many, of which the last are never given, and another order of `places`."""
        pad = lambda x, value: jnp.concatenate([x, jnp.full(size - self.size, value, x.dtype)])
        numbers = jnp.array([places.index(place) for place in self.places] or [0])
        t, amount, duration = pad(self.t, jnp.inf), pad(self.amount, 0), pad(self.duration, 1)
        return _Given(t, amount, duration, pad(numbers[self.into], 0), places)

    def placed(self, names: tuple[str, ...]) -> Int[Array, " n"]:
        """The components."""
        return jnp.array([_component(place, names) for place in self.places] or [0])[self.into]


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

    **Raises:** `ValueError` or `TypeError` for what is no number, not finite, or does not fit.
    """

    t: Array
    amount: Array
    into: Place = eqx.field(static=True)
    lag: Array
    bioavailability: Array
    every: Array | None
    count: int = eqx.field(static=True)

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
    ):
        self.t, self.amount = _numbers(t, "t"), _numbers(amount, "amount")
        self.into = _as_place(into)
        self.lag = _numbers(lag, "lag")
        self.bioavailability = _numbers(bioavailability, "bioavailability")
        self.every, self.count = _repeats(every, count), count
        self.given()  # raises if they do not fit each other

    def given(self) -> tuple[Array, Array, Array]:
        """Times, amounts, durations, of each shape `(n,)`."""
        return _given(self, jnp.zeros(()))


@final
class Infusion(eqx.Module):
    """An amount that is given at a constant rate over a time.

    **Arguments:** as [`Dose`][]; the `amount` is that of the whole infusion, and

    - `duration`: > 0; over which time [time]. Of an infusion with a known rate, `amount / rate`.

    **Raises:** as [`Dose`][].
    """

    t: Array
    amount: Array
    duration: Array
    into: Place = eqx.field(static=True)
    lag: Array
    bioavailability: Array
    every: Array | None
    count: int = eqx.field(static=True)

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
    ):
        self.t, self.amount = _numbers(t, "t"), _numbers(amount, "amount")
        self.duration = _positive(duration, "duration")
        self.into = _as_place(into)
        self.lag = _numbers(lag, "lag")
        self.bioavailability = _numbers(bioavailability, "bioavailability")
        self.every, self.count = _repeats(every, count), count
        self.given()  # raises if they do not fit each other

    def given(self) -> tuple[Array, Array, Array]:
        """Times, amounts, durations, of each shape `(n,)`."""
        return _given(self, self.duration)


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
        self.t = _numbers(t, "t")


@final
class Schedule(eqx.Module):
    """What is given to a patient, in any order.

    ```python
    schedule = sx.Schedule(
        [
            sx.Dose(0.0, 100.0, into="gut", every=12.0, count=4),
            sx.Infusion(t=6.0, amount=50.0, duration=2.0, into="plasma"),
        ]
    )
    model = sx.SimulatePhases(field)
    simulation = model(y0, ts, schedule.phases(field, y0, end=48.0, args=args))
    ```

    All amounts, times, durations, lags, ... are differentiable, and other values are no other
    program; times may change their order. Doses of one time are given together; if they move apart,
    derivatives in their times are those of moving them together.

    **Arguments:**

    - `doses`: a sequence of [`Dose`][], [`Infusion`][] and [`Reset`][].

    **Raises:** `TypeError` for anything else in it.
    """

    _doses: _Given
    _infusions: _Given
    _resets: Float[Array, " resets"]

    @typechecked
    def __init__(self, doses: Explained[Sequence[Dose | Infusion | Reset]]):
        if isinstance(doses, Dose | Infusion | Reset):
            doses = [doses]
        for k, dose in enumerate(doses):
            if not isinstance(dose, Dose | Infusion | Reset):
                raise TypeError(
                    f"`doses[{k}]` must be a `Dose`, an `Infusion` or a `Reset`, got {short(dose)}."
                )
        self._doses = _Given.of([dose for dose in doses if isinstance(dose, Dose)])
        self._infusions = _Given.of([dose for dose in doses if isinstance(dose, Infusion)])
        resets = [jnp.atleast_1d(dose.t) for dose in doses if isinstance(dose, Reset)]
        self._resets = jnp.concatenate([jnp.zeros(0), *resets])

    @staticmethod
    @typechecked
    def stack(schedules: Explained[Sequence["Schedule"]]) -> "Schedule":
        """Those of several patients as one, whose arrays have a leading axis, the patients, for
        `jax.vmap` and [`simulate_batch`][]; padded with doses that are never given.

        **Arguments:**

        - `schedules`: one for each patient.

        **Returns:** a `Schedule` of which `.phases` is called under `jax.vmap`.
        """
        if not schedules or not all(isinstance(one, Schedule) for one in schedules):
            raise TypeError(
                f"`schedules` must be a sequence of one or more, got {short(schedules)}."
            )

        def padded(name: str) -> list[_Given]:
            parts = [getattr(one, name) for one in schedules]
            places = tuple(dict.fromkeys(place for part in parts for place in part.places))
            size = max(part.size for part in parts)
            return [part.padded(size, places) for part in parts]

        size = max(one._resets.size for one in schedules)
        pad = lambda ts: jnp.concatenate([ts, jnp.full(size - ts.size, jnp.inf)])
        resets = [pad(one._resets) for one in schedules]
        each = zip(padded("_doses"), padded("_infusions"), resets, strict=True)
        parts = lambda one: (one._doses, one._infusions, one._resets)
        many = [eqx.tree_at(parts, schedules[0], own) for own in each]
        return jtu.tree_map(lambda *xs: jnp.stack(xs), *many)

    @property
    def ts(self) -> Float[Array, " times"]:
        """The times at which something begins or ends, in no order: those of doses, of the starts
        and the ends of infusions, of resets. What is inf never does."""
        ends = self._infusions.t + self._infusions.duration
        return jnp.concatenate([ends, self._resets, self._doses.t, self._infusions.t], axis=-1)

    @typechecked
    def phases(
        self,
        field: VF,
        y0: YLike,
        end: ScalarLike,
        *,
        args: Args = None,
        t0: ScalarLike = 0.0,
        **options: Unpack[PhaseArguments],
    ) -> Phase:
        """The phases between the times at which something begins or ends, as a stack.

        **Arguments:**

        - `field`: that of the model, which knows the names of its components.
        - `y0`: the state before all, to which a [`Reset`][] returns.
        - `end`: the end of the last phase [time]. What would be given later is not.
        - `args`: the condition of all phases.
        - `t0`: the start of the first, as in the call of the model. Nothing is given before.
        - `**options`: of all phases, as [`Phase`][].

        **Returns:** a [`Phase`][] with `t1` of shape `(phases,)`, one more than there are `ts`.

        **Raises:** `ValueError` for a component that the state does not have, and for what is given
        before `t0` (where times are traced the result of the solve is `bad_phases`).
        """
        y0 = as_state(y0, "y0")
        if self.ts.ndim != 1:
            raise ValueError(
                f"A stack of schedules (here with arrays of shape {self.ts.shape}) is one for each "
                "patient: call `phases` under `jax.vmap`."
            )
        _check_times(self.ts, t0)
        flat, unravel = ravel_pytree(y0)
        rows = jax.vmap(unravel)
        names = names_of(field, y0)
        order = jnp.argsort(self.ts, stable=True)
        times = self.ts[order]
        end = jnp.asarray(end, times.dtype)
        t1 = jnp.append(jnp.where(times > end, end, times), end)
        # In which phase each begins, in the order of `ts`.
        begins = jnp.argsort(order) + 1
        sizes = np.cumsum([self._infusions.size, self._resets.size, self._doses.size])
        stops, resets, doses, starts = jnp.split(begins, sizes)
        shape = (t1.size, flat.size)

        is_given = self._doses.t <= end
        amounts = jnp.where(is_given, self._doses.amount, 0).astype(flat.dtype)
        added = jnp.zeros(shape, flat.dtype).at[doses, self._doses.placed(names)].add(amounts)
        dose: AbstractDose = AddDose(rows(added))
        if resets.size:
            is_reset = jnp.zeros(t1.size, bool).at[resets].set(self._resets <= end)
            dose = _ResetAndAdd(is_reset, rows(jnp.broadcast_to(flat, shape)), rows(added))
        inflow = None
        if starts.size:
            place = jnp.arange(t1.size)[:, None]
            runs = (starts[None] <= place) & (place < stops[None])
            if resets.size:
                past = jnp.where(resets[None] <= place, resets[None], -1)
                runs &= jnp.max(past, axis=1, keepdims=True) <= starts[None]
            rates = (self._infusions.amount / self._infusions.duration).astype(flat.dtype)
            into = self._infusions.placed(names)
            inflow = jnp.zeros(shape, flat.dtype).at[:, into].add(jnp.where(runs, rates[None], 0))
            inflow = rows(inflow)
        many = lambda x: jnp.repeat(x[None], t1.size, 0) if eqx.is_array(x) else x
        args = jtu.tree_map(many, as_args(args, flat.dtype))
        return Phase(t1, args, dose, inflow=inflow, **options)


class _ResetAndAdd(AbstractDose):
    """The state before it, or another, and something more."""

    is_reset: Bool[Array, ""]
    start: PyTree[Array]
    amount: PyTree[Array]

    def __call__(self, t, y, args):
        before = optax.tree.where(self.is_reset, self.start, y)
        return jtu.tree_map(jnp.add, before, self.amount)


def _numbers(x: object, name: str) -> Array:
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


def _positive(x: object, name: str) -> Array:
    number = _numbers(x, name)
    if not is_traced(number) and not (np.asarray(number) > 0).all():
        raise ValueError(f"`{name}` must be above 0, got {short(x)}.")
    return number


def _as_place(into: object) -> Place:
    if not isinstance(into, str | int | np.integer) or isinstance(into, bool):
        raise TypeError(
            f"`into` must be the name of a component or its place in the state, got {short(into)}."
        )
    return into if isinstance(into, str) else int(into)


def _repeats(every: object, count: int) -> Array | None:
    if count < 1:
        raise ValueError(f"`count` must be at least 1, got {count}.")
    if (every is None) != (count == 1):
        raise ValueError(
            f"`every` is the time between `count` > 1 doses: give both or none, got "
            f"every={short(every)} and count={count}."
        )
    return None if every is None else _positive(every, "every")


def _given(dose: Dose | Infusion, duration: Array) -> tuple[Array, Array, Array]:
    """Times, amounts and durations of all repetitions."""
    every = jnp.zeros(()) if dose.every is None else dose.every
    named = dict(
        t=dose.t,
        amount=dose.amount,
        duration=duration,
        lag=dose.lag,
        bioavailability=dose.bioavailability,
        every=every,
    )
    sizes = {x.size for x in named.values() if x.ndim}
    if len(sizes) > 1:
        shapes = ", ".join(f"{name} {x.shape}" for name, x in named.items() if x.ndim)
        raise ValueError(
            f"The arrays of a `{type(dose).__name__}` must have one entry for each dose, got "
            f"{shapes}."
        )
    wide = [jnp.broadcast_to(x, (*(sizes or {1}),)) for x in named.values()]
    t, amount, duration, lag, part, every = wide
    times = (t + lag)[:, None] + every[:, None] * jnp.arange(dose.count, dtype=every.dtype)[None]
    many = lambda x: jnp.repeat(x, dose.count)
    return jnp.ravel(times), many(amount * part), many(duration)


def _component(place: Place, names: tuple[str, ...]) -> int:
    """Where it is in the flat state."""
    if isinstance(place, int):
        if not -len(names) <= place < len(names):
            raise ValueError(f"`into` is {place}, but the state has {len(names)} components.")
        return place % len(names)
    names = tuple(re.sub(r"^\['(.*)'\]$", r"\1", name) for name in names)  # entries of a dict
    if place in names:
        return names.index(place)
    raise ValueError(
        f"`into` is `{clipped(place)}`, which is no component. {closest(place, names)}"
    )


def _check_times(ts: ArrayLike, t0: ScalarLike) -> None:
    if is_traced((ts, t0)):
        return
    first, start = np.min(np.append(ts, np.inf)), np.asarray(t0)
    if first < start:
        raise ValueError(
            f"Something is given at t = {first:g}, before the start, t0 = {start:g}. Start "
            "earlier, or leave it out."
        )
