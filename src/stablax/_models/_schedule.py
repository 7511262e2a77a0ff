"""`Schedule`: what is given to a patient when, as the phases of a model."""

from collections.abc import Sequence
from typing import Any, Unpack, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

from .._fields import names_of
from .._parameters import Deferred, declared
from .._states import as_args, as_state
from .._static import Static, is_traced
from .._types import VF, Args, Explained, ScalarLike, YLike, typechecked
from .._words import closest, quoted, short
from ._dose import AbstractDose, AddDose
from ._given import Dose, Given, Infusion, Place, Reset, as_numbers, as_positive
from ._periodic import MOST_PERIODS, found_periodic
from ._periodic_state import PeriodicState
from ._phase import Phase, PhaseArguments
from ._simulate_phases import SimulatePhases


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
    program; times may change their order.

    **Arguments:**

    - `doses`: a sequence of [`Dose`][], [`Infusion`][] and [`Reset`][]. Where a number of one is a
        [`Parameter`][], only `.phases` can be called, whose result is for a call of a model.

    **Raises:** `TypeError` for anything else in it.
    """

    # Deferred where the values of parameters are not known.
    _doses: Any
    _infusions: Any
    _resets: Any

    @typechecked
    def __init__(self, doses: Explained[Sequence[Dose | Infusion | Reset]]):
        if isinstance(doses, Dose | Infusion | Reset):
            doses = [doses]
        for k, dose in enumerate(doses):
            if not isinstance(dose, Dose | Infusion | Reset):
                raise TypeError(
                    f"`doses[{k}]` must be a `Dose`, an `Infusion` or a `Reset`, got {short(dose)}."
                )
        self._doses = _given([dose for dose in doses if isinstance(dose, Dose)])
        self._infusions = _given([dose for dose in doses if isinstance(dose, Infusion)])
        resets = [dose.t for dose in doses if isinstance(dose, Reset)]
        self._resets = Deferred(Static(_joint), resets) if declared(resets) else _joint(resets)

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

        for one in schedules:
            one._refuse_parameters()

        def padded(name: str) -> list[Given]:
            parts = [getattr(one, name) for one in schedules]
            places = tuple(dict.fromkeys(place for part in parts for place in part.places))
            size = max(part.size for part in parts)
            begins_steady = any(part.begins_steady for part in parts)
            return [part.padded(size, places, begins_steady) for part in parts]

        size = max(one._resets.size for one in schedules)
        pad = lambda ts: jnp.concatenate([ts, jnp.full(size - ts.size, jnp.inf)])
        resets = [pad(one._resets) for one in schedules]
        each = zip(padded("_doses"), padded("_infusions"), resets, strict=True)
        many = [_schedule(*own) for own in each]
        return jtu.tree_map(lambda *xs: jnp.stack(xs), *many)

    @typechecked
    def adjusted(
        self,
        *,
        lag: ScalarLike = 0.0,
        bioavailability: ScalarLike = 1.0,
        duration: ScalarLike = 1.0,
        into: Explained[Place | None] = None,
    ) -> "Schedule":
        """With what is estimated: of a schedule that was read from a table, or of many.

        **Arguments:** numbers, which may be traced.

        - `lag`: how much later all doses and infusions arrive [time].
        - `bioavailability`: a factor of all amounts (1 / volume, if the state is a concentration).
        - `duration`: a factor of the durations of infusions.
        - `into`: only of what is given into this component, as it was named; by default of all.

        **Returns:** the `Schedule`.

        **Raises:** `ValueError` if nothing is given into that component, or `duration` is not
        above 0.
        """
        self._refuse_parameters()
        parts = (self._doses, self._infusions)
        places = [place for part in parts for place in part.places]
        if into is not None and into not in places:
            names = sorted({str(place) for place in places})
            raise ValueError(
                f"`into` is {short(into)}, into which nothing is given. {closest(str(into), names)}"
            )
        numbers = (
            as_numbers(lag, "lag"),
            as_numbers(bioavailability, "bioavailability"),
            as_positive(duration, "duration"),
        )
        doses, infusions = (part.adjusted(*numbers, into) for part in parts)
        return _schedule(doses, infusions, self._resets)

    def _refuse_parameters(self) -> None:
        if names := [p.name for p in declared(self)]:
            raise TypeError(
                f"The schedule has parameters ({quoted(names)}), whose values are known only in "
                "the call of a model: only `.phases` can wait for them. With their present values, "
                "`stablax.natural(schedule)`."
            )

    @property
    def ts(self) -> Float[Array, " times"]:
        """The times at which something begins or ends, in no order: those of doses, of the starts
        and the ends of infusions, of resets. What is inf never does."""
        self._refuse_parameters()
        ends = self._infusions.t + self._infusions.duration
        return jnp.concatenate([ends, self._resets, self._doses.t, self._infusions.t], axis=-1)

    @typechecked
    def at_steady_state(
        self,
        model: SimulatePhases,
        y0: YLike,
        *,
        args: Args = None,
        t0: ScalarLike = 0.0,
        throw: bool = True,
    ) -> tuple[PeriodicState, "Schedule"]:
        """Where a simulation starts if a dose is `steady`: at the state at `t0` of a patient who
        has taken these doses, and nothing else, for long.

        ```python
        start, rest = schedule.at_steady_state(model, y0, args=args)
        simulation = model(start.y, ts, rest.phases(field, y0, end, args=args))
        ```

        **Arguments:**

        - `model`, `y0`, `t0`, `throw`: as [`find_periodic_state`][]. The period is the `every` of
            the doses, which must be the same for all that are `steady` (of a patient), and begins
            at `t0`; they arrive within it, and infusions end in it.
        - `args`: the condition.

        **Returns:** a [`PeriodicState`][] at `t0`, of which `y` is `y0` where no dose is `steady`;
        and the schedule as one that starts from there.

        **Raises:** as [`find_periodic_state`][]; `ValueError` for doses that are not within the
        period (where they are traced there is no periodic state).
        """
        y0 = as_state(y0, "y0")
        if not self._begins_steady:
            return PeriodicState.trivial(y0), self
        self._refuse_stack("at_steady_state")
        rest = _schedule(self._doses.begun, self._infusions.begun, self._resets)
        given = (self._doses.steady, self._infusions.steady)
        periods = jnp.concatenate([part.period for part in given])
        period = jnp.min(periods)
        has_steady = jnp.isfinite(period)
        t0 = jnp.asarray(t0, periods.dtype)
        _check_period(*given, t0, period)
        once = _schedule(*given, jnp.zeros(0))
        end = jnp.where(has_steady, t0 + period, t0)
        phases = once.phases(model.field, y0, end, args=args, t0=t0)
        fits = jnp.all(jnp.concatenate([part.within(t0, period) for part in given]))
        return found_periodic(model, y0, phases, t0, has_steady, fits, MOST_PERIODS, throw), rest

    @property
    def _begins_steady(self) -> bool:
        return self._doses.begins_steady or self._infusions.begins_steady

    def _refuse_stack(self, method: str) -> None:
        if self.ts.ndim != 1:
            raise ValueError(
                f"A stack of schedules (here with arrays of shape {self.ts.shape}) is one for each "
                f"patient: call `{method}` under `jax.vmap`."
            )

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
    ) -> Explained[Phase]:
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
        if declared((self, y0, args)):
            build = lambda parts: parts[0].phases(
                field, parts[1], end, args=parts[2], t0=t0, **options
            )
            return Deferred(Static(build), (self, y0, args))  # pyright: ignore[reportReturnType]
        y0 = as_state(y0, "y0")
        self._refuse_stack("phases")
        if self._begins_steady:
            raise ValueError(
                "A dose of the schedule is `steady`: `start, rest = schedule.at_steady_state("
                "model, y0, args=args)` finds the state that a simulation starts from, and "
                "`rest.phases` are those after it."
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


def _given(doses: list[Any]) -> Given | Deferred:
    return Deferred(Static(Given.of), doses) if declared(doses) else Given.of(doses)


def _joint(times: list[Array]) -> Float[Array, " times"]:
    return jnp.concatenate([jnp.zeros(0), *map(jnp.atleast_1d, times)])


def _schedule(doses: Given, infusions: Given, resets: Float[Array, " resets"]) -> Schedule:
    """Of its parts."""
    parts = lambda one: (one._doses, one._infusions, one._resets)
    return eqx.tree_at(parts, Schedule([]), (doses, infusions, resets))


class _ResetAndAdd(AbstractDose):
    """The state before it, or another, and something more."""

    is_reset: Bool[Array, ""]
    start: PyTree[Array]
    amount: PyTree[Array]

    def __call__(self, t, y, args):
        before = optax.tree.where(self.is_reset, self.start, y)
        return jtu.tree_map(jnp.add, before, self.amount)


def _check_times(ts: ArrayLike, t0: ScalarLike) -> None:
    if is_traced((ts, t0)):
        return
    first, start = np.min(np.append(ts, np.inf)), np.asarray(t0)
    if first < start:
        raise ValueError(
            f"Something is given at t = {first:g}, before the start, t0 = {start:g}. Start "
            "earlier, or leave it out."
        )


def _check_period(doses: Given, infusions: Given, t0: Array, period: Array) -> None:
    """Raises where what begins a regimen at steady state is not within the period from `t0`."""
    if is_traced((doses, infusions, t0, period)):
        return
    for part in (doses, infusions):
        wrong = np.flatnonzero(~np.asarray(part.within(t0, period)))
        if not wrong.size:
            continue
        t, duration, own = (float(x[wrong[0]]) for x in (part.t, part.duration, part.period))
        if own != period:
            raise ValueError(
                f"Doses at steady state are given every {float(period):g} and every {own:g}: they "
                "must have one `every`."
            )
        what = "an infusion ends" if duration > 0 else "a dose arrives"
        raise ValueError(
            f"A regimen at steady state starts at t0 = {float(t0):g} and repeats every "
            f"{float(period):g}, but {what} at {t + duration:g}, which is not within its first "
            "period."
        )
