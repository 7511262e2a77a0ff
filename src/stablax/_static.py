"""What a model holds without training it: values that are no PyTree leaves."""

import functools
import operator
from collections.abc import Hashable
from typing import Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer
from jaxtyping import ArrayLike, PyTree

from ._pickling import by_name
from ._types import NumbersLike
from ._words import short

_T = TypeVar("_T")


def is_traced(x: PyTree) -> bool:
    """Whether any leaf of `x` is a tracer (so that Python cannot look at its value)."""
    return any(isinstance(leaf, Tracer) for leaf in jtu.tree_leaves(x))


def concrete_array(x: object, name: str) -> np.ndarray:
    """`x` as a read-only numpy array of its own, or an error if `x` is traced."""
    if is_traced(x):
        raise TypeError(
            f"`{name}` is a traced array, which cannot be held statically. Pass a tuple or an "
            "`np.array` that is built outside `jit`, `grad` and `vmap`."
        )
    refuse_masked(x, name)
    value = np.array(x.value if isinstance(x, Frozen) else x)
    value.setflags(write=False)
    return value


def refuse_masked(x: object, name: str) -> None:
    """numpy and jax take the numbers under a mask as if they were none."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(
            f"`{name}` is a masked array, whose mask would be lost. Leave the masked entries out, "
            f"or give them a value: `{name}.filled(0.0)`."
        )


def is_real(dtype: np.dtype) -> bool:
    """Whether it is one of real numbers: numpy counts lengths of time among the integers."""
    return dtype.kind in "iuf" or jnp.issubdtype(dtype, jnp.floating)


def real_array(x: object, name: str) -> np.ndarray:
    """`x` as an array of Python's floats, or an error if it is traced or holds anything else than
    real numbers."""
    value = concrete_array(x, name)
    if not is_real(value.dtype):
        raise TypeError(
            f"`{name}` must be a number or an array of numbers, got {short(x)} "
            f"({type(x).__name__})."
        )
    return value.astype(float)


def real_number(x: object, name: str) -> float:
    """`x` as a Python float, or an error as that of `real_array`."""
    value = real_array(x, name)
    if value.shape != ():
        raise TypeError(f"`{name}` must be a number, got {short(x)}.")
    return float(value)


def _content(leaf: object, name: str) -> Hashable:
    """A hashable key that is equal for leaves of equal content."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if eqx.is_array(leaf) or isinstance(leaf, np.generic | np.ndarray):
        value = concrete_array(leaf, name)
        return (value.shape, value.dtype.str, value.tobytes())
    if isinstance(leaf, functools.partial):
        parts = (leaf.func, leaf.args, leaf.keywords)
        if not is_traced(parts):
            return Static(parts, name)
    if isinstance(leaf, float):
        return (type(leaf), leaf.hex())  # tells 0.0 from -0.0, and nan equals itself
    try:
        hash(leaf)
    except TypeError:
        return ("identity", id(leaf))  # `Static` keeps the object alive, so its id is its own.
    return (type(leaf), leaf)


@jtu.register_static
class Static(Generic[_T]):
    """Any PyTree as a value: no leaves, and hashed and compared by content.

    Two trees are equal if their structure, their arrays (bytes, shape, dtype) and their
    other leaves are; two equal ones therefore share one compilation. What has no hash is equal to
    itself alone.
    """

    def __init__(self, tree: _T, name: str = "value"):
        leaves, treedef = jtu.tree_flatten_with_path(tree)
        self.tree = tree
        self._key = (
            treedef,
            tuple(_content(leaf, name + jtu.keystr(path)) for path, leaf in leaves),
        )
        self._hash = hash(self._key)  # every call of a model asks for it

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (type(other) is Static and self._key == other._key)

    def __reduce__(self):
        # The key is made anew: it may belong to the objects of this process.
        return Static, (jtu.tree_map(by_name, self.tree),)

    def __copy__(self) -> "Static":
        return self

    def __deepcopy__(self, memo: dict) -> "Static":
        return self

    def __repr__(self) -> str:
        return f"Static({self.tree!r})"


def _strong(x: ArrayLike) -> jax.Array:
    """`x` as an array that keeps its type under training (a weak type turns strong with the first
    update, which would be a second program)."""
    x = jnp.asarray(x)
    return jnp.asarray(x, x.dtype) if x.weak_type else x


class Split(eqx.Module, Generic[_T]):
    """A tree whose only leaves are its trainable arrays (`eqx.is_inexact_array`); all that
    is not one (activations, integer arrays, controllers, ...) is held statically.
    `.tree` is the tree as it was."""

    trainable: PyTree
    rest: Static

    def __init__(self, tree: _T, name: str = "value"):
        trainable, rest = eqx.partition(tree, eqx.is_inexact_array)
        self.trainable = jtu.tree_map(_strong, trainable)
        self.rest = Static(rest, name)

    @property
    def tree(self) -> _T:
        return eqx.combine(self.trainable, self.rest.tree)


def _binary(op):
    def method(self, other):
        return op(self.value, other.value if isinstance(other, Frozen) else other)

    def reflected(self, other):
        return op(other, self.value)

    return method, reflected


@jtu.register_static
class Frozen:
    """A constant array that is no PyTree leaf: never trained, never decayed.

    For what a field needs and training must not touch (stoichiometry, measured volumes,
    a scaling). It can be used where an array can: in arithmetic, indexing, `@`, and as an
    argument of `jax.numpy` functions. Two with equal content are equal and share one
    compilation.

    **Arguments:**

    - `array`: anything that `np.array` takes. A traced array raises a `TypeError`.

    **Attributes:**

    - `value`: the array, as a read-only `np.ndarray`.
    """

    def __init__(self, array: NumbersLike):
        self.value = concrete_array(array, "array")
        if not np.issubdtype(self.value.dtype, np.number) and self.value.dtype != bool:
            raise TypeError(
                f"`Frozen(array)` needs an array of numbers, got {type(array).__name__}."
            )
        self._key = (self.value.shape, self.value.dtype.str, self.value.tobytes())

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return type(other) is Frozen and self._key == other._key

    def __reduce__(self):
        return Frozen, (self.value,)

    def __deepcopy__(self, memo: dict) -> "Frozen":
        return self

    def __repr__(self) -> str:
        return f"Frozen({np.array2string(self.value, threshold=16, separator=', ')})"

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self.value, dtype=dtype, copy=copy)

    def __jax_array__(self) -> jax.Array:
        return jnp.asarray(self.value)

    def __getitem__(self, index):
        return jnp.asarray(self.value)[index] if is_traced(index) else self.value[index]

    def __len__(self) -> int:
        return len(self.value)

    def __neg__(self):
        return -self.value

    shape = property(lambda self: self.value.shape)
    dtype = property(lambda self: self.value.dtype)
    ndim = property(lambda self: self.value.ndim)
    T = property(lambda self: self.value.T)

    __add__, __radd__ = _binary(operator.add)
    __sub__, __rsub__ = _binary(operator.sub)
    __mul__, __rmul__ = _binary(operator.mul)
    __truediv__, __rtruediv__ = _binary(operator.truediv)
    __pow__, __rpow__ = _binary(operator.pow)
    __matmul__, __rmatmul__ = _binary(operator.matmul)
    # jax and numpy arrays hand over to our reflected operators.
    __array_priority__ = 1000
