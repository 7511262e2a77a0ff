"""Conserved quantities that nobody declared: the left null space of the Jacobian."""

from collections.abc import Callable
from fractions import Fraction

import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool

from .._coordinates import innermost
from .._fields import as_guarded, names_of
from .._linalg import combination, echelon
from .._precision import product
from .._states import as_args, as_state, state_dtype
from .._static import Frozen, is_traced
from .._types import VF, Args, ScalarLike, YLike, typechecked

# States around the first that are looked at, and how far, in logarithms; components that are zero
# there move by this part of the largest.
_NEAR, _SPREAD, _TYPICAL = 5, 0.5, 1e-3
# Passes of row and column scaling: from the first, sizes that differ by decades are near one.
_SCALINGS = 6
# In units of rounding: what a sum of products leaves of zero, and a zero singular value.
_ROUNDING, _NULL = 64, 32
# Entries of a readable row are fractions with a small denominator, to this accuracy.
_DENOMINATOR, _ALMOST = 60, 1e-6


def states_near(y0: Array, clip: Callable, count: int) -> Array:
    """`count` states around `y0`, off its zeros, shape `(count, n)`: at a single state, and at
    zeros above all, a row may vanish by accident."""
    typical = _TYPICAL * jnp.max(jnp.abs(y0))
    typical = jnp.where(typical > 0, typical, 1)
    # Constants: drawn by JAX they are most of what XLA compiles of a search.
    shifts = np.random.default_rng(0).standard_normal((count, y0.size)).astype(y0.dtype)
    shifts = jnp.asarray(shifts)
    return jax.vmap(lambda z: clip(y0 * jnp.exp(_SPREAD * z) + typical * jnp.abs(z)))(shifts)


def dead(flux: Array, jacobian: Array) -> Bool[Array, " n"]:
    """Which components do not move and depend on nothing, at one state."""
    return (flux == 0) & jnp.all(jacobian == 0, axis=1)


def detected_projector(jacobians: Array) -> Array:
    """A projector whose rows span the left null space that the Jacobians, shape
    `(states, n, n)`, have in common: in scaled species it is orthogonal.

    The rank is data, not shape, so this works under `jit`.
    """
    null, rows, _ = _scaled_null_space(jacobians, jnp)
    projector = product(null, null.T)
    # Between quantities that share no component, rounding would look like a leak.
    rounding = _ROUNDING * rows.size * jnp.finfo(rows.dtype).eps
    projector = jnp.where(jnp.abs(projector) > rounding, projector, 0)
    return lax.stop_gradient(projector * rows[None, :] / rows[:, None])


def _scaled_null_space(jacobians, xp) -> tuple:
    """`(null, rows, sizes)`: left null vectors of diag(rows) J as orthonormal columns (the others
    are zero), and all singular values.

    Rows and columns are scaled to one in turn (Sinkhorn and Knopp 1967), so that the rank depends
    neither on the units of the species nor on one rate being far from another.
    """
    finite = xp.all(xp.isfinite(jacobians), axis=(1, 2), keepdims=True)
    stacked = xp.concatenate(list(xp.where(finite, jacobians, 0)), axis=1)
    count, eps = stacked.shape[0], xp.finfo(stacked.dtype).eps

    def inverse_norm(matrix, axis):
        norm = xp.linalg.norm(matrix, axis=axis)
        return xp.where(norm > 0, 1 / xp.where(norm > 0, norm, 1), 1)

    rows = inverse_norm(stacked, 1)
    for _ in range(_SCALINGS):
        columns = inverse_norm(rows[:, None] * stacked, 0)
        rows = inverse_norm(stacked * columns[None, :], 1)
    columns = inverse_norm(rows[:, None] * stacked, 0)
    scaled = rows[:, None] * stacked * columns[None, :]
    left, sizes, _ = xp.linalg.svd(scaled, full_matrices=False)
    is_null = sizes <= _NULL * count * eps * xp.max(sizes)
    return xp.where(is_null[None, :], left, 0), rows, sizes


