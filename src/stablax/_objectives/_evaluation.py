"""What an objective is made of."""

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._models import Simulation, explain, is_successful
from .._static import is_traced
from .._words import quoted


class Evaluation(eqx.Module):
    """What an [`Objective`][] is made of, for some parameters.

    **Attributes:** of shape `(conditions, times, observables)` as the [`Series`][]:

    - `predictions`; `sigma`; `residuals`: (predicted - measured) / sigma (of logarithms, where the
        noise is so). All are zero where there is no measurement, or no simulation.

    and

    - `value`: that of the objective; inf if a condition failed.
    - `log_likelihoods`: of each condition, shape `(conditions,)`; -inf where it failed.
    - `log_prior`: shape `()`.
    - `solved`: by name, what was [`Solved`][]: `scale of X`, `offset of X`, `sigma of X`, of shape
        `()`, or `(conditions,)`.
    - `simulations`: the [`Simulation`][] of all conditions, a batch.
    - `successful`: which conditions were simulated and have a finite likelihood.
    """

    value: Float[Array, ""]
    log_likelihoods: Float[Array, " conditions"]
    log_prior: Float[Array, ""]
    predictions: Float[Array, "conditions times observables"]
    sigma: Float[Array, "conditions times observables"]
    residuals: Float[Array, "conditions times observables"]
    solved: dict[str, Array]
    simulations: Simulation
    successful: Bool[Array, " conditions"]
    conditions: tuple | None = eqx.field(static=True)
    names: tuple[str, ...] = eqx.field(static=True)

    @property
    def num_failed(self) -> Int[Array, ""]:
        """The number of conditions that failed."""
        return jnp.sum(~self.successful)

    def explain(self) -> str:
        """How it ended, in words: which conditions failed, and why."""
        if is_traced(self.successful):
            return "Its values are known only outside `jit`."
        failed = np.flatnonzero(~np.asarray(self.successful))
        if not failed.size:
            return "Successful."
        lines = [f"{failed.size} of {len(self.successful)} conditions failed."]
        ok = np.asarray(is_successful(self.simulations))
        for i in failed:
            name = i if self.conditions is None else self.conditions[i]
            one = jtu.tree_map(lambda x, i=i: x[i], self.simulations)
            reason = explain(one) if not ok[i] else self._not_finite(i)
            lines.append(f"Condition {name}: {reason}")
        return "\n".join(lines)

    def _not_finite(self, i: int | np.integer) -> str:
        finite: list[bool] = np.all(np.isfinite(np.asarray(self.residuals[i])), axis=0).tolist()
        which = [name for name, fine in zip(self.names, finite, strict=True) if not fine]
        if not which:
            return "the likelihood is not finite (is a `sigma` zero?)."
        return (
            f"the residuals of {quoted(which)} are not finite (a logarithm of a prediction that is "
            "not above 0?)."
        )

    def __repr__(self) -> str:
        if is_traced(self.value):
            return f"Evaluation(of {quoted(self.names)})"
        parts = [f"value={float(self.value):.6g}"]
        parts += [f"{name}={np.asarray(x)}" for name, x in self.solved.items()]
        failed = int(self.num_failed)
        parts += [f"failed={failed} of {len(self.successful)} conditions"] if failed else []
        return f"Evaluation({', '.join(parts)})"
