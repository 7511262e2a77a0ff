"""`Simulate`: the dynamics alone."""

from typing import Unpack, final

import equinox as eqx

from .._failure import inputs_with_finite_derivative
from .._parameters import natural
from .._states import as_state, state_dtype
from .._static import Split, Static
from .._types import VF, Args, Explained, NumbersLike, ScalarLike, YLike, takes, typechecked
from ._call import check_call, explain_forward_mode
from ._explain import raise_on_failure
from ._model import AbstractModel
from ._options import SolveArguments, SolveOptions
from ._simulation import Simulation
from ._solve import integrate
from ._stepping import Pace, Stepping, as_stepping, planned


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
    - `event`: an [`Event`][], or a sequence of them: where a condition crosses zero the state
        changes, and the solve goes on, or ends there. The log of them is the `events` of the
        simulation. Needs `DiscreteAdjoint` or `ForwardMode`. Or a `diffrax.Event` that ends the
        solve, with any adjoint: a condition of it that returns a number is solved for (its
        `root_finder` is used if it has one); of several, the first in time ends the solve; one
        that returns a boolean ends it with the step at whose end it is true, at a time without a
        derivative; one that changes its sign twice within a step is not seen. Where an event ends
        the solve, its time is the `t1` of the simulation; rows after it are marked in `reached`,
        and hold the state there.
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

    @typechecked
    @takes(SolveOptions)
    def __init__(self, field: VF, **options: Unpack[SolveArguments]):
        super().__init__(field, **options)

    def arguments(self):
        return self.options.arguments()

    @typechecked
    def __call__(
        self,
        y0: YLike,
        ts: Explained[NumbersLike],
        *,
        t0: ScalarLike = 0.0,
        args: Args = None,
        stepping: Explained[Stepping | None] = None,
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
        self = natural(self)
        y0, stepping = as_state(y0, "y0"), as_stepping(stepping)
        plan, pace = planned(self._options, self.guard, state_dtype(y0), stepping)
        y0, ts, t0, args = check_call(
            field=self.field,
            options=self._options,
            pace=pace,
            y0=y0,
            ts=ts,
            t0=t0,
            args=args,
            stepping=stepping,
        )
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
