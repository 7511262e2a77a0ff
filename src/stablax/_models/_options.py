"""The options of a solve: names, types and defaults; as they were given, and as they are used."""

import abc
import dataclasses
import inspect
import math
from collections.abc import Sequence
from typing import Any, Literal, TypedDict, final

import diffrax
import equinox as eqx

from .._types import VF, Explained
from .._words import called, shown
from ._adjoint import DiscreteAdjoint
from ._event import Event, as_event


class SolveArguments(TypedDict, total=False):
    """`SolveOptions` for editors and type checkers, which do not know keywords from a dataclass."""

    solver: diffrax.AbstractSolver | None
    controller: diffrax.AbstractStepSizeController | None
    adjoint: diffrax.AbstractAdjoint | DiscreteAdjoint | None
    max_steps: int
    dt0: float | None
    event: diffrax.Event | Event | Sequence[Event] | None
    progress_meter: diffrax.AbstractProgressMeter | None
    telemetry: bool
    trace: Literal["record", "print"] | None


def _step_size(dt0: float | None) -> float | None:
    if dt0 is None:
        return None
    if not (math.isfinite(dt0) and dt0 > 0):
        raise ValueError(
            f"`dt0` must be a finite step size above 0, or None to choose one, got {dt0}."
        )
    return float(dt0)


def _meter(meter: diffrax.AbstractProgressMeter | None) -> diffrax.AbstractProgressMeter:
    return diffrax.NoProgressMeter() if meter is None else meter


class AbstractSolveOptions(eqx.Module):
    """How to solve: everything about a model that is not its field. Held statically."""

    _: dataclasses.KW_ONLY
    solver: diffrax.AbstractSolver | None
    controller: diffrax.AbstractStepSizeController | None
    adjoint: diffrax.AbstractAdjoint | DiscreteAdjoint | None
    max_steps: int = 4096
    dt0: float | None = eqx.field(default=None, converter=_step_size)
    event: diffrax.Event | tuple[Event, ...] | None = eqx.field(default=None, converter=as_event)
    progress_meter: diffrax.AbstractProgressMeter = eqx.field(default=None, converter=_meter)
    telemetry: bool = False
    trace: Explained[Literal["record", "print"] | None] = None

    @abc.abstractmethod
    def arguments(self) -> dict[str, Any]:
        """The arguments of a model that they were made of."""


@final
class SolveOptions(AbstractSolveOptions):
    """As they were given to a model. Of those whose default depends on others, `None` is "not
    given"."""

    _: dataclasses.KW_ONLY
    solver: Explained[diffrax.AbstractSolver | None] = None
    controller: Explained[diffrax.AbstractStepSizeController | None] = None
    adjoint: Explained[diffrax.AbstractAdjoint | DiscreteAdjoint | None] = None

    def arguments(self):
        return fields_of(self)


@final
class ResolvedOptions(AbstractSolveOptions):
    """As a model of one field solves with them; see `resolve`."""

    _: dataclasses.KW_ONLY
    solver: diffrax.AbstractSolver
    controller: diffrax.AbstractStepSizeController
    adjoint: diffrax.AbstractAdjoint | DiscreteAdjoint
    given: SolveOptions
    width: int | None = None  # of a batch, how many step at once at most; `simulate_batch` says it

    @property
    def on_own_loop(self) -> bool:
        """Not so where reverse mode goes through the loop: that is diffrax's."""
        return isinstance(self.adjoint, DiscreteAdjoint | diffrax.ForwardMode)

    @property
    def capacity(self) -> int:
        """How many steps what is kept of them has room for: `max_steps`, on the own loop rounded up
        to a power of two, so that programs with another budget are the same one."""
        if self.on_own_loop and self.trace != "record":
            return 1 << (self.max_steps - 1).bit_length()
        return self.max_steps

    def arguments(self):
        return self.given.arguments()


def fields_of(options: eqx.Module) -> dict[str, Any]:
    """The fields of a dataclass."""
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}


def represent(model: eqx.Module, field: VF, arguments: dict[str, object]) -> str:
    """A model as it is made: its field, and those of its `arguments` that are not the default."""
    # A model of one's own need not take all that it has.
    kinds = (SolveOptions, type(model))
    defaults = {
        name: p.default for k in kinds for name, p in inspect.signature(k).parameters.items()
    }
    parts = [shown(field)]
    for name, value in arguments.items():
        if isinstance(value, diffrax.NoProgressMeter) or value == defaults[name]:
            continue
        parts.append(f"{name}={value!r}")
    return called(type(model).__name__, parts)
