"""A second look: the same solve at a tenth of the tolerance, with steps that are short."""

import dataclasses
from collections.abc import Callable
from typing import Any, final

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from .._control import StiffPID
from .._models import AbstractModel, Phase, Simulation, with_options
from .._results import is_okay, name_of
from .._states import as_args
from .._static import Static
from .._types import ScalarLike
from ._observe import Observation

_PARTS = 100  # of the time span, of which no step is longer than one
_TIGHTER = 0.1
_FAR = 100  # times `rtol`: what a value moves by before derivatives are looked at


@final
class _ShortSteps(diffrax.AbstractAdaptiveStepSizeController):
    """A controller whose steps are at most 1 % of the time span, for which the fixed `dtmax` of
    another cannot be chosen where the time span is not known."""

    rtol: ScalarLike
    atol: PyTree
    norm: Callable[[PyTree], Array]
    controller: diffrax.AbstractStepSizeController

    def wrap(self, direction) -> "_ShortSteps":
        return dataclasses.replace(self, controller=self.controller.wrap(direction))

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        next_t1, inner = self.controller.init(terms, t0, t1, y0, dt0, args, func, error_order)
        longest = jax.lax.stop_gradient((t1 - t0) / _PARTS)
        return jnp.minimum(next_t1, t0 + longest), (inner, longest)

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        inner, longest = controller_state
        keep, next_t0, next_t1, made_jump, inner, result = self.controller.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, inner
        )
        next_t1 = jnp.minimum(next_t1, next_t0 + longest)
        return keep, next_t0, next_t1, made_jump, (inner, longest), result


def tolerance_of(
    solves: AbstractModel | diffrax.AbstractStepSizeController, dtype: np.dtype
) -> float | None:
    """`rtol` of a model, or of a controller, for a state of `dtype`, if it has one."""
    controller = solves.options.controller if isinstance(solves, AbstractModel) else solves
    if isinstance(controller, StiffPID) and not controller.given[0]:
        controller = controller.for_dtype(dtype)
    rtol = getattr(controller, "rtol", None)
    return None if rtol is None else float(rtol)


def finer(model: PyTree, dtype: np.dtype) -> PyTree | None:
    """`model` with a tenth of the tolerances and short steps in all models in it, for forward mode;
    None if none has a tolerance that could be less in a state of `dtype`."""
    changed = []

    def change(part):
        if not isinstance(part, AbstractModel):
            return part
        controller = _finer_controller(part.options.controller, dtype)
        if controller is None:
            return part
        changed.append(part)
        return with_options(
            part,
            controller=controller,
            adjoint=diffrax.ForwardMode(),
            max_steps=10 * part.options.max_steps,
            trace=None,
        )

    other = jtu.tree_map(change, model, is_leaf=lambda x: isinstance(x, AbstractModel))
    return other if changed else None


def _finer_phases(phases: PyTree, dtype: np.dtype) -> PyTree:
    """`phases`, with what they have of their own changed as [`finer`][] changes a model."""

    def change(phase):
        changed, own = {}, phase.overrides
        controller = _finer_controller(own.controller, dtype)
        if controller is not None:
            changed["controller"] = controller
        if own.max_steps is not None:
            changed["max_steps"] = 10 * own.max_steps
        return phase.overridden(**changed)

    return jtu.tree_map(change, phases, is_leaf=lambda x: isinstance(x, Phase))


def _finer_controller(
    controller: diffrax.AbstractStepSizeController, dtype: np.dtype
) -> "_ShortSteps | None":
    """None if there is no tolerance that could be less."""
    tolerance = tolerance_of(controller, dtype)
    if tolerance is None or tolerance < 100 * float(np.finfo(dtype).eps):
        return None
    c = _tighter(controller, dtype)
    atol = getattr(c, "least_atol", c.atol)
    return _ShortSteps(rtol=c.rtol, atol=atol, norm=c.norm, controller=c)


def _tighter(controller: diffrax.AbstractStepSizeController, dtype: np.dtype) -> Any:
    if isinstance(controller, StiffPID):
        controller = controller.for_dtype(dtype)
        fields = {f.name: getattr(controller, f.name) for f in dataclasses.fields(controller)}
        atol = controller.atol.tree if isinstance(controller.atol, Static) else controller.atol
        atol = jtu.tree_map(lambda x: x * _TIGHTER, atol)
        tolerances = dict(rtol=controller.rtol * _TIGHTER, atol=atol)
        return StiffPID(**{**fields, **tolerances, "given": (True, True)})
    law = lambda c: law(c.controller) if hasattr(c, "controller") else c
    given: Any = controller  # which has an `rtol`
    tolerances = (given.rtol * _TIGHTER, given.atol * _TIGHTER)
    return eqx.tree_at(lambda c: (law(c).rtol, law(c).atol), given, tolerances)


