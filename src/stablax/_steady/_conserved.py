"""Conserved quantities as they are declared: rows L with L f = 0."""

from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from .._fields import Guarded
from .._static import Frozen, concrete_array
from ._detect import ConservedQuantities
from ._null_space import left_null_space


def as_conserved(conserved: Any, field: Any = None) -> Frozen | str | None:
    """`conserved` as a static value, so that equal rows share one compilation. Without it, what
    `field` declares."""
    if conserved is None:
        return _of_field(field)
    if isinstance(conserved, ConservedQuantities):
        return conserved.rows
    if isinstance(conserved, Frozen):
        return conserved
    if isinstance(conserved, str):
        if conserved != "detect":
            raise ValueError(
                f'`conserved="{conserved}"`: give the rows L as an array, what '
                '`conserved_quantities(field, y0)` returns, "detect", or None.'
            )
        return conserved
    return Frozen(concrete_array(conserved, "conserved"))


def _of_field(field: Any) -> Frozen | None:
    """Rows that a field declares as `conserved`, or that follow from its `stoichiometry`."""
    if isinstance(field, Guarded):
        field = field.fn
    for name in ("conserved", "stoichiometry"):
        declared = getattr(field, name, None)
        if declared is None or callable(declared):
            continue
        if isinstance(declared, ConservedQuantities):
            return declared.rows
        what = f"{type(field).__name__}.{name}"
        matrix = concrete_array(declared, what)
        if name == "conserved":
            return Frozen(matrix)
        if matrix.ndim != 2 or not np.isfinite(matrix).all():
            raise ValueError(
                f"`{what}` has shape {matrix.shape}; it must be a finite matrix with one row for "
                "each species and one column for each reaction."
            )
        return Frozen(left_null_space(matrix))
    return None


def declared_rows(conserved: Frozen, size: int) -> np.ndarray:
    rows = concrete_array(conserved, "conserved").astype(float)
    if rows.size == 0:
        return np.zeros((0, size))
    rows = np.atleast_2d(rows)
    if rows.ndim != 2 or rows.shape[1] != size:
        raise ValueError(
            f"`conserved` has shape {conserved.shape}: it needs one row for each conserved "
            f"quantity and {size} columns, one for each component of the state "
            "(in the order of `jax.flatten_util.ravel_pytree`)."
        )
    if not np.isfinite(rows).all():
        raise ValueError("`conserved` holds a non-finite number.")
    return rows


def declared_projector(conserved: Frozen | None, size: int) -> np.ndarray:
    """The orthogonal projector onto the rows of L."""
    if conserved is None:
        return np.zeros((size, size))
    rows = declared_rows(conserved, size)
    # Through the singular value decomposition, so that redundant rows are harmless.
    scaled = rows / np.maximum(
        np.abs(rows).max(axis=1, keepdims=True, initial=0), np.finfo(float).tiny
    )
    _, sizes, basis = np.linalg.svd(scaled, full_matrices=False)
    basis = basis[sizes > 1e-10 * sizes.max(initial=0)]
    return basis.T @ basis


def refuse_rows(conserved: Frozen, field, y0: Float[Array, " n"], clip) -> None:
    """Raises a `ValueError` that names the declared row that the field conserves least."""
    rows = declared_rows(conserved, y0.size)
    shift = jnp.exp(0.5 * jr.normal(jr.key(0), y0.shape, y0.dtype))
    fluxes = [np.asarray(field(y), float) for y in (y0, clip(y0 * shift))]
    drift = [rows @ flux for flux in fluxes]
    scale = [np.abs(rows) @ np.abs(flux) + np.finfo(float).tiny for flux in fluxes]
    relative = np.abs(drift) / np.array(scale)
    point, i = np.unravel_index(np.nanargmax(relative), relative.shape)
    raise ValueError(
        f"`conserved[{i}]` = {rows[i].tolist()} is not conserved by the field: L f = "
        f"{drift[point][i]:.3g} at a state where |L| |f| = {scale[point][i]:.3g}. Rows must "
        "satisfy L f(t, y, args) = 0 at every state."
    )