@jtu.register_static
class ConservedQuantities:
    """Rows L with L f = 0, as [`conserved_quantities`][] found them. A value: no PyTree leaves,
    equal by content. Printed, it names the quantities.

    **Attributes:**

    - `rows`: L, a [`Frozen`][] array of shape `(quantities, components)`.
    - `names`: of the components.
    - `gap`: how clear the rank is: the smallest singular value that counts as not zero over the
        largest that counts as zero (or over rounding). Below about 1e3, look at the rows.
    """

    def __init__(self, rows: np.ndarray, names: tuple[str, ...], gap: float):
        self.rows = Frozen(rows)
        self.names = names
        self.gap = gap

    def __hash__(self) -> int:
        return hash((self.rows, self.names))

    def __eq__(self, other: object) -> bool:
        return type(other) is ConservedQuantities and (self.rows, self.names) == (
            other.rows,
            other.names,
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.rows.__array__(dtype, copy)

    def __repr__(self) -> str:
        if not len(self):
            return f"No conserved quantity among {len(self.names)} components."
        lines = [combination(row, self.names) for row in self.rows.value]
        count = f"{len(self)} conserved quantit" + ("y" if len(self) == 1 else "ies")
        return "\n  ".join([f"{count} (gap {self.gap:.1g}):", *lines])


@typechecked
def conserved_quantities(
    field: VF, y0: YLike, args: Args = None, *, t: ScalarLike = 0.0
) -> ConservedQuantities:
    """Finds what a field conserves, once and outside `jit`; prints readably.

    ```python
    L = sx.conserved_quantities(field, y0, args)
    print(L)
    steady = sx.find_steady_state(field, y0, args, conserved=L)
    ```

    L is the left null space that the Jacobians at several states around `y0` have in common. The
    rank is that of the Jacobians with rows and columns scaled to one, so it does not depend on
    the units of the species; a row that the field does not conserve to rounding is dropped.
    Linear quantities only, whose coefficients do not depend on `args` or parameters (for those,
    `conserved="detect"`, whose derivative is included).

    **Arguments:**

    - `field`, `y0`, `args`, `t`: as in [`find_steady_state`][].

    **Returns:** [`ConservedQuantities`][], for `conserved=`.

    **Raises:** `TypeError` for traced inputs; `ValueError` if the Jacobian is finite at none of
    the states.
    """
    if is_traced((field, y0, args, t)):
        raise TypeError(
            "`conserved_quantities` needs concrete inputs: call it outside `jit`, `grad` and "
            '`vmap`, or use `conserved="detect"` inside.'
        )
    y0 = as_state(y0, "y0")
    dtype = state_dtype(y0)
    args, t = as_args(args, dtype), jnp.asarray(t, dtype)
    field, y0 = innermost(field, y0)
    guarded = as_guarded(field)
    flat_y0, unravel = ravel_pytree(y0)
    flat_field = lambda y: ravel_pytree(guarded(t, unravel(y), args))[0]
    clip = lambda y: ravel_pytree(guarded.guard.clip(unravel(y)))[0]
    states = jnp.concatenate([flat_y0[None], states_near(flat_y0, clip, _NEAR)])
    look = jax.jit(jax.vmap(lambda y: (flat_field(y), jax.jacfwd(flat_field)(y))))
    fluxes, jacobians = (np.asarray(x) for x in look(states))
    finite = np.isfinite(jacobians).all(axis=(1, 2)) & np.isfinite(fluxes).all(axis=1)
    if not finite.any():
        raise ValueError(
            f"The field or its Jacobian is not finite at `y0` = {y0} and around it, so that "
            "nothing can be told about what it conserves. Start inside its domain, or guard it."
        )
    states, fluxes, jacobians = np.asarray(states)[finite], fluxes[finite], jacobians[finite]
    null, scales, sizes = _scaled_null_space(jacobians, np)
    null = null[:, np.abs(null).max(axis=0) > 0].T
    eps = float(np.finfo(dtype).eps)
    rank = len(sizes) - len(null)
    largest_zero = max(float(sizes[rank:].max(initial=0)), eps * float(sizes.max(initial=0)))
    gap = float(sizes[:rank].min(initial=np.inf)) / largest_zero if rank else np.inf
    leaks = lambda rows: _leaks(rows, states, fluxes, jacobians, eps)
    rows = _readable(null, scales, leaks)
    rows = rows[~leaks(rows)]
    return ConservedQuantities(rows, names_of(field, y0), gap)


def _readable(null: np.ndarray, scales: np.ndarray, leaks: Callable) -> np.ndarray:
    """The rows `null * scales`, with as many zeros and as simple numbers as they can have."""
    if not len(null):
        return null
    # Which entries are zero is seen in scaled species.
    rows = echelon(null) * scales
    leading = np.array([row[np.flatnonzero(row)[0]] for row in rows])
    rows = rows / leading[:, None]

    def simple(x: float) -> float:
        fraction = float(Fraction(x).limit_denominator(_DENOMINATOR))
        return fraction if abs(fraction - x) <= _ALMOST * abs(x) else x

    rounded = np.array([[simple(x) for x in row] for row in rows.tolist()])
    return np.where(leaks(rounded)[:, None], rows, rounded)


def _leaks(rows, states, fluxes, jacobians, eps) -> np.ndarray:
    """Whether L f is more than rounding, for each row; see `SteadyProblem.leak`."""
    inside = np.einsum("sij,sj->si", np.abs(jacobians), np.abs(states)) + np.abs(fluxes)
    allowed = _ROUNDING * rows.shape[1] * eps * (inside @ np.abs(rows).T)
    return np.any(np.abs(fluxes @ rows.T) > allowed + np.finfo(float).tiny, axis=0)
