"""The matrix M of M dy/dt = f."""

import functools
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from .._precision import full_precision
from .._static import real_array
from .._words import short
from ._base import AbstractJacobian, AbstractMass
from ._dense import Dense
from ._null_space import left_null_space, row_projector


@final
@jtu.register_static
class Mass(AbstractMass):
    """A constant matrix, or a diagonal, which may be singular: then some equations are algebraic. A
    value object, with numbers that Python knows.

    `numbers`: of shape `(n,)` or `(n, n)`; `tree`: the structure in which a diagonal was given."""

    def __init__(self, numbers: np.ndarray, tree: Any = None):
        self.numbers = numbers
        self.tree = tree

    def __hash__(self) -> int:
        return hash((self.numbers.tobytes(), self.numbers.shape, self.tree))

    def __eq__(self, other: object) -> bool:
        return (
            type(other) is Mass
            and np.array_equal(self.numbers, other.numbers)
            and self.tree == other.tree
        )

    def __repr__(self) -> str:
        """As it can be given."""
        return np.array2string(self.numbers, separator=", ", threshold=64)

    @property
    def size(self) -> int:
        return len(self.numbers)

    @property
    def is_diagonal(self) -> bool:
        return self.numbers.ndim == 1

    @property
    def is_singular(self) -> bool:
        return bool(_algebraic(self).any())

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """M x."""
        return _times(self.numbers, x)

    def transposed(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """M^T x."""
        return _times(self.numbers.T, x)

    def algebraic(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """Of what stands on the right side, the part that M dy/dt cannot have: in the left null
        space of M. Of a diagonal the equations without dy/dt."""
        return _times(_algebraic(self), x)

    def slopes(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """M^+ x: dy/dt as far as M alone knows it."""
        return _times(_inverse(self), x)

    def stored(self, structure: AbstractJacobian, dtype: DTypeLike) -> PyTree:
        """M, as a Jacobian of that `structure` is stored."""
        if isinstance(structure, Dense):
            return jnp.asarray(_full(self), dtype)
        with jax.ensure_compile_time_eval():
            return structure.linearise(self, jnp.zeros(self.size, dtype))[1]

    def check(self, structure: AbstractJacobian, y: PyTree[Array]) -> None:
        """Raises a `ValueError` if it does not fit a state like `y`, or `structure` has no place
        for its entries."""
        if self.tree is not None and self.tree != jtu.tree_structure(y):
            raise ValueError(
                f"`mass` has the structure {self.tree}, but the state has {jtu.tree_structure(y)}."
            )
        size = sum(x.size for x in jtu.tree_leaves(y))
        if size != self.size:
            raise ValueError(
                f"`mass` is of {self.size} components, but the state has {size}: one for each, in "
                "the order of the ravelled state (`jax.flatten_util.ravel_pytree`)."
            )
        with jax.ensure_compile_time_eval():
            found = np.asarray(structure.as_matrix(self.stored(structure, float)))
        missing = np.argwhere((found == 0) & (_full(self) != 0))
        if len(missing):
            row, column = missing[0].tolist()
            raise ValueError(
                f"`mass` has an entry at ({row}, {column}), for which the structure of the "
                f"Jacobian, {short(structure)}, has no place: give it one that has, or `Dense()`."
            )


def as_mass(given: object) -> Mass | None:
    """What a user may give as `mass=...`."""
    if given is None or isinstance(given, Mass):
        return given
    tree = None
    if not (isinstance(given, list | tuple) or eqx.is_array_like(given)):
        leaves, tree = jtu.tree_flatten_with_path(given)
        parts = [np.ravel(real_array(x, f"mass{jtu.keystr(path)}")) for path, x in leaves]
        given = np.concatenate([np.zeros(0), *parts])
    numbers = real_array(given, "mass")
    fits = numbers.ndim == 1 or numbers.ndim == 2 and len(set(numbers.shape)) == 1
    if not (fits and numbers.size):
        raise ValueError(
            "`mass` must be the diagonal of M, of shape (n,) or like the state, or M, of shape "
            f"(n, n), with a row for each component of the state; got shape {numbers.shape}."
        )
    if not np.isfinite(numbers).all():
        raise ValueError(f"`mass` must be finite, got {short(numbers)}.")
    return Mass(numbers + 0.0, tree)  # of two zeros there is one


def _times(numbers: np.ndarray, x: Array) -> Array:
    known = jnp.asarray(numbers, x.dtype)
    if known.ndim == 1:
        return known * x
    with full_precision():
        return known @ x


def _full(mass: Mass) -> np.ndarray:
    return np.diag(mass.numbers) if mass.is_diagonal else mass.numbers


@functools.lru_cache(maxsize=64)
def _algebraic(mass: Mass) -> np.ndarray:
    """The orthogonal projector onto the left null space."""
    numbers = mass.numbers
    return (
        (numbers == 0).astype(float)
        if mass.is_diagonal
        else row_projector(left_null_space(numbers))
    )


@functools.lru_cache(maxsize=64)
def _inverse(mass: Mass) -> np.ndarray:
    """The pseudo-inverse."""
    numbers = mass.numbers
    if mass.is_diagonal:
        return np.where(numbers == 0, 0, 1 / np.where(numbers == 0, 1, numbers))
    # Of the rank that the null space says, whatever the units.
    left, sizes, right = np.linalg.svd(numbers)
    rank = len(numbers) - round(np.trace(_algebraic(mass)))
    return (right[:rank].T / sizes[:rank]) @ left[:, :rank].T
