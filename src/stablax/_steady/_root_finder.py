"""Searches as optimistix root finders, and optimistix's root finders as searches."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, final

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, PyTree

from .._lane_loop import lane_loop
from .._lanes import spread
from .._linalg import Dense, EquilibratedLU
from .._results import STATUS, translated
from .._states import is_none
from .._types import ScalarLike
from ._base import AbstractSteadyMethod, Attempt
from ._problem import SteadyProblem, default_tolerances


class Evaluation(NamedTuple):
    """F and its Jacobian at a state, all flat."""

    y: Array
    value: Array
    jacobian: Array
    aux: PyTree
    unravel: Callable[[Array], PyTree]

    @property
    def finite(self) -> Bool[Array, ""]:
        return jnp.all(jnp.isfinite(self.value)) & jnp.all(jnp.isfinite(self.jacobian))


def evaluate(fn: Callable, y: PyTree, args: PyTree, options: dict[str, Any]) -> Evaluation:
    """The only place where a root finder of ours evaluates F, once a step."""
    flat, unravel = ravel_pytree(y)
    if "linearise" in options:
        value, jacobian = options["linearise"](flat)
        return Evaluation(flat, value, jacobian, None, unravel)

    def residual(flat):
        value, aux = fn(unravel(flat), args)
        return ravel_pytree(value)[0], aux

    value, push, aux = jax.linearize(residual, flat, has_aux=True)
    jacobian = jax.vmap(push, out_axes=1)(jnp.eye(flat.size, dtype=flat.dtype))
    return Evaluation(flat, value, jacobian, aux, unravel)


def no_factors(y: Array) -> PyTree[Array]:
    """What stands in a state before there is a factorisation."""
    matrix = jax.ShapeDtypeStruct((y.size, y.size), y.dtype)
    like = jax.eval_shape(
        EquilibratedLU().factorise, Dense(), jax.ShapeDtypeStruct((), y.dtype), matrix
    )
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)


class Scale(NamedTuple):
    """The weighted norm in which steps are measured: below 1 is converged."""

    rtol: Any
    atol: Any
    norm: Callable

    @staticmethod
    def of(finder: "AbstractSteadyRootFinder", y: Array) -> "Scale":
        rtol, atol = default_tolerances(finder.rtol, finder.atol, y.dtype)
        return Scale(rtol, atol, finder.norm)

    def __call__(self, step: Array, y: Array) -> Array:
        weights = self.atol + self.rtol * jnp.abs(y)
        length = self.norm(step / jnp.asarray(weights, step.dtype))
        return jnp.asarray(length, step.dtype)


def as_result(finished: Array, status: STATUS) -> tuple[Array, optx.RESULTS]:
    """What `terminate` returns."""
    result = translated(status, STATUS, optx.RESULTS, optx.RESULTS.nonlinear_divergence)
    successful: Any = optx.RESULTS.successful
    return finished, optx.RESULTS.where(finished, result, successful)


def drive(
    finder: "AbstractSteadyRootFinder", problem: SteadyProblem, active: Bool[Array, ""]
) -> Attempt:
    """Runs a root finder of ours, whose state says whether it is `finished`, its `status`, and
    the last state `y` that it accepted."""
    rtol = problem.rtol if finder.rtol is None else finder.rtol
    atol = problem.atol if finder.atol is None else finder.atol
    finder = eqx.tree_at(lambda f: (f.rtol, f.atol), finder, (rtol, atol), is_leaf=is_none)
    start, fn, options = problem.start, _residual_of(problem), _options_of(problem)
    state = finder.init(fn, start, None, options, start, None, frozenset())

    def body(consts, carry, reads, writes):
        """A step; or at the end, with the same call site of the field, a look at the last state."""
        (problem, finder), (_, y, state, k, _) = consts, carry
        ends = state.finished | (k >= problem.budget)
        # Out of steps, the last state that was accepted is better than the next one to try.
        y = jnp.where(ends & ~state.finished, state.y, y)
        seen = problem.linearise_field(y)
        here = {
            **_options_of(problem),
            "linearise": lambda y: problem.constrained(y, *seen),
        }
        following, new, _ = finder.step(_residual_of(problem), y, None, here, state, frozenset())
        # Of a search that ends nothing else is looked at.
        y, status, k = optax.tree.where(ends, (y, state.status, k), (following, new.status, k + 1))
        state = spread(dataclasses.replace(new, status=status), ends)
        return (ends, y, state, k, seen), writes

    begin = (~active, start, state, jnp.array(0), problem.unseen())
    goes_on = lambda _, carry: ~carry[0]
    end, _ = lane_loop(goes_on, body, begin, (problem, finder), None, None, problem.width)
    _, y, state, steps, seen = end
    return Attempt(y, state.status, steps, seen)


def _residual_of(problem: SteadyProblem) -> Callable:
    return lambda y, args: (problem.residual(y), None)


def _options_of(problem: SteadyProblem) -> dict[str, Any]:
    bounds = dict(lower=problem.lower, upper=problem.upper)
    return dict(**bounds, direction=1, guessed=problem.guessed)


class AbstractSteadyRootFinder(optx.AbstractRootFinder, AbstractSteadyMethod):
    """A search that is a root finder of optimistix too. Its state has `finished`, `status` and
    the last accepted state `y`. Tolerances that are `None` are those of the problem."""

    rtol: eqx.AbstractVar[ScalarLike | None]
    atol: eqx.AbstractVar[ScalarLike | None]

    def terminate(self, fn, y, args, options, state, tags):
        return as_result(state.finished, state.status)

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        return y, aux, {}

    def search(self, problem, active):
        return drive(self, problem, active)


OPTIMISTIX = optx.AbstractRootFinder | optx.AbstractLeastSquaresSolver | optx.AbstractMinimiser


@final
class FromOptimistix(AbstractSteadyMethod):
    """Any solver that `optimistix.root_find` takes, as a stage."""

    solver: OPTIMISTIX

    @property
    def name(self) -> str:
        return type(self.solver).__name__

    def search(self, problem, active):
        # A lane that is not active has 0 = 0 to solve.
        fn = lambda y, _: jnp.where(active, problem.residual(y), 0)
        takes_bounds = isinstance(self.solver, optx.Newton | optx.Chord)
        solution = optx.root_find(
            fn,
            self.solver,
            problem.start,
            options=dict(lower=problem.lower, upper=problem.upper) if takes_bounds else None,
            max_steps=problem.max_steps,
            throw=False,
        )
        steps = jnp.where(active, solution.stats["num_steps"], 0)
        status = translated(solution.result, optx.RESULTS, STATUS, STATUS.diverged)
        return Attempt(solution.value, status, steps)


def as_method(method: object) -> AbstractSteadyMethod | None:
    """What may be a stage, as one; `None` for anything else."""
    if isinstance(method, AbstractSteadyMethod):
        return method
    return FromOptimistix(method) if isinstance(method, OPTIMISTIX) else None
