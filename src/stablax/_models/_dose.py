"""Doses: how a state jumps at the start of a phase."""

import abc
from collections.abc import Callable
from typing import final

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, PyTree

from .._parameters import Parameter
from .._states import is_none, same_shape_and_dtype
from .._static import Split, Static, concrete_array, is_traced, refuse_masked
from .._types import Args, Explained, YLike, typechecked
from .._words import short


class AbstractDose(eqx.Module):
    """What happens to the state at the start of a [`Phase`][], where it is call data, like the rest
    of a phase: its arrays are traced and differentiable; or at an [`Event`][]. Subclass it for a
    kind of your own."""

    @abc.abstractmethod
    def __call__(self, t: Array, y: PyTree[Array], args: Args) -> PyTree[Array]:
        """The state after the dose.

        **Arguments:**

        - `t`, `y`: the time, and the state there.
        - `args`: the condition of the phase that begins, or under which the event is.

        **Returns:** the state after it; the structure, shapes and dtype of `y`.
        """


@final
class AddDose(AbstractDose):
    """y + amount: a bolus.

    **Arguments:**

    - `amount`: in the units of the state, with its structure and shapes; `None` in place of an
        array that gets nothing.

    **Raises:** when the model is called, a `ValueError` if it does not fit the state.
    """

    amount: PyTree[Array]

    @typechecked
    def __init__(self, amount: Explained[YLike]):
        self.amount = as_real_arrays(amount, "amount")

    def __call__(self, t, y, args):
        def add(name, x, amount):
            if amount.shape != x.shape:
                raise ValueError(
                    f"`AddDose({name}=...)` has shape {amount.shape}, but the state has shape "
                    f"{x.shape} there: give one number for each component, 0 where nothing is "
                    "added."
                )
            return x + amount.astype(x.dtype)

        return _map("AddDose", "amount", add, y, self.amount)


@final
class ScaleDose(AbstractDose):
    """y * factor: a dilution, a washout, a harvest.

    **Arguments:**

    - `factor`: dimensionless; with the structure of the state, and of each array the shape, or a
        number for all of its components. A single number is for the whole state; `None` in place
        of an array leaves that as it is.

    **Raises:** as [`AddDose`][].
    """

    factor: PyTree[Array]

    @typechecked
    def __init__(self, factor: Explained[YLike]):
        self.factor = as_real_arrays(factor, "factor")

    def __call__(self, t, y, args):
        def scale(name, x, factor):
            return x * _broadcast("ScaleDose", name, factor, x)

        return _map("ScaleDose", "factor", scale, y, _for_all(self.factor, y))


@final
class SetDose(AbstractDose):
    """The state, or some of its components, set to a value.

    **Arguments:**

    - `value`: in the units of the state; structure and shapes as in [`ScaleDose`][].
    - `where`: which components are set: booleans with the structure and shapes of the state (or a
        single array for the whole state). By default all that `value` has.

    **Raises:** as [`AddDose`][].
    """

    value: PyTree[Array]
    _where: Static

    @typechecked
    def __init__(
        self,
        value: Explained[YLike],
        where: Explained[PyTree[Bool[ArrayLike, "..."]] | None] = None,
    ):
        self.value = as_real_arrays(value, "value")
        masks = jtu.tree_map_with_path(
            lambda path, x: _as_mask(x, f"where{jtu.keystr(path)}"), where
        )
        self._where = Static(masks, "where")

    @property
    def where(self) -> PyTree[np.ndarray] | None:
        """The booleans, as they were given."""
        return self._where.tree

    def __call__(self, t, y, args):
        def put(name, x, value):
            return _broadcast("SetDose", name, value, x)

        after = _map("SetDose", "value", put, y, _for_all(self.value, y))
        if self.where is None:
            return after

        def choose(name, before, mask, after):
            if mask.shape != before.shape:
                raise ValueError(
                    f"`SetDose({name}=...)` has shape {mask.shape}, but the state has shape "
                    f"{before.shape} there."
                )
            return jnp.where(mask, after, before)

        return _map("SetDose", "where", choose, y, _for_all(self.where, y), after)


