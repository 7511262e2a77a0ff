"""`Event`: where a condition crosses zero, and what happens there; and the log of them."""

import inspect
from collections.abc import Callable, Sequence
from typing import final

import diffrax
import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._types import Explained, typechecked
from .._words import short
from ._dose import AbstractDose, DoseLike, as_dose


@final
class Event(eqx.Module):
    """Where `condition(t, y, args)` crosses zero the state changes, and the solve goes on; or it
    ends there.

    ```python
    def bounce(t, y, args):
        return jnp.array([0.0, -0.9 * y[1]])


    floor = sx.Event(lambda t, y, args: y[0], direction=False, change=bounce)
    model = sx.Simulate(lambda t, y, args: jnp.array([y[1], -9.81]), event=floor)
    simulation = model(jnp.array([1.0, 0.0]), jnp.linspace(0.0, 3.0, 61))
    simulation.events.t
    ```

    The time is found on the dense output of the step, to the resolution of time, and the next step
    starts there. Times, states and all that follows have the derivatives of the event, in both
    modes, in the state, `t0`, the parameters of the field and the `args`, which `condition` and
    `change` see too, and in what functions close over. (Arrays of a dose or a module are
    constants.)

    Conditions are looked at eight times in each step, on its dense output. One that crosses twice
    between two of those is not seen, and one that touches zero without crossing it is no event;
    the time of one that does so nearly has a derivative that grows without limit.

    At its own event a condition is zero. Then it counts as on the side on which it goes on, so that
    neither going on nor being sent back is another event. At `t0` it is one, if it is zero there
    and goes on in a direction that is taken.

    **Arguments:**

    - `condition`: `fn(t, y, args)`, a real number of shape `()`, continuous along a solution.
    - `direction`: `True` if only a crossing from below is one, `False` if only one from above (as
        the solve goes: backward in time, too), `None` for both.
    - `change`: the state after it: a function `fn(t, y, args) -> y`, or a dose ([`SetDose`][],
        [`AddDose`][], [`ScaleDose`][], of one's own; an array is added). `None`: the solve ends.
        (`lambda t, y, args: y` keeps the state: the event is only recorded.)
    - `max_count`: >= 1; how often it may happen in one solve (of phases, in each). The next time
        ends the solve, with the result `too_many_events`. The log has room for so many.

    **Raises:** `TypeError` or `ValueError` for an argument that does not fit; when a model is
    called, for a condition that is no real number, and a change that does not return a state.
    """

    condition: Callable
    change: AbstractDose | None
    direction: bool | None = eqx.field(static=True)
    max_count: int = eqx.field(static=True)

    @typechecked
    def __init__(
        self,
        condition: Explained[Callable],
        *,
        direction: bool | None = None,
        change: Explained[DoseLike] = None,
        max_count: int = 100,
    ):
        if not callable(condition):
            raise TypeError(
                f"`condition` must be a function `fn(t, y, args)` whose zero is the event, got "
                f"{short(condition)}."
            )
        if max_count < 1:
            raise ValueError(f"`max_count` must be at least 1, got {max_count}.")
        try:
            self.condition, self.change = condition, as_dose(change)
        except (TypeError, ValueError) as error:
            raise type(error)(
                f"`change` must be a function `fn(t, y, args)` that returns the state after the "
                f"event, or a dose. As one that is added, {error}"
            ) from None
        self.direction = direction
        self.max_count = 1 if self.change is None else max_count


class EventLog(eqx.Module):
    """The events that took place in a solve, in the order of time (and those of one time in the
    order in which they changed the state).

    **Attributes:** with a leading axis, as many as there may be: the sum of the `max_count` of all
    events (1 for one that ends the solve), of phases for each of them.

    - `t`: the times [time], differentiable; behind the last event, where the solve ended, a
        constant.
    - `which`: the number of the event, in the order in which they were given to the model; -1
        behind the last.
    - `happened`: whether there is such an event; those that took place come first.
    - `before`, `after`: the state before it and after it, differentiable: the structure and units
        of `y0`.
        Behind the last event, the last state.
    """

    t: Float[Array, " events"]
    which: Int[Array, " events"]
    happened: Bool[Array, " events"]
    before: PyTree[Float[Array, "events ..."]]
    after: PyTree[Float[Array, "events ..."]]

    @typechecked
    def of(self, which: int) -> "EventLog":
        """Only those of one event, first. Behind them stands what is last in the whole log.

        **Arguments:**

        - `which`: its number.

        **Returns:** an `EventLog` of the same size.
        """
        last = lambda x: jnp.take(x, -1, axis=self.happened.ndim - 1)
        end = (last(self.t), jtu.tree_map(last, self.after))
        return self._only(self.happened & (self.which == which)).padded(*end)

    def _only(self, happened: Bool[Array, "... events"]) -> "EventLog":
        order = jnp.argsort(~happened, axis=-1, stable=True)

        def ordered(x):
            places = order.reshape(*order.shape, *[1] * (x.ndim - order.ndim))
            return jnp.take_along_axis(x, places, axis=order.ndim - 1)

        log = jtu.tree_map(ordered, self)
        return eqx.tree_at(lambda log: log.happened, log, ordered(happened))

    def over_phases(self, t1: Array, last: PyTree[Array]) -> "EventLog":
        """Those of all phases, which are the leading axis, as one log."""
        flat = jtu.tree_map(lambda x: x.reshape(-1, *x.shape[2:]), self)
        return flat._only(flat.happened).padded(t1, last)

    def padded(self, t1: Array, last: PyTree[Array]) -> "EventLog":
        """With the end of the solve behind the last event; where that is has no derivative."""
        happened, axis = self.happened, self.happened.ndim - 1

        def pad(x, end):
            is_one = happened.reshape(*happened.shape, *[1] * (x.ndim - happened.ndim))
            return jnp.where(is_one, x, jnp.expand_dims(lax.stop_gradient(end), axis))

        states = [jtu.tree_map(pad, states, last) for states in (self.before, self.after)]
        return EventLog(pad(self.t, t1), jnp.where(happened, self.which, -1), happened, *states)


def as_event(
    event: Explained[diffrax.Event | Event | Sequence[Event] | None],
) -> diffrax.Event | tuple[Event, ...] | None:
    """What a user gave as the `event` of a model."""
    if event is None or isinstance(event, diffrax.Event):
        return event
    events = [event] if isinstance(event, Event) else event
    is_sequence = isinstance(events, Sequence) and not isinstance(events, str)
    if not is_sequence or not all(isinstance(e, Event) for e in events):
        hint = f"; perhaps `stablax.Event({_called(event)})`" if callable(event) else ""
        raise TypeError(
            "`event` must be a `stablax.Event`, a sequence of them, or a `diffrax.Event`, got "
            f"{short(event)}{hint}."
        )
    return tuple(events) or None


def _called(fn: Callable) -> str:
    return fn.__name__ if inspect.isfunction(fn) and fn.__name__.isidentifier() else "..."
