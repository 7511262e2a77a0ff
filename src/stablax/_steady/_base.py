"""What a search for a steady state is."""

import abc

import equinox as eqx
from jaxtyping import Array, Bool, Float, Int

from .._results import STATUS
from ._problem import SteadyProblem


class Attempt(eqx.Module):
    """Where a search ended.

    **Attributes:**

    - `y`: the flat state, `(n,)`. Whether it is an admissible steady state is decided afterwards,
        by the residual there, whatever the search says.
    - `status`: what the search says, a member of [`STATUS`][].
    - `num_steps`: how many steps it took.
    - `seen`: f and its Jacobian at `y` (`problem.linearise_field(y)`), `(n,)` and `(n, n)`, if the
        search has them; otherwise they are computed for the verdict.
    """

    y: Float[Array, " n"]
    status: STATUS
    num_steps: Int[Array, ""]
    seen: tuple[Float[Array, " n"], Float[Array, "n n"]] | None = None


class AbstractSteadyMethod(eqx.Module):
    """A search for a steady state: a stage of a [`Chain`][]. To write one, subclass it, hold
    options as static fields, and write `search`.

    ```python
    class Relax(sx.AbstractSteadyMethod):
        dt: float = eqx.field(static=True, default=0.1)

        def search(self, problem, active):
            steps = jnp.where(active, problem.max_steps, 0)
            step = lambda _, y: y + self.dt * problem.residual(y)
            y = lax.fori_loop(0, steps, step, problem.start)
            return sx.Attempt(y, sx.STATUS.out_of_steps, steps)
    ```
    """

    @abc.abstractmethod
    def search(self, problem: SteadyProblem, active: Bool[Array, ""]) -> Attempt:
        """Searches for a root of `problem.residual` from `problem.start`, for the steady state
        that y' = `problem.residual(y)` reaches from there.

        Where not `active` it should take no step, and may return anything: under `vmap` every
        lane runs every stage, and must not wait for one that it does not need. It is never
        differentiated.
        """

    @property
    def name(self) -> str:
        """What `SteadyState.method_name` says."""
        return type(self).__name__
