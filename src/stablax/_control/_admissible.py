"""Step acceptance: what a step must satisfy besides its error estimate."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
import optimistix as optx
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._fields import Guard
from .._lanes import spread
from .._results import Cause
from .._states import all_finite, for_each_component, is_none, stop
from ._watch import Step, Watch, Watched

# Of the time span: below the first no step is one; the second is taken where a guess fails.
_SHORTEST, _WITHOUT_GUESS = 1e-30, 1e-6
# Of the first step, from Hairer, Norsett and Wanner (1993), section II.4: sizes that count as
# nothing, the step where they do, and by how much a step changes the state or may be wrong.
_NOTHING, _BLIND, _CHANGE = 1e-5, 1e-6, 0.01
_FLAT, _OF_FLAT, _MOST_GROWTH = 1e-15, 1e-3, 100


# Times that are closer are one: grids that were computed in different ways.
_ULPS = 16


def near(t: Array) -> Array:
    """How far apart times about `t` count as one."""
    limits = jnp.finfo(t.dtype)
    return _ULPS * jnp.maximum(limits.eps * jnp.abs(t), limits.tiny)


class StepRecord(eqx.Module):
    """What the controller saw, which diffrax's own statistics do not tell.

    Only members of `diffrax.RESULTS` may travel through diffrax's loop, so the cause of a
    failure travels here and is promoted after the solve.
    """

    not_finite: Int[Array, ""]  # steps rejected because the candidate was not finite
    outside: Int[Array, ""]  # steps rejected because the candidate left the box
    masked: Int[Array, ""]  # steps, accepted or not, with a masked stage
    masked_accepted: Int[Array, ""]
    cause: Int[Array, ""]  # of the last rejection, a member of `Cause`
    component: Int[Array, ""]  # the worst component of the last rejected step
    dt: Float[Array, ""]  # the last step size tried


class _State(eqx.Module):
    inner: PyTree
    record: StepRecord
    smallest_dt: Float[Array, ""]
    end: Float[Array, ""]
    starts_outside: Bool[Array, ""]
    rejected: Bool[Array, ""]  # whether the last step was
    watched: Watched | None


class AdmissibleSteps(diffrax.AbstractAdaptiveStepSizeController):
    """Wraps a step size controller: a step is accepted only if its candidate is finite and in
    the guard's box, whatever its error estimate says.

    A step that is not is passed on as a step of infinite error from a finite state, so that no
    non-finite number can enter the controller's own state (diffrax's `PIDController` locks up on
    a candidate of +-inf). The accepted state is never clipped. The solve ends, with
    `dt_min_reached` and the cause in the record, when the step size falls to the resolution of
    time, or when the controller cannot shrink the step.
    """

    controller: diffrax.AbstractStepSizeController
    guard: Guard
    rtol: Any
    atol: Any  # the smallest, if there is one for each component
    norm: Callable[[PyTree], Any]
    atols: PyTree | None = None
    masks: Callable[[Array, Array, PyTree, PyTree], Bool[Array, ""]] | None = None
    implicit: bool = False
    factormax_after_rejection: float | None = None
    watch: Watch | None = None
    direction: Any = 1
    # Times at which the field jumps, of which the inner controller has one of those that are `near`
    # each other: a step that ends there is followed by one behind all of them.
    jumps: Array | None = None

    def wrap(self, direction) -> "AdmissibleSteps":
        controller = self.controller.wrap(direction)
        jumps = None if self.jumps is None else self.jumps * direction
        return dataclasses.replace(self, controller=controller, direction=direction, jumps=jumps)

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        span = lax.stop_gradient(t1 - t0)
        span = jnp.where(jnp.isinf(span), 1, span)  # only an event ends it: no scale of time
        tiny = _SHORTEST * span
        if dt0 is None:
            guess = self._first_step(error_order, func, *stop((terms, t0, y0, args)))
            # The heuristic probes the field, and gives 0 or nan where that overflows; any small
            # step will do, since the error control takes it from there.
            usable = jnp.isfinite(guess) & (guess > tiny)
            dt0 = lax.stop_gradient(jnp.where(usable, guess, _WITHOUT_GUESS * span))
        tnext, inner = self.controller.init(terms, t0, t1, y0, dt0, args, func, error_order)
        zero = jnp.zeros((), jnp.int32)
        dtype = jnp.result_type(t0)
        record = StepRecord(
            not_finite=zero,
            outside=zero,
            masked=zero,
            masked_accepted=zero,
            cause=zero,
            component=zero,
            dt=jnp.zeros((), dtype),
        )
        if self._has_box(y0):
            outside = ~self.contains(lax.stop_gradient(y0))
        else:
            outside = jnp.array(False)
        end = lax.stop_gradient(jnp.asarray(t1))
        watched = None if self.watch is None else self.watch.init(y0, dtype)
        return tnext, _State(inner, record, tiny, end, outside, jnp.array(False), watched)

    def _first_step(self, error_order, func, terms, t0, y0, args) -> Any:
        """Such that an explicit Euler step would have about the error that is allowed. Hairer,
        Norsett and Wanner, Solving Ordinary Differential Equations I (1993), section II.4.

        diffrax's own, inside `diffeqsolve`, takes 0.01 for every field in every unit of time: so
        long a step that a mode which grows is damped away."""
        allowed = jtu.tree_map(lambda y: self.atol + self.rtol * jnp.abs(y), y0)
        length = lambda tree: self.norm(jtu.tree_map(jnp.divide, tree, allowed))
        of_state = length(y0)

        def probe(i, carry):
            """First the slope at the start, then its change over a first guess `h`."""
            h, of_slope, change = carry
            t, y = t0 + h, jtu.tree_map(lambda y, dy: y + h * dy, y0, change)
            control = terms.contr(jnp.zeros_like(t), jnp.ones_like(t))
            slope = terms.prod(func(terms, t, y, args), control)
            new = length(slope)
            nothing = (of_state < _NOTHING) | (new < _NOTHING)
            guess = _CHANGE * (of_state / jnp.where(nothing, 1, new))
            guess = jnp.where(nothing, _BLIND, guess)
            first = (guess, new, slope)
            then = (h, of_slope, optax.tree.sub(slope, change))
            return optax.tree.where(i == 0, first, then)

        start = (jnp.zeros_like(t0), jnp.zeros_like(of_state), optax.tree.zeros_like(y0))
        start = spread(start, terms, t0, y0, args)
        h, of_slope, change = lax.fori_loop(0, 2, probe, start)
        most = jnp.maximum(of_slope, length(change) / h)
        curved = (_CHANGE / most) ** (1 / error_order)
        flat = jnp.maximum(_BLIND, _OF_FLAT * h)
        return jnp.minimum(_MOST_GROWTH * h, jnp.where(most <= _FLAT, flat, curved))

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        state: _State = controller_state
        finite = all_finite(y1_candidate)
        inside, excess = self._in_box(y0, y1_candidate)
        keeps_digits = self._keeps_digits(y0, y1_candidate)
        good = finite & inside & keeps_digits
        y1 = optax.tree.where(good, y1_candidate, y0)
        if y_error is None:
            failed_stages = ~keeps_digits
            error = None
        else:
            failed_stages = ~all_finite(y_error) | ~keeps_digits
            y_error = self._in_one_unit(y0, y1, y_error)
            error = jtu.tree_map(lambda e: jnp.where(good, e, jnp.inf), y_error)
        kept, next_t0, next_t1, made_jump, inner, result = self.controller.adapt_step_size(
            t0, t1, y0, y1, args, error, error_order, state.inner
        )

        if self.jumps is not None:
            limit = next_t0 + near(jnp.asarray(next_t0))
            is_next = (self.jumps >= next_t0) & (self.jumps <= limit)
            last = jnp.max(jnp.where(is_next, self.jumps, -jnp.inf))
            behind = jnp.where(kept & jnp.any(is_next), jnp.nextafter(last, jnp.inf), next_t0)
            next_t0 = lax.stop_gradient(behind)
            next_t1 = jnp.maximum(next_t1, jnp.nextafter(next_t0, jnp.inf))
        keep = kept & good & ~state.starts_outside
        unshrinkable = kept & ~keep
        next_t0 = jnp.where(unshrinkable, t0, next_t0)
        next_t1 = jnp.where(unshrinkable, t1, next_t1)
        if self.factormax_after_rejection is not None:
            # The error that caused a rejection is still near.
            most = next_t0 + self.factormax_after_rejection * (t1 - t0)
            next_t1 = jnp.where(keep & state.rejected, jnp.minimum(next_t1, most), next_t1)
        dt = lax.stop_gradient(next_t1 - next_t0)
        resolution = 4 * jnp.finfo(jnp.result_type(dt)).eps * jnp.abs(next_t0)
        underflow = ~(dt > jnp.maximum(resolution, state.smallest_dt)) & (next_t0 < state.end)
        underflow &= ~(keep & (dt > 0) & self._meets_given_time(next_t0, next_t1, resolution))
        stop = unshrinkable | underflow | state.starts_outside
        ok = result == diffrax.RESULTS.successful
        result = diffrax.RESULTS.where(ok & stop, diffrax.RESULTS.dt_min_reached, result)

        cause = jnp.where(failed_stages, Cause.stages_unsolved.value, Cause.error.value)
        outside = ~inside | state.starts_outside
        cause = jnp.where(outside, Cause.left_bounds.value, cause)
        cause = jnp.where(finite, cause, Cause.not_finite.value)
        cause = jnp.where(keep, Cause.none.value, cause)
        worst = self._worst(y0, y1_candidate, y_error, inside, excess)
        span = lax.stop_gradient(t1 - t0)
        record = self._record(state.record, keep, finite, inside, cause, worst, t0, t1, y0, args)
        watched = state.watched
        if self.watch is not None and watched is not None:
            scaled = self._scaled_error(y0, y1, y_error, good)
            way = self.direction
            step = Step(
                t=t0 * way,
                dt=span * way,
                error=scaled,
                cause=cause.astype(jnp.int32),
                component=worst.astype(jnp.int32),
            )
            watched = self.watch.see(watched, step, t1 * way, y1, args)
        state = _State(
            inner,
            record,
            state.smallest_dt,
            state.end,
            state.starts_outside,
            jnp.asarray(~keep),
            watched,
        )
        return keep, next_t0, next_t1, made_jump, state, result

    def resumed(self, t, end, next_end, before: _State, after: _State) -> tuple[Any, _State]:
        """Where the next step ends, if one to `end` was cut short at `t`, and what the controller
        then knows. `before` that step it knew one thing, `after` it another, and that the next one
        ends at `next_end`."""
        if not isinstance(self.controller, diffrax.AbstractAdaptiveStepSizeController):
            # The steps are given: the rest of this one comes next.
            is_rest = t < end
            inner = optax.tree.where(is_rest, before.inner, after.inner)
            return jnp.where(is_rest, end, next_end), dataclasses.replace(after, inner=inner)
        # As long as it would have been, up to the next time that is given, or just before it where
        # that is a jump: the controller believes that it has come to the one at `end`.
        step_ts, jump_ts = self._given_times()
        later = lambda ts: jnp.min(jnp.where(ts > t, ts, jnp.inf)).astype(next_end.dtype)
        ends = [later(ts) for ts in step_ts]
        ends += [jnp.nextafter(later(ts), -jnp.inf) for ts in jump_ts]
        return functools.reduce(jnp.minimum, ends, t + (next_end - end)), after

    def _given_times(self) -> tuple[list[Array], list[Array]]:
        """Times to step to, and those of jumps."""
        controller, step_ts, jump_ts = self.controller, [], []
        while controller is not None:
            if isinstance(controller, diffrax.ClipStepSizeController):
                step_ts += [] if controller.step_ts is None else [controller.step_ts]
                jump_ts += [] if controller.jump_ts is None else [controller.jump_ts]
            controller = getattr(controller, "controller", None)
        return step_ts, jump_ts

    @property
    def meets_jumps(self) -> bool:
        """Whether it is given times at which the field jumps."""
        return bool(self._given_times()[1])

    def _meets_given_time(self, t0, t1, resolution) -> Any:
        """Whether a step begins or ends at a time that was given: it may be as short as it is."""
        given = sum(self._given_times(), [])
        if not given:
            return False
        times = lax.stop_gradient(jnp.concatenate([jnp.asarray(ts, t0.dtype) for ts in given]))
        near = lambda t: jnp.any(jnp.abs(times - t) <= resolution)
        return near(t0) | near(t1)

    def atol_for(self, y) -> PyTree:
        """The absolute tolerance of each component of the state `y`, or the one of all."""
        if self.atols is None:
            return self.atol
        return for_each_component(self.atols, y, "`atol`")

    def contains(self, y) -> Bool[Array, ""]:
        """Whether `y` is in the guard's box, to within the tolerances."""
        return self.guard.contains(y, self.rtol, self.atol_for(y))

    def _in_one_unit(self, y0, y1, y_error):
        """The error estimate, scaled so that one `atol` measures all components."""
        if self.atols is None:
            return y_error

        def leaf(error, y0, y1, atol):
            relative = self.rtol * jnp.maximum(jnp.abs(y0), jnp.abs(y1))
            return error * (self.atol + relative) / (atol + relative)

        return jtu.tree_map(leaf, y_error, y0, y1, self.atol_for(y0))

    def _has_box(self, y) -> bool:
        return self.guard.reject and self.guard.is_bounded

    def _keeps_digits(self, y0, y1):
        """Whether the step is small enough for the state that it starts from to matter. Where it
        is not, an implicit solver's linear algebra has lost all digits, and its error estimate."""
        adaptive = isinstance(self.controller, diffrax.AbstractAdaptiveStepSizeController)
        if not (self.implicit and adaptive):
            return jnp.array(True)

        def largest(tree):
            leaves = jtu.tree_leaves(tree)
            return jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0) for x in leaves]))

        before, after = lax.stop_gradient((largest(y0), largest(y1)))
        return after * jnp.finfo(after.dtype).eps < before + self.atol

    def _in_box(self, y0, y1):
        if not self._has_box(y0):
            return jnp.array(True), jtu.tree_map(lambda x: jnp.zeros_like(x), y1)
        excess = lax.stop_gradient(self.guard.excess(y1, self.rtol, self.atol_for(y1)))
        return jnp.all(jnp.stack([jnp.all(~(x > 1)) for x in jtu.tree_leaves(excess)])), excess

    def _scaled_error(self, y0, y1, y_error, good):
        if y_error is None:
            return jnp.where(good, 0.0, jnp.inf)

        def scale(error, y0, y1):
            tolerance = self.atol + self.rtol * jnp.maximum(jnp.abs(y0), jnp.abs(y1))
            return jnp.where(good, error, 0) / tolerance

        scaled = self.norm(jtu.tree_map(scale, y_error, y0, y1))
        return jnp.where(good & jnp.isfinite(scaled), scaled, jnp.inf)

    def _worst(self, y0, y1, y_error, inside, excess):
        """The component that is farthest from being acceptable."""

        def badness(y0, y1, excess, error):
            tolerance = self.atol + self.rtol * jnp.maximum(jnp.abs(y0), jnp.abs(y1))
            error = 0 if error is None else jnp.abs(error) / tolerance
            score = jnp.where(inside, error, excess)
            return jnp.ravel(jnp.where(jnp.isfinite(y1) & ~jnp.isnan(score), score, jnp.inf))

        errors = jtu.tree_map(lambda _: None, y0) if y_error is None else y_error
        leaves = zip(
            *(jtu.tree_leaves(x, is_leaf=is_none) for x in (y0, y1, excess, errors)),
            strict=True,
        )
        return jnp.argmax(lax.stop_gradient(jnp.concatenate([badness(*four) for four in leaves])))

    def _record(
        self, old: StepRecord, keep, finite, inside, cause, worst, t0, t1, y0, args
    ) -> StepRecord:
        if self.masks is None:
            masked = jnp.array(False)
        else:
            masked = self.masks(t0 * self.direction, t1 * self.direction, y0, args)
        rejected = ~keep
        count = lambda old, flag: old + flag.astype(old.dtype)
        return StepRecord(
            not_finite=count(old.not_finite, rejected & ~finite),
            outside=count(old.outside, rejected & finite & ~inside),
            masked=count(old.masked, masked),
            masked_accepted=count(old.masked_accepted, masked & keep),
            cause=jnp.where(rejected, cause.astype(old.cause.dtype), old.cause),
            component=jnp.where(rejected, worst.astype(old.component.dtype), old.component),
            dt=lax.stop_gradient(t1 - t0),
        )


def admissible(
    controller: diffrax.AbstractStepSizeController,
    guard: Guard,
    dtype: np.dtype,
    implicit: bool = False,
    factormax_after_rejection: float | None = None,
    atols: PyTree | None = None,
) -> AdmissibleSteps:
    """`controller` with the acceptance test of [`AdmissibleSteps`][], for an `implicit` solver or
    not. A controller without tolerances (fixed steps) measures the box, and solves implicit
    stages, to sqrt(eps). `atols`: those of the components, of which `controller` has the least."""
    if isinstance(controller, diffrax.AbstractAdaptiveStepSizeController):
        rtol, atol, norm = controller.rtol, controller.atol, controller.norm
    else:
        rtol = atol = float(np.sqrt(np.finfo(dtype).eps))
        norm = optx.rms_norm
    return AdmissibleSteps(
        controller=controller,
        guard=guard,
        rtol=rtol,
        atol=atol,
        norm=norm,
        atols=atols,
        implicit=implicit,
        factormax_after_rejection=factormax_after_rejection,
    )
