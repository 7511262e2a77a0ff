"""The options of the search for the steady state that a model starts from."""

from typing import TypedDict, final

import equinox as eqx

from .._steady import Chain, SteadyMethod, SteadyOptions, as_chain
from .._types import Explained
from ._options import SolveArguments


class SearchArguments(TypedDict, total=False):
    """`SearchOptions` for editors and type checkers."""

    method: SteadyMethod | None
    steady_rtol: float | None
    steady_atol: float | None
    steady_max_steps: int | None
    stability: bool | None


class SteadyArguments(SolveArguments, SearchArguments, total=False):
    """What a model takes that starts from a steady state."""


_METHOD = Chain()
_MAX_STEPS = 256


def _method(method: Explained[SteadyMethod | None]) -> Chain:
    return _METHOD if method is None else as_chain(method)


def _max_steps(steps: int | None) -> int:
    most = _MAX_STEPS if steps is None else steps
    if most < 1:
        raise ValueError(f"`steady_max_steps` must be at least 1, got {most}.")
    return most


@final
class SearchOptions(eqx.Module):
    """As given to a model; `None`: the default."""

    method: Chain = eqx.field(default=_METHOD, converter=_method)
    steady_rtol: float | None = None
    steady_atol: float | None = None
    steady_max_steps: int = eqx.field(default=_MAX_STEPS, converter=_max_steps)
    stability: bool | None = None

    @property
    def steady(self) -> SteadyOptions:
        """By the names that they have in a search of its own."""
        return SteadyOptions(
            chain=self.method,
            rtol=self.steady_rtol,
            atol=self.steady_atol,
            max_steps=self.steady_max_steps,
            stability=self.stability,
        )
