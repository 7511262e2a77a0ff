"""`Simulate`: the dynamics alone."""

import contextlib
from typing import Any, final

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree

from .._control import StiffPID
from .._failure import inputs_with_finite_derivative
from .._fields import Guard, as_guarded
from .._results import RESULTS, message
from .._states import as_args, as_state, state_dtype
from .._static import Split, Static, is_traced
from .._types import VF, Args, ScalarLike, YLike, typechecked
from ._explain import raise_on_failure
from ._model import AbstractModel, held
from ._options import SolveOptions, solve_options
from ._simulation import Simulation
from ._solve import integrate
from ._stepping import Pace, Stepping, as_stepping, planned, steps_of
from ._times import Times, as_times, rows_are_ordered, told_apart


def check_call(
    field: VF,
    options: SolveOptions,
    y0: Any,
    ts: Any,
    t0: Any,
    args: Args,
    ends: Times | None = None,
    stepping: Stepping | None = None,
) -> tuple[PyTree[Array], Array, Array, Args]:
    """The inputs of a call as arrays of one dtype, or an error that names the wrong one. `ends`:
    of phases."""
    y0 = as_state(y0, "y0")
    dtype = state_dtype(y0)
    given, start = dict(ts=as_times(ts, dtype, "ts")), as_times(t0, dtype, "t0")
    times = (start.rounded, given["ts"].rounded)
    if times[1].ndim != 1 or times[1].size == 0:
        raise ValueError(
            f"`ts` must be a vector of one or more times, got shape {times[1].shape}; for a single "
            "time, `ts=[t]`."
        )
    if not is_traced(times) and not rows_are_ordered(*times):
        raise ValueError(
            f"{message(RESULTS.bad_times)} Got t0 = {float(times[0]):g} and ts = "
            f"{np.array2string(times[1], threshold=8)}."
        )
    ts, t0 = jnp.asarray(ts, dtype), jnp.asarray(t0, dtype)
    guard = as_guarded(field).guard
    guard.bounds(y0)  # raises if the guard does not fit the state
    if isinstance(options.controller, StiffPID):
        for name in ("jump_ts", "step_ts"):
            if getattr(options.controller, name):
                given[name] = as_times(getattr(options.controller, name), dtype, name)
    if stepping is not None:
        given |= {n: as_times(ts, dtype, n) for n, ts in stepping.given_times.items()}
    start = told_apart(start, given, ends, lambda: tolerance_of(field, options, dtype))
    t0 = start if is_traced(start) else t0
    if not is_traced(y0):
        with jax.ensure_compile_time_eval():
            _check_start(guard, options, y0)
    return y0, ts, t0, as_args(args, dtype)


def tolerance_of(field: VF, options: SolveOptions, dtype: np.dtype) -> float:
    return float(steps_of(options, as_guarded(field).guard, dtype).rtol)


def _check_start(guard: Guard, options: SolveOptions, y0: PyTree[Array]) -> None:
    for path, leaf in jtu.tree_flatten_with_path(y0)[0]:
        if not np.isfinite(np.asarray(leaf)).all():
            raise ValueError(f"`y0{jtu.keystr(path)}` is not finite: {leaf}.")
    if guard.reject and guard.is_bounded:
        steps = steps_of(options, guard, state_dtype(y0))
        if not steps.contains(y0):
            lower, upper = guard.bounds(y0)
            raise ValueError(
                f"`y0` = {y0} is outside the guard's box, lower = {lower}, upper = {upper}. Start "
                "inside, widen the bounds, or use `Guard(..., reject=False)`."
            )


@contextlib.contextmanager
def explain_forward_mode():
    """Says which adjoint has forward mode, where jax says only that this one has not."""
    try:
        yield
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise TypeError(
            "This model was made for reverse mode (`grad`, `jacrev`), with `adjoint="
            "diffrax.RecursiveCheckpointAdjoint()`. For `jvp`, `jacfwd` and `linearize`, make it "
            "with `adjoint=diffrax.ForwardMode()`; for both modes, with the default, "
            "`stablax.DiscreteAdjoint()`."
        ) from error


