"""What a peer is to the benchmarks."""

import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np


@functools.cache
def _clock() -> Callable[[], float]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    on_one_core = cores == 1 and jax.default_backend() == "cpu"
    return time.process_time if on_one_core else time.perf_counter


def clock() -> float:
    """Seconds. On one core, processor time of this process, all threads: it is wall time, without
    what other processes took of the core. Otherwise wall time."""
    return _clock()()


@dataclass(frozen=True)
class Run:
    """One solve, or the same solve a few times.

    - `seconds`: by `clock`, of each repeat.
    - `ys`: the solution at `problem.ts`, shape `(times, n)`, nan where it was not reached.
    - `steps`: attempted steps, or as near to it as the code reports.
    - `stats`: whatever else it reports.
    """

    ok: bool
    seconds: list[float]
    ys: np.ndarray
    steps: int
    stats: dict[str, Any] = field(default_factory=dict)


class Solver(Protocol):
    """A peer that is ready to solve one problem: everything that is done once is done."""

    compile_seconds: float

    def __call__(self, rtol: float, repeats: int = 1) -> Run: ...


class Peer(Protocol):
    """A code, and how its users would call it."""

    name: str

    def missing(self) -> str | None:
        """Why it cannot be run here, or None."""
        ...

    def prepare(self, problem) -> Solver | None:
        """Ready for `problem`, or None where that combination is not measured."""
        ...
