"""`explain`: a result in words."""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, PyTree

from .._failure import output_with_finite_derivative, raise_if
from .._results import RESULTS, is_okay, message, promoted
from .._states import component_names
from .._static import is_traced
from .._steady import SteadyState, explain_steady, steady_facts
from .._types import Explained, typechecked
from ._periodic_state import PeriodicState
from ._simulation import About, Simulation
from ._times import last_asked

Outcome = Simulation | SteadyState | PeriodicState | diffrax.Solution | diffrax.RESULTS
"""What says how a solve ended."""


def _result_of(x: object) -> RESULTS:
    if isinstance(x, Simulation | SteadyState | PeriodicState | diffrax.Solution):
        x = x.result
    if isinstance(x, RESULTS):
        return x
    if isinstance(x, diffrax.RESULTS):
        return promoted(x)
    raise TypeError(
        "Expected a `Simulation`, a `SteadyState`, or a member of `RESULTS`, got "
        f"{type(x).__name__}."
    )


def is_successful(result: Outcome) -> Bool[Array, "..."]:
    """Whether a solve did what it was asked to (ending at the user's own event included).

    **Arguments:**

    - `result`: a `Simulation`, a `SteadyState`, or a member of [`RESULTS`][] (or of
        `diffrax.RESULTS`); also a batch of them.

    **Returns:** a boolean array with the shape of the batch.
    """
    return is_okay(_result_of(result))


class _Facts(NamedTuple):
    """What the words need, small enough to carry out of `jit`."""

    result: RESULTS
    stats: dict[str, Array]
    end: Array  # the last time asked for
    value: Array  # of the worst component, where the solve stopped
    steady: PyTree
    latest: tuple[Array, Array] | None  # the last two events: which, and when


def _facts(simulation: Simulation) -> _Facts:
    batch = simulation.ts.shape[:-1]
    last = jnp.concatenate(
        [
            jnp.take(x, -1, axis=len(batch)).reshape(*batch, -1)
            for x in jax.tree.leaves(simulation.ys)
        ],
        axis=-1,
    )
    stats = jax.tree.map(jnp.asarray, simulation.stats)
    component = jnp.maximum(stats["component"], 0)
    value = jnp.take_along_axis(last, component[..., None], axis=-1)[..., 0]
    steady = None if simulation.steady is None else steady_facts(simulation.steady)
    end, events, latest = last_asked(simulation.ts), simulation.events, None
    if events is not None:
        count = jnp.sum(events.happened, axis=-1, keepdims=True)
        places = jnp.concatenate([count - 2, count - 1], axis=-1)
        at = lambda x: jnp.take_along_axis(x, jnp.maximum(places, 0), axis=-1)
        latest = (jnp.where(places < 0, -1, at(events.which)), at(events.t))
    return _Facts(simulation.result, stats, end, value, steady, latest)


def _paragraph(facts: _Facts, about: About) -> str:
    index = _index(facts.result)
    if index == _index(RESULTS.successful):
        return "Successful."
    steps, rejected = int(facts.stats["num_steps"]), int(facts.stats["num_rejected_steps"])
    text = message(facts.result, index)
    if steps == 0 and index != _index(RESULTS.event_occurred):
        if facts.steady is not None and _index(facts.steady.result) != 0:
            text = explain_steady(facts.steady, about.names)
        return f"{text} The simulation was not started."
    t, dt = float(facts.stats["t"]), float(facts.stats["dt"])
    if index == _index(RESULTS.event_occurred):
        return (
            f"Successful: an event ended the solve at t = {t:.6g} of {float(facts.end):.6g}"
            f"{_phase(facts.stats)} after {steps} steps ({rejected} rejected)."
        )
    if index == _index(RESULTS.step_budget_spent):
        left = abs(float(facts.end) - t) / dt if dt > 0 else np.inf
        text = _budget_spent(facts.stats, rejected / steps, left, about.family)
    text += (
        f" The solve stopped at t = {t:.6g} of {float(facts.end):.6g}{_phase(facts.stats)} after "
        f"{steps} steps ({rejected} rejected), the last of size {dt:.3g}"
    )
    if facts.latest is not None:
        text += _latest(*facts.latest)
    component = int(facts.stats["component"])
    if component >= 0:
        text += (
            f"; the worst component of its last rejected step is {about.names[component]}, "
            f"{float(facts.value):.4g} there"
        )
    text += "."
    dtype = facts.value.dtype
    short = index in (_index(RESULTS.step_underflow), _index(RESULTS.step_budget_spent))
    if short and rejected > steps / 5 and dtype != np.float64:
        text += (
            f" The state is {dtype}, so that an error below {float(np.finfo(dtype).eps):.1g} of "
            'its size is rounding: use float64 (`jax.config.update("jax_enable_x64", True)`), or '
            "a larger `rtol`."
        )
    return text


