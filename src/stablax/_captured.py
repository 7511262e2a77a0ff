"""A function as a program, with what it closes over as a value."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun
from jaxtyping import Array, PyTree

from ._lanes import differing
from ._static import is_traced


class _Constants:
    """Arrays that are equal to themselves only."""

    def __init__(self, values: list[Array | None]):
        self.values = values


class Captured(eqx.Module):
    """A traced function, to be called with arguments of the shapes and dtypes that it was traced
    with. Its leaves are the traced arrays that it closes over.

    A constant is none: under `shard_map` it would come to differ between the devices as what it is
    selected with, and the program was traced with one that is the same on all."""

    captured: list[Array | None]
    constants: _Constants = eqx.field(static=True)
    program: Jaxpr = eqx.field(static=True)
    takes: tuple[Any, tuple] = eqx.field(static=True)
    gives: tuple[Any, PyTree] = eqx.field(static=True)

    def __call__(self, *args: PyTree) -> PyTree:
        # What is no array is part of the program.
        leaves, tree = jtu.tree_flatten(eqx.filter(args, eqx.is_array))
        if (tree, _types(leaves)) != self.takes:
            raise TypeError(f"Traced for {self.takes}, called with {(tree, _types(leaves))}.")
        both = zip(self.captured, self.constants.values, strict=True)
        consts = [constant if x is None else x for x, constant in both]
        out = jaxpr_as_fun(ClosedJaxpr(self.program, consts))(*leaves)
        tree, static = self.gives
        return eqx.combine(jtu.tree_unflatten(tree, out), static)

    def closes_over(self, x: object) -> bool:
        """Whether it does so over this very array, which is traced."""
        return any(x is captured for captured in self.captured)


def capture(fn: Callable, *example: PyTree) -> Captured:
    """`fn`, traced once with arguments like `example`.

    As `eqx.filter_closure_convert`, which however asks that every argument have the sharding of
    the example too: it fails under `shard_map`, `pmap` and explicit meshes."""
    if isinstance(fn, Captured):
        return fn
    arrays, rest = eqx.partition(example, eqx.is_array)
    leaves, tree = jtu.tree_flatten(arrays)
    gives: list[Any] = []

    def flat(*leaves):
        out = fn(*eqx.combine(jtu.tree_unflatten(tree, leaves), rest))
        arrays, static = eqx.partition(out, eqx.is_array)
        leaves_out, tree_out = jtu.tree_flatten(arrays)
        gives.append((tree_out, static))
        return leaves_out

    program = jax.make_jaxpr(flat)(*leaves)
    captured = [x if is_traced(x) else None for x in program.consts]
    constants = [None if is_traced(x) else x for x in program.consts]
    takes = (tree, _types(leaves))
    return Captured(captured, _Constants(constants), program.jaxpr, takes, gives[-1])


def refuse_hidden(field: Captured, axes: frozenset[str]) -> None:
    hidden = (x for x in field.captured if is_traced(x) and eqx.is_inexact_array(x))
    if any(axes - differing(x) for x in hidden):
        raise ValueError(
            "Under `jax.shard_map` the field closes over an array that is the same on all devices, "
            f"while others differ along {sorted(axes)}: its derivative would be summed over the "
            "devices in every step, for which no device waits. Pass it as `args`, as an attribute "
            "of an `eqx.Module` that is the field, or use `check_vma=False`."
        )


def _types(leaves: list[Array]) -> tuple:
    return tuple((x.shape, x.dtype) for x in leaves)
