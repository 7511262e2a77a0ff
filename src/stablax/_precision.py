"""Products of matrices at full precision.

On a GPU JAX rounds the factors of a product in single precision to ten bits (TF32), in a batch at
least: an error of 1e-3, with which a stiff solve never ends. A user who sets
`jax_default_matmul_precision` has chosen.
"""

import contextlib
from typing import Any

import jax
from jaxtyping import Array


def full_precision() -> contextlib.AbstractContextManager:
    """In which products are as precise as their type, unless the user has set another precision.
    The derivatives of a product are as precise as itself."""
    config: Any = jax.config
    if config.jax_default_matmul_precision is None:
        return jax.default_matmul_precision("highest")
    return contextlib.nullcontext()


def product(a: Array, b: Array) -> Array:
    """`a @ b`."""
    with full_precision():
        return a @ b
