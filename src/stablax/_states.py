"""States as inputs: conversion, checks, and the names of their components."""

from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Bool, PyTree

from ._parameters import natural
from ._static import is_traced, refuse_masked
from ._words import short


def as_state(y: PyTree, name: str) -> PyTree:
    """`y` with every leaf a floating-point array of one dtype; an error names the leaf that
    cannot be one."""
    leaves, treedef = jtu.tree_flatten_with_path(natural(y))
    if not leaves:
        raise ValueError(
            f"`{name}` holds no array: {short(y)}. A state needs at least one component."
        )
    arrays = [_as_floating(leaf, f"{name}{jtu.keystr(path)}") for path, leaf in leaves]
    if not any(a.size for a in arrays):
        raise ValueError(f"`{name}` has no component: all its arrays are empty.")
    dtypes = {str(a.dtype) for a in arrays}
    if len(dtypes) > 1:
        raise TypeError(
            f"`{name}` mixes dtypes ({', '.join(sorted(dtypes))}). Give every leaf the same one, "
            f"for instance `jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), {name})`."
        )
    return jtu.tree_unflatten(treedef, arrays)


def _as_floating(leaf: object, name: str) -> Array:
    refuse_masked(leaf, name)
    try:
        dtype = jnp.result_type(leaf)
    except TypeError:
        raise TypeError(f"`{name}` is a {type(leaf).__name__}, not an array.") from None
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.asarray(leaf, dtype)  # with its dtype, a Python float is no weak type
    if jnp.issubdtype(dtype, jnp.integer):
        shown = "traced" if is_traced(leaf) else np.array2string(np.asarray(leaf), threshold=6)
        as_float = (
            "y.astype(float)"
            if is_traced(leaf)
            else np.array2string(np.asarray(leaf, float), threshold=6, separator=", ")
        )
        raise TypeError(
            f"`{name}` is an integer array ({dtype}, {shown}); a state is floating-point. "
            f"Write it as `{as_float}`."
        )
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(
            f"`{name}` has dtype {dtype}; a state is real. Split it into real and imaginary parts: "
            f"`(y.real, y.imag)`, put together again in the field."
        )
    raise TypeError(f"`{name}` has dtype {dtype}; a state is real and floating-point.")


def state_dtype(y: PyTree) -> np.dtype:
    return np.dtype(jtu.tree_leaves(y)[0].dtype)


def broadcast_prefix(prefix: PyTree, full: PyTree) -> list | None:
    """The leaves of `prefix`, one for each leaf of `full`; None if it is not a prefix."""
    out: list = []
    try:
        jtu.tree_map(lambda x, sub: out.extend([x] * len(jtu.tree_leaves(sub))), prefix, full)
    except (ValueError, TypeError):
        return None
    return out


