"""What a guard did at one point."""

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, PyTree


class GuardActivity(eqx.Module):
    """What a guard does at one `(t, y, args)`.

    **Attributes:** (the trees have the structure and shapes of the state)

    - `below`, `above`: which components are clipped to their lower / upper bound.
    - `masked`: which outputs of the field are not finite (replaced if the guard has a `fill`).
    - `derivative`: whether a derivative was made safe, so that it is not the field's own.
    """

    below: PyTree[Bool[Array, "..."]]
    above: PyTree[Bool[Array, "..."]]
    masked: PyTree[Bool[Array, "..."]]
    derivative: Bool[Array, ""]

    @property
    def any(self) -> Bool[Array, ""]:
        """Whether the guard did anything at all."""
        flags = [jnp.any(x) for x in jtu.tree_leaves((self.below, self.above, self.masked))]
        return jnp.any(jnp.stack([*flags, self.derivative]))
