"""Methods in turn."""

import functools
from typing import final

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from .._lanes import only_where, spread
from .._precision import product
from .._results import RESULTS, STATUS
from .._states import all_finite
from .._words import short
from ._base import AbstractSteadyMethod
from ._integrate import Integrate
from ._problem import SteadyProblem
from ._pseudo_transient import PseudoTransient
from ._root_finder import OPTIMISTIX, AbstractSteadyRootFinder, FromOptimistix, as_method
from ._verdict import Verdict, judge, status_of

# A guess that is near converges in fewer steps; one that is not should cost little.
_STEPS_FROM_A_GUESS = 8


@final
class Chain(eqx.Module):
    """Methods tried in turn, each from `y0`, until one finds a steady state that is admissible:
    converged in every component, inside the guard's box, on the conserved manifold, not
    unstable, and not ambiguous (a stage that says so of its state is believed only if it is the
    last).

    **Arguments:**

    - `methods`: one or more of [`Newton`][], [`PseudoTransient`][], [`Integrate`][], subclasses of
        [`AbstractSteadyMethod`][], and whatever `optimistix.root_find` takes, such as
        `optimistix.Dogleg(rtol, atol)`. By default what [`find_steady_state`][] uses.
    """

    methods: tuple[AbstractSteadyMethod | OPTIMISTIX, ...] = (PseudoTransient(), Integrate())

    def __check_init__(self):
        given = self.methods
        stages = [as_method(m) for m in given] if isinstance(given, tuple | list) else []
        if not stages or None in stages:
            raise ValueError(
                "`Chain(methods)` takes a tuple of one or more methods, such as "
                f"`(PseudoTransient(), Integrate())`; got {short(given)}."
            )

    @property
    def stages(self) -> tuple[AbstractSteadyMethod, ...]:
        """The methods, each as a stage."""
        return tuple(m for m in map(as_method, self.methods) if m is not None)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(stage.name for stage in self.stages)


SteadyMethod = Chain | AbstractSteadyMethod | OPTIMISTIX
"""What may be a search, alone."""


def as_chain(method: SteadyMethod) -> Chain:
    if isinstance(method, Chain):
        return method
    if as_method(method) is None:
        raise TypeError(
            "`method` must be a search such as `PseudoTransient()` or `Newton()`, a root finder of "
            f"optimistix, or a `Chain((...))` of them, got {short(method)}."
        )
    return Chain((method,))


def exchanges_lanes(chain: Chain) -> bool:
    """Whether the lanes of all its loops can be exchanged for others; see `lane_loop`."""
    return all(isinstance(stage, AbstractSteadyRootFinder | Integrate) for stage in chain.stages)


def steps_are_data(chain: Chain) -> bool:
    """Whether another `max_steps` compiles nothing: optimistix takes it as a static number."""
    return not any(isinstance(stage, FromOptimistix) for stage in chain.stages)


class Found(eqx.Module):
    """What a chain found: the verdict on the stage that won, or that says most about why none
    did."""

    verdict: Verdict
    stage: Array
    warm: Array  # whether it began from the guess
    steps: Array
    statuses: tuple[STATUS, ...]


