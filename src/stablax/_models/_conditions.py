"""The conditions of events."""

from collections.abc import Iterable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._captured import Captured
from .._states import stop_unless


def values_of(
    conditions: Iterable[Captured], t, y, args, relevant: Bool[Array, " conditions"] | None = None
) -> Float[Array, " conditions"]:
    """Their values at the time `t` and the state `y`. What is not `relevant` has no derivative: it
    need not be finite."""
    values = []
    for k, condition in enumerate(conditions):
        inputs = (condition, t, y, args)
        if relevant is not None:
            inputs = stop_unless(relevant[k], inputs)
        condition, *rest = inputs
        values.append(jnp.asarray(condition(*rest), jnp.result_type(t)))
    return jnp.stack(values)
