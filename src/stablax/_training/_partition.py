"""From a model to optax."""

from typing import TypeVar

import equinox as eqx

_T = TypeVar("_T")


def partition(model: _T) -> tuple[_T, _T]:
    """Splits a model into its trainable arrays and the rest: exactly
    `eqx.partition(model, eqx.is_inexact_array)`; `eqx.combine` puts them together again.

    **Arguments:**

    - `model`: any PyTree.

    **Returns:** `(params, static)`.
    """
    return eqx.partition(model, eqx.is_inexact_array)
