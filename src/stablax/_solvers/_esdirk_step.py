"""Steps of diffrax's ESDIRK methods, and of the implicit half of its IMEX methods, taken here.

diffrax goes through the stages in a loop of its own, and optimistix solves the equation of each in
another. Neither goes through a `shard_map` that checks what differs between devices, nor do their
derivatives at all; and they are most of what a gradient takes to compile.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, final

import diffrax
import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from .._lanes import any_lane, spread
from .._linalg import Dense, DenseLU
from .._states import stop
from .._types import Args
from ._patient_chord import PatientChord
from ._wrapped import AbstractWrapped

_NO_TAGS = frozenset()
# How a stage ended. Of a step the worst counts. (No integers, since `custom_root` says of them too
# that they have a derivative.)
_SOLVED, _OUT_OF_ITERATIONS, _DIVERGED = 0.0, 1.0, 2.0


def has_esdirk_steps(solver: diffrax.AbstractSolver) -> bool:
    """Whether [`EsdirkSteps`][] can take its steps."""
    runge_kutta = diffrax.AbstractRungeKutta
    return (
        isinstance(solver, runge_kutta)
        and type(solver).step is runge_kutta.step
        and solver.calculate_jacobian == diffrax.CalculateJacobian.second_stage
        and isinstance(getattr(solver, "root_finder", None), PatientChord)
    )


@final
class EsdirkSteps(AbstractWrapped):
    """`solver`, whose steps are taken here: the same stages, solved by the same iterations of
    [`PatientChord`][]. Their derivative is that of the equations of the stages, each with its own
    Jacobian; of any order, in both modes. An IMEX method has the whole field in its implicit half.

    Its state is the field at the end of the last step, for a method whose last stage is the first
    of the next step; else None."""

    solver: diffrax.AbstractSolver

    @property
    def _tableaus(self) -> tuple[diffrax.ButcherTableau, ...]:
        solver: Any = self.solver
        return getattr(solver.tableau, "tableaus", (solver.tableau,))

    def _implicit(self, terms: Any) -> tuple[Any, Any]:
        """The term, and the tableau."""
        each = zip(getattr(terms, "terms", (terms,)), self._tableaus, strict=True)
        return next((term, tableau) for term, tableau in each if tableau.implicit)

    def init(self, terms, t0, t1, y0, args):
        if not all(tableau.fsal for tableau in self._tableaus):
            return None
        return _flat(self._implicit(terms)[0].vf(t0, y0, args))

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        t0, t1 = jnp.asarray(t0), jnp.asarray(t1)
        term, tableau = self._implicit(terms)
        solver: Any = self.solver
        finder, limit = solver.root_finder, solver.root_find_max_steps
        table = _Table.of(tableau, y0, t0)
        equations = _Equations(term, args, t0, t1, y0, table.diagonal)
        start = equations.start
        first = _first_slope(equations, solver_state, made_jump)
        slopes = jnp.zeros((tableau.num_stages, start.size), start.dtype).at[0].set(first)

        # One Jacobian, at where the second stage is expected to be, serves them all.
        second = stop(equations.of(table.second, slopes))
        known = finder.init(second.asked, second.guess, second.given, {}, None, None, _NO_TAGS)

        def solve(carry, row):
            slopes, ended, _ = carry
            stage = equations.of(row, slopes)
            slope, how = lax.custom_root(
                lambda slope: stage.residual(slope),  # a method has no hash, for its arrays
                stage.guess,
                lambda _, guess: _iterate(finder, limit, stage, known, guess),
                _solve_linear,
                has_aux=True,
            )
            slopes = slopes.at[row.index].set(slope)
            return (slopes, jnp.maximum(ended, how), stage.y(slope)), None

        carry = spread((slopes, jnp.array(_SOLVED), start), start)
        (slopes, ended, y1), _ = lax.scan(solve, carry, table.rows)
        if not all(tableau.ssal for tableau in self._tableaus):
            y1 = start + equations.increment(_weigh(table.b_sol, slopes))
        error = equations.increment(_weigh(table.b_error, slopes))
        error = jnp.where(ended == _SOLVED, error, jnp.inf)
        ks = jax.vmap(lambda slope: equations.as_state(equations.increment(slope)))(slopes)
        blank = optax.tree.zeros_like(ks)
        of_each = tuple(ks if tableau.implicit else blank for tableau in self._tableaus)
        y1, error = equations.as_state(y1), equations.as_state(error)
        dense = dict(y0=y0, y1=y1, k=of_each if len(of_each) > 1 else ks)
        state = None if solver_state is None else slopes[-1]
        result: Any = diffrax.RESULTS.successful
        for how, name in (
            (_OUT_OF_ITERATIONS, "nonlinear_max_steps_reached"),
            (_DIVERGED, "nonlinear_divergence"),
        ):
            result = diffrax.RESULTS.where(ended == how, getattr(diffrax.RESULTS, name), result)
        return y1, error, dense, state, result


class _Row(eqx.Module):
    """Of a stage."""

    index: Array
    lower: Array
    predictor: Array
    place: Array


class _Table(eqx.Module):
    """A tableau as arrays: the stages behind the first, and what is made of all."""

    rows: _Row
    diagonal: Array
    b_sol: Array
    b_error: Array

    @staticmethod
    def of(tableau: Any, y0: PyTree[Array], t0: Array) -> "_Table":
        stages, dtype = tableau.num_stages, jnp.result_type(*jtu.tree_leaves(y0))
        lower, predictor = np.zeros((2, stages - 1, stages))
        for i, (a, p) in enumerate(zip(tableau.a_lower, tableau.a_predictor, strict=True)):
            lower[i, : i + 1], predictor[i, : i + 1] = a, p
        table = (lower, predictor, tableau.a_diagonal[1], tableau.b_sol, tableau.b_error)
        lower, predictor, *rest = (jnp.asarray(x, dtype) for x in table)
        places = jnp.asarray(tableau.c, jnp.result_type(t0))
        return _Table(_Row(jnp.arange(1, stages), lower, predictor, places), *rest)

    @property
    def second(self) -> _Row:
        return jtu.tree_map(lambda x: x[0], self.rows)


class _Equations(eqx.Module):
    """The stages of one step, from `y0` at `t0` to `t1`."""

    term: diffrax.AbstractTerm
    args: Args
    t0: Array
    t1: Array
    y0: PyTree[Array]
    diagonal: Array

    @property
    def start(self) -> Array:
        return _flat(self.y0)

    def as_state(self, flat: Array) -> PyTree[Array]:
        return ravel_pytree(self.y0)[1](flat)

    def field(self, t: Array, y: Array) -> Array:
        return _flat(self.term.vf(t, self.as_state(y), self.args))

    def increment(self, slope: Array) -> Array:
        """By a step with that slope."""
        control = self.term.contr(self.t0, self.t1)
        return _flat(self.term.prod(self.as_state(slope), control))

    def of(self, row: _Row, slopes: Array) -> "_Stage":
        between = self.t0 + row.place * (self.t1 - self.t0)
        t = jnp.where(row.place == 1, self.t1, between)  # exactly
        partial = self.start + self.increment(_weigh(row.lower, slopes))
        return _Stage(self, row.index, t, partial, _weigh(row.predictor, slopes))


class _Stage(eqx.Module):
    """The equation `slope = f(t, y(slope))` of one stage, and what `slope` is guessed to be."""

    equations: _Equations
    index: Array
    t: Array
    partial: Array
    guess: Array

    def y(self, slope: Array) -> Array:
        return self.partial + self.equations.diagonal * self.equations.increment(slope)

    def residual(self, slope: Array) -> Array:
        return slope - self.equations.field(self.t, self.y(slope))

    def asked(self, slope: Array, given: Any) -> tuple[Array, None]:
        """As diffrax asks a root finder."""
        return self.residual(slope), None

    @property
    def given(self) -> tuple:
        """What diffrax gives a root finder, which measures the change of the state by it."""
        of = self.equations
        product = lambda slope, _: of.increment(slope)
        return (self.index, of.diagonal, of.field, product, self.t, self.partial, None, None)


def _first_slope(equations: _Equations, known: Array | None, made_jump) -> Array:
    evaluate = lambda: equations.field(equations.t0, equations.start)
    if known is None:
        return evaluate()
    if made_jump is False:
        return known
    # Where the field jumps, what the last step has left is that of the other side.
    again = lax.cond(any_lane(made_jump), evaluate, lambda: spread(known, equations))
    return jnp.where(made_jump, again, known)


def _iterate(
    finder: PatientChord, limit: int, stage: _Stage, known: Any, guess: Array
) -> tuple[Array, Array]:
    """The slope of a stage, and how the search for it ended."""
    # The same in all iterations.
    with_factors = lambda state: dataclasses.replace(state, factors=known.factors)
    without = lambda state: dataclasses.replace(state, factors=None)

    def body(carry):
        slope, state, how, going = carry
        given = (stage.asked, slope, stage.given, {}, with_factors(state), _NO_TAGS)
        after, seen, _ = finder.step(*given)
        ends, result = finder.terminate(stage.asked, after, stage.given, {}, seen, _NO_TAGS)
        is_solved = result == optx.RESULTS.successful
        ended = jnp.where(ends, jnp.where(is_solved, _SOLVED, _DIVERGED), how)
        slope, state, how = optax.tree.where(
            going, (after, without(seen), ended), (slope, state, how)
        )
        return slope, state, how, going & ~ends & (state.step < limit)

    start = (guess, without(known), jnp.array(_OUT_OF_ITERATIONS), jnp.array(True))
    end = lax.while_loop(lambda carry: any_lane(carry[-1]), body, spread(start, stage))
    slope, state, how, _ = end
    result = optx.RESULTS.where(
        how == _SOLVED, optx.RESULTS.successful, optx.RESULTS.nonlinear_divergence
    )
    slope, *_ = finder.postprocess(
        stage.asked, slope, None, stage.given, {}, with_factors(state), _NO_TAGS, result
    )
    return slope, how


def _solve_linear(push: Callable[[Array], Array], b: Array) -> Array:
    matrix = jax.vmap(push, out_axes=1)(spread(jnp.eye(b.size, dtype=b.dtype), b))
    factors = DenseLU().factorise(Dense(), jnp.zeros((), b.dtype), -matrix)
    return DenseLU().apply(factors, b, transpose=False)


def _weigh(weights: Array, slopes: Array) -> Array:
    return jnp.sum(weights[:, None] * slopes, axis=0)


def _flat(tree: PyTree[Array]) -> Array:
    return ravel_pytree(tree)[0]
