"""What stands in a tree for numbers that are parameters, and how they take its place."""

import abc
from collections.abc import Callable
from typing import Any, TypeVar, final

import equinox as eqx
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from .._static import Split, Static
from .._words import quoted

_T = TypeVar("_T")


class Declares(eqx.Module):
    """Stands for something else, which it becomes when its parameters have values."""

    @abc.abstractmethod
    def declared(self) -> "list[Any]":
        """Its [`Parameter`][]s."""

    @abc.abstractmethod
    def put(self, replace: Callable[[Any], Any]) -> Any:
        """With `replace(parameter)` for each of them: a number, or another `Parameter`."""

    @abc.abstractmethod
    def resolved(self, value: Callable[[Any], Array]) -> Any:
        """What it stands for, where the value of a parameter is `value(parameter)`."""


@final
class Deferred(Declares):
    """`build(tree)`, once the parameters in `tree` have values."""

    build: Static
    tree: PyTree

    def declared(self):
        return declared(self.tree)

    def put(self, replace):
        return Deferred(self.build, put(self.tree, replace))

    def resolved(self, value):
        return self.build.tree(resolved(self.tree, value))

    def __repr__(self) -> str:
        names = dict.fromkeys(parameter.name for parameter in self.declared())
        return f"Deferred(what depends on {quoted(list(names))})"


def _is_node(x: object) -> bool:
    return isinstance(x, Declares | Split)


def declared(tree: PyTree) -> list[Any]:
    """Each [`Parameter`][] of `tree`, in order; those that are there twice, twice."""
    found = []
    for x in jtu.tree_leaves(tree, is_leaf=_is_node):
        if isinstance(x, Split):
            found += declared(x.trainable)
        elif isinstance(x, Declares):
            found += x.declared()
    return found


def _map(fn: Callable[[Declares], Any], tree: _T) -> _T:
    def node(x):
        if isinstance(x, Split):
            return Split(_map(fn, x.tree), "field") if declared(x.trainable) else x
        return fn(x) if isinstance(x, Declares) else x

    return jtu.tree_map(node, tree, is_leaf=_is_node)


def put(tree: _T, replace: Callable[[Any], Any]) -> _T:
    """`tree` with `replace(parameter)` for each [`Parameter`][] of it."""
    return _map(lambda x: x.put(replace), tree)


def resolved(tree: _T, value: Callable[[Any], Array]) -> _T:
    """`tree` with what it stands for in place of all that declares parameters."""
    return _map(lambda x: x.resolved(value), tree)


def natural(tree: _T) -> _T:
    """`tree` with the value of each [`Parameter`][] in its place, in its own unit.

    The models do so by themselves. It is for what else evaluates a model: `diffrax.diffeqsolve`,
    a function of your own.

    **Arguments:**

    - `tree`: any PyTree: a model, a field, a condition.

    **Returns:** the same structure, with an array for each parameter; differentiable.
    """
    return resolved(tree, lambda parameter: parameter.value) if declared(tree) else tree
