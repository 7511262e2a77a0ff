"""What can be watched while a solve runs, beside what it needs itself. Off by default, and then
absent from the compiled program."""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._fields import Guard
from .._results import Cause
from .._states import stop
from .._types import Args


class StepLog(eqx.Module):
    """Every step that a solve tried, in order; see `trace="record"` of [`Simulate`][].

    **Attributes:** arrays of length `max_steps`, of which the first `count` are steps

    - `t`: where the step began. `dt`: its size, negative backwards in time. (An event ends a step
        before that.)
    - `error`: the estimated error in units of the tolerance (accepted at 1 or below); inf for a
        step that was not finite or left the box, 0 for a solver without an estimate.
    - `cause`: why it was rejected, a member of [`Cause`][]; 0 if it was accepted.
    - `component`: the worst component (its index in `ravel_pytree` order): the largest error,
        what is not finite, or what left the box.
    - `count`: how many steps there are.
    """

    t: Float[Array, " max_steps"]
    dt: Float[Array, " max_steps"]
    error: Float[Array, " max_steps"]
    cause: Int[Array, " max_steps"]
    component: Int[Array, " max_steps"]
    count: Int[Array, ""]

    @property
    def accepted(self) -> Bool[Array, " max_steps"]:
        """Which entries are steps that were accepted."""
        places = jnp.arange(self.t.shape[-1], dtype=self.count.dtype)
        places = jnp.broadcast_to(places, self.t.shape)
        return (places < self.count[..., None]) & (self.cause == Cause.none.value)

    @staticmethod
    def empty(capacity: int, dtype: DTypeLike) -> "StepLog":
        numbers, indices = jnp.zeros(capacity, dtype), jnp.zeros(capacity, jnp.int32)
        return StepLog(numbers, numbers, numbers, indices, indices, jnp.zeros((), jnp.int32))

    @staticmethod
    def joined(logs: Sequence["StepLog"]) -> "StepLog":
        """One log of several with a leading axis each, the phases in their order."""
        seen = [
            jnp.arange(log.t.shape[1], dtype=log.count.dtype)[None] < log.count[:, None]
            for log in logs
        ]
        recorded = jnp.concatenate([jnp.ravel(x) for x in seen])
        order = jnp.argsort(~recorded, stable=True)

        def join(name):
            return jnp.concatenate([jnp.ravel(getattr(log, name)) for log in logs])[order]

        columns = {name: join(name) for name in ("t", "dt", "error", "cause", "component")}
        return StepLog(**columns, count=jnp.sum(recorded).astype(jnp.int32))

    def add(self, step: "Step") -> "StepLog":
        at = self.count
        return StepLog(
            t=self.t.at[at].set(step.t),
            dt=self.dt.at[at].set(step.dt),
            error=self.error.at[at].set(step.error),
            cause=self.cause.at[at].set(step.cause),
            component=self.component.at[at].set(step.component),
            count=self.count + 1,
        )


class GuardCounts(eqx.Module):
    """What a guard did on the accepted steps, at the states where they end.

    **Attributes:** trees of the structure and shapes of the state

    - `clipped`: the number of steps that end with the component outside its bounds, so that the
        field is evaluated on the bound.
    - `masked`: the number of steps at whose end that output of the field is not finite, and is
        replaced by the guard's `fill` (0 without a `fill`: such a step is not accepted).
    - `first_clipped`, `first_masked`: the time of the first of each [time]; inf if there is none.
    """

    clipped: PyTree[Int[Array, "..."]]
    masked: PyTree[Int[Array, "..."]]
    first_clipped: PyTree[Float[Array, "..."]]
    first_masked: PyTree[Float[Array, "..."]]

    @staticmethod
    def empty(y0: PyTree[Array], dtype: DTypeLike) -> "GuardCounts":
        none = jtu.tree_map(lambda y: jnp.zeros(y.shape, jnp.int32), y0)
        never = jtu.tree_map(lambda y: jnp.full(y.shape, jnp.inf, dtype), y0)
        return GuardCounts(none, none, never, never)

    def over_phases(self) -> "GuardCounts":
        """Of counts with a leading axis, the phases in their order: those of all together."""

        def earliest(times):
            place = jnp.argmax(jnp.isfinite(times), axis=0)
            return jnp.take_along_axis(times, place[None], axis=0)[0]

        total = jtu.tree_map(lambda x: jnp.sum(x, axis=0), (self.clipped, self.masked))
        return GuardCounts(*total, *jtu.tree_map(earliest, (self.first_clipped, self.first_masked)))

    def add(self, t: Array, clipped: PyTree[Array], masked: PyTree[Array]) -> "GuardCounts":
        def count(old, flag):
            return old + flag.astype(old.dtype)

        def first(old, flag):
            return jnp.where(flag & ~jnp.isfinite(old), t, old)

        return GuardCounts(
            jtu.tree_map(count, self.clipped, clipped),
            jtu.tree_map(count, self.masked, masked),
            jtu.tree_map(first, self.first_clipped, clipped),
            jtu.tree_map(first, self.first_masked, masked),
        )


class Step(eqx.Module):
    """One step that was tried."""

    t: Array
    dt: Array
    error: Array
    cause: Array
    component: Array


class Watched(eqx.Module):
    """What was seen. `None`: not asked for."""

    guard: GuardCounts | None
    log: StepLog | None


class Watch(eqx.Module):
    """What to watch.

    - `guard`: whose activity is counted, or None.
    - `outputs`: a function `(t, y, args)` that tells which outputs of the field are not finite,
        or None where none of them can be on an accepted step.
    - `capacity`: of the log of all steps; 0: none is kept.
    - `prints`: whether each step is printed as it is taken.
    - `names`: of the components, for what is printed.
    """

    guard: Guard | None
    outputs: Callable[[Array, PyTree, Args], PyTree] | None
    capacity: int = eqx.field(static=True)
    prints: bool = eqx.field(static=True)
    names: tuple[str, ...] = eqx.field(static=True)

    def init(self, y0: PyTree[Array], dtype: DTypeLike) -> Watched:
        guard = None if self.guard is None else GuardCounts.empty(y0, dtype)
        return Watched(guard, StepLog.empty(self.capacity, dtype) if self.capacity else None)

    def see(self, seen: Watched, step: Step, end: Array, y: PyTree[Array], args: Args) -> Watched:
        """A step that was tried: `y` is the state at its `end`."""
        step, end, y, args = stop((step, end, y, args))
        accepted = step.cause == Cause.none.value
        guard = seen.guard
        if guard is not None and self.guard is not None:
            lower, upper = self.guard.bounds(y)
            clipped = jtu.tree_map(lambda x, lo, hi: (x < lo) | (x > hi), y, lower, upper)
            masked = optax.tree.zeros_like(clipped)
            if self.outputs is not None:
                masked = self.outputs(end, y, args)
            guard = optax.tree.where(accepted, guard.add(end, clipped, masked), guard)
        if self.prints:
            jax.debug.callback(self._print, step)
        return Watched(guard, None if seen.log is None else seen.log.add(step))

    def _print(self, step: Step) -> None:
        cause = Cause(int(np.asarray(step.cause)))
        how = "accepted" if cause is Cause.none else f"rejected: {cause.name.replace('_', ' ')}"
        print(
            f"t = {float(step.t):<13.6g} dt = {float(step.dt):<11.4g} error = "
            f"{float(step.error):<10.3g} worst = {self.names[int(step.component)]}  {how}",
            flush=True,
        )
