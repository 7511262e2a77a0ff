"""What a rule of `diagnose` says, and the lines of code that it is made of."""

import dataclasses
from collections.abc import Iterable
from typing import SupportsFloat

import diffrax
import jax.tree_util as jtu
import numpy as np

from .._static import Static
from ._observe import Observation
from ._report import number

# Weights. They order what is found; their distances mean nothing.
CERTAIN = 1.0  # the failure says it, or what was evaluated proves it
SEEN = 0.95  # it was seen at work, and the result is not what was asked for
LIKELY = 0.9  # it is there, and the solve failed as it makes solves fail
PROBABLE = 0.7  # it is there, and explains steps that are short, rejected or wrong
POSSIBLE = 0.5  # it is there, and something else may be the reason; the least to be cured first
MINOR = 0.3  # it is there, and does little harm


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """One cause, and what to do about it.

    - `cause`: a short name, for programs.
    - `why`: the evidence, in words.
    - `code`: a line to paste: `model` is the model, `y0` and `ts` its inputs, and `sx`, `np`,
        `jnp` and `jax` are stablax, numpy, jax.numpy and jax.
    - `weight`: how likely it is to be the reason for a failure or a slow solve, or for a result
        that is wrong, 0 to 1.
    """

    cause: str
    why: str
    code: str
    weight: float


def ended_with(seen: Observation, *members: diffrax.RESULTS) -> bool:
    result = int(jtu.tree_leaves(seen.simulation.result)[0])
    return result in [int(jtu.tree_leaves(member)[0]) for member in members]


def model_with(**changes: str) -> str:
    return f"model = sx.with_options(model, {', '.join(f'{k}={v}' for k, v in changes.items())})"


def guarded_with(guard: str) -> str:
    return model_with(field=f"sx.Guarded(model.field, sx.{guard})")


def preset(seen: Observation, **changes: str) -> str:
    """The controller, with changes; given times are added to those that it has."""
    old = seen.model.options.controller
    given = {}
    if isinstance(old, diffrax.AbstractAdaptiveStepSizeController):
        by_component = isinstance(old.atol, Static)
        atol = "model.options.controller.atol" if by_component else number(old.atol)
        given = dict(rtol=number(old.rtol), atol=atol)
    for name in ("step_ts", "jump_ts"):
        if len(declared(seen, name)):
            given[name] = as_times(declared(seen, name))
    arguments = ", ".join(f"{k}={v}" for k, v in {**given, **changes}.items())
    return f"sx.StiffPID.preset({arguments})"


def declared(seen: Observation, name: str) -> np.ndarray:
    """The `step_ts` or `jump_ts` of the controller."""
    times = getattr(seen.model.options.controller, name, None)
    return np.asarray(() if times is None else times, float)


def undeclared(seen: Observation, name: str, times: list[float]) -> list[float]:
    """Those of `times` that are not next to one that the controller has."""
    rounding = 1e-6 * np.ptp(seen.times)
    return [t for t in times if not np.any(np.abs(declared(seen, name) - t) <= rounding)]


def with_times(seen: Observation, name: str, times: list[float]) -> str:
    """The `step_ts` or `jump_ts` of the controller, and `times`."""
    return as_times(np.union1d(declared(seen, name), undeclared(seen, name, times)))


def as_times(times: Iterable[SupportsFloat]) -> str:
    return f"({', '.join(number(t, 7) for t in times)},)"
