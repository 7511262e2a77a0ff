"""Conserved quantities as they are declared: rows L with L f = 0."""

from typing import Literal

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from .._fields import declared_conserved
from .._linalg import row_projector
from .._static import Frozen, real_array
from .._types import VF, NumbersLike
from .._words import short
from ._detect import ConservedQuantities

ConservedLike = ConservedQuantities | Frozen | Literal["detect"] | NumbersLike | None
"""What a user may give as `conserved=...`."""


def as_conserved(conserved: ConservedLike, field: VF | None = None) -> Frozen | str | None:
    """`conserved` as a static value, so that equal rows share one compilation. Without it, what
    `field` declares."""
    if conserved is None:
        return None if field is None else declared_conserved(field)
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
    return Frozen(real_array(conserved, "conserved"))


def declared_rows(conserved: Frozen, size: int) -> np.ndarray:
    rows = real_array(conserved, "conserved")
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
    return row_projector(declared_rows(conserved, size))


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
        f"`conserved[{i}]` = {short(rows[i].tolist())} is not conserved by the field: L f = "
        f"{drift[point][i]:.3g} at a state where |L| |f| = {scale[point][i]:.3g}. Rows must "
        "satisfy L f(t, y, args) = 0 at every state."
    )
