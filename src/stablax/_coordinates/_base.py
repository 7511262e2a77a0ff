"""The same dynamics in other coordinates."""

import abc
from types import ModuleType
from typing import Any

import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from .._fields import Guard, GuardedField, bare, declared_conserved, declared_species
from .._linalg import JacobianLike, as_jacobian
from .._states import as_state, broadcast_prefix, same_shape_and_dtype
from .._static import Frozen, Split, Static, is_traced, real_array
from .._types import VF, Explained, YLike, typechecked
from .._words import called, short, shown


class AbstractCoordinates(GuardedField):
    """A field in other coordinates: u = to(y), du/dt = f(t, from_(u), args) du/dy, with an
    increasing function of each component. Abstract: [`LogField`][], [`SoftplusField`][] and
    [`ScaledField`][] are some, and a subclass that writes `to_leaf`, `from_leaf`, `slope_leaf` and
    `representable` is another.

    ```python
    class LogitField(sx.AbstractCoordinates):  # u = log(y / (s - y)), for 0 < y < s
        def to_leaf(self, y, size, xp):
            return xp.log(y / (size - y))

        def from_leaf(self, u, size):
            return size * jax.nn.sigmoid(u)

        def slope_leaf(self, u, size):
            return (2 + jnp.exp(u) + jnp.exp(-u)) / size

        def representable(self, u):
            return jnp.clip(u, -700, 700)

    field = LogitField(field, size=1.0)
    ```

    The state of such a field is u: in `y0`, `ys`, guards and tolerances. `to` and `from_` convert
    states, trajectories and batches.

    ```python
    logarithmic = sx.LogField(field)
    simulation = sx.Simulate(logarithmic)(logarithmic.to(y0), ts)
    ys = logarithmic.from_(simulation.ys)
    ```

    - **The guard** is that of the field inside, in the new coordinates: the same box (0 is -inf
        as a logarithm), and the same `pull` to first order. How far a step may leave the box is
        measured in the new coordinates. A number as `fill` is in units of dy/dt and cannot be
        taken over. `guard=` gives another one, in the new coordinates.
    - **Steady states and conserved quantities** are found in the coordinates of the field inside,
        where conserved quantities are linear: what that field declares is kept, rows given as
        `conserved=` are rows of its state, and so are `rtol` and `atol` of the search. `y0`,
        `guess` and the state found are in the new coordinates.

    **Arguments:**

    - `field`: any callable `f(t, y, args)`, guarded or not.
    - `size`: s > 0 in the units of y, which `to_leaf`, `from_leaf` and `slope_leaf` are given: a
        number, an array that broadcasts to a leaf of the state, or a PyTree of them (a prefix of
        the state).
    - `guard`: in the new coordinates; by default that of `field`, translated.
    - `jacobian`: as in [`GuardedField`][], of du/dt; by default dense.

    A subclass with an `__init__` of its own sets its own fields, which are static, and then calls
    `super().__init__(field, size, guard=guard, jacobian=jacobian)`.
    """

    _field: Split
    _size: Static

    @typechecked
    def __init__(
        self,
        field: VF,
        size: Explained[YLike] = 1.0,
        *,
        guard: Guard | None = None,
        jacobian: Explained[JacobianLike] = None,
    ):
        self._field = Split(field, "field")
        self._size = Static(positive_sizes(size, "size"), "size")
        self.guard = self._translated_guard() if guard is None else guard
        self.jacobian = as_jacobian(jacobian)

    @abc.abstractmethod
    def to_leaf(self, y: Array | np.ndarray, size: np.ndarray, xp: ModuleType) -> Any:
        """The coordinate u.

        **Arguments:**

        - `y`: one array of a state, or the bounds of one, which may be infinite or outside of what
            has a coordinate: then nan or an infinity is right.
        - `size`: that of each component.
        - `xp`: the module to compute with, numpy or jax.numpy.
        """

    @abc.abstractmethod
    def from_leaf(self, u: Array, size: np.ndarray) -> Any:
        """y, the inverse of `to_leaf`.

        **Arguments:**

        - `u`: one array of a state in the new coordinates.
        - `size`: that of each component.
        """

    @abc.abstractmethod
    def slope_leaf(self, u: Array, size: np.ndarray) -> Any:
        """du/dy.

        **Arguments:**

        - `u`: one array of a state in the new coordinates.
        - `size`: that of each component.
        """

    @abc.abstractmethod
    def representable(self, u: Array) -> Array:
        """`u` itself where y and du/dy are numbers of full precision there, else the nearest value
        where they are.

        **Arguments:**

        - `u`: one array of a state in the new coordinates.
        """

    @property
    def size(self) -> PyTree[np.ndarray]:
        """The sizes, as arrays of numpy."""
        return self._size.tree

    @typechecked
    def to(self, y: YLike) -> PyTree[Array]:
        """The new coordinates.

        **Arguments:**

        - `y`: a state of the field inside, a trajectory (a leading axis), or a batch of them.

        **Returns:** u, of the same structure and shapes.

        **Raises:** `ValueError` for a value without such a coordinate, such as the logarithm of
        0; where `y` is traced, the coordinate is not finite.
        """
        y = as_state(y, "y")
        u = self._map(lambda leaf, size: self.to_leaf(leaf, size, jnp), y)
        if not is_traced(u):
            for (path, a), b in zip(
                jtu.tree_flatten_with_path(y)[0], jtu.tree_leaves(u), strict=True
            ):
                if np.any(np.isfinite(a) & ~np.isfinite(b)):
                    least = np.min(np.asarray(a), where=np.isfinite(a), initial=np.inf)
                    raise ValueError(
                        f"`y{jtu.keystr(path)}` holds {least:g}, which has no finite coordinate in "
                        f"a `{type(self).__name__}`. `LogField(field, offset=...)` is finite at 0."
                    )
        return u

    @typechecked
    def from_(self, u: YLike) -> PyTree[Array]:
        """The coordinates of the field inside.

        **Arguments:**

        - `u`: a state in the new coordinates, a trajectory (a leading axis), or a batch of them.

        **Returns:** y, of the same structure and shapes.
        """
        return self._map(self.from_leaf, as_state(u, "u"))

    def vector_field(self, t, y, args):
        u = jtu.tree_map(self.representable, y)
        guard, fn = bare(self.field)
        inside = _moved_into(guard, self.from_(u))
        speed = fn(t, inside, args)
        same_shape_and_dtype(speed, inside, f"The field inside `{type(self).__name__}`")
        return jtu.tree_map(jnp.multiply, speed, self._map(self.slope_leaf, u))

    def __repr__(self) -> str:
        sizes = jtu.tree_map(np.ndarray.tolist, self._size.tree)
        parts = [shown(self.field)] + ([] if sizes == 1.0 else [f"size={sizes}"])
        if self.guard != self._translated_guard():
            parts.append(f"guard={self.guard}")
        return called(type(self).__name__, parts)

    @property
    def field(self) -> Any:
        """The field inside, as it was given."""
        return self._field.tree

    @property
    def species(self) -> tuple[str, ...] | None:
        """The names of the components, if the field inside has them."""
        return declared_species(self.field)

    @property
    def conserved(self) -> Frozen | None:
        """What the field inside declares that it conserves, in the components of its state, in
        which that is linear."""
        return declared_conserved(self.field)

    def _map(self, fn, tree: PyTree[Array]) -> PyTree[Array]:
        leaves, treedef = jtu.tree_flatten(tree)
        sizes = broadcast_prefix(self._size.tree, tree)
        if sizes is None:
            raise ValueError(
                f"The sizes of this `{type(self).__name__}` have the structure "
                f"{jtu.tree_structure(self._size.tree)}, the state has {treedef}."
            )
        fitted = [
            np.broadcast_to(size.astype(leaf.dtype), leaf.shape)
            for size, leaf in zip(sizes, leaves, strict=True)
        ]
        return jtu.tree_unflatten(treedef, list(map(fn, leaves, fitted)))

    def _translated_guard(self) -> Guard:
        guard, _ = bare(self.field)
        if guard.fill not in (None, 0.0):
            raise ValueError(
                f"The guard of the field inside has fill={guard.fill:g}, in units of dy/dt, which "
                f"cannot be taken over by `{type(self).__name__}`. Give it a `guard=` of its own."
            )
        lower, upper = self._bounds(guard.lower, "lower"), self._bounds(guard.upper, "upper")
        return Guard(lower, upper, fill=guard.fill, pull=guard.pull, reject=guard.reject)

    def _bounds(self, bounds: PyTree, name: str) -> PyTree:
        if bounds is None:
            return None
        sizes, aligned = self._size.tree, broadcast_prefix(self._size.tree, bounds)
        if aligned is None:
            # Bounds for the whole state, and a size for each of its parts.
            full = broadcast_prefix(bounds, sizes)
            if full is None:
                raise ValueError(
                    f"`{name}` of the guard and the sizes cannot belong to one state: their "
                    f"structures are {jtu.tree_structure(bounds)} and {jtu.tree_structure(sizes)}."
                )
            aligned, structure = jtu.tree_leaves(sizes), jtu.tree_structure(sizes)
        else:
            full, structure = jtu.tree_leaves(bounds), jtu.tree_structure(bounds)

        def translate(bound, size):
            with np.errstate(all="ignore"):
                bound, size = np.broadcast_arrays(bound, size)
                moved = self.to_leaf(bound, size, np)
            if name == "upper" and np.any(np.isnan(moved) | (moved == -np.inf)):
                raise ValueError(
                    f"An upper bound of the field inside is {np.min(bound):g}: a "
                    f"`{type(self).__name__}` has no state below it."
                )
            return np.where(np.isnan(moved), -np.inf, moved)  # below every state

        return jtu.tree_unflatten(structure, list(map(translate, full, aligned)))


