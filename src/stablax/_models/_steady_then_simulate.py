"""`SteadyThenSimulate`: equilibrate under one condition, simulate under the next."""

from typing import Any, final

import diffrax
import equinox as eqx
import jax.lax as lax

from .._results import RESULTS, is_okay
from .._states import as_args, select, state_dtype
from .._static import Static
from .._steady import (
    Chain,
    SteadyOptions,
    as_chain,
    as_conserved,
    as_guess,
    refuse_rows_of,
    steady_state,
)
from .._types import VF, Args, ScalarLike, YLike, typechecked
from ._explain import raise_on_failure
from ._options import SolveOptions
from ._simulate import Simulate, check_call, explain_forward_mode
from ._simulation import Simulation
from ._solve import integrate


@final
class SteadyThenSimulate(eqx.Module):
    """The steady state under one condition, then the dynamics from it under the next.

    ```python
    model = sx.SteadyThenSimulate(field)
    simulation = model(y0, ts, steady_args=without_drug, args=with_drug)
    ```

    The steady state is found by [`find_steady_state`][] and differentiated implicitly; the
    trajectory is a [`Simulate`][] of the same field. Gradients flow through both, in the field's
    parameters, `args`, `steady_args` and, through conserved quantities, `y0`.

    **Arguments:** `field`, `solver`, `controller`, `adjoint`, `max_steps`, `dt0`, `event`,
    `progress_meter`, `telemetry` and `trace` as [`Simulate`][]; and

    - `method`: as in [`find_steady_state`][]; by default the same.
    - `steady_rtol`, `steady_atol`, `steady_max_steps`, `stability`: as `rtol`, `atol`,
        `max_steps` and `stability` there.
    """

    simulate: Simulate
    _steady: Static

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
        if steady_max_steps < 1:
            raise ValueError(f"`steady_max_steps` must be at least 1, got {steady_max_steps}.")
        self.simulate = Simulate(
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
        )
        self._steady = Static(
            SteadyOptions(as_chain(method), steady_rtol, steady_atol, steady_max_steps, stability)
        )

    @property
    def field(self) -> Any:
        """The field, as it was given."""
        return self.simulate.field

    @property
    def options(self) -> SolveOptions:
        """As [`Simulate.options`][]."""
        return self.simulate.options

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
        - `throw`: raise an error if either part fails, or return the reason as `result`.

        **Returns:** a [`Simulation`][] whose `steady` is the [`SteadyState`][]. If there is no
        steady state, no step is taken.

        **Raises:** as [`Simulate`][] and [`find_steady_state`][].
        """
        y0, ts, t0, args = check_call(self.field, self.options, y0, ts, t0, args)
        dtype = state_dtype(y0)
        steady_args = as_args(steady_args, dtype)
        conserved = as_conserved(conserved, self.field)
        guess = as_guess(guess, y0)
        options = self._steady.tree.for_dtype(dtype)
        with explain_forward_mode():
            simulation = _steady_then_simulate(
                self, y0, ts, t0, args, steady_args, options, conserved, guess
            )
        assert simulation.steady is not None
        refuse_rows_of(simulation.steady, self.field, y0, steady_args, t0, conserved)
        return raise_on_failure(simulation) if throw else simulation


@eqx.filter_jit
def _steady_then_simulate(
    model: SteadyThenSimulate, y0, ts, t0, args, steady_args, options, conserved, guess
) -> Simulation:
    steady = steady_state(model.field, y0, steady_args, t0, options, conserved, guess)
    found = is_okay(steady.result)
    simulation = integrate(model.field, model.options, steady.y, ts, t0, args, active=found)
    result = RESULTS.where(found, simulation.result, steady.result)
    # A failed sample has no gradient at all, whichever part failed.
    start = select(is_okay(result), steady.y, lax.stop_gradient(steady.y))
    steady = eqx.tree_at(lambda s: s.y, steady, start)
    return eqx.tree_at(
        lambda s: (s.steady, s.result),
        simulation,
        (steady, result),
        is_leaf=lambda x: x is None or isinstance(x, RESULTS),
    )
