"""Searches for a steady state: Newton, pseudo-transient continuation, and chains of them."""

import abc
from typing import final

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from ._problem import SteadyProblem


class Attempt(eqx.Module):
    """Where a stage of a search ended. Whether that is a steady state is decided afterwards."""

    y: Array
    num_steps: Int[Array, ""]


class AbstractSteadyMethod(eqx.Module):
    """A search for a steady state."""

    @abc.abstractmethod
    def search(self, problem: SteadyProblem, max_steps: int, done: Bool[Array, ""]) -> Attempt:
        """Searches from `problem.y0`. Where `done`, it takes no step (under `vmap` every lane
        runs every stage, so a lane that needs no fallback starts it finished)."""

    @property
    def name(self) -> str:
        return type(self).__name__


def _newton(
    problem: SteadyProblem, y0: Array, max_steps: int, done: Bool[Array, ""]
) -> tuple[Array, Int[Array, ""], Bool[Array, ""]]:
    """Damped Newton: halves a step until the next one, by the same factorisation, is shorter
    (Deuflhard's natural monotonicity test, which does not depend on the units of f)."""
    halvings = 20

    def cond(carry):
        _, k, finished, _ = carry
        return ~finished & (k < max_steps)

    def body(carry):
        y, k, _, _ = carry
        value, jacobian = problem.linearise(y)
        factored = problem.factorise(jacobian)
        step = factored.solve(value)
        length = problem.size(step, y)
        converged = length < problem.rtol

        def too_long(search):
            _, factor, accepted = search
            return ~accepted & (factor > 0.5**halvings)

        def halve(search):
            _, factor, _ = search
            trial = problem.clip(y + factor * step)
            following = problem.size(factored.solve(problem.residual(trial)), trial)
            return trial, factor / 2, following <= (1 - factor / 4) * length

        # Where the step is converged, or hopeless, no search is needed.
        settled = converged | ~jnp.isfinite(length)
        trial, _, accepted = lax.while_loop(
            too_long, halve, (problem.clip(y + step), jnp.ones((), y.dtype), settled)
        )
        ok = accepted & jnp.all(jnp.isfinite(trial))
        y = jnp.where(ok, trial, y)
        return y, k + 1, converged | ~ok, converged & ok

    start = (y0, jnp.array(0), done, jnp.array(False))
    y, steps, _, converged = lax.while_loop(cond, body, start)
    return y, steps, converged


@final
class Newton(AbstractSteadyMethod):
    """Damped Newton from `y0`: fast near a steady state, and blind to which one the dynamics
    reach."""

    def search(self, problem, max_steps, done):
        y, steps, _ = _newton(problem, problem.y0, max_steps, done)
        return Attempt(y, steps)


@final
class PseudoTransient(AbstractSteadyMethod):
    """Pseudo-transient continuation from `y0`: linearly implicit Euler steps whose size grows as
    the residual falls (switched evolution relaxation; Kelley and Keyes 1998, SIAM J. Numer.
    Anal. 35, 508), polished by Newton. Follows the dynamics, and so finds the state that they
    reach.

    **Arguments:**

    - `nonlinearity`: a step is rejected if its linearisation is wrong by more than this fraction
        of the state; in (0, 1).
    """

    nonlinearity: float = eqx.field(static=True, default=0.1)

    def search(self, problem, max_steps, done):
        rate = lambda value, y: problem.size(value, y)

        def cond(carry):
            _, _, k, finished = carry
            return ~finished & (k < max_steps)

        def body(carry):
            y, h, k, _ = carry
            value, jacobian = problem.linearise(y)
            # Near enough for Newton?
            near = problem.size(problem.factorise(jacobian).solve(value), y) < 1e-3

            factored = problem.factorise(jacobian, 1 / h)
            step = factored.solve(value)
            trial = y + step
            value_trial = problem.residual(trial)
            # What the linearisation missed, as a correction of the step.
            missed = problem.size(
                factored.solve(value_trial - step / h), jnp.maximum(jnp.abs(y), jnp.abs(trial))
            )
            ok = problem.inside(trial) & (missed < self.nonlinearity)
            relaxed = rate(value, y) / rate(value_trial, trial)
            growth = jnp.clip(relaxed, 1.5, 5.0) * jnp.where(missed < self.nonlinearity / 4, 1, 0.5)
            h = h * jnp.where(ok, growth, 0.25)
            y = jnp.where(ok & ~near, trial, y)
            stuck = ~(h > 0) | ~jnp.isfinite(h)
            return y, h, k + 1, near | stuck

        value = problem.residual(problem.y0)
        first = 0.01 / rate(value, problem.y0)
        first = jnp.where(jnp.isfinite(first), first, 1.0).astype(value.dtype)
        start = (problem.y0, first, jnp.array(0), done)
        y, _, steps, _ = lax.while_loop(cond, body, start)
        polished, more, converged = _newton(problem, y, 20, done)
        return Attempt(jnp.where(converged, polished, y), steps + more)


@final
class Chain(eqx.Module):
    """Methods tried in turn, each from `y0`, until one finds a steady state that is admissible:
    converged in every component, inside the guard's box, on the conserved manifold, and not
    unstable.

    **Arguments:**

    - `methods`: one or more methods; by default `(Newton(), PseudoTransient())`.
    """

    methods: tuple[AbstractSteadyMethod, ...] = (Newton(), PseudoTransient())

    def __check_init__(self):
        if not self.methods or not all(isinstance(m, AbstractSteadyMethod) for m in self.methods):
            raise ValueError(
                "`Chain(methods)` takes a tuple of one or more methods, such as "
                f"`(Newton(), PseudoTransient())`; got {self.methods!r}."
            )
