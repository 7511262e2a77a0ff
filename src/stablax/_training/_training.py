"""From a model to optax."""

from typing import Any, TypeVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .._models import is_successful
from .._types import typechecked

_T = TypeVar("_T")


def partition(model: _T) -> tuple[_T, _T]:
    """Splits a model into its trainable arrays and the rest: exactly
    `eqx.partition(model, eqx.is_inexact_array)`; `eqx.combine` puts them together again.

    **Arguments:**

    - `model`: any PyTree.

    **Returns:** `(params, static)`.
    """
    return eqx.partition(model, eqx.is_inexact_array)


@typechecked
def masked_mean(losses: Float[ArrayLike, "..."], simulations: Any) -> Float[Array, ""]:
    """The mean of `losses` over the samples that succeeded.

    A failed sample contributes neither to the value nor to the gradient. If all samples fail, the
    mean is 0 with zero gradient: look at `is_successful(simulations).sum()`.

    **Arguments:**

    - `losses`: one for each sample; any shape.
    - `simulations`: the batch of `Simulation`s they came from (or their `result`, or
        `SteadyState`s), with the same batch shape.

    **Returns:** a scalar.

    **Raises:** `ValueError` if the shapes differ.
    """
    losses = jnp.asarray(losses)
    ok = is_successful(simulations)
    if ok.shape != losses.shape:
        raise ValueError(
            f"`losses` has shape {losses.shape}, but `simulations` is a batch of shape {ok.shape}."
        )
    # Selected before the sum and not after, so that a nan of a failed sample has no way out.
    total = jnp.sum(jnp.where(ok, losses, 0))
    return total / jnp.maximum(jnp.sum(ok), 1).astype(losses.dtype)
