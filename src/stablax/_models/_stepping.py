"""What of the options of a model is compiled, and what is data: a `Plan`, and a `Pace`."""

import dataclasses
import functools
from typing import Any, final

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from .._control import (
    AdmissibleSteps,
    StiffPID,
    admissible,
    check_reach,
    least_rtol,
    near,
    refuse_no_numbers,
)
from .._fields import Guard
from .._solvers import is_implicit
from .._states import is_none
from .._static import Static, is_traced, real_array
from .._types import Explained, NumbersLike, typechecked
from .._words import short
from ._adjoint import DiscreteAdjoint
from ._event import Event
from ._options import ResolvedOptions


def _positive(x: object, name: str) -> Array | np.ndarray | None:
    if x is None:
        return None
    if is_traced(x):
        return jnp.asarray(x)
    value = real_array(x, name)
    if not (value.size and (value > 0).all() and np.isfinite(value).all()):
        raise ValueError(f"`{name}` must be finite and above 0, got {short(x)}.")
    return value


def _count(x: object) -> Any:
    if x is None or is_traced(x):
        return x
    value = real_array(x, "max_steps")
    whole = np.isfinite(value) & (value >= 1) & (value == np.round(value))
    if not (value.size and whole.all()):
        raise ValueError(f"`max_steps` must be a whole number of at least 1, got {short(x)}.")
    return value.astype(int)


def _given_times(ts: NumbersLike | None, name: str) -> Array | np.ndarray | None:
    if ts is None:
        return None
    if is_traced(ts):
        ts = jnp.atleast_1d(jnp.asarray(ts))
    else:
        ts = np.atleast_1d(real_array(ts, name))
    # Of an empty array a controller cannot take the next time.
    return ts if ts.shape[-1] else np.full((*ts.shape[:-1], 1), np.inf)


@final
class Stepping(eqx.Module):
    """How one call of a model steps, as data: what is given replaces what the model has.

    ```python
    model(y0, ts, stepping=sx.Stepping(rtol=1e-8, jump_ts=[4.0, 8.0]))
    ```

    Another value compiles nothing. All may be traced, and differ from lane to lane: under
    `jax.vmap`, and in the `inputs` of [`simulate_batch`][] with a leading axis. None has a
    derivative: a switch time that is fitted is the end of a [`Phase`][].

    **Arguments:**

    - `rtol`: > 0, at least 10 eps of the dtype of the state. (The model's own, which it replaces,
        need not be.)
    - `atol`: > 0, in the units of the state: one number for all components, or an array (a PyTree
        of arrays for such a state), one for each.
    - `dtmax`: > 0; the longest step [time]; not below the `dtmin` of the model.
    - `max_steps`: >= 1, at most that of the model (rounded up to a power of two), to which a traced
        one is limited: the model's is the size of the record of a derivative.
    - `step_ts`, `jump_ts`: times to step to exactly; times at which the field jumps. Shape
        `(times,)`, in any order; an empty one is none, whatever the model has. What is nan or inf
        is no time: schedules of different length are padded with it.

    **Raises:** `ValueError` or `TypeError` for a value out of range, where values are concrete;
    when a model is called, for what its controller or its adjoint has not.
    """

    rtol: Array | np.ndarray | None = None
    atol: PyTree[Array | np.ndarray] | None = None
    dtmax: Array | np.ndarray | None = None
    max_steps: Array | np.ndarray | None = None
    step_ts: Array | np.ndarray | None = None
    jump_ts: Array | np.ndarray | None = None

    @typechecked
    def __init__(
        self,
        *,
        rtol: Explained[ArrayLike | None] = None,
        atol: Explained[PyTree[ArrayLike] | None] = None,
        dtmax: Explained[ArrayLike | None] = None,
        max_steps: Explained[ArrayLike | None] = None,
        step_ts: Explained[NumbersLike | None] = None,
        jump_ts: Explained[NumbersLike | None] = None,
    ):
        self.rtol = _positive(rtol, "rtol")
        if atol is not None:
            refuse_no_numbers(atol)
        self.atol = jtu.tree_map_with_path(
            lambda path, x: _positive(x, f"atol{jtu.keystr(path)}"), atol
        )
        self.dtmax = _positive(dtmax, "dtmax")
        self.max_steps = _count(max_steps)
        self.step_ts = _given_times(step_ts, "step_ts")
        self.jump_ts = _given_times(jump_ts, "jump_ts")

    @property
    def given_times(self) -> dict[str, Array | np.ndarray]:
        """Those that there are, by name."""
        named = dict(step_ts=self.step_ts, jump_ts=self.jump_ts)
        return {name: ts for name, ts in named.items() if ts is not None}


