"""A loss over a batch of which some samples failed."""

from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from .._models import Outcome, is_successful
from .._solvers import gated
from .._types import Explained, typechecked


class SampleCounts(eqx.Module):
    """How many samples of a [`masked_mean`][] succeeded, and failed.

    **Attributes:** `successful`, `failed`: numbers of samples.
    """

    successful: Int[Array, ""]
    failed: Int[Array, ""]

    @property
    def any_successful(self) -> Bool[Array, ""]:
        """Whether the mean means anything: if no sample succeeded it is 0 with zero gradient."""
        return self.successful > 0


@typechecked
def masked_mean(
    losses: Float[ArrayLike, "..."] | Callable[[PyTree], Array],
    simulations: Explained[Outcome],
    *,
    failed: Literal["omit", "inf"] = "omit",
    has_aux: bool = False,
) -> Float[Array, ""] | tuple[Float[Array, ""], SampleCounts]:
    """The mean of `losses` over the samples that succeeded, or infinity if one has not.

    ```python
    def loss(params):
        simulations = jax.vmap(lambda y0: solve(params, y0))(y0s)  # throw=False
        losses = lambda simulation: jnp.mean((simulation.ys - data) ** 2)
        return sx.masked_mean(losses, simulations, has_aux=True)

    (value, counts), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    ```

    By default a failed sample contributes neither to the value nor to the gradient. That is for an
    optimiser that steps along the gradient, whatever the value, as those of optax. It is no
    objective: *a sample that fails can lower it*. Parameters at which the condition with the
    largest loss (the least likelihood) fails look better than those at which it is solved, and if
    all samples fail, the mean is 0 with zero gradient, which looks like a perfect fit. So where
    values are compared (a line search, a trust region, L-BFGS, several starts, the best
    parameters of a training), use `failed="inf"`: then the value is +inf if any sample failed, and
    the whole gradient exactly zero, not only that of the failed samples, so that no step is taken
    along what is left of the data. A fit that starts at such parameters cannot move.

    **Arguments:**

    - `losses`: one for each sample, any shape; or a function from one sample of `simulations` to
        its loss. A function is the safer way: where the loss of a failed sample has an infinite
        derivative in something else than the simulation (the scale in `scale * log(y)`), an array
        comes with a nan that no mask on it can remove (0 * inf); the function's whole derivative is
        selected away.
    - `simulations`: the batch of `Simulation`s they came from (or their `result`, or
        `SteadyState`s), with the same batch shape.
    - `failed`: `"omit"`, or `"inf"`.
    - `has_aux`: whether to return the [`SampleCounts`][] too, as `jax.value_and_grad` has it.

    **Returns:** a scalar, and with `has_aux` the counts. A loss that is not finite on a sample
    that succeeded is not hidden by `"omit"`.

    **Raises:** `ValueError` if the shapes differ, or a function does not return one number.
    """
    ok = is_successful(simulations)
    if callable(losses):
        losses = _of_each(losses, simulations, ok.ndim)
    losses = jnp.asarray(losses)
    if ok.shape != losses.shape:
        raise ValueError(
            f"`losses` has shape {losses.shape}, but `simulations` is a batch of shape {ok.shape}."
        )
    # Selected before the sum and not after, so that a nan of a failed sample has no way out.
    total = jnp.sum(jnp.where(ok, losses, 0))
    successful = jnp.sum(ok)
    mean = total / jnp.maximum(successful, 1).astype(losses.dtype)
    if failed == "inf":
        mean = jnp.where(successful == ok.size, mean, jnp.inf)
    return (mean, SampleCounts(successful, ok.size - successful)) if has_aux else mean


def _of_each(losses: Callable[[PyTree], Array], simulations: Outcome, batch_axes: int) -> Array:
    def one(simulation):
        loss = jnp.asarray(losses(simulation))
        if loss.ndim != 0:
            raise ValueError(
                f"`losses` returned shape {loss.shape} for one sample; return one number."
            )
        return jnp.where(is_successful(simulation), loss, jnp.nan)

    def of_one(simulation):
        return gated(one, (simulation,))  # no derivative where it is not finite

    for _ in range(batch_axes):
        of_one = jax.vmap(of_one)
    return of_one(simulations)