@dataclasses.dataclass(frozen=True)
class Movement:
    """By how much one component changes, at the times asked for (25 of them, if there are more).

    - `value`: by how much its value does, at most. `size`: its own size, plus `atol / rtol`.
    - `derivative`: by which part of its size its derivative does, at most, in one direction in
        which everything that is differentiated (parameters, `y0`, `args`) moves by its own size;
        nan where no value moves far enough to ask.
    """

    name: str
    value: float
    size: float
    derivative: float


@dataclasses.dataclass(frozen=True)
class FinerReport:
    """The same solve at a tenth of the tolerances, with steps of at most 1 % of the time span.

    - `rtol`, `atol`: of it. `successful`, `result`: how it ended, as in [`Diagnosis`][].
    - `factor`: by how many times `rtol` of its size a value moves, at most.
    - `derivative`: by which part of its size a derivative does, at most; or nan.
    - `components`: one [`Movement`][] for each, those that move most first.
    """

    rtol: float
    atol: float
    successful: bool
    result: str
    factor: float
    derivative: float
    components: tuple[Movement, ...]


def solve_finer(seen: Observation) -> FinerReport | None:
    """Solves as in `seen`, but finer; None if there is no tolerance to change. Derivatives, which
    cost two more programs, are looked at only if the values move."""
    other = finer(seen.model, seen.dtype)
    if other is None:
        return None
    inputs, simulation = seen.inputs, seen.asked
    if "phases" in inputs:
        inputs = {**inputs, "phases": _finer_phases(inputs["phases"], seen.dtype)}
    fine: Simulation = other(**{**inputs, "ts": simulation.ts}, throw=False)
    reached = np.asarray(simulation.reached & fine.reached)

    def largest(states, less=None):
        flat, other = (_flat(x)[reached] if x is not None else 0.0 for x in (states, less))
        return np.abs(flat - other).max(axis=0, initial=0)

    size = largest(simulation.ys) + seen.atols / seen.rtol
    value = largest(simulation.ys, fine.ys)
    factor = float(np.max(value / size)) / seen.rtol
    derivative = np.full(len(size), np.nan)
    if bool(is_okay(fine.result)) and factor > _FAR:
        plain = with_options(seen.model, adjoint=diffrax.ForwardMode(), trace=None, telemetry=False)
        of_both = ((plain, seen.inputs), (other, inputs))
        slopes, fine_slopes = (_slopes(model, inputs, seen) for model, inputs in of_both)
        derivative = largest(slopes, fine_slopes) / (largest(fine_slopes) + size)
    movements = [
        Movement(name, *map(float, numbers))
        for name, *numbers in zip(seen.names, value, size, derivative, strict=True)
    ]
    return FinerReport(
        rtol=seen.rtol * _TIGHTER,
        atol=seen.atol * _TIGHTER,
        successful=bool(is_okay(fine.result)),
        result=name_of(fine.result),
        factor=factor,
        derivative=float(np.max(derivative)),
        components=tuple(sorted(movements, key=lambda m: -m.value / m.size)),
    )


def _flat(states: PyTree) -> np.ndarray:
    return np.asarray(jax.vmap(lambda y: ravel_pytree(y)[0])(states))


def _slopes(model: PyTree, given: dict[str, PyTree], seen: Observation) -> PyTree:
    """The derivative of the states as everything that is differentiated moves by its own size, up
    or down."""
    inputs = {k: v for k, v in given.items() if k in ("y0", "args", "steady_args", "phases")}
    rest = {k: v for k, v in given.items() if k not in inputs}
    tree = (model, as_args(inputs, seen.dtype))
    leaves, treedef = jtu.tree_flatten(eqx.filter(tree, eqx.is_inexact_array))
    keys = jr.split(jr.key(0), len(leaves))
    up_or_down = [x * jr.rademacher(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    move = jtu.tree_unflatten(treedef, up_or_down)
    return _push(tree, move, {**rest, "ts": seen.asked.ts})


@eqx.filter_jit
def _push(tree: PyTree, move: PyTree, rest: dict[str, PyTree]) -> PyTree:
    params, static = eqx.partition(tree, eqx.is_inexact_array)

    def states(params):
        model, inputs = eqx.combine(params, static)
        return model(**inputs, **rest, throw=False).ys

    return jax.jvp(states, (params,), (move,))[1]