def as_stepping(stepping: object) -> Stepping | None:
    if stepping is None or isinstance(stepping, Stepping):
        return stepping
    raise TypeError(
        f"`stepping` must be a `stablax.Stepping`, got {short(stepping)}; for instance "
        "`stepping=sx.Stepping(rtol=1e-8)`."
    )


class Plan(eqx.Module):
    """What of the options of a model is compiled into its program."""

    solver: diffrax.AbstractSolver
    adjoint: diffrax.AbstractAdjoint | DiscreteAdjoint
    event: diffrax.Event | tuple[Event, ...] | None
    progress_meter: diffrax.AbstractProgressMeter
    telemetry: bool
    trace: str | None
    capacity: int  # of what is kept of the steps
    on_own_loop: bool
    width: int | None  # of a batch, how many step at once at most


def joint_plan(a: Static, b: Static) -> Static | None:
    """The one of two `Plan`s that serves both, if one does: they differ at most in what they can
    keep."""
    if a == b:
        return a
    small, large = sorted((a, b), key=lambda plan: plan.tree.capacity)
    as_large = dataclasses.replace(small.tree, capacity=large.tree.capacity)
    # The record of steps that was asked for is as long as it says.
    same = Static(as_large, "options") == large and large.tree.trace != "record"
    return large if same and large.tree.on_own_loop else None


class Pace(eqx.Module):
    """The rest: numbers, of which another value compiles nothing. (And the controller's code.)"""

    arrays: PyTree[Array]
    rest: Static
    max_steps: Array | np.ndarray
    dt0: Array | np.ndarray | None

    @property
    def controller(self) -> AdmissibleSteps:
        return eqx.combine(self.arrays, self.rest.tree)

    def replace(
        self, controller: AdmissibleSteps, max_steps: Array | np.ndarray | None = None
    ) -> "Pace":
        arrays, rest = eqx.partition(controller, eqx.is_array)
        max_steps = self.max_steps if max_steps is None else max_steps
        return Pace(arrays, Static(rest, "controller"), max_steps, self.dt0)


def planned(
    options: Static, guard: Guard, dtype: np.dtype, stepping: Stepping | None
) -> tuple[Static, Pace]:
    """The `Plan` of `options` (`ResolvedOptions`), and the `Pace` for a state of `dtype`."""
    uses_rtol = stepping is None or stepping.rtol is None
    plan, pace = _planned(options, guard, dtype, uses_rtol)
    if stepping is not None:
        pace = _stepped(plan.tree, pace, stepping, dtype)
    return plan, pace


def own_rtol(options: Static, guard: Guard, dtype: np.dtype) -> float:
    """The `rtol` of a model of which a call has another, that nobody knows: at least what `dtype`
    reaches."""
    _, pace = _planned(options, guard, dtype, False)
    return max(float(pace.controller.rtol), least_rtol(dtype))


@functools.lru_cache(maxsize=256)
def _planned(held: Static, guard: Guard, dtype: np.dtype, uses_rtol: bool) -> tuple[Static, Pace]:
    options: ResolvedOptions = held.tree
    plan = Plan(
        solver=options.solver,
        adjoint=options.adjoint,
        event=options.event,
        progress_meter=options.progress_meter,
        telemetry=options.telemetry,
        trace=options.trace,
        capacity=options.capacity,
        on_own_loop=options.on_own_loop,
        width=options.width,
    )
    with jax.ensure_compile_time_eval():
        controller = _as_numbers(controller_of(options, guard, dtype, uses_rtol), dtype)
    arrays, rest = eqx.partition(controller, eqx.is_array)
    dt0 = None if options.dt0 is None else np.asarray(abs(options.dt0), dtype)
    pace = Pace(arrays, Static(rest, "controller"), np.asarray(options.max_steps), dt0)
    return Static(plan, "options"), pace