@final
class DoseFunction(AbstractDose):
    """Any function of the state. A function given as the `dose` of a phase becomes one.

    **Arguments:**

    - `fn`: `fn(t, y, args) -> y`, with `args` the condition of the phase that begins. Arrays that
        it is to be differentiated in should be reachable as PyTree leaves (an `eqx.Module`).

    **Raises:** when the model is called, a `ValueError` or `TypeError` if it returns another
    structure, shape or dtype than the state has.
    """

    _fn: Split

    @typechecked
    def __init__(self, fn: Callable):
        self._fn = Split(fn, "fn")

    @property
    def fn(self) -> Callable:
        """The function, as it was given."""
        return self._fn.tree

    def __call__(self, t, y, args):
        out = self.fn(t, y, args)
        name = getattr(self.fn, "__name__", type(self.fn).__name__)
        same_shape_and_dtype(out, y, f"The dose `{name}`", "y")
        return out


DoseLike = AbstractDose | Callable | YLike | None
"""What a user may give as the `dose` of a phase."""


def as_dose(dose: DoseLike) -> AbstractDose | None:
    """A dose as one: a function is applied, arrays are added."""
    if dose is None or isinstance(dose, AbstractDose):
        return dose
    return DoseFunction(dose) if callable(dose) else AddDose(dose)


def as_real_arrays(tree: PyTree[ArrayLike], name: str) -> PyTree[Array]:
    def leaf(path, x):
        where = f"{name}{jtu.keystr(path)}"
        if isinstance(x, Parameter):
            leaf(path, x.value)  # raises if it is none of a dose
            return x
        refuse_masked(x, where)
        try:
            dtype = jnp.result_type(x)
        except TypeError:
            raise TypeError(f"`{where}` is a {type(x).__name__}, not a number or array.") from None
        if not is_traced(x) and not np.isfinite(np.asarray(x)).all():
            raise ValueError(f"`{where}` is not finite: {short(x)}.")
        if jnp.issubdtype(dtype, jnp.floating):
            return jnp.asarray(x, dtype)
        if jnp.issubdtype(dtype, jnp.integer):
            return jnp.asarray(x, float)
        raise TypeError(f"`{where}` has dtype {dtype}; doses are real numbers.")

    is_leaf = lambda x: isinstance(x, Parameter)
    arrays = jtu.tree_map_with_path(leaf, tree, is_leaf=is_leaf)
    if not jtu.tree_leaves(arrays, is_leaf=is_leaf):
        raise ValueError(f"`{name}` holds no number: {short(tree)}. For no dose, `dose=None`.")
    return arrays


def _as_mask(x: object, name: str) -> np.ndarray:
    mask = concrete_array(x, name)
    if mask.dtype != bool:
        raise TypeError(f"`{name}` must be booleans, got {short(x)}.")
    return mask


def _for_all(tree: PyTree, y: PyTree) -> PyTree:
    """A single array as one for each of the state."""
    return jtu.tree_map(lambda _: tree, y) if jtu.all_leaves([tree]) else tree


def inflow_for(inflow: PyTree[Array], y: PyTree[Array]) -> PyTree[Array]:
    """The `inflow` of a phase in the structure, shapes and dtype of the state `y`; zero where it is
    None."""
    shaped = lambda name, x, rate: _broadcast("Phase", name, rate, x)
    return _map("Phase", "inflow", shaped, optax.tree.zeros_like(y), inflow)


def _map(dose: str, name: str, fn: Callable, y: PyTree, tree: PyTree, *rest: PyTree) -> PyTree:
    """`fn(name, x, part, ...)` for each array `x` of `y` and the `part` of `tree` that belongs to
    it; where that is `None`, nothing happens."""
    leaves, treedef = jtu.tree_flatten(y)
    parts, given = jtu.tree_flatten_with_path(tree, is_leaf=is_none)
    if given != treedef:
        hint = (
            " A list or tuple is tree structure: for the components of an array, use "
            "`jnp.array([...])`."
            if isinstance(tree, list | tuple)
            else " Write None in place of an array that gets no dose."
        )
        raise ValueError(
            f"`{dose}({name}=...)` has the structure {given}, but the state has the structure "
            f"{treedef}.{hint}"
        )
    others = [treedef.flatten_up_to(other) for other in rest]
    out = [
        x if part is None else fn(name + jtu.keystr(path), x, part, *more)
        for x, (path, part), *more in zip(leaves, parts, *others, strict=True)
    ]
    return treedef.unflatten(out)


def _broadcast(dose: str, name: str, part: Array, x: Array) -> Array:
    if part.shape not in ((), x.shape):
        raise ValueError(
            f"`{dose}({name}=...)` has shape {part.shape}, but the state has shape {x.shape} "
            "there: give a number, or one for each component."
        )
    return jnp.broadcast_to(part.astype(x.dtype), x.shape)
