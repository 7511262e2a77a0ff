"""Where the phases of a model begin."""

import abc
import dataclasses
from typing import Any, final

import equinox as eqx
from jaxtyping import Array, PyTree

from .._states import as_args, state_dtype
from .._steady import (
    Chain,
    SteadyOptions,
    SteadyState,
    WarmStart,
    as_chain,
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
    conserved: Any
    guess: WarmStart | None

    @staticmethod
    def of(
        search: SteadyOptions, field: VF, y0: PyTree[Array], args: Args, conserved: Any, guess: Any
    ) -> "SteadyStart":
        """From the arguments of a call, checked."""
        dtype = state_dtype(y0)
        return SteadyStart(
            y0,
            as_args(args, dtype),
            search.for_dtype(dtype),
            as_conserved(conserved, field),
            as_guess(guess, y0),
        )

    def begin(self, field, t0, width):
        given = (self.y0, self.args, t0, self.search, self.conserved, self.guess)
        found = steady_state(field, *given, width)
        return found.y, found

    def check(self, found, field, t0):
        assert found is not None
        refuse_rows_of(found, field, self.y0, self.args, t0, self.conserved)


def search_options(
    method: Any,
    steady_rtol: float | None,
    steady_atol: float | None,
    steady_max_steps: int | None,
    stability: bool | None,
) -> SteadyOptions:
    """The options of a search that is part of a model; `None`: the default."""
    most = 256 if steady_max_steps is None else steady_max_steps
    if most < 1:
        raise ValueError(f"`steady_max_steps` must be at least 1, got {most}.")
    chain = Chain() if method is None else as_chain(method)
    return SteadyOptions(chain, steady_rtol, steady_atol, most, stability)
