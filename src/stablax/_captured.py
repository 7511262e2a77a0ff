"""A function as a program, with what it closes over as a value."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Primitive, jaxpr_as_fun
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
        return self.with_others({}, *args)

    @property
    def consts(self) -> list[Any]:
        both = zip(self.captured, self.constants.values, strict=True)
        return [constant if x is None else x for x, constant in both]

    def marked(self, mark: Primitive, *args: PyTree, known: tuple[bool, ...]) -> "list[Marked]":
        """Where the program applies the primitive `mark`, also in what it calls."""
        leaves: list[Array | None] = []
        for arg, is_known in zip(args, known, strict=True):
            own = jtu.tree_leaves(eqx.filter(arg, eqx.is_array))
            leaves += own if is_known else [None] * len(own)
        takes = [lambda x=x, i=i: (x, i) for i, x in enumerate([*leaves, *self.consts])]
        variables = [*self.program.invars, *self.program.constvars]
        found: list[Marked] = []
        _Known(self.program, dict(zip(variables, takes, strict=True))).collect(mark, found)
        return found

    def with_others(self, changes: Mapping[int, Callable[[Array], Array]], *args: PyTree) -> PyTree:
        """As a call, with some of what the program takes changed: that which `marked` names."""
        leaves = jtu.tree_leaves(eqx.filter(args, eqx.is_array))
        takes = [changes.get(i, lambda x: x)(x) for i, x in enumerate([*leaves, *self.consts])]
        consts = takes[len(leaves) :]
        out = jaxpr_as_fun(ClosedJaxpr(self.program, consts))(*takes[: len(leaves)])
        tree, static = self.gives
        return eqx.combine(jtu.tree_unflatten(tree, out), static)


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


class Marked(NamedTuple):
    """What a primitive is applied to: None if that depends on what is not known, or on what a loop
    carries; its place among what the program takes, if it is one of those; and its parameters."""

    operands: list[Array | None]
    sources: list[int | None]
    params: dict[str, Any]


# What is known of a value, and its place among what the program takes.
_Value = tuple[Array | None, int | None]


class _Known:
    """What of a program is known without running all of it: each value as it is asked for."""

    def __init__(self, program: Jaxpr, given: dict[Any, Callable[[], _Value]]):
        self.program = program
        self.given = given
        self.makers = {out: eqn for eqn in program.eqns for out in eqn.outvars}
        self.made: dict[Any, Array | None] = {}

    def value(self, variable: Any) -> _Value:
        if isinstance(variable, Literal):
            kind: Any = variable.aval
            return jnp.asarray(variable.val, kind.dtype), None
        if variable in self.given:
            return self.given[variable]()
        if variable not in self.made:
            eqn = self.makers[variable]
            operands = [self.value(x)[0] for x in eqn.invars]
            outs: Any = [None] * len(eqn.outvars)
            if all(x is not None for x in operands):
                bound: Any = eqn.primitive.get_bind_params(eqn.params)
                # Of older versions with functions, that come first.
                functions, params = bound if isinstance(bound, tuple) else ((), bound)
                outs = eqn.primitive.bind(*functions, *operands, **params)
                outs = outs if eqn.primitive.multiple_results else [outs]
            self.made.update(zip(eqn.outvars, outs, strict=True))
        return self.made[variable], None

    def collect(self, mark: Primitive, found: list) -> None:
        for eqn in self.program.eqns:
            if eqn.primitive is mark:
                operands, sources = zip(*map(self.value, eqn.invars), strict=True)
                found.append(Marked(list(operands), list(sources), eqn.params))
            for inner, operands in _called_by(eqn):
                if _has(inner.jaxpr, mark):
                    takes: list[Callable[[], _Value]] = [
                        (lambda: (None, None)) if x is None else (lambda x=x: self.value(x))
                        for x in operands
                    ]
                    takes += [lambda x=x: (x, None) for x in inner.consts]
                    variables = [*inner.jaxpr.invars, *inner.jaxpr.constvars]
                    given = dict(zip(variables, takes, strict=True))
                    _Known(inner.jaxpr, given).collect(mark, found)


def _has(program: Jaxpr, mark: Primitive) -> bool:
    return any(
        eqn.primitive is mark or any(_has(inner.jaxpr, mark) for inner, _ in _called_by(eqn))
        for eqn in program.eqns
    )


def _called_by(eqn: Any) -> list[tuple[ClosedJaxpr, list]]:
    """The programs that are run by an equation, each with what it is given; None for what is
    another in each turn of a loop."""
    held = jtu.tree_leaves(list(eqn.params.values()), is_leaf=_is_program)
    close = lambda x: x if isinstance(x, ClosedJaxpr) else ClosedJaxpr(x, ())
    inner = list(map(close, filter(_is_program, held)))
    name, operands, params = eqn.primitive.name, list(eqn.invars), eqn.params

    def given(program: ClosedJaxpr) -> list:
        size = len(program.jaxpr.invars)
        first, count = 0, 0
        if name == "cond":
            first, count = 1, size
        elif name == "scan":
            count = params["num_consts"]
        elif name == "while":
            is_condition = program is params["cond_jaxpr"]
            first = 0 if is_condition else params["cond_nconsts"]
            count = params["cond_nconsts" if is_condition else "body_nconsts"]
        elif size == len(operands):
            count = size
        return [*operands[first : first + count], *[None] * (size - count)]

    return [(program, given(program)) for program in inner]


def _is_program(x: object) -> bool:
    return isinstance(x, ClosedJaxpr | Jaxpr)


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
