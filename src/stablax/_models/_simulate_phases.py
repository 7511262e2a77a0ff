"""`SimulatePhases`: one condition after the other, with doses between them."""

from collections.abc import Mapping, Sequence
from typing import Literal, Unpack, final

import jax
import numpy as np
from jaxtyping import Array

from .._parameters import natural
from .._results import RESULTS, message
from .._states import as_state, state_dtype
from .._static import Static, is_traced
from .._steady import ConservedLike, GuessLike, SteadyOptions
from .._types import VF, Args, Explained, NumbersLike, ScalarLike, YLike, chosen, takes, typechecked
from ._call import check_call
from ._model import AbstractModel
from ._options import SolveOptions, fields_of
from ._phase import Phase, as_stacks, ends_given, joined
from ._run_phases import ends_of, phases_fit, plans_of, solve_phases
from ._search import SearchArguments, SearchOptions, SteadyArguments
from ._simulation import Simulation
from ._start import GivenStart, SteadyStart
from ._stepping import Stepping, as_stepping
from ._times import last_asked


@final
class SimulatePhases(AbstractModel):
    """One phase after the other, each under its own condition, with doses between them; from a
    given state, or from a steady state.

    ```python
    model = sx.SimulatePhases(field)
    simulation = model(y0, ts, [sx.Phase(4.0, args=low), sx.Phase(9.0, args=high, dose=amount)])
    ```

    The phases are data of the call: gradients flow in doses, end times and `args` as in the
    field's parameters and `y0`. Every phase is a [`Simulate`][] of the same field, with a step
    size that starts anew. Consecutive phases of equal structure (and those of a stack, see
    [`Phase`][]) are compiled once and scanned. Under `vmap`, schedules of different length are
    padded with phases of length zero.

    `max_steps` is the budget of each phase. With [`DiscreteAdjoint`][], memory is that of one
    solve for each phase: `max_steps * (n + 1)` numbers for a state of n components. In reverse
    mode through diffrax's `RecursiveCheckpointAdjoint` or `DirectAdjoint` there is no derivative in
    the ends of a phase in which a step is not finite (it is nan there).

    **Arguments:** `field`, `solver`, `controller`, `adjoint`, `max_steps`, `dt0`, `event` (one
    that ends a solve ends the phase and all that follow), `progress_meter`, `telemetry` and
    `trace` as [`Simulate`][]; and

    - `boundary`: to which side a save time at the start of a phase belongs: `"after"` (the
        default), the state after the dose; `"before"`, the state at the end of the phase before
        (at `t0`: the state it starts from). At the end of the last phase both are the same.
    - `steady`: start from the steady state that the dynamics reach from `y0` under `steady_args`,
        instead of `y0`.
    - `method`, `steady_rtol`, `steady_atol`, `steady_max_steps`, `stability`: as
        [`SteadyThenSimulate`][], for `steady=True`.

    **Raises:** as [`Simulate`][]; `ValueError` for options of a steady state without `steady=True`.
    """

    _boundary: Static
    _steady: Static

    @typechecked
    @takes(SolveOptions, SearchOptions)
    def __init__(
        self,
        field: VF,
        *,
        boundary: Literal["after", "before"] = "after",
        steady: bool = False,
        **options: Unpack[SteadyArguments],
    ):
        if not steady:
            search = {name: options.get(name) for name in SearchArguments.__annotations__}
            _refuse(search, "add `steady=True`")
        super().__init__(field, **fields_of(chosen(SolveOptions, options)))
        self._boundary = Static(boundary)
        self._steady = Static(chosen(SearchOptions, options) if steady else None)

    @property
    def steady_options(self) -> SteadyOptions | None:
        """How it searches for the steady state that it starts from; None where it starts from a
        given state."""
        search = self._steady.tree
        return None if search is None else search.steady

    def arguments(self):
        search = self._steady.tree
        searched = {} if search is None else fields_of(search)
        start = dict(boundary=self._boundary.tree, steady=search is not None, **searched)
        return {**self.options.arguments(), **start}

    @typechecked
    def __call__(
        self,
        y0: YLike,
        ts: Explained[NumbersLike],
        phases: Explained[Phase | Sequence[Phase]],
        *,
        t0: ScalarLike = 0.0,
        steady_args: Args = None,
        conserved: Explained[ConservedLike] = None,
        guess: Explained[GuessLike] = None,
        stepping: Explained[Stepping | None] = None,
        throw: bool = True,
    ) -> Simulation:
        """Solves one phase after the other.

        **Arguments:**

        - `y0`: the state at `t0`, before the dose of the first phase; with `steady=True`, where
            the search for the steady state starts, and what fixes its conserved totals.
        - `ts`: times to save at, shape `(times,)`, in one direction from `t0` and within the
            phases; the last may be nan or inf, which is "not asked for".
        - `phases`: a [`Phase`][] or a sequence of them. The first starts at `t0`, each of the
            others where the one before it ends.
        - `t0`: the start.
        - `steady_args`, `conserved`, `guess`: as [`SteadyThenSimulate`][], for `steady=True`.
        - `stepping`: as [`Simulate`][], of every phase, and before what a phase has of its own.
        - `throw`: raise an error if a phase fails, or return the reason as `result`.

        **Returns:** a [`Simulation`][]. `result` is the first failure in time order; the phases
        after it are not run, and their rows are marked in `reached`. The numbers of steps are
        summed over the phases, and `stats["phase"]` is the last one that was run (the first is 0).

        **Raises:** `ValueError` or `TypeError` for phases that are out of order, save times outside
        them, a dose that does not fit the state; and as [`SteadyThenSimulate`][].
        """
        self = natural(self)
        y0, stepping = as_state(y0, "y0"), as_stepping(stepping)
        dtype, phases = state_dtype(y0), natural(phases)
        stacks, ends = as_stacks(phases, dtype), ends_given(phases, dtype)
        how = plans_of(self, stacks, dtype, stepping)
        y0, ts, t0, _ = check_call(
            field=self.field,
            options=self._options,
            pace=how[0][1],
            y0=y0,
            ts=ts,
            t0=t0,
            args=None,
            stepping=stepping,
            ends=ends,
        )
        _check_times(t0, ts, ends_of(stacks))
        search = self.steady_options
        if search is None:
            given = dict(steady_args=steady_args, conserved=conserved, guess=guess)
            _refuse(given, "make the model with `steady=True`")
            start = GivenStart(y0)
        else:
            start = SteadyStart.of(
                search=search,
                field=self.field,
                y0=y0,
                args=steady_args,
                conserved=conserved,
                guess=guess,
            )
        before = self._boundary.tree == "before"
        legs = joined(stacks, how)
        return solve_phases(self, start, ts, t0, legs=legs, before=before, throw=throw)