def _moved_into(guard: Guard, y: PyTree[Array]) -> PyTree[Array]:
    """`y` without what rounding of a coordinate on a bound leaves outside the box. Its derivative
    is that of `y`: on a bound, a clip would lose it."""

    def leaf(clipped, x):
        return jnp.where(clipped == x, x, x + lax.stop_gradient(clipped - x))

    return jtu.tree_map(leaf, guard.clip(y), y)


def innermost(field: VF, y: PyTree) -> tuple[VF, PyTree]:
    """The field inside all coordinates, and its state."""
    while isinstance(field, AbstractCoordinates):
        y = field.from_(y)
        field = field.field
    return field, y


def positive_sizes(sizes: PyTree[ArrayLike], name: str) -> PyTree[np.ndarray]:
    def leaf(path, x):
        value = real_array(x, f"{name}{jtu.keystr(path)}")
        if not (np.isfinite(value) & (value > 0)).all():
            raise ValueError(f"`{name}` must be positive and finite, got {short(x)}.")
        return value

    return jtu.tree_map_with_path(leaf, sizes)


def not_below(u: Array) -> Array:
    """Further down, exp(u) is no number of full precision, and soon exp(-u) none at all."""
    least = np.log(np.finfo(u.dtype).tiny).astype(u.dtype)
    return jnp.where(u < least, least, u)
