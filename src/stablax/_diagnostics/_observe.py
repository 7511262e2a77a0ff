"""Watches a model solve: what `diagnose` knows."""

import dataclasses
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from .._control import StiffPID
from .._fields import as_guarded, bare
from .._models import (
    AbstractModel,
    Phase,
    ResolvedOptions,
    Simulation,
    Stepping,
    as_stepping,
    controller_of,
    options_in,
    options_of,
    planned,
    signature_of,
    with_options,
)
from .._results import Cause
from .._solvers import mass_of, slope_of
from .._states import as_args, as_state, state_dtype
from .._static import Static, is_traced
from .._types import Args, NumbersLike
from ._stiffness import Stiffness, stiffness_along

_QUANTILES = 20  # of the accepted steps, at whose starts the trajectory is looked at


@dataclasses.dataclass(frozen=True)
class Observation:
    """One solve, watched. Arrays are numpy; states are flat, `(times, size)`."""

    model: AbstractModel
    inputs: dict[str, PyTree]
    conditions: "Conditions"
    asked: Simulation  # at times that were asked for
    simulation: Simulation  # at the starts of some steps
    names: tuple[str, ...]
    dtype: np.dtype
    rtol: float
    atol: float  # the least of all components
    atols: np.ndarray  # of each component
    # every step that was tried
    t: np.ndarray
    dt: np.ndarray
    cause: np.ndarray
    component: np.ndarray
    # the trajectory, at the starts of some steps
    times: np.ndarray
    states: np.ndarray
    stiffness: Stiffness

    @property
    def accepted(self) -> np.ndarray:
        return self.cause == Cause.none

    @property
    def start(self) -> Array:
        return start_of(self.inputs)

    @property
    def like(self) -> PyTree[Array]:
        return self.inputs["y0"]

    def unravel(self, flat: np.ndarray) -> PyTree[Array]:
        return ravel_pytree(self.like)[1](jnp.asarray(flat, self.dtype))

    def state_at(self, t: float) -> np.ndarray:
        """The state at the observed time next to `t`."""
        return self.states[int(np.argmin(np.abs(self.times - t)))]

    def states_between(self, t: np.ndarray) -> np.ndarray:
        """The states at the times `t`, linear between the observed ones."""
        way = -1.0 if self.times[-1] < self.times[0] else 1.0
        columns = [np.interp(way * t, way * self.times, column) for column in self.states.T]
        return np.stack(columns, axis=-1)

    def field(self, t: NumbersLike, flat: np.ndarray) -> np.ndarray:
        """dy/dt by the bare field, for a batch of times and flat states."""

        def under(args, t, flat):
            t, flat = jnp.asarray(t, self.dtype), jnp.asarray(flat, self.dtype)
            solver = self.model.options.solver
            return _bare(Static(solver, "solver"), self.model.field, args, self.like, t, flat)

        return self.conditions.apply(under, np.asarray(t), flat)


@dataclasses.dataclass(frozen=True)
class Conditions:
    """The `args` of each phase, and the times at which they end; of a model without phases, one."""

    ends: np.ndarray
    args: tuple[Args, ...]

    def at(self, t: NumbersLike) -> np.ndarray:
        """The phase of each time."""
        way = -1.0 if len(self.ends) > 1 and self.ends[-1] < self.ends[0] else 1.0
        places = np.searchsorted(way * self.ends, way * np.asarray(t), side="right")
        return np.minimum(places, len(self.args) - 1)

    def apply(self, fn: Callable, t: np.ndarray, states: PyTree) -> PyTree[np.ndarray]:
        """`fn(args, t, states)` for times and states with a leading axis, each under its own."""
        places = self.at(t)
        groups = [np.flatnonzero(places == place) for place in np.unique(places)]
        parts = [
            fn(self.args[places[group[0]]], t[group], jtu.tree_map(lambda y, g=group: y[g], states))
            for group in groups
        ]
        back = np.argsort(np.concatenate(groups))
        return jtu.tree_map(lambda *xs: np.concatenate([np.asarray(x) for x in xs])[back], *parts)


@eqx.filter_jit
def _bare(solver: Static, field, args, like, ts, flats):
    _, fn = bare(field)
    unravel = ravel_pytree(like)[1]
    slope = lambda t, y: slope_of(solver.tree, fn, t, unravel(y), args)
    return jax.vmap(lambda t, y: ravel_pytree(slope(t, y))[0])(ts, flats)


