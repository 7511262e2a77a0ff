"""`SteadyThenSimulate`: equilibrate under one condition, simulate under the next."""

from typing import Unpack, final

from .._parameters import natural
from .._states import as_state, state_dtype
from .._static import Static
from .._steady import ConservedLike, GuessLike, SteadyOptions
from .._types import VF, Args, Explained, NumbersLike, ScalarLike, YLike, chosen, takes, typechecked
from ._call import check_call
from ._model import AbstractModel
from ._options import SolveOptions, fields_of
from ._phase import Phase, as_stacks, joined
from ._run_phases import solve_phases
from ._search import SearchOptions, SteadyArguments
from ._simulation import Simulation
from ._start import SteadyStart
from ._stepping import Stepping, as_stepping, planned
from ._times import last_asked


@final
class SteadyThenSimulate(AbstractModel):
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

    _steady: Static

    @typechecked
    @takes(SolveOptions, SearchOptions)
    def __init__(self, field: VF, **options: Unpack[SteadyArguments]):
        super().__init__(field, **fields_of(chosen(SolveOptions, options)))
        self._steady = Static(chosen(SearchOptions, options))

    @property
    def steady_options(self) -> SteadyOptions:
        """How it searches for the steady state."""
        return self._steady.tree.steady

    def arguments(self):
        return {**self.options.arguments(), **fields_of(self._steady.tree)}

    @typechecked
    def __call__(
        self,
        y0: YLike,
        ts: Explained[NumbersLike],
        *,
        t0: ScalarLike = 0.0,
        args: Args = None,
        steady_args: Args = None,
        conserved: Explained[ConservedLike] = None,
        guess: Explained[GuessLike] = None,
        stepping: Explained[Stepping | None] = None,
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
        self = natural(self)
        y0, stepping = as_state(y0, "y0"), as_stepping(stepping)
        how = planned(self._options, self.guard, state_dtype(y0), stepping)
        y0, ts, t0, args = check_call(
            field=self.field,
            options=self._options,
            pace=how[1],
            y0=y0,
            ts=ts,
            t0=t0,
            args=args,
            stepping=stepping,
        )
        start = SteadyStart.of(
            search=self.steady_options,
            field=self.field,
            y0=y0,
            args=steady_args,
            conserved=conserved,
            guess=guess,
        )
        stacks = as_stacks(Phase(last_asked(ts), args), ts.dtype)
        legs = joined(stacks, [how])
        return solve_phases(self, start, ts, t0, legs=legs, before=False, throw=throw)
