"""The options of a model, as they are used: with the defaults that depend on others, checked."""

import dataclasses

import diffrax

from .._control import StiffPID, refuse_traced_times
from .._fields import Guard, as_guarded, declared_jacobian
from .._solvers import AbstractRosenbrock, FiniteSteps, Rodas5P
from .._types import VF
from .._words import short
from ._adjoint import DiscreteAdjoint
from ._options import ResolvedOptions, SolveOptions, fields_of

_ADJOINTS = (
    DiscreteAdjoint,
    diffrax.RecursiveCheckpointAdjoint,
    diffrax.DirectAdjoint,
    diffrax.ForwardMode,
)
_OWN_LOOP = DiscreteAdjoint | diffrax.ForwardMode
# Their steps depend on the step before.
_REMEMBERING = diffrax.LeapfrogMidpoint | diffrax.ReversibleHeun


def resolve(given: SolveOptions, field: VF) -> ResolvedOptions:
    """The options with which a model of `field` solves."""
    for name in ("solver", "controller", "adjoint"):
        _refuse_class(name, getattr(given, name))
    solver = _solver(given.solver, field)
    controller = _controller(given.controller, solver, field)
    adjoint = _adjoint(given.adjoint, solver)
    _check_rest(given, controller)
    if isinstance(given.event, tuple):
        _check_events(solver, adjoint)
    resolved = dict(solver=solver, controller=controller, adjoint=adjoint)
    return ResolvedOptions(**{**fields_of(given), **resolved}, given=given)


def is_imex(solver: diffrax.AbstractSolver) -> bool:
    return isinstance(solver, diffrax.KenCarp3 | diffrax.KenCarp4 | diffrax.KenCarp5 | diffrax.Sil3)


def _refuse_class(name: str, value: object) -> None:
    if isinstance(value, type):
        made = f"{value.__name__}(...)"
        raise TypeError(f"`{name}` is the class `{value.__name__}`: make one, `{made}`.")


def _solver(solver: diffrax.AbstractSolver | None, field: VF) -> diffrax.AbstractSolver:
    if solver is None:
        solver = Rodas5P()
    if not isinstance(solver, diffrax.AbstractSolver):
        raise TypeError(f"`solver` must be a diffrax solver, got {short(solver)}.")
    if isinstance(solver, FiniteSteps):
        solver = solver.solver  # The field is protected from the inside; one gate is enough.
    _check_terms(solver)
    declared = declared_jacobian(field)
    if isinstance(solver, AbstractRosenbrock) and solver.jacobian is None:
        solver = dataclasses.replace(solver, jacobian=declared)
    return solver


def _check_terms(solver: diffrax.AbstractSolver) -> None:
    structure = solver.term_structure
    one_term = structure in (diffrax.AbstractTerm, diffrax.ODETerm)
    if not (one_term or is_imex(solver)) or isinstance(solver, diffrax.AbstractWrappedSolver):
        raise TypeError(
            f"`solver={type(solver).__name__}` is refused: it does not take one ODE field. Use an "
            "explicit or implicit Runge-Kutta method or an IMEX method (which treats the whole "
            "field implicitly)."
        )


def _controller(
    controller: diffrax.AbstractStepSizeController | None,
    solver: diffrax.AbstractSolver,
    field: VF,
) -> diffrax.AbstractStepSizeController:
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
    return controller


def _adjoint(
    adjoint: diffrax.AbstractAdjoint | DiscreteAdjoint | None, solver: diffrax.AbstractSolver
) -> diffrax.AbstractAdjoint | DiscreteAdjoint:
    remembers = isinstance(solver, _REMEMBERING)
    if adjoint is None:
        return diffrax.RecursiveCheckpointAdjoint() if remembers else DiscreteAdjoint()
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
    return adjoint


def _check_events(
    solver: diffrax.AbstractSolver, adjoint: diffrax.AbstractAdjoint | DiscreteAdjoint
) -> None:
    if isinstance(solver, _REMEMBERING):
        raise ValueError(
            f"`event`: a step of `{type(solver).__name__}` depends on the step before, which a "
            "`stablax.Event` cuts short. Use another solver, or a `diffrax.Event`, which ends the "
            "solve."
        )
    if not isinstance(adjoint, _OWN_LOOP):
        raise ValueError(
            "`event`: a `stablax.Event` needs the default adjoint or `diffrax.ForwardMode()`, but "
            f"`adjoint={type(adjoint).__name__}()` goes through diffrax's loop. That takes a "
            "`diffrax.Event`, which ends the solve."
        )


def _check_rest(given: SolveOptions, controller: diffrax.AbstractStepSizeController) -> None:
    max_steps, trace = given.max_steps, given.trace
    if max_steps < 1:
        raise ValueError(f"`max_steps` must be at least 1, got {max_steps}.")
    if given.dt0 is None and isinstance(controller, diffrax.ConstantStepSize):
        raise ValueError("`controller=ConstantStepSize()` needs the step size as `dt0`.")
    text = isinstance(trace, str)
    if not (trace is None or (text and trace in ("record", "print"))):
        wrong = ValueError if text else TypeError
        raise wrong(f'`trace` must be "record", "print" or None, got {short(trace)}.')