def run_chain(
    problem: SteadyProblem,
    chain: Chain,
    guess: tuple[Array, Bool[Array, ""]] | None,
    refused: RESULTS,
    stability: bool | None,
) -> Found:
    """Runs the stages until one succeeds, the first of them from the `guess` before all others.
    Where `refused` is not successful it runs none.

    One loop, in whose body each stage and the verdict stand once, so that the field is compiled
    once for each, and a lane of a batch waits for no stage that it does not need.
    """
    stages = chain.stages
    warm_starts = 0 if guess is None else 1
    startable = refused == RESULTS.successful
    first, guess_y = jnp.array(0), problem.y0
    if guess is not None:
        guess_y, known = guess
        first = jnp.where(known & all_finite(guess_y), 0, 1)
        guess_y = jnp.where(all_finite(guess_y), guess_y, problem.y0)
        # Onto the conserved manifold of y0, and into the box.
        guess_y = problem.clip(guess_y - product(problem.projector, guess_y - problem.y0))

    def cond(carry):
        attempt, found = carry
        return startable & ~_won(found) & (attempt < len(stages) + warm_starts)

    def body(carry):
        attempt, old = carry
        warm = attempt < warm_starts
        stage = jnp.maximum(attempt - warm_starts, 0)
        active = cond(carry)
        here = problem
        if guess is not None:
            budget = jnp.where(
                warm, jnp.minimum(_STEPS_FROM_A_GUESS, problem.budget), problem.budget
            )
            start = jnp.where(warm, guess_y, problem.y0)
            here = eqx.tree_at(
                lambda p: (p.start, p.guessed, p.budget), problem, (start, warm, budget)
            )

        tried = (problem.y0, STATUS.not_needed, jnp.array(0), problem.unseen())
        for index, method in enumerate(stages):
            asked = active & (stage == index)
            search = functools.partial(_search, method, here, asked)
            tried = only_where(asked, search, spread(tried, problem.y0, asked))
        y, said, count, seen = tried
        verdict = judge(problem, y, seen, stability)
        status = status_of(verdict, said, problem)
        # Somebody else can tell, unless this was the last to be asked.
        asks = (status == STATUS.ambiguous) & (attempt + 1 < len(stages) + warm_starts)
        result = RESULTS.where(asks, RESULTS.ambiguous_steady_state, verdict.result)
        verdict = eqx.tree_at(lambda v: v.result, verdict, result, is_leaf=_is_result)
        statuses = tuple(
            STATUS.where(stage == i, status, before) for i, before in enumerate(old.statuses)
        )
        # A later failure replaces an earlier one unless it knows less.
        better = (attempt == first) | (_rank(verdict.result) <= _rank(old.verdict.result))
        best = (verdict, stage, warm)
        verdict, stage, warm = optax.tree.where(better, best, (old.verdict, old.stage, old.warm))
        steps = old.steps + count
        return attempt + 1, Found(verdict, stage, warm, steps, statuses)

    y0 = jnp.where(jnp.isfinite(problem.y0), problem.y0, 0)
    far = jnp.array(jnp.inf, y0.dtype)
    start = Verdict(
        y0, far, refused, jnp.array(False), jnp.array(-1), -jnp.eye(y0.size, dtype=y0.dtype)
    )
    statuses = (STATUS.not_needed,) * len(stages)
    nothing = Found(start, jnp.array(0), jnp.array(False), jnp.array(0), statuses)
    # `refused` is successful where nothing was tried; the loop needs a failure to begin with.
    nothing = _replace_result(nothing, RESULTS.where(startable, RESULTS.no_steady_state, refused))
    _, found = lax.while_loop(cond, body, spread((first, nothing)))
    verdict = found.verdict
    finite = (
        jnp.where(jnp.isfinite(verdict.y), verdict.y, 0),
        jnp.minimum(verdict.residual, jnp.finfo(verdict.y.dtype).max),
    )
    return eqx.tree_at(lambda f: (f.verdict.y, f.verdict.residual), found, finite)


def _search(method: AbstractSteadyMethod, problem: SteadyProblem, active: Array) -> tuple:
    tried = method.search(problem, active)
    seen = problem.linearise_field(tried.y) if tried.seen is None else tried.seen
    return tried.y, tried.status, tried.num_steps, seen


def _replace_result(found: Found, result: RESULTS) -> Found:
    return eqx.tree_at(lambda f: f.verdict.result, found, result, is_leaf=_is_result)


def _is_result(x: object) -> bool:
    return isinstance(x, RESULTS)


def _won(found: Found) -> Bool[Array, ""]:
    return found.verdict.result == RESULTS.successful


def _rank(result: RESULTS) -> Array:
    """Which of two results says more: a steady state before a reason, a reason before none."""
    rank = jnp.where(result == RESULTS.successful, 0, 2)
    rank = jnp.where(result == RESULTS.ambiguous_steady_state, 1, rank)
    return jnp.where(result == RESULTS.no_steady_state, 3, rank)
