"""Named types, and the one decorator that checks them."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax.tree_util as jtu
from beartype import BeartypeConf, beartype
from jaxtyping import Array, ArrayLike, Float, PyTree, jaxtyped

Y = PyTree[Float[Array, "..."]]
"""A state: any PyTree of real floating-point arrays."""
YLike = PyTree[ArrayLike]
"""What is accepted for a state: numpy arrays and Python floats are converted."""
Args = PyTree[Any]
VF = Callable[[Any, Any, Any], Any]
"""A vector field `f(t, y, args)`; returns `dy/dt` with the structure, shapes and dtype of `y`."""
ScalarLike = float | int | Float[ArrayLike, ""]

_F = TypeVar("_F", bound=Callable[..., Any])
# A float annotation takes an int as well (PEP 484), as Python itself does.
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def typechecked(fn: _F) -> _F:
    """Checks the annotations of a public function whenever it is called (at trace time
    under `jit`). An integer that no float holds, such as JSON brings in, is named."""
    signature = inspect.signature(fn)
    checked = jaxtyped(fn, typechecker=_check)

    @functools.wraps(fn)
    def call(*args, **kwargs):
        try:
            return checked(*args, **kwargs)
        except OverflowError as error:
            too_large = _too_large(signature.bind(*args, **kwargs).arguments)
            if too_large is None:  # of something that the function has computed
                raise
            raise ValueError(too_large) from error

    return call  # pyright: ignore[reportReturnType]


def _too_large(given: dict[str, Any]) -> str | None:
    """Where among the arguments of a function there is an integer beyond all floats."""
    for name, value in given.items():
        for path, leaf in jtu.tree_leaves_with_path(value):
            if isinstance(leaf, int) and leaf.bit_length() > 1023:
                digits = round(leaf.bit_length() * math.log10(2))
                return (
                    f"`{name}{jtu.keystr(path)}` is an integer of some {digits} digits: no "
                    "floating-point number is so large."
                )
    return None
