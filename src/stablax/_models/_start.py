"""Where the phases of a model begin."""

import abc
import dataclasses
from typing import final

import diffrax
import equinox as eqx
from jaxtyping import Array, PyTree

from .._solvers import mass_of
from .._states import as_args, state_dtype
from .._static import Frozen
from .._steady import (
    ConservedLike,
    GuessLike,
    SteadyOptions,
    SteadyState,
    WarmStart,
    as_conserved,
    as_guess,
    refuse_rows_of,
    steady_state,
)
from .._types import VF, Args


class AbstractStart(eqx.Module):
    """The start of one call."""

    y0: eqx.AbstractVar[PyTree[Array]]
    args: eqx.AbstractVar[Args]  # the condition before the first phase

    def moved(self, y0: PyTree[Array], args: Args) -> "AbstractStart":
        """With another state and condition."""
        return dataclasses.replace(self, y0=y0, args=args)

    @abc.abstractmethod
    def begin(
        self, field: VF, t0: Array, width: int | None
    ) -> tuple[PyTree[Array], SteadyState | None]:
        """The state at `t0`; and the steady state that it is, if it is one. At most `width` lanes
        of a batch step at once."""

    def refuse(self, solver: diffrax.AbstractSolver) -> None:
        """Raises for a solver of the dynamics that this is no start for."""

    def check(self, found: SteadyState | None, field: VF, t0: Array) -> None:
        """Raises for a wrong input that only the search could see."""


@final
class GivenStart(AbstractStart):
    """A state."""

    y0: PyTree[Array]
    args: None = None

    def begin(self, field, t0, width):
        return self.y0, None


@final
class SteadyStart(AbstractStart):
    """The steady state that the dynamics reach from `y0` under `args`."""

    y0: PyTree[Array]
    args: Args
    search: SteadyOptions
    conserved: Frozen | str | None
    guess: WarmStart | None

    @staticmethod
    def of(
        *,
        search: SteadyOptions,
        field: VF,
        y0: PyTree[Array],
        args: Args,
        conserved: ConservedLike,
        guess: GuessLike,
    ) -> "SteadyStart":
        """From the arguments of a call, checked."""
        dtype = state_dtype(y0)
        return SteadyStart(
            y0=y0,
            args=as_args(args, dtype),
            search=search.for_dtype(dtype),
            conserved=as_conserved(conserved, field),
            guess=as_guess(guess, y0),
        )

    def begin(self, field, t0, width):
        found = steady_state(
            field,
            self.y0,
            self.args,
            t0,
            options=self.search,
            conserved=self.conserved,
            guess=self.guess,
            width=width,
        )
        return found.y, found

    def refuse(self, solver):
        if mass_of(solver) is not None:
            raise TypeError(
                f"`solver={type(solver).__name__}(mass=...)` cannot start from a steady state: the "
                "search for one follows dy/dt = f. Divide the field by a diagonal `mass` without "
                "zeros; else simulate from a given state for a long time."
            )

    def check(self, found, field, t0):
        assert found is not None
        refuse_rows_of(found, field, self.y0, self.args, t0, self.conserved)
