"""What a model returns."""

import equinox as eqx
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._control import GuardCounts, StepLog
from .._results import RESULTS, ended
from .._steady import SteadyState
from .._words import called
from ._event import EventLog


class GuardSummary(eqx.Module):
    """What the guard, and the test of every step for finiteness, did during a solve.

    **Attributes:** numbers of steps

    - `rejected_not_finite`: rejected because the step's result was not finite.
    - `rejected_outside`: rejected because it left the guard's box.
    - `masked`: tried, accepted or not, with a non-finite output of the field that the guard
        replaced by its `fill` (0 without a `fill`).
    - `masked_accepted`: those of them that were accepted.

    - `accepted`: with `telemetry=True`, the [`GuardCounts`][] of the accepted steps, component by
        component; otherwise `None`.
    """

    rejected_not_finite: Int[Array, ""]
    rejected_outside: Int[Array, ""]
    masked: Int[Array, ""]
    masked_accepted: Int[Array, ""]
    accepted: GuardCounts | None


class About(eqx.Module):
    """What the words about a simulation need to know of its model.

    - `names`: of the components, in `ravel_pytree` order.
    - `family`: of the solver: `"rosenbrock"`, `"esdirk"` or `"explicit"`.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    family: str = eqx.field(static=True)


class Simulation(eqx.Module):
    """A trajectory, and how its solve ended.

    **Attributes:**

    - `ts`: the times asked for, shape `(times,)`.
    - `ys`: the states there: the structure of `y0`, each leaf with a leading axis `times`. Always
        finite: rows that were not reached repeat the last accepted state.
    - `reached`: which rows were reached, shape `(times,)`.
    - `t1`: where the solve ended, shape `()`: the last time asked for (of phases, the end of the
        last one), or the time of the event, differentiable. Where it failed: how far it came,
        with a gradient of zero.
    - `steady`: the [`SteadyState`][] it starts from, or `None`.
    - `result`: a member of [`RESULTS`][]: the first thing that went wrong, in time order. If it is
        not successful, the gradient of `ys` is zero, so that a loss of it means something only
        together with `result`; see [`masked_mean`][]. A successful one may still have a gradient
        that is not finite, where the field has none: an error with `throw=True`, returned as it is
        with `throw=False`.
    - `stats`: `num_steps`, `num_accepted_steps`, `num_rejected_steps`, `max_steps`; and where the
        solve ended: `t`, the step size `dt` last tried, and the `component` (its index in
        `ravel_pytree` order) that was worst in the last rejected step.
    - `guard`: a [`GuardSummary`][].
    - `events`: the [`EventLog`][] of a model with [`Event`][]s, otherwise `None`.
    - `steps`: with `trace="record"` the [`StepLog`][] of all steps, otherwise `None`.
    """

    ts: Float[Array, " times"]
    ys: PyTree[Float[Array, "times ..."]]
    reached: Bool[Array, " times"]
    t1: Float[Array, ""]
    steady: SteadyState | None
    result: RESULTS
    stats: dict[str, Array]
    guard: GuardSummary
    events: EventLog | None
    steps: StepLog | None
    about: About

    def __repr__(self) -> str:
        parts = [f"{name}={eqx.tree_pformat(getattr(self, name))}" for name in ("ts", "ys")]
        parts += [] if self.steady is None else [f"steady={self.steady!r}"]
        return called("Simulation", [*parts, f"result={ended(self.result)}"])
