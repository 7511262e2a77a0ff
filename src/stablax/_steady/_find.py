"""`find_steady_state`: search, verify, differentiate implicitly."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, PyTree

from .._captured import capture, refuse_hidden
from .._coordinates import AbstractCoordinates, innermost
from .._failure import (
    inputs_with_finite_derivative,
    output_with_finite_derivative,
    raise_if,
)
from .._fields import as_guarded, declared_jacobian, evaluate_ungated, names_of
from .._lanes import differing, spread
from .._linalg import Dense, FlatField
from .._parameters import natural
from .._results import RESULTS, STATUS, is_okay, message
from .._states import (
    all_finite,
    as_args,
    as_state,
    finite_or_zero,
    state_dtype,
    stop,
)
from .._static import Frozen, Split, is_traced
from .._types import VF, Args, Explained, ScalarLike, YLike, typechecked
from ._chain import Chain, SteadyMethod, as_chain, run_chain, steps_are_data
from ._conserved import ConservedLike, as_conserved, declared_projector, refuse_rows
from ._detect import dead, detected_projector, states_near
from ._implicit import Residual, differentiable
from ._problem import SteadyProblem, default_tolerances
from ._steady_state import SteadyState
from ._verdict import with_stability
from ._warm_start import GuessLike, WarmStart, as_guess


class SteadyOptions(eqx.Module):
    """How to search. Held statically but for the numbers, of which another compiles nothing."""

    chain: Chain
    rtol: ArrayLike | None
    atol: ArrayLike | None
    max_steps: int | np.ndarray
    stability: bool | None

    def for_dtype(self, dtype: np.dtype) -> "SteadyOptions":
        """With numbers as arrays; tolerances checked against what the dtype can resolve."""
        rtol, atol = default_tolerances(self.rtol, self.atol, dtype)
        least = 10 * float(np.finfo(dtype).eps)
        if not rtol >= least:
            raise ValueError(f"`rtol={rtol}` is below what {dtype} can resolve ({least:.2g}).")
        for name, value in (("rtol", rtol), ("atol", atol)):
            if not 0 < value < np.inf:
                raise ValueError(f"`{name}` must be a number above 0 and finite, got {value}.")
        steps = np.asarray(self.max_steps) if steps_are_data(self.chain) else self.max_steps
        rtol, atol = np.asarray(rtol, dtype), np.asarray(atol, dtype)
        return dataclasses.replace(self, rtol=rtol, atol=atol, max_steps=steps)


@typechecked
def find_steady_state(
    field: VF,
    y0: YLike,
    args: Args = None,
    *,
    t: ScalarLike = 0.0,
    method: Explained[SteadyMethod] = Chain(),
    conserved: Explained[ConservedLike] = None,
    guess: Explained[GuessLike] = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int = 256,
    stability: bool | None = None,
    throw: bool = True,
) -> SteadyState:
    """Finds y with f(t, y, args) = 0: the steady state that the dynamics reach from `y0`,
    differentiably.

    The default method is pseudo-transient continuation from `y0`, which follows the dynamics in
    few steps and ends as Newton's method; and, where it fails or cannot tell which of several
    stable states the dynamics reach, integration. Convergence is tested per component on the
    Newton step, and again by the bare residual at the state that is returned. The search is not
    differentiated; derivatives follow from the implicit function theorem, in forward and in
    reverse mode, with the factorisation of one Jacobian.

    **Arguments:**

    - `field`: any callable `f(t, y, args)`; a guarded one brings its bounds.
    - `y0`: where to start, and what fixes the conserved totals. A PyTree of floating arrays;
        Python floats and numpy arrays are converted. Components that never move
        (dy_i/dt = 0 identically) keep their value.
    - `args`: the condition.
    - `t`: the time at which a non-autonomous field is frozen.
    - `method`: `PseudoTransient()`, `Newton()`, `Integrate()`, a root finder of optimistix, or a
        `Chain` of methods.
    - `conserved`: rows L with L f = 0, shape `(quantities, components)` (or one row), columns in
        the order of `jax.flatten_util.ravel_pytree`; the steady state keeps L y = L y0, and its
        derivatives are those of the constrained problem. What [`conserved_quantities`][] has
        found; or `"detect"`, which finds L in every call as the left null space of the Jacobian.
        By default what the field declares as its attribute `conserved` (rows) or `stoichiometry`
        (shape `(species, reactions)`), and if it declares nothing, nothing (an empty tuple, in
        any case): then a field that conserves something has a singular Jacobian at its steady
        state, which is reported.
    - `guess`: a state near the steady state, such as that of a previous call (a PyTree like `y0`,
        or a [`WarmStart`][]). It is moved onto the conserved manifold of `y0` and tried first, for
        a few steps of the first method; where that does not converge at once the search starts
        from `y0`. Where there are several steady states it decides: a stable one next to it is
        taken.
    - `rtol`, `atol`: tolerance of each component; by default 1e-9 and 1e-12 (float32: 1e-4 and
        1e-7).
    - `max_steps`: of each method; >= 1.
    - `stability`: whether to compute `stable`; by default for up to 100 components. Without it an
        unstable steady state counts as one.
    - `throw`: raise an error if there is none, or return the reason as `result`.

    **Returns:** a [`SteadyState`][].

    **Raises:** `ValueError` for a row that the field does not conserve (checked where values are
    concrete), a wrong shape, a tolerance out of reach; with `throw=True` a `RuntimeError` that
    says why no steady state was found.
    """
    field, y0 = natural(field), as_state(y0, "y0")
    if max_steps < 1:
        raise ValueError(f"`max_steps` must be at least 1, got {max_steps}.")
    dtype = state_dtype(y0)
    t = jnp.asarray(t, dtype)
    args = as_args(args, dtype)
    options = SteadyOptions(
        chain=as_chain(method), rtol=rtol, atol=atol, max_steps=max_steps, stability=stability
    ).for_dtype(dtype)
    conserved = as_conserved(conserved, field)
    guess = as_guess(guess, y0)
    split, time = Split(field, "field"), t
    if throw:
        split, y0, args, time = inputs_with_finite_derivative(field=split, y0=y0, args=args, t=t)
    steady = _find(split, y0, args, time, options, conserved, guess)
    refuse_rows_of(steady, field, y0, args, t, conserved)
    if not throw:
        return steady
    names = names_of(field, y0)
    return raise_if(
        output_with_finite_derivative(steady),
        ~is_okay(steady.result),
        steady_facts(steady),
        lambda facts: explain_steady(facts, names),
    )


def refuse_rows_of(steady: SteadyState, field: VF, y0, args: Args, t: Array, conserved) -> None:
    """Raises if a declared row of `conserved` turned out not to be conserved, where values are
    concrete; that is a wrong input and not a failure."""
    if not isinstance(conserved, Frozen) or is_traced((field, y0, args, t, steady)):
        return
    if not np.any(steady.result == RESULTS.not_conserved):
        return
    field, y0 = innermost(field, y0)
    guarded = as_guarded(field)
    flat_y0, unravel = ravel_pytree(y0)
    refuse_rows(
        conserved,
        lambda y: ravel_pytree(guarded(t, unravel(y), args))[0],
        flat_y0,
        lambda y: ravel_pytree(guarded.guard.clip(unravel(y)))[0],
    )


class SteadyFacts(eqx.Module):
    """What `explain_steady` needs, small enough to carry out of `jit`."""

    result: RESULTS
    residual: Array
    component: Array
    statuses: tuple[STATUS, ...]
    stages: tuple[str, ...] = eqx.field(static=True)


def steady_facts(steady: SteadyState) -> SteadyFacts:
    return SteadyFacts(
        steady.result, steady.residual, steady.component, steady.statuses, steady.stages
    )


def explain_steady(facts: SteadyFacts, names: Sequence[str]) -> str:
    """How the search of one sample ended."""
    words = _in_words(facts.stages, facts.statuses)
    text = message(facts.result, int(jax.tree.leaves(facts.result)[0]))
    if text == "":
        at_once = _in_words(facts.stages[:1], (STATUS.converged,))
        return "Successful." if words == at_once else f"Successful: {words}."
    if int(facts.component) < 0:
        return text
    text += f" What was tried: {words}. Farthest from steady is {names[int(facts.component)]}"
    if facts.residual < 1e100:
        text += f", by {float(facts.residual):.2g} of its size"
    return text + "."


def _in_words(stages: tuple[str, ...], statuses: Sequence[STATUS]) -> str:
    """`Newton diverged, PseudoTransient converged`, for concrete statuses; what was not needed is
    left out."""
    words = [STATUS[jax.tree.map(lambda x: np.asarray(int(x)), s)] for s in statuses]
    return ", ".join(
        f"{stage} {text}"
        for stage, text in zip(stages, words, strict=True)
        if text != STATUS[STATUS.not_needed]
    )


@eqx.filter_jit
def _find(split, y0, args, t, options, conserved, guess):
    field = split.tree
    return steady_state(field, y0, args, t, options=options, conserved=conserved, guess=guess)


def steady_state(
    field: VF,
    y0,
    args,
    t,
    *,
    options: SteadyOptions,
    conserved: Frozen | str | None,
    guess: WarmStart | None,
    width: int | None = None,
) -> SteadyState:
    """[`find_steady_state`][] for checked inputs, inside `jit`. At most `width` lanes of a batch
    step at once."""
    if isinstance(field, AbstractCoordinates):
        return _in_coordinates(
            field, y0, args, t, options=options, conserved=conserved, guess=guess, width=width
        )
    # Under `shard_map` all that a loop works with differs between devices as one of them does.
    field, y0, args, t, guess = spread((field, y0, args, t, guess))
    guarded = as_guarded(field)
    flat_y0, unravel = ravel_pytree(y0)
    # What the user's code closes over becomes an explicit input.
    closed = capture(guarded, t, y0, args)
    if differing(closed) - differing(y0):  # what it closes over differs, and nothing else
        y0, args, t, guess = spread((y0, args, t, guess), closed)
        return steady_state(
            field, y0, args, t, options=options, conserved=conserved, guess=guess, width=width
        )
    refuse_hidden(closed, differing(y0))
    inputs = (closed, flat_y0, t, args)

    def flat_field(closed, y, t, args):
        return _flat_field(unravel, closed, t, args, y)

    # Nothing of the search is differentiated, and it looks at the derivatives that it takes.
    flat_y0_, t_, args_ = stop((flat_y0, t, args))
    ungated = lambda t, y, args: evaluate_ungated(guarded, t, y, args)
    searched = stop(capture(ungated, t_, y0, args_))
    guard = guarded.guard
    walls = tuple(
        np.concatenate([np.ravel(b) for b in jtu.tree_leaves(bounds)])
        for bounds in guard.bounds(y0)
    )
    infinite = np.full(flat_y0.size, np.inf, flat_y0.dtype)
    lower, upper = walls if guard.reject else (-infinite, infinite)
    problem = SteadyProblem(
        field=FlatField(
            jtu.Partial(_flat_field, unravel, searched, t_, args_),
            jtu.Partial(_jacobian_by_hand, unravel, t_, args_),
        ),
        start=flat_y0_,
        y0=flat_y0_,
        projector=jnp.zeros((flat_y0.size, flat_y0.size), flat_y0.dtype),
        lower=lower,
        upper=upper,
        walls=walls,
        guessed=jnp.array(False),
        budget=spread(jnp.asarray(options.max_steps), y0),
        rtol=spread(jnp.asarray(options.rtol), y0),
        atol=spread(jnp.asarray(options.atol), y0),
        max_steps=spread(options.max_steps, y0),
        detected=conserved == "detect",
        structure=declared_jacobian(guarded) or Dense(),
        width=width,
    )
    clip = lambda y: ravel_pytree(guard.clip(unravel(y)))[0]
    problem, conserves = _survey(problem, conserved, clip)
    if guess is not None:
        start = stop((ravel_pytree(guess.y)[0], guess.known))
    else:
        start = None
    refused = _refused(problem, conserves)
    found = run_chain(problem, options.chain, start, refused, options.stability)
    verdict = found.verdict
    y = differentiable(
        verdict.y,
        verdict.result == RESULTS.successful,
        problem.projector,
        inputs,
        verdict.jacobian,
        Residual(flat_field, conserved == "detect"),
    )
    return SteadyState(
        y=unravel(y),
        residual=verdict.residual,
        result=verdict.result,
        method=found.stage,
        statuses=found.statuses,
        warm=found.warm,
        num_steps=found.steps,
        component=verdict.component,
        stable=verdict.stable if with_stability(flat_y0.size, options.stability) else None,
        stages=options.chain.names,
    )


def _flat_field(unravel: Callable, closed: Callable, t, args, y: Array) -> Array:
    return ravel_pytree(closed(t, unravel(y), args))[0]


def _jacobian_by_hand(unravel: Callable, t, args, jacobian: Callable, y: Array) -> PyTree:
    return jacobian(t, unravel(y), args)


def _in_coordinates(
    field: AbstractCoordinates, y0, args, t, *, options, conserved, guess, width
) -> SteadyState:
    """Found in the coordinates of the field inside, where conserved quantities are linear."""
    inside = field.from_(y0)
    if guess is not None:
        guess = eqx.tree_at(lambda g: g.y, guess, field.from_(guess.y))
    steady = steady_state(
        field.field, inside, args, t, options=options, conserved=conserved, guess=guess, width=width
    )
    inside = field.to(stop(steady.y))
    result, finite = steady.result, all_finite(inside)
    result = RESULTS.where(is_okay(result) & ~finite, RESULTS.not_finite, result)
    guard = field.guard
    if guard.reject:
        contained = guard.contains(inside, options.rtol, options.atol)
        result = RESULTS.where(is_okay(result) & ~contained, RESULTS.left_bounds, result)
    # A state without finite coordinates has no derivative either.
    y = field.to(optax.tree.where(finite, steady.y, stop(inside)))
    y = optax.tree.where(is_okay(result), y, finite_or_zero(stop(y)))
    return eqx.tree_at(
        lambda s: (s.y, s.result), steady, (y, result), is_leaf=lambda x: isinstance(x, RESULTS)
    )


def _survey(problem: SteadyProblem, conserved: Frozen | str | None, clip):
    """The problem with its projector, and whether the field keeps what that conserves. Looks at
    the field at all states that it needs in one call."""
    y0 = problem.y0
    detects = conserved == "detect"
    near = states_near(y0, clip, 3 if detects else 1)
    # Of a field that declares nothing only its dead components are of interest.
    states = near if conserved is None else jnp.concatenate([y0[None], near])
    fluxes, jacobians = lax.map(problem.linearise_field, states)
    if detects:
        projector = detected_projector(jacobians)
    else:
        declared = declared_projector(conserved, y0.size)  # pyright: ignore[reportArgumentType]
        # Not a projector any more where a row contains a dead component, but of the right range
        # and not negative, which is all that F needs.
        projector = jnp.asarray(declared, y0.dtype) + jnp.diag(
            dead(fluxes[-1], jacobians[-1]).astype(y0.dtype)
        )
    problem = eqx.tree_at(lambda p: p.projector, problem, lax.stop_gradient(projector))
    if conserved is None:
        return problem, jnp.array(True)
    leak = jax.vmap(problem.leak)(states, fluxes, jacobians)
    kept = jnp.all(leak <= 1, axis=1) | ~jnp.all(jnp.isfinite(leak), axis=1)
    return problem, jnp.all(kept)


def _refused(problem: SteadyProblem, conserves: Array) -> RESULTS:
    """Why a search cannot start, or `successful`."""
    refused: Any = RESULTS.successful
    for wrong, reason in (
        (~problem.inside(problem.y0), RESULTS.left_bounds),
        (~conserves, RESULTS.not_conserved),
        (~all_finite(problem.y0), RESULTS.not_finite),
    ):
        refused = RESULTS.where(wrong, reason, refused)
    return refused
