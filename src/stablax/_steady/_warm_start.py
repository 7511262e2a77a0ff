"""Starting a search from a state found before."""

from typing import final

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from .._results import is_okay
from .._states import as_state
from .._types import YLike
from ._steady_state import SteadyState


@final
class WarmStart(eqx.Module):
    """The last good steady state of a sample, to be given as `guess=` and carried through
    training. It begins empty, and a search that fails does not overwrite it.

    ```python
    memory = jax.vmap(sx.WarmStart)(y0s)  # one for each sample; or sx.WarmStart(y0)

    @jax.jit
    def step(params, memory):
        def loss(params):
            find = lambda y0, guess: sx.find_steady_state(
                field, y0, params, guess=guess, throw=False
            )
            steady = jax.vmap(find)(y0s, memory)
            return loss_of(steady), memory.update(steady)

        gradient, memory = jax.grad(loss, has_aux=True)(params)
        ...
    ```

    Holds arrays, so it travels through `jit`, `vmap` and `lax.scan`; it is no part of the model,
    and has no gradient.

    **Arguments:**

    - `y0`: a state of the structure, shapes and dtype of those to come.

    **Attributes:**

    - `y`: the state.
    - `known`: whether there is one yet.
    """

    y: PyTree[Array]
    known: Bool[Array, "..."]

    def __init__(self, y0: PyTree):
        self.y = lax.stop_gradient(as_state(y0, "y0"))
        self.known = jnp.array(False)

    def update(self, found: SteadyState | eqx.Module) -> "WarmStart":
        """With the steady states that were found.

        **Arguments:**

        - `found`: a [`SteadyState`][], or a [`Simulation`][] of a [`SteadyThenSimulate`][]; or a
            batch of them, for a batch of memories.

        **Returns:** a new `WarmStart`.

        **Raises:** `TypeError` for anything else.
        """
        steady = found if isinstance(found, SteadyState) else getattr(found, "steady", None)
        if not isinstance(steady, SteadyState):
            raise TypeError(
                "`update` takes a `SteadyState`, or the `Simulation` of a `SteadyThenSimulate`, "
                f"got {type(found).__name__}."
            )
        good = is_okay(steady.result)

        def leaf(new, old):
            is_good = good.reshape(good.shape + (1,) * (new.ndim - good.ndim))
            return jnp.where(is_good, lax.stop_gradient(new), old)

        y = jax.tree.map(leaf, steady.y, self.y)
        return eqx.tree_at(lambda m: (m.y, m.known), self, (y, self.known | good))


GuessLike = WarmStart | YLike | None
"""What a user may give as `guess=...`."""


def as_guess(guess: GuessLike, y0: PyTree[Array]) -> WarmStart | None:
    """`guess` as a `WarmStart` that fits `y0`, or an error."""
    if guess is None:
        return None
    if isinstance(guess, WarmStart):
        warm = guess
    else:
        made = WarmStart(as_state(guess, "guess"))
        warm: WarmStart = eqx.tree_at(lambda m: m.known, made, jnp.array(True))
    ours, theirs = jax.tree.structure(y0), jax.tree.structure(warm.y)
    shapes = [[(x.shape, x.dtype) for x in jax.tree.leaves(tree)] for tree in (y0, warm.y)]
    if ours != theirs or shapes[0] != shapes[1] or warm.known.shape != ():
        raise ValueError(
            "`guess` must have the structure, shapes and dtype of `y0`: it has "
            f"{jax.tree.map(jax.typeof, warm.y)}, `y0` has {jax.tree.map(jax.typeof, y0)}."
            + (" Of a batch, give each sample its own under `vmap`." if warm.known.ndim else "")
        )
    return warm
