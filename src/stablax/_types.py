"""Named types, and the one decorator that checks them."""

from collections.abc import Callable
from typing import Any, TypeVar

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
    under `jit`)."""
    return jaxtyped(fn, typechecker=_check)  # pyright: ignore[reportReturnType, reportCallIssue]
