"""Failures in words: what went wrong, where, and what usually helps."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from ._static import is_traced

_T = TypeVar("_T")


class _Messages(Sequence[str]):
    """Messages that are written at run time, when the numbers in them are known.

    `equinox.branched_error_if` picks from a sequence inside a callback; this sequence is filled
    by a callback before it, so that the error under `jit` has the time and the component."""

    def __init__(self):
        self._written: list[str] = []

    def __len__(self) -> int:
        return len(self._written)

    def __getitem__(self, index):
        return self._written[index]

    def add(self, message: str) -> int:
        self._written.append(message)
        return len(self._written) - 1


def raise_if(
    tree: _T, failed: Bool[Array, "..."], facts: PyTree[Array], write: Callable[[Any], str]
) -> _T:
    """Returns `tree`, or raises a `RuntimeError` with the text `write(facts)` for the first
    failed sample. Eagerly and under `eqx.filter_jit` the text is the error; under `jax.jit` it
    is inside XLA's."""
    if not is_traced((tree, failed, facts)):
        lanes = np.asarray(failed)
        if lanes.any():
            raise RuntimeError(write(_first(lanes, facts)))
        return tree

    messages = _Messages()

    def record(failed, facts):
        failed = np.asarray(failed)
        index = messages.add(write(_first(failed, facts))) if failed.any() else 0
        return np.full(failed.shape, index, np.int32)

    def tell():
        shape = jax.ShapeDtypeStruct((), jnp.int32)
        inputs = jax.tree.map(lax.stop_gradient, (failed, facts))
        return jax.pure_callback(record, shape, *inputs, vmap_method="broadcast_all")

    index = lax.cond(failed, tell, lambda: jnp.array(0, jnp.int32))
    return eqx.branched_error_if(tree, failed, index, messages)


def _first(failed: np.ndarray, facts: PyTree) -> PyTree:
    """The facts of the first failed sample of a batch."""
    if failed.ndim == 0:
        return jax.tree.map(np.asarray, facts)
    lane = int(np.argmax(failed.ravel()))

    def pick(x):
        x = np.asarray(x)
        return x.reshape(failed.size, *x.shape[failed.ndim :])[lane]

    return jax.tree.map(pick, facts)