def bind(model: AbstractModel, inputs: tuple, keywords: dict[str, PyTree]) -> dict[str, PyTree]:
    """The arguments of a call of `model`, by name."""
    keywords = {k: v for k, v in keywords.items() if k != "throw"}
    signature = signature_of(model, "diagnose")
    bound = signature.bind(model, *inputs, **keywords)
    bound.apply_defaults()
    named = {k: v for k, v in bound.arguments.items() if k not in ("self", "throw")}
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            named |= named.pop(parameter.name)
    if is_traced((model, named)):
        raise TypeError("`diagnose` looks at values: call it outside `jit`, `vmap` and `grad`.")
    named["y0"] = as_state(named["y0"], "y0")
    dtype = state_dtype(named["y0"])
    ts = np.asarray(named["ts"])
    count = int(np.sum(np.isfinite(ts)))  # the rest is padding, if it comes last
    padded = ts.ndim == 1 and count and np.isfinite(ts[:count]).all()
    named["ts"] = jnp.asarray(ts[:count] if padded else ts, dtype)
    if "t0" in named:
        named["t0"] = jnp.asarray(named["t0"], dtype)
    return named


def start_of(inputs: dict[str, PyTree]) -> Array:
    """When a call begins; of a model that has no `t0`, at 0."""
    return inputs.get("t0", jnp.zeros((), state_dtype(inputs["y0"])))


def settled(
    model: AbstractModel, inputs: dict[str, PyTree]
) -> tuple[AbstractModel, dict[str, PyTree]]:
    """`model`, and `inputs` without `stepping`: with what that says as the options of the model,
    and of the phases that have their own."""
    rest = {name: x for name, x in inputs.items() if name != "stepping"}
    stepping = as_stepping(inputs.get("stepping"))
    if stepping is None:
        return model, rest
    dtype = state_dtype(inputs["y0"])
    for options in options_in(model, inputs):  # raises what a call does
        planned(options, model.guard, dtype, stepping)

    def settle(x: PyTree) -> PyTree:
        if not isinstance(x, Phase) or not x.overrides.given:
            return x
        return x.overridden(**_settled(options_of(model, x.overrides).tree, stepping))

    if "phases" in rest:
        is_phase = lambda x: isinstance(x, Phase)
        rest["phases"] = jtu.tree_map(settle, rest["phases"], is_leaf=is_phase)
    return with_options(model, **_settled(model.options, stepping)), rest


def _settled(options: ResolvedOptions, stepping: Stepping) -> dict[str, Any]:
    """The `controller` and `max_steps` of `options`, with what `stepping` says instead."""
    names = ("rtol", "atol", "dtmax", "step_ts", "jump_ts", "max_steps")
    changes = {name: x for name in names if (x := getattr(stepping, name)) is not None}
    most = changes.pop("max_steps", options.max_steps)
    controller: Any = options.controller
    if changes and not isinstance(controller, StiffPID):
        raise TypeError(
            "`diagnose` knows a `stepping` of models with a `StiffPID`; the model has a "
            f"{type(controller).__name__}. Make it with these options."
        )
    if changes:
        fields = {name: getattr(controller, name) for name in controller.__dataclass_fields__}
        given = [g or n in changes for g, n in zip(controller.given, names, strict=False)]
        for name in ("step_ts", "jump_ts"):
            if name in changes:
                changes[name] = changes[name][np.isfinite(changes[name])]
        controller = StiffPID(**{**fields, **changes, "given": tuple(given)})
    return dict(controller=controller, max_steps=int(most))


def conditions_of(inputs: dict[str, PyTree]) -> Conditions:
    dtype = state_dtype(inputs["y0"])
    if "phases" not in inputs:
        return Conditions(np.array([np.inf]), (as_args(inputs.get("args"), dtype),))
    phases = inputs["phases"]
    ends, conditions = [], []
    for phase in (phases,) if isinstance(phases, Phase) else phases:
        args = as_args(phase.args, dtype)
        for place, end in enumerate(np.atleast_1d(phase.t1)):
            ends.append(float(end))
            pick = lambda x, k=place: x[k] if eqx.is_array(x) else x
            conditions.append(jtu.tree_map(pick, args) if np.ndim(phase.t1) else args)
    return Conditions(np.array(ends), tuple(conditions))


