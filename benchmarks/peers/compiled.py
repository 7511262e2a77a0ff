"""A field and its Jacobian, compiled by JAX, as Python functions of numpy arrays: what someone
would hand to a solver that calls back into Python."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from ._base import clock


class CompiledField:
    """`field(t, y)` and `jacobian(t, y)`; where the Jacobian is banded, its `diagonals(t, y)`:
    entry (i, j) is `diagonals[upper + i - j, j]`.

    After the time `deadline` (as of `time.perf_counter`) the field raises `TimeoutError`.
    """

    def __init__(self, problem):
        args = jax.tree.map(jnp.asarray, problem.args)
        bare = lambda t, y: problem.field(t, y, args)
        self.deadline = float("inf")
        began = clock()
        self._field = jax.jit(bare)
        self._jacobian = jax.jit(jax.jacfwd(bare, argnums=1))
        self.field(problem.t0, problem.y0)
        if problem.bands is None:
            self.jacobian(problem.t0, problem.y0)
        else:
            self._diagonals = jax.jit(_compressed(bare, problem.bands, problem.size))
            self.diagonals(problem.t0, problem.y0)
        self.compile_seconds = clock() - began

    def field(self, t, y):
        if time.perf_counter() > self.deadline:
            raise TimeoutError
        return np.asarray(self._field(t, y))

    def jacobian(self, t, y):
        return np.asarray(self._jacobian(t, y))

    def diagonals(self, t, y):
        return np.asarray(self._diagonals(t, y))


def _compressed(field, bands, size):
    """The diagonals of the Jacobian. Columns that touch different rows share one derivative."""
    lower, upper = bands
    width = lower + upper + 1
    seeds = (np.arange(size) % width == np.arange(width)[:, None]).astype(float)
    column = np.arange(size)
    rows = column + np.arange(-upper, lower + 1)[:, None]
    inside = (rows >= 0) & (rows < size)

    def diagonals(t, y):
        _, push = jax.linearize(lambda y: field(t, y), y)
        return jnp.where(inside, jax.vmap(push)(seeds)[column % width, rows % size], 0.0)

    return diagonals
