"""Failures in words: what went wrong, where, and what usually helps."""

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.flatten_util import ravel_pytree
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
    tree: _T, failed: Bool[Array, "..."], facts: PyTree[Array], write: Callable[[PyTree], str]
) -> _T:
    """Returns `tree`, or raises a `RuntimeError` with the text `write(facts)` for the first
    failed sample; so does whatever is computed from its derivative. Eagerly and under
    `eqx.filter_jit` the text is the error; under `jax.jit` it is inside XLA's."""
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
    tree, one = eqx.branched_error_if((tree, jnp.ones(())), failed, index, messages)
    one = lax.stop_gradient(one)
    # A derivative that needs no number of `tree` (of a loss that is linear in it) needs this one.
    return jtu.tree_map(lambda x: x * one.astype(x.dtype) if eqx.is_inexact_array(x) else x, tree)


_INPUT = (
    "The derivative in `{name}` is not finite, though the value is: somewhere on the way the field "
    "has no finite derivative (`sqrt`, `log` and powers below 1 at 0), or it overflows. Guard the "
    "field (`stablax.Guarded`), or keep off that point; `stablax.check_gradient` tells where. With "
    "`throw=False` it is returned as it is."
)
_OUTPUT = (
    "The derivative at the output `{name}` is not finite, though the value is. In reverse mode it "
    "comes from what was made of the output: look at the loss, since the derivative of `sqrt` and "
    "`log` at 0 is infinite. In forward mode it comes from the field: guard it "
    "(`stablax.Guarded`). `stablax.check_gradient` tells where."
)


def inputs_with_finite_derivative(**inputs: PyTree) -> tuple[PyTree, ...]:
    """The inputs. A `RuntimeError` is raised if one of them gets a derivative that is not finite;
    without a derivative nothing of that is in the program."""
    passed = _with_finite_derivative(inputs, _INPUT)
    return tuple(passed[name] for name in inputs)  # jax sorts them


def output_with_finite_derivative(output: _T) -> _T:
    """As [`inputs_with_finite_derivative`][], of an output."""
    return _with_finite_derivative(output, _OUTPUT)


def _with_finite_derivative(tree: _T, text: str) -> _T:
    traced, known = eqx.partition(tree, is_traced)
    return eqx.combine(_passed(traced, text), known) if jtu.tree_leaves(traced) else tree


@eqx.filter_custom_jvp
def _passed(tree, text):
    return tree


@_passed.def_jvp
def _passed_jvp(primals, tangents):
    (tree, text), (tangents, _) = primals, tangents
    texts = tuple(
        text.format(name=_name(path)) for path, _ in jtu.tree_flatten_with_path(tangents)[0]
    )
    return _passed(tree, text), _checked(tangents, texts) if texts else tangents


def _name(path) -> str:
    # What a model holds of its field is in a `Split`, which is no name that a user knows.
    return jtu.keystr(path[:1], simple=True) + jtu.keystr(path[1:]).rpartition(".trainable")[2]


@functools.partial(jax.jit, static_argnums=1)
def _checked(tangents, texts: tuple[str, ...]):
    flat, unravel = ravel_pytree(tangents)

    def check(_, flat):
        wrong = jnp.stack([~jnp.all(jnp.isfinite(x)) for x in jtu.tree_leaves(unravel(flat))])
        return eqx.branched_error_if(flat, jnp.any(wrong), jnp.argmax(wrong), texts)

    # A linear map that is the same for tangents and, transposed, for cotangents. Of one vector,
    # since jax cannot transpose one of which only a part is differentiated.
    return unravel(lax.custom_linear_solve(lambda x: x, flat, check, symmetric=True))


def _first(failed: np.ndarray, facts: PyTree) -> PyTree:
    """The facts of the first failed sample of a batch."""
    if failed.ndim == 0:
        return jax.tree.map(np.asarray, facts)
    lane = int(np.argmax(failed.ravel()))

    def pick(x):
        x = np.asarray(x)
        return x.reshape(failed.size, *x.shape[failed.ndim :])[lane]

    return jax.tree.map(pick, facts)
