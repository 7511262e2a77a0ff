"""What all models ask of a call."""

import contextlib

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree

from .._control import AdmissibleSteps, StiffPID
from .._fields import Guard, Input, as_guarded, inputs_in
from .._results import RESULTS, message
from .._states import as_args, as_state, for_each_component, state_dtype
from .._static import Static, is_traced
from .._types import VF, Args, NumbersLike, ScalarLike, YLike
from ._stepping import Pace, Stepping, own_rtol
from ._times import Times, as_times, rows_are_ordered, told_apart


def check_call(
    *,
    field: VF,
    options: Static,
    pace: Pace,
    y0: YLike,
    ts: NumbersLike,
    t0: ScalarLike,
    args: Args,
    stepping: Stepping | None,
    ends: Times | None = None,
) -> tuple[PyTree[Array], Array, Array, Args]:
    """The inputs of a call as arrays of one dtype, or an error that names the wrong one. `options`
    (`ResolvedOptions`) and `stepping` give the `pace`. `ends`: of phases."""
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
            f"{np.array2string(np.asarray(times[1]), threshold=8)}."
        )
    ts, t0 = jnp.asarray(ts, dtype), jnp.asarray(t0, dtype)
    guard = as_guarded(field).guard
    guard.bounds(y0)  # raises if the guard does not fit the state
    if stepping is not None and stepping.atol is not None:
        for_each_component(stepping.atol, y0, "`stepping.atol`")  # raises if it does not fit
    given |= given_times(options, stepping, dtype)
    if inputs := inputs_in(field, args):
        given["knot"] = _knots(inputs, dtype)
    start = told_apart(start, given, ends, lambda: tolerance_of(options, pace, guard, dtype))
    if not is_traced(y0):
        _check_start(guard, pace.controller, y0)
    return y0, ts, start if is_traced(start) else t0, as_args(args, dtype)


def given_times(options: Static, stepping: Stepping | None, dtype: np.dtype) -> dict[str, Times]:
    """The times to step to, and those of jumps, by name."""
    controller = options.tree.controller
    times = {}
    if isinstance(controller, StiffPID):
        times = dict(step_ts=controller.step_ts, jump_ts=controller.jump_ts)
    if stepping is not None:
        times |= stepping.given_times
    return {name: as_times(ts, dtype, name) for name, ts in times.items() if np.size(ts)}


def _knots(inputs: list[Input], dtype: np.dtype) -> Times:
    """As far as they are known."""
    known = [one.ts for one in inputs if not is_traced(one.ts)]
    ts = np.concatenate([np.ravel(x) for x in known] or [np.zeros(0)])
    return as_times(ts[np.isfinite(ts)], dtype, "knot")


def tolerance_of(options: Static, pace: Pace, guard: Guard, dtype: np.dtype) -> float:
    """The relative one; where that of a call is traced, the model's own."""
    rtol = pace.controller.rtol
    return own_rtol(options, guard, dtype) if is_traced(rtol) else float(rtol)


def _check_start(guard: Guard, steps: AdmissibleSteps, y0: PyTree[Array]) -> None:
    for path, leaf in jtu.tree_flatten_with_path(y0)[0]:
        if not np.isfinite(np.asarray(leaf)).all():
            raise ValueError(f"`y0{jtu.keystr(path)}` is not finite: {leaf}.")
    if not (guard.reject and guard.is_bounded) or is_traced(steps):
        return
    # Values that are concrete are looked at even while something else is traced.
    with jax.ensure_compile_time_eval():
        inside = steps.contains(y0)
    if not inside:
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
