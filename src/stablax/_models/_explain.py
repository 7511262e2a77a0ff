"""`explain`: a result in words."""

from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Bool

from .._failure import raise_if
from .._results import RESULTS, is_okay, message
from .._states import component_names
from .._static import is_traced
from .._steady import SteadyState, explain_steady, steady_facts
from .._types import typechecked
from ._simulation import Simulation


def _result_of(x: Any) -> RESULTS:
    result = x.result if isinstance(x, Simulation | SteadyState | diffrax.Solution) else x
    if isinstance(result, RESULTS):
        return result
    if isinstance(result, diffrax.RESULTS):
        return RESULTS.promote(result)
    raise TypeError(
        "Expected a `Simulation`, a `SteadyState`, or a member of `RESULTS`, got "
        f"{type(x).__name__}."
    )


def is_successful(result: Any) -> Bool[Array, "..."]:
    """Whether a solve did what it was asked to (ending at the user's own event included).

    **Arguments:**

    - `result`: a `Simulation`, a `SteadyState`, or a member of [`RESULTS`][] (or of
        `diffrax.RESULTS`); also a batch of them.

    **Returns:** a boolean array with the shape of the batch.
    """
    return is_okay(_result_of(result))


def _facts(simulation: Simulation):
    """What the words need, small enough to carry out of `jit`."""
    last = jax.tree.map(lambda x: x[..., -1], simulation.ts)
    steady = None if simulation.steady is None else steady_facts(simulation.steady)
    return simulation.result, jax.tree.map(jnp.asarray, simulation.stats), last, steady


def _paragraph(facts, names: list[str]) -> str:
    result, stats, last, steady = facts
    index = _index(result)
    if index == _index(RESULTS.successful):
        return "Successful."
    steps, rejected = int(stats["num_steps"]), int(stats["num_rejected_steps"])
    text = (
        _budget_spent(stats, rejected / max(steps, 1))
        if index == _SPENT
        else message(result, index)
    )
    if steps == 0:
        if steady is not None and _index(steady.result) != _index(RESULTS.successful):
            text = explain_steady(steady, names)
        return f"{text} The simulation was not started."
    text += (
        f" The solve stopped at t = {float(stats['t']):.6g} of {float(last):.6g}"
        f"{_phase(stats)} after {steps} steps ({rejected} rejected), "
        f"the last of size {float(stats['dt']):.3g}"
    )
    component = int(stats["component"])
    if component >= 0:
        text += f"; the worst component of its last rejected step is {names[component]}"
    return text + "."


def _phase(stats) -> str:
    """Which phase, if there was one before it."""
    phase = int(stats.get("phase", 0))
    return f" in phase {phase} (the first is 0)," if phase else ""


def _index(result: Any) -> int:
    return int(jax.tree.leaves(result)[0])


_SPENT = _index(RESULTS.max_steps_reached)


def _budget_spent(stats: dict[str, Any], rejected: float) -> str:
    """What spends a budget of steps, besides its being small: a share of them was `rejected`."""
    text = f"The budget of {int(stats['max_steps'])} steps is spent (`max_steps`)."
    if rejected > 1 / 3:
        return text + (
            " Many steps were rejected: look for a discontinuity of the field (`jump_ts`), a "
            "tolerance near the dtype's resolution, a Jacobian that is wrong, or, with an implicit "
            "solver of diffrax as it comes, its root finder (`kvaerno3()`, `kvaerno5()` and "
            "`kencarp4()` have another)."
        )
    return text + (
        " Few steps were rejected, so they are short because of accuracy, or, with an explicit "
        "solver, because the system is stiff: use an implicit solver such as `kvaerno5()`, a "
        "larger `rtol`, or a larger `max_steps`."
    )


@typechecked
def explain(result: Any) -> str:
    """How a solve ended, in words: what happened, at which time and in which component, and what
    usually helps.

    **Arguments:**

    - `result`: a `Simulation`, a `SteadyState`, or a member of [`RESULTS`][]; concrete (outside
        `jit`). For a batch, one paragraph for each distinct failure, with its lanes.

    **Returns:** the text; `"Successful."` if nothing failed.
    """
    outcome = _result_of(result)
    indices = np.asarray(_concrete(jax.tree.leaves(outcome)[0]))
    if indices.ndim == 0:
        return _one(result, outcome)
    failed = ~np.asarray(is_okay(outcome))
    if not failed.any():
        return f"Successful in all {failed.size} lanes."
    return _paragraphs(failed, result, lambda one: _one(one, _result_of(one)))


def _paragraphs(failed: np.ndarray, batch: Any, write: Callable[[Any], str]) -> str:
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


def _result_in(batch: Any) -> Any:
    return batch[0] if isinstance(batch, tuple) else _result_of(batch)


def _concrete(x: Any) -> Any:
    if is_traced(x):
        raise TypeError("`explain` needs a concrete result: call it outside `jit` and `vmap`.")
    return x


def _one(x: Any, outcome: RESULTS) -> str:
    if isinstance(x, Simulation):
        return _paragraph(_facts(x), _names(x))
    if isinstance(x, SteadyState):
        return explain_steady(steady_facts(x), component_names(x.y))
    return message(outcome, _index(outcome)) or "Successful."


def _names(simulation: Simulation) -> list[str]:
    return component_names(
        jtu.tree_map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), simulation.ys)
    )


def raise_on_failure(simulation: Simulation) -> Simulation:
    """The simulation, or a `RuntimeError` with its explanation."""
    names = _names(simulation)
    return raise_if(
        simulation,
        ~is_okay(simulation.result),
        _facts(simulation),
        lambda facts: _paragraph(facts, names),
    )


def raise_on_failed_lanes(simulations: Simulation) -> Simulation:
    """A batch of simulations, or a `RuntimeError` that explains which of them failed."""
    first = jax.eval_shape(lambda s: jax.tree.map(lambda x: x[0], s), simulations)
    names = _names(first)
    failed = ~is_okay(simulations.result)
    return raise_if(
        simulations,
        jnp.any(failed),
        (failed, _facts(simulations)),
        lambda facts: _paragraphs(facts[0], facts[1], lambda one: _paragraph(one, names)),
    )