def _refuse(given: Mapping[str, object], remedy: str) -> None:
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"`{name}` is for a start from a steady state: {remedy}.")


def _check_times(t0: Array, ts: Array, ends: Array) -> None:
    """Raises where the phases do not fit each other, or `ts`, and values are concrete."""
    if is_traced((t0, ts, ends)):
        return
    with jax.ensure_compile_time_eval():
        if phases_fit(t0, ts, ends):
            return
    starts = np.concatenate([[t0], ends[:-1]])
    lengths = np.asarray(ends) - starts
    whole = f"{message(RESULTS.bad_phases)} "
    if not np.isfinite(lengths).all():
        k = int(np.argmin(np.isfinite(lengths)))
        raise ValueError(
            f"{whole}Phase {k} (the first is 0) goes from {starts[k]:g} to {ends[k]:g}."
        )
    if (lengths < 0).any() and (lengths > 0).any():
        k = int(np.argmax(lengths * np.sign(ends[-1] - t0) < 0))
        raise ValueError(
            f"{whole}Phase {k} (the first is 0) ends at {float(ends[k]):g}, but starts at "
            f"{float(starts[k]):g}."
        )
    raise ValueError(
        f"{whole}The phases go from {float(t0):g} to {float(ends[-1]):g}, `ts` goes from "
        f"{float(ts[0]):g} to {float(last_asked(ts)):g}."
    )
