"""Whether a declared structure, or a Jacobian written by hand, is that of the field."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .._linalg import Dense, FlatField, JacobianLike, as_jacobian
from .._states import as_args, as_state, state_dtype
from .._types import VF, Args, Explained, ScalarLike, YLike, typechecked
from ._declared import declared_jacobian, names_of


@typechecked
def check_jacobian(
    field: VF,
    t: ScalarLike,
    y: YLike,
    args: Args = None,
    *,
    jacobian: Explained[JacobianLike] = None,
    rtol: float = 1e-6,
) -> float:
    """Compares a declared structure, or a Jacobian written by hand, with automatic
    differentiation of `field` at one point. For tests and a first look: it forms the full matrix.

    **Arguments:**

    - `field`: the vector field f(t, y, args).
    - `t`, `y`, `args`: where to compare; choose a state without zeros.
    - `jacobian`: as in [`Rodas5P`][]; by default what `field` declares as its `jacobian`.
    - `rtol`: the largest difference allowed, relative to the largest entry in the row.

    **Returns:** the largest difference found, relative to the largest entry in its row.

    **Raises:** `ValueError` if the difference is above `rtol`, naming the entry, both values, and
    for a structure what it leaves out; or if there is nothing to compare.
    """
    given = declared_jacobian(field) if jacobian is None else as_jacobian(jacobian)
    if given is None:
        raise ValueError(
            "There is nothing to check: `field` declares no `jacobian`. Give one, "
            "`check_jacobian(field, t, y, jacobian=...)`."
        )
    y = as_state(y, "y")
    t = jnp.asarray(t, state_dtype(y))
    args = as_args(args, state_dtype(y))
    flat, unravel = ravel_pytree(y)
    given.check(flat.size)
    fn = FlatField(
        lambda x: ravel_pytree(field(t, unravel(x), args))[0],
        lambda by_hand, x: by_hand(t, unravel(x), args),
    )
    _, stored = given.linearise(fn, flat)
    ours = np.asarray(given.as_matrix(stored))
    exact = np.asarray(jax.jacfwd(fn)(flat))
    rows = np.max(np.abs(exact), axis=1, keepdims=True)
    difference = np.abs(ours - exact) / np.where(rows > 0, rows, 1)
    worst = float(np.max(difference))
    if not worst <= rtol:
        i, j = np.unravel_index(
            np.argmax(np.where(np.isnan(difference), np.inf, difference)), exact.shape
        )
        names = names_of(field, y)
        what = "by hand" if isinstance(given, Dense) else f"with {given}"
        raise ValueError(
            f"The Jacobian {what} is not that of the field: the derivative of component {names[i]} "
            f"in component {names[j]} (row {i}, column {j}) is {ours[i, j]:.6g}, by automatic "
            f"differentiation {exact[i, j]:.6g}."
        )
    return worst
