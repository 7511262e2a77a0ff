"""`SteadyThenSimulate`: equilibrate under one condition, simulate under the next."""

from typing import Any, final

import diffrax
import equinox as eqx

from .._steady import Chain
from .._types import VF, Args, ScalarLike, YLike, typechecked
from ._options import SolveOptions, represent
from ._phase import Phase, as_stacks
from ._simulate import check_call
from ._simulate_phases import SimulatePhases, solve_phases
from ._simulation import Simulation
from ._stepping import as_stepping
from ._times import last_asked


@final
class SteadyThenSimulate(eqx.Module):
    """The steady state under one condition, then the dynamics from it under the next.

    ```python
    model = sx.SteadyThenSimulate(field)
    simulation = model(y0, ts, steady_args=without_drug, args=with_drug)
    ```

    The steady state is found by [`find_steady_state`][] and differentiated implicitly; the
    trajectory is a [`Simulate`][] of the same field: a [`SimulatePhases`][] with one phase, that
    begins at a steady state. Gradients flow through both, in the field's
    parameters, `args`, `steady_args` and, through conserved quantities, `y0`.

    **Arguments:** `field`, `solver`, `controller`, `adjoint`, `max_steps`, `dt0`, `event`,
    `progress_meter`, `telemetry` and `trace` as [`Simulate`][]; and

    - `method`: as in [`find_steady_state`][]; by default the same.
    - `steady_rtol`, `steady_atol`, `steady_max_steps`, `stability`: as `rtol`, `atol`,
        `max_steps` and `stability` there.
    """

    _phases: SimulatePhases

    @typechecked
    def __init__(
        self,
        field: VF,
        *,
        method: Any = Chain(),
        solver: Any = None,
        controller: Any = None,
        adjoint: Any = None,
        max_steps: int = 4096,
        dt0: float | None = None,
        event: diffrax.Event | None = None,
        progress_meter: diffrax.AbstractProgressMeter | None = None,
        telemetry: bool = False,
        trace: str | None = None,
        steady_rtol: float | None = None,
        steady_atol: float | None = None,
        steady_max_steps: int = 256,
        stability: bool | None = None,
    ):
        self._phases = SimulatePhases(
            field,
            solver=solver,
            controller=controller,
            adjoint=adjoint,
            max_steps=max_steps,
            dt0=dt0,
            event=event,
            progress_meter=progress_meter,
            telemetry=telemetry,
            trace=trace,
            steady=True,
            method=method,
            steady_rtol=steady_rtol,
            steady_atol=steady_atol,
            steady_max_steps=steady_max_steps,
            stability=stability,
        )

    @property
    def field(self) -> Any:
        """The field, as it was given."""
        return self._phases.field

    @property
    def options(self) -> SolveOptions:
        """As [`Simulate.options`][]."""
        return self._phases.options

    def __repr__(self) -> str:
        search = self._phases.steady_options
        assert search is not None
        return represent(self, self.field, {**self.options.arguments(), **search.changed()})

    @typechecked
    def __call__(
        self,
        y0: YLike,
        ts: Any,
        *,
        t0: ScalarLike = 0.0,
        args: Args = None,
        steady_args: Args = None,
        conserved: Any = None,
        guess: Any = None,
        stepping: Any = None,
        throw: bool = True,
    ) -> Simulation:
        """Equilibrates and solves.

        **Arguments:**

        - `y0`: where the search for the steady state starts, and what fixes its conserved totals.
        - `ts`, `t0`, `args`: as [`Simulate`][]; the trajectory starts at `t0` from the steady
            state. A non-autonomous field is frozen at `t0` for the search.
        - `steady_args`: the condition of the steady state.
        - `conserved`: rows L with L f = 0, `"detect"` or `None`; as [`find_steady_state`][].
        - `guess`: a state near the steady state, or a [`WarmStart`][]; as [`find_steady_state`][].
        - `stepping`: as [`Simulate`][], of the trajectory.
        - `throw`: raise an error if either part fails, or return the reason as `result`.

        **Returns:** a [`Simulation`][] whose `steady` is the [`SteadyState`][]. If there is no
        steady state, no step is taken.

        **Raises:** as [`Simulate`][] and [`find_steady_state`][].
        """
        stepping = as_stepping(stepping)
        y0, ts, t0, args = check_call(self.field, self.options, y0, ts, t0, args, stepping=stepping)
        stacks = as_stacks(Phase(last_asked(ts), args), ts.dtype)
        return solve_phases(
            self._phases, y0, ts, t0, stacks, steady_args, conserved, guess, stepping, throw
        )