@final
class Simulate(AbstractModel):
    """The dynamics alone: dy/dt = f(t, y, args) from `y0`, saved at `ts`.

    ```python
    model = sx.Simulate(field)
    simulation = model(y0, ts, args=condition)
    ```

    Its PyTree leaves are exactly the floating-point arrays of `field`; the rest of the field and
    all options are static, so the model (or `sx.partition(model)[0]`) is a parameter tree for
    optax. Works under `jit`, `vmap`, `grad` and `jacfwd`. The gradient is protected: a rejected
    step that is not finite cannot ruin it.

    **Arguments:**

    - `field`: any callable `f(t, y, args)`, guarded or not.
    - `solver`: a diffrax solver of ODEs: explicit, implicit, or IMEX (which treats the whole field
        implicitly). By default [`Rodas5P`][],
        with the structure of the Jacobian that the field declares.
    - `controller`: a diffrax step size controller; by default `StiffPID.preset(solver=solver)`.
        Whatever it says, a step that is not finite or leaves the guard's box is rejected.
    - `adjoint`: [`DiscreteAdjoint`][] (the default; both modes), or diffrax's `ForwardMode`
        (forward mode; runs fastest in it), `RecursiveCheckpointAdjoint` (reverse mode) or
        `DirectAdjoint` (both modes, as often as wanted; slow). Others are refused. All go through
        events.
    - `max_steps`: >= 1. By default 4096.
    - `dt0`: first step size [time]; by default chosen.
    - `event`: a `diffrax.Event` that ends the solve. Its time is the `t1` of the simulation; rows
        after it are marked in `reached`, and hold the state at the event. A condition that
        returns a number is solved for, to the resolution of time (its `root_finder` is used if
        it has one): time and state have the derivatives of the event. Of several, the first in
        time ends the solve. One that returns a boolean ends it with the step at whose end it is
        true, at a time without a derivative. An event whose condition changes its sign twice
        within a step is not seen.
    - `progress_meter`: for long solves, such as `diffrax.TqdmProgressMeter()`. One that raises
        stops the solve; Ctrl-C alone waits for its end.
    - `telemetry`: whether the activity of the guard on the accepted steps is counted for each
        component, into the `guard` of the simulation. Costs a comparison for each bound, and one
        evaluation of the field a step if the guard has a `fill`.
    - `trace`: `"record"` keeps every step that is tried, with the reason if it is rejected, as
        the `steps` of the simulation; `"print"` prints them as they are taken, under `jit` too
        (with a `RecursiveCheckpointAdjoint`, those that its backward pass repeats too). The
        result is the same as without, to rounding.

    To switch on what is off in a model, see [`with_options`][].

    **Raises:** `TypeError` for a solver or adjoint that cannot be protected, by name;
    `ValueError` for a value out of range.
    """

    _field: Split
    _options: Static

    @typechecked
    def __init__(
        self,
        field: VF,
        *,
        solver: Any = None,
        controller: Any = None,
        adjoint: Any = None,
        max_steps: int = 4096,
        dt0: float | None = None,
        event: diffrax.Event | None = None,
        progress_meter: diffrax.AbstractProgressMeter | None = None,
        telemetry: bool = False,
        trace: str | None = None,
    ):
        options = solve_options(
            field,
            solver,
            controller,
            adjoint,
            max_steps,
            dt0,
            event,
            progress_meter,
            telemetry,
            trace,
        )
        self._field, self._options = held(field, options)

    def arguments(self):
        return self.options.arguments()

    @typechecked
    def __call__(
        self,
        y0: YLike,
        ts: Any,
        *,
        t0: ScalarLike = 0.0,
        args: Args = None,
        stepping: Any = None,
        throw: bool = True,
    ) -> Simulation:
        """Solves and saves.

        **Arguments:**

        - `y0`: the state at `t0`: a PyTree of floating arrays; Python floats and numpy arrays are
            converted.
        - `ts`: times to save at, shape `(times,)`, in one direction from `t0`. Times are held in
            the dtype of `y0`, which must tell them apart: with float32, count from the start. The
            last may be nan or inf, which is "not asked for": rows of different number are padded.
        - `t0`: the time of `y0`.
        - `args`: the condition, passed to the field.
        - `stepping`: a [`Stepping`][]: tolerances, budget and given times of this call.
        - `throw`: raise an error if the solve fails, or return the reason as `result`.

        **Returns:** a [`Simulation`][].

        **Raises:** `ValueError` or `TypeError` for inputs that do not fit; with `throw=True` a
        `RuntimeError` that says what failed, at which time, in which component, and what helps;
        and one from the derivative, if that is not finite.
        """
        stepping = as_stepping(stepping)
        y0, ts, t0, args = check_call(self.field, self.options, y0, ts, t0, args, stepping=stepping)
        plan, pace = planned(self._options, self.guard, state_dtype(y0), stepping)
        field = self._field
        if throw:
            field, y0, ts, t0, args = inputs_with_finite_derivative(
                field=field, y0=y0, ts=ts, t0=t0, args=args
            )
        with explain_forward_mode():
            simulation = _simulate(field, plan, pace, y0, ts, t0, args)
        return raise_on_failure(simulation) if throw else simulation


@eqx.filter_jit
def _simulate(field: Split, plan: Static, pace: Pace, y0, ts, t0, args) -> Simulation:
    return integrate(field.tree, plan.tree, pace, y0, ts, t0, args)[0]