def for_each_component(given: PyTree[np.ndarray], y: PyTree[Array], what: str) -> PyTree:
    """Numbers and arrays that a user gave for (parts of) a state, in the structure, shapes and
    dtype of the state `y`; an error calls them `what`."""
    leaves, treedef = jtu.tree_flatten(y)
    fitted = broadcast_prefix(given, y)
    if fitted is None:
        hint = (
            " A list or tuple is tree structure: for the components of an array, use "
            "`np.array([...])`."
            if isinstance(given, list | tuple)
            else ""
        )
        raise ValueError(
            f"{what} has the structure {jtu.tree_structure(given)}, but the state has the "
            f"structure {treedef}.{hint}"
        )
    out = []
    for x, leaf in zip(fitted, leaves, strict=True):
        shape = jnp.shape(leaf)
        try:
            xp = jnp if isinstance(x, jax.Array) else np
            out.append(xp.broadcast_to(x.astype(leaf.dtype), shape))
        except ValueError:
            raise ValueError(
                f"{what} has shape {x.shape}, but the state has shape {shape}."
            ) from None
    return jtu.tree_unflatten(treedef, out)


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every number of every floating-point array in `tree` is finite."""
    finite = [
        jnp.all(jnp.isfinite(x))
        for x in jtu.tree_leaves(tree)
        if jnp.issubdtype(jnp.result_type(x), jnp.inexact)
    ]
    return jnp.all(jnp.stack(finite)) if finite else jnp.array(True)


def any_nonzero(tree: PyTree) -> Bool[Array, ""]:
    """Whether any number of any array in `tree` is other than zero."""
    return jnp.any(jnp.stack([jnp.any(x != 0) for x in jtu.tree_leaves(tree)]))


def add(a: PyTree, b: PyTree) -> PyTree:
    """`a + b`, where None stands for zero."""

    def leaf(x, y):
        if x is None or y is None:
            return y if x is None else x
        return x + y

    return jtu.tree_map(leaf, a, b, is_leaf=is_none)


def or_zero(tangents: PyTree, values: PyTree[Array]) -> PyTree[Array]:
    """`tangents` of `values`, where None stands for that of what has none."""
    fill = lambda d, x: jnp.zeros_like(x) if d is None else d
    return jtu.tree_map(fill, tangents, values, is_leaf=is_none)


def finite_or_zero(tree: PyTree) -> PyTree:
    return jtu.tree_map(lambda x: jnp.where(jnp.isfinite(x), x, 0), tree)


def stop(tree: PyTree) -> PyTree:
    """`tree` without a derivative."""
    return jtu.tree_map(lambda x: lax.stop_gradient(x) if eqx.is_inexact_array(x) else x, tree)


def stop_unless(pred: Bool[Array, ""], tree: PyTree) -> PyTree:
    """`tree`, without a derivative where `pred` does not hold."""

    def leaf(x):
        return jnp.where(pred, x, lax.stop_gradient(x)) if eqx.is_inexact_array(x) else x

    return jtu.tree_map(leaf, tree)


def is_none(x: object) -> bool:
    """For `is_leaf=`, where None stands for a part that a tree does not have."""
    return x is None


def bounds_in(options: dict[str, Any], y: PyTree) -> tuple[ArrayLike, ArrayLike]:
    """The `lower` and `upper` of a root finder's `options` for the flat `y`; +-inf if not given."""

    def flat(name, missing):
        bound = options.get(name)
        if bound is None:
            return missing
        full = jtu.tree_map(
            lambda b, x: jnp.broadcast_to(jnp.asarray(b, x.dtype), x.shape), bound, y
        )
        return ravel_pytree(full)[0]

    return flat("lower", -jnp.inf), flat("upper", jnp.inf)


def component_names(y: PyTree) -> list[str]:
    """One name for each component, in the order of `ravel_pytree`: `y[0]`, `['A']`, ..."""
    names = []
    for path, leaf in jtu.tree_flatten_with_path(y)[0]:
        prefix = jtu.keystr(path) or "y"
        shape = np.shape(leaf)
        names += [prefix + "".join(f"[{i}]" for i in index) for index in np.ndindex(*shape)]
    return names


def same_shape_and_dtype(out: PyTree, y: PyTree, what: str, kind: str = "dy/dt") -> None:
    """Raises unless `out` has the structure, shapes and dtypes of the state `y`; an error says that
    `what` returned it, and which `kind` of thing it is."""
    if jtu.tree_structure(out) != jtu.tree_structure(y):
        raise ValueError(
            f"{what} returned the structure {jtu.tree_structure(out)}, but the state `y` has the "
            f"structure {jtu.tree_structure(y)}: {kind} must match the state leaf by leaf."
            + (
                " A list or tuple is tree structure: for a vector, write `y0=jnp.array([...])`."
                if isinstance(y, list | tuple)
                else ""
            )
        )
    for (path, a), b in zip(jtu.tree_flatten_with_path(out)[0], jtu.tree_leaves(y), strict=True):
        where = jtu.keystr(path) or kind
        if jnp.shape(a) != jnp.shape(b):
            raise ValueError(
                f"{what} returned shape {jnp.shape(a)} at {where}, but the state has shape "
                f"{jnp.shape(b)} there."
            )
        if jnp.result_type(a) != jnp.result_type(b):
            raise TypeError(
                f"{what} returned dtype {jnp.result_type(a)} at {where}, but the state has dtype "
                f"{jnp.result_type(b)} there. Cast the parameters and the state to one dtype"
                + (
                    "."
                    if jax.config.read("jax_enable_x64")
                    else '; for float64, `jax.config.update("jax_enable_x64", True)`.'
                )
            )


def as_args(args: PyTree, dtype: np.dtype) -> PyTree:
    """`args` with Python numbers and numpy arrays as jax arrays, so that a new value is not a new
    program. Other leaves (booleans, strings, functions) stay as they are, and are static."""

    def leaf(x):
        if isinstance(x, float):
            return jnp.asarray(x, dtype)
        if isinstance(x, int) and not isinstance(x, bool):
            return jnp.asarray(x)
        refuse_masked(x, "args")
        return jnp.asarray(x) if isinstance(x, np.ndarray | np.generic) else x

    return jtu.tree_map(leaf, natural(args))
