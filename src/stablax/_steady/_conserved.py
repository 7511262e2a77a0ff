"""Conserved quantities: rows L with L f = 0."""

from typing import Any

import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from .._static import Frozen, concrete_array


def as_conserved(conserved: Any) -> Frozen | str | None:
    """`conserved` as a static value, so that equal rows share one compilation."""
    if conserved is None or isinstance(conserved, Frozen):
        return conserved
    if isinstance(conserved, str):
        if conserved != "detect":
            raise ValueError(
                f'`conserved="{conserved}"`: give the rows L as an array, "detect", or None.'
            )
        return conserved
    return Frozen(concrete_array(conserved, "conserved"))


def _declared_rows(conserved: Frozen, size: int) -> np.ndarray:
    rows = np.atleast_2d(concrete_array(conserved, "conserved")).astype(float)
    if rows.ndim != 2 or rows.shape[1] != size:
        raise ValueError(
            f"`conserved` has shape {conserved.shape}: it needs one row for each conserved "
            f"quantity and {size} columns, one for each component of the state "
            "(in the order of `jax.flatten_util.ravel_pytree`)."
        )
    if not np.isfinite(rows).all():
        raise ValueError("`conserved` holds a non-finite number.")
    return rows


def projector(
    conserved: Frozen | str | None, field, y0: Float[Array, " n"], clip
) -> Float[Array, "n n"]:
    """The orthogonal projector onto the rows of L. `field` maps flat states to flat dy/dt."""
    if conserved is None:
        return jnp.zeros((y0.size, y0.size), y0.dtype)
    if isinstance(conserved, str):
        return _detect(field, y0, clip)
    rows = _declared_rows(conserved, y0.size)
    # Through the singular value decomposition, so that redundant rows are harmless.
    scaled = rows / np.maximum(np.abs(rows).max(axis=1, keepdims=True), np.finfo(float).tiny)
    _, sizes, basis = np.linalg.svd(scaled, full_matrices=False)
    basis = basis[sizes > 1e-10 * sizes.max(initial=0)]
    return jnp.asarray(basis.T @ basis, y0.dtype)


def _detect(field, y0: Array, clip) -> Array:
    """The projector onto the left null space of the Jacobian, common to several states around
    `y0` (at a single one a row may vanish by accident).

    The rank is found from singular values after rows and columns are scaled to one, so that it
    does not depend on the units of the species. It is data, not shape: works under `jit`.
    """
    shifts = jr.normal(jr.key(0), (3, y0.size), y0.dtype)
    typical = jnp.max(jnp.abs(y0)) * 1e-3
    near = [clip(y0 * jnp.exp(0.5 * z) + typical * jnp.abs(z)) for z in shifts]
    jacobians = [jax.jacfwd(field)(lax.stop_gradient(y)) for y in (y0, *near)]
    finite = [jnp.where(jnp.all(jnp.isfinite(j)), j, 0) for j in jacobians]
    stacked = jnp.concatenate(finite, axis=1)
    rows = jnp.max(jnp.abs(stacked), axis=1)
    rows = jnp.where(rows > 0, 1 / rows, 1)
    scaled = rows[:, None] * stacked
    columns = jnp.max(jnp.abs(scaled), axis=0)
    scaled = scaled * jnp.where(columns > 0, 1 / columns, 1)[None, :]
    left, sizes, _ = jnp.linalg.svd(scaled, full_matrices=False)
    null = sizes <= 32 * y0.size * jnp.finfo(y0.dtype).eps * jnp.max(sizes)
    # A left null vector of D J is D^-1 times one of J; then orthonormal again, by QR with the
    # other columns zero.
    basis = jnp.where(null[None, :], left * rows[:, None], 0)
    length = jnp.linalg.norm(basis, axis=0, keepdims=True)
    basis = basis / jnp.maximum(length, jnp.finfo(y0.dtype).tiny)
    gram, vectors = jnp.linalg.eigh(basis @ basis.T)
    kept = jnp.where((gram > 1e-6)[None, :], vectors, 0)
    return lax.stop_gradient(kept @ kept.T)


def refuse_rows(conserved: Frozen, field, y0: Float[Array, " n"], clip) -> None:
    """Raises a `ValueError` that names the declared row that the field conserves least."""
    rows = _declared_rows(conserved, y0.size)
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