def controller_of(
    options: ResolvedOptions, guard: Guard, dtype: np.dtype, uses_rtol: bool = True
) -> AdmissibleSteps:
    """The controller that runs, for a state of `dtype`; with its own `rtol`, or with another."""
    controller, limit, atols = options.controller, None, None
    if isinstance(controller, StiffPID):
        limit, atols = controller.factormax_after_rejection, controller.atols
        controller = controller.for_dtype(dtype, uses_rtol).control_law(dtype)
    implicit = is_implicit(options.solver)
    return admissible(controller, guard, dtype, implicit, limit, atols)


def _law(controller: diffrax.AbstractStepSizeController) -> Any:
    """The innermost controller."""
    inner = getattr(controller, "controller", None)
    return controller if inner is None else _law(inner)


def _changed(controller: AdmissibleSteps, **changes: Any) -> AdmissibleSteps:
    """With `rtol`, `atol`, `dtmin` or `dtmax` changed, where the law has them."""
    law = [name for name in changes if isinstance(_law(controller), diffrax.PIDController)]
    own = [name for name in changes if name in ("rtol", "atol")]
    places = lambda c: [getattr(_law(c), n) for n in law] + [getattr(c, n) for n in own]
    values = [changes[name] for name in law + own]
    return eqx.tree_at(places, controller, values, is_leaf=is_none)


def _as_numbers(controller: AdmissibleSteps, dtype: np.dtype) -> AdmissibleSteps:
    """`controller`, whose numbers are arrays. In `numpy`: they are kept from call to call."""
    law = _law(controller)
    names = [n for n in ("dtmin", "dtmax") if getattr(law, n, None) is not None]
    changes = {n: np.asarray(getattr(law, n), dtype) for n in names}
    changes |= {n: np.asarray(getattr(controller, n), dtype) for n in ("rtol", "atol")}
    controller = _changed(controller, **changes)
    return jtu.tree_map(lambda x: np.asarray(x) if eqx.is_array(x) else x, controller)


def _stepped(plan: Plan, pace: Pace, stepping: Stepping, dtype: np.dtype) -> Pace:
    """`pace`, with what `stepping` says instead."""
    for name in ("rtol", "dtmax", "max_steps"):
        if np.shape(getattr(stepping, name)) != () and getattr(stepping, name) is not None:
            raise ValueError(
                f"`stepping.{name}` has shape {np.shape(getattr(stepping, name))}, but must be one "
                "number. Of a batch, give each sample its own under `vmap`."
            )
    for name, ts in stepping.given_times.items():
        if np.ndim(ts) != 1:
            raise ValueError(
                f"`stepping.{name}` has shape {np.shape(ts)}, but must be a vector of times. Of a "
                "batch, give each sample its own under `vmap`."
            )
    controller = pace.controller
    changes = {n: x for n in ("rtol", "dtmax") if (x := getattr(stepping, n)) is not None}
    if stepping.atol is not None:
        leaves = jtu.tree_leaves(stepping.atol)
        xp: Any = jnp if is_traced(leaves) else np
        changes["atol"] = xp.min(xp.stack([xp.min(x) for x in leaves]))
        one_number = jtu.all_leaves([stepping.atol]) and np.shape(stepping.atol) == ()
        atols = None if one_number else stepping.atol
        controller = eqx.tree_at(lambda c: c.atols, controller, atols, is_leaf=is_none)
    law, times = _law(controller), stepping.given_times
    if changes and not isinstance(law, diffrax.PIDController):
        raise ValueError(
            f"`stepping.{next(iter(changes))}` needs a controller that has it, `StiffPID` or "
            f"`diffrax.PIDController`; the model has a {type(law).__name__}."
        )
    if times and not meets_times(controller):
        raise ValueError(
            f"`stepping.{next(iter(times))}` needs an adaptive controller, such as `StiffPID`; the "
            f"model has a {type(law).__name__}."
        )
    if "rtol" in changes and not is_traced(changes["rtol"]):
        check_reach(float(changes["rtol"]), dtype, "stepping.rtol")
    as_number = lambda x: (jnp if is_traced(x) else np).asarray(x, dtype)
    controller = _changed(controller, **{name: as_number(x) for name, x in changes.items()})
    if "dtmax" in changes and not is_traced(stepping.dtmax):
        _check_dtmax(_law(controller))
    if times:
        controller = _with_times(controller, times, dtype)
    return pace.replace(controller, _max_steps(plan, pace, stepping.max_steps))