def _latest(which: Array, t: Array) -> str:
    """The last events."""
    each = [
        f"event {int(k)} at t = {float(s):.6g}" for k, s in zip(which, t, strict=True) if k >= 0
    ]
    return f"; the last events were {' and '.join(each)}" if each else ""


def _phase(stats) -> str:
    """Which phase, if there was one before it."""
    phase = int(stats.get("phase", 0))
    return f" in phase {phase} (the first is 0)," if phase else ""


def _index(result: diffrax.RESULTS) -> int:
    return int(jax.tree.leaves(result)[0])


def _budget_spent(stats: dict[str, Array], rejected: float, left: float, family: str) -> str:
    """What spends a budget of steps, besides its being small: a share of them was `rejected`, and
    about so many are `left` to do."""
    text = f"The budget of {int(stats['max_steps'])} steps (`max_steps`) is spent before the end"
    text += f"; at the last step size the rest would take {left:.2g} more." if left < 1e15 else "."
    if family == "explicit":
        return text + (
            " The solver is explicit, and on a stiff system stability keeps its steps short, "
            "whatever the tolerance: use an implicit one, `solver=stablax.Rodas5P()`."
        )
    if rejected > 1 / 3:
        return text + (
            " Many steps were rejected: look for a discontinuity of the field (`jump_ts`), a "
            "tolerance near the dtype's resolution, a Jacobian that is wrong, or, with an implicit "
            "solver of diffrax as it comes, its root finder (`kvaerno3()`, `kvaerno5()` and "
            "`kencarp4()` have another)."
        )
    return text + (
        " Few steps were rejected, so they are as short as accuracy needs: raise `max_steps`, or "
        "`rtol`; `stablax.diagnose(model, ...)` shows where they are short."
    )


@typechecked
def explain(result: Explained[Outcome]) -> str:
    """How a solve ended, in words: what happened, at which time and in which component, and what
    usually helps.

    **Arguments:**

    - `result`: a `Simulation`, a `SteadyState`, or a member of [`RESULTS`][]; concrete (outside
        `jit`). For a batch, one paragraph for each distinct failure, with its lanes.

    **Returns:** the text; `"Successful."` if nothing failed, with the time of the event if one
        ended the solve.
    """
    outcome = _result_of(result)
    indices = np.asarray(_concrete(jax.tree.leaves(outcome)[0]))
    if indices.ndim == 0:
        return _one(result, outcome)
    failed = ~np.asarray(is_okay(outcome))
    if not failed.any():
        return f"Successful in all {failed.size} lanes."
    return _paragraphs(failed, result, lambda one: _one(one, _result_of(one)))


def _paragraphs(failed: np.ndarray, batch: PyTree, write: Callable[[PyTree], str]) -> str:
    """One paragraph for each distinct failure of a batch (a result, or the facts about one)."""
    indices = np.asarray(jax.tree.leaves(_result_in(batch))[0]).ravel()
    paragraphs = []
    for index in dict.fromkeys(indices[failed.ravel()].tolist()):
        lanes = np.flatnonzero(indices == index)
        shown = ", ".join(map(str, lanes[:10])) + (", ..." if lanes.size > 10 else "")
        first = jtu.tree_map(
            lambda x, lane=lanes[0]: np.asarray(x).reshape(-1, *np.shape(x)[failed.ndim :])[lane],
            batch,
        )
        paragraphs.append(f"{lanes.size} of {indices.size} lanes ({shown}): {write(first)}")
    return "\n".join(paragraphs)


def _result_in(batch: PyTree) -> RESULTS:
    return batch.result if isinstance(batch, _Facts) else _result_of(batch)


def _concrete(x: ArrayLike) -> Any:
    if is_traced(x):
        raise TypeError("`explain` needs a concrete result: call it outside `jit` and `vmap`.")
    return x


def _one(x: object, outcome: RESULTS) -> str:
    if isinstance(x, Simulation):
        return _paragraph(_facts(x), x.about)
    if isinstance(x, SteadyState):
        return explain_steady(steady_facts(x), component_names(x.y))
    return message(outcome, _index(outcome)) or "Successful."


def raise_on_failure(simulation: Simulation) -> Simulation:
    """The simulation, or a `RuntimeError` with its explanation."""
    return raise_if(
        output_with_finite_derivative(simulation),
        ~is_okay(simulation.result),
        _facts(simulation),
        lambda facts: _paragraph(facts, simulation.about),
    )


def raise_on_failed_lanes(simulations: Simulation) -> Simulation:
    """A batch of simulations, or a `RuntimeError` that explains which of them failed."""
    failed = ~is_okay(simulations.result)
    return raise_if(
        output_with_finite_derivative(simulations),
        jnp.any(failed),
        (failed, _facts(simulations)),
        lambda facts: _paragraphs(
            facts[0], facts[1], lambda one: _paragraph(one, simulations.about)
        ),
    )