def observe(model: AbstractModel, inputs: dict[str, PyTree]) -> Observation:
    """Solves twice with one program: the second time it saves where the first had its steps."""
    watched = with_options(
        model,
        trace="record",
        telemetry=True,
        adjoint=diffrax.ForwardMode(),
        progress_meter=diffrax.NoProgressMeter(),
    )

    def run(times):
        # Of the times asked for only the last matters to the steps.
        ts = jnp.append(jnp.asarray(times, inputs["ts"].dtype), inputs["ts"][-1])
        return watched(**{**inputs, "ts": ts}, throw=False)

    start = float(start_of(inputs))
    first = run(_some_of(np.asarray(inputs["ts"]), start))
    simulation = run(_where_to_look(first, start))
    log = simulation.steps
    assert log is not None
    count = int(log.count)
    t, dt, cause, component = (
        np.asarray(x)[:count] for x in (log.t, log.dt, log.cause, log.component)
    )
    ys = jax.vmap(lambda y: ravel_pytree(y)[0])(simulation.ys)
    seen = np.asarray(simulation.reached)
    times, states = np.asarray(simulation.ts)[seen], np.asarray(ys)[seen]
    if not len(times):  # nothing was solved: there is the start
        begin = inputs["y0"] if simulation.steady is None else simulation.steady.y
        times, states = np.array([start]), np.asarray(ravel_pytree(begin)[0])[None]
    unravel = jax.vmap(ravel_pytree(inputs["y0"])[1])
    conditions = conditions_of(inputs)
    field, solver = model.field, model.options.solver
    if mass_of(solver) is not None:
        # Of equations that are algebraic there are rates of zero, as of what is conserved.
        field = jtu.Partial(slope_of, solver, model.field)
    profile = conditions.apply(
        lambda args, ts, ys: stiffness_along(field, ts, unravel(jnp.asarray(ys)), args),
        times,
        states,
    )
    dtype = state_dtype(inputs["y0"])
    controller = controller_of(model.options, as_guarded(model.field).guard, dtype)
    return Observation(
        model,
        inputs,
        conditions,
        first,
        simulation,
        simulation.about.names,
        dtype,
        float(controller.rtol),
        float(controller.atol),
        _for_each(controller.atol_for(inputs["y0"]), inputs["y0"]),
        t,
        dt,
        cause,
        component,
        times,
        states,
        profile,
    )


def _some_of(ts: np.ndarray, start: float) -> np.ndarray:
    """As many times as `_where_to_look` has, of those asked for."""
    most = _QUANTILES + 5
    if len(ts) > most:
        return ts[np.linspace(0, len(ts) - 1, most).astype(int)]
    return np.concatenate([np.full(most - len(ts), start), ts])


def _for_each(atol: PyTree, y0: PyTree) -> np.ndarray:
    flat = np.asarray(ravel_pytree(y0)[0])
    return np.broadcast_to(np.asarray(ravel_pytree(atol)[0]), flat.shape)


def _where_to_look(first: Simulation, start: float) -> np.ndarray:
    """Times at which steps began: quantiles of the accepted ones, and those with trouble."""
    log = first.steps
    assert log is not None
    count = int(log.count)
    if count == 0:
        return np.full(_QUANTILES + 5, start)
    t, cause = np.asarray(log.t)[:count], np.asarray(log.cause)[:count]
    accepted = t[cause == Cause.none]
    places = np.linspace(0, max(len(accepted) - 1, 0), _QUANTILES).astype(int)
    times = list(accepted[places]) if len(accepted) else [start]
    bad = t[(cause == Cause.not_finite) | (cause == Cause.left_bounds)]
    trouble = [t[-1], *busiest(t, cause, 2), *(bad[[0, -1]] if len(bad) else ())]
    times = np.array([*times, *trouble])
    padded = np.concatenate([np.full(_QUANTILES + 5 - len(times), start), times])
    backwards = float(first.ts[-1]) < start
    return np.sort(padded)[::-1] if backwards else np.sort(padded)


def busiest(t: np.ndarray, cause: np.ndarray, most: int) -> list[float]:
    """Where the most steps were rejected for their error: the starts of the steps."""
    starts, counts = np.unique(t[cause == Cause.error], return_counts=True)
    return [float(x) for x in starts[np.argsort(-counts, kind="stable")[:most]]]