def _check_dtmax(law: diffrax.PIDController) -> None:
    dtmin, dtmax = law.dtmin, law.dtmax
    if dtmin is not None and dtmax is not None and dtmax < dtmin:
        raise ValueError(
            f"`stepping.dtmax` is {float(dtmax):g}, below the `dtmin` of the model's controller, "
            f"{float(dtmin):g}: give a longer one, or make the model with a shorter `dtmin`."
        )


def _max_steps(plan: Plan, pace: Pace, given: Array | np.ndarray | None) -> Any:
    if given is None:
        return None
    if not plan.on_own_loop:
        raise ValueError(
            "`stepping.max_steps` needs the default adjoint or `ForwardMode`: with others it is "
            "the size of the program. Set the `max_steps` of the model."
        )
    if is_traced(given):
        return jnp.minimum(given, plan.capacity)
    if int(given) > plan.capacity:
        raise ValueError(
            f"`stepping.max_steps` is {int(given)}, but the model keeps {plan.capacity} steps for "
            f"its derivative: make it with `max_steps={int(given)}`."
        )
    return np.asarray(given, pace.max_steps.dtype)


def with_jumps(pace: Pace, jumps: Array) -> Pace:
    """`pace`, whose steps end at the `jumps`, too; none does where they are given."""
    controller, own = pace.controller, jump_times(pace)
    if not meets_times(controller):
        return pace
    jumps = jumps if own is None else jnp.concatenate([jnp.asarray(own, jumps.dtype), jumps])
    jumps = jnp.sort(jumps)
    apart = jnp.diff(jumps, prepend=-jnp.inf) > near(jumps)
    one_each = jnp.where(apart, jumps, jnp.inf)
    controller = _with_times(controller, dict(jump_ts=one_each), np.dtype(jumps.dtype))
    return pace.replace(dataclasses.replace(controller, jumps=jumps))


def jump_times(pace: Pace) -> Array | np.ndarray | None:
    """Those that the controller is given."""
    inner = pace.controller.controller
    return inner.jump_ts if isinstance(inner, diffrax.ClipStepSizeController) else None


def meets_times(controller: AdmissibleSteps) -> bool:
    """Whether it can end a step at a time that it is given."""
    return isinstance(_law(controller), diffrax.AbstractAdaptiveStepSizeController)


def _with_times(
    controller: AdmissibleSteps, times: dict[str, Array | np.ndarray], dtype: np.dtype
) -> AdmissibleSteps:
    def sort(ts: Array | np.ndarray) -> Any:
        xp: Any = jnp if is_traced(ts) else np
        return xp.sort(xp.where(xp.isfinite(ts), ts, xp.inf).astype(dtype))

    ordered: dict[str, Any] = {name: sort(ts) for name, ts in times.items()}
    inner: Any = controller.controller
    if isinstance(inner, diffrax.ClipStepSizeController):
        places = lambda c: [getattr(c, name) for name in ordered]
        clipped = eqx.tree_at(places, inner, list(ordered.values()), is_leaf=is_none)
    else:
        clipped = diffrax.ClipStepSizeController(inner, **ordered)
    return eqx.tree_at(lambda c: c.controller, controller, clipped)
