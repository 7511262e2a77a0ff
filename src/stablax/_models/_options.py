"""How a model solves: its options, and which of them cannot be protected."""

import dataclasses
import inspect
import textwrap
from typing import Any

import diffrax
import equinox as eqx
import numpy as np

from .._control import StiffPID, refuse_traced_times
from .._fields import Guard, as_guarded
from .._solvers import AbstractRosenbrock, FiniteSteps, Rodas5P
from .._words import short
from ._adjoint import DiscreteAdjoint

_ADJOINTS = (
    DiscreteAdjoint,
    diffrax.RecursiveCheckpointAdjoint,
    diffrax.DirectAdjoint,
    diffrax.ForwardMode,
)


class Given(eqx.Module):
    """Options that have a default which depends on others, as they were given; `None`: not."""

    solver: diffrax.AbstractSolver | None
    controller: diffrax.AbstractStepSizeController | None
    adjoint: diffrax.AbstractAdjoint | DiscreteAdjoint | None


class SolveOptions(eqx.Module):
    """How to solve: everything about a model that is not its field. Held statically."""

    solver: diffrax.AbstractSolver
    controller: diffrax.AbstractStepSizeController
    adjoint: diffrax.AbstractAdjoint | DiscreteAdjoint
    max_steps: int
    dt0: float | None
    event: diffrax.Event | None
    progress_meter: diffrax.AbstractProgressMeter
    telemetry: bool
    trace: str | None
    given: Given
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

    def arguments(self) -> dict[str, Any]:
        """The arguments that they are made of: of `solve_options`, and of the models."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        given = fields.pop("given")
        del fields["width"]
        return {**fields, **{name: getattr(given, name) for name in given.__dataclass_fields__}}


def solve_options(
    field,
    solver,
    controller,
    adjoint,
    max_steps,
    dt0,
    event,
    progress_meter,
    telemetry,
    trace,
) -> SolveOptions:
    """The options of a model of `field`, with its defaults, checked."""
    given = Given(solver, controller, adjoint)
    for name, value in dict(solver=solver, controller=controller, adjoint=adjoint).items():
        if isinstance(value, type):
            made = f"{value.__name__}(...)"
            raise TypeError(f"`{name}` is the class `{value.__name__}`: make one, `{made}`.")
    if solver is None:
        solver = Rodas5P()
    if not isinstance(solver, diffrax.AbstractSolver):
        raise TypeError(f"`solver` must be a diffrax solver, got {short(solver)}.")
    if isinstance(solver, FiniteSteps):
        solver = solver.solver  # The field is protected from the inside; one gate is enough.
    _check_terms(solver)
    declared = as_guarded(field).jacobian
    if isinstance(solver, AbstractRosenbrock) and solver.jacobian is None:
        solver = dataclasses.replace(solver, jacobian=declared)
    if controller is None:
        controller = StiffPID.preset(solver=solver)
    if not isinstance(controller, diffrax.AbstractStepSizeController):
        raise TypeError(
            f"`controller` must be a diffrax step size controller, got {short(controller)}; for "
            "instance `StiffPID.preset()`."
        )
    if isinstance(controller, diffrax.StepTo):
        raise TypeError(
            "`controller=StepTo(...)` is refused: it raises where a sample has nothing to solve. "
            "Use `ConstantStepSize()`, or `StiffPID.preset(step_ts=...)` to step to given times."
        )
    if isinstance(controller, diffrax.ClipStepSizeController):
        refuse_traced_times(controller.step_ts, "step_ts")
        refuse_traced_times(controller.jump_ts, "jump_ts")
    if isinstance(controller, StiffPID):
        guard = as_guarded(field).guard
        if controller.guard not in (Guard(), guard):
            raise ValueError(
                f"`controller` carries {controller.guard}, but the field {guard}. Guard the "
                "field (`stablax.Guarded(field, guard)`): a model hands that to its controller."
            )
    remembers = isinstance(solver, diffrax.LeapfrogMidpoint | diffrax.ReversibleHeun)
    if adjoint is None:
        adjoint = diffrax.RecursiveCheckpointAdjoint() if remembers else DiscreteAdjoint()
    if not isinstance(adjoint, _ADJOINTS):
        names = ", ".join(f"`{a.__name__}`" for a in _ADJOINTS)
        raise TypeError(
            f"`adjoint={type(adjoint).__name__}` is refused: its backward pass cannot be "
            f"protected against failed steps. Use {names}."
            + (
                " (`BacksolveAdjoint` is wrong on stiff systems as well.)"
                if isinstance(adjoint, diffrax.BacksolveAdjoint)
                else ""
            )
        )
    if isinstance(adjoint, DiscreteAdjoint) and remembers:
        raise ValueError(
            f"`adjoint=DiscreteAdjoint()` cannot repeat a step of `{type(solver).__name__}`, which "
            "depends on the step before. Use `RecursiveCheckpointAdjoint()`, the default with it."
        )
    if max_steps < 1:
        raise ValueError(f"`max_steps` must be at least 1, got {max_steps}.")
    if dt0 is not None and not (np.isfinite(dt0) and dt0 > 0):
        raise ValueError(
            f"`dt0` must be a finite step size above 0, or None to choose one, got {dt0}."
        )
    if dt0 is None and isinstance(controller, diffrax.ConstantStepSize):
        raise ValueError("`controller=ConstantStepSize()` needs the step size as `dt0`.")
    if trace not in (None, "record", "print"):
        raise ValueError(f'`trace` must be "record", "print" or None, got {short(trace)}.')
    return SolveOptions(
        solver,
        controller,
        adjoint,
        max_steps,
        None if dt0 is None else float(dt0),
        event,
        diffrax.NoProgressMeter() if progress_meter is None else progress_meter,
        telemetry,
        trace,
        given,
    )


def represent(model: Any, field: Any, arguments: dict[str, Any]) -> str:
    """A model as it is made: its field, and those of its `arguments` that are not the default."""
    defaults = inspect.signature(type(model)).parameters
    parts = [repr(field) if isinstance(field, eqx.Module) else eqx.tree_pformat(field)]
    for name, value in arguments.items():
        if isinstance(value, diffrax.NoProgressMeter) or value == defaults[name].default:
            continue
        parts.append(f"{name}={value!r}")
    on_one_line = f"{type(model).__name__}({', '.join(parts)})"
    if len(on_one_line) <= 100 and "\n" not in on_one_line:
        return on_one_line
    body = textwrap.indent(",\n".join(parts), "  ")
    return f"{type(model).__name__}(\n{body}\n)"


def is_imex(solver: diffrax.AbstractSolver) -> bool:
    return isinstance(solver, diffrax.KenCarp3 | diffrax.KenCarp4 | diffrax.KenCarp5 | diffrax.Sil3)


def _check_terms(solver: diffrax.AbstractSolver) -> None:
    structure = solver.term_structure
    one_term = structure in (diffrax.AbstractTerm, diffrax.ODETerm)
    if not (one_term or is_imex(solver)) or isinstance(solver, diffrax.AbstractWrappedSolver):
        raise TypeError(
            f"`solver={type(solver).__name__}` is refused: it does not take one ODE field. Use an "
            "explicit or implicit Runge-Kutta method or an IMEX method (which treats the whole "
            "field implicitly)."
        )
