"""`find_steady_state`: search, verify, differentiate implicitly."""

from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import lineax as lx
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from .._failure import raise_if
from .._fields import as_guarded
from .._linalg import Dense
from .._results import RESULTS, is_okay, message
from .._states import (
    all_finite,
    as_args,
    as_state,
    component_names,
    select,
    state_dtype,
)
from .._static import Frozen, Split, is_traced
from .._types import VF, Args, ScalarLike, YLike, typechecked
from ._conserved import as_conserved, projector, refuse_rows
from ._methods import AbstractSteadyMethod, Chain
from ._problem import SteadyProblem
from ._steady_state import SteadyState

# Eigenvalues of larger Jacobians cost more than the search.
_LARGEST_FOR_STABILITY = 100


def default_tolerances(
    rtol: float | None, atol: float | None, dtype: np.dtype
) -> tuple[float, float]:
    """Tolerances of the steady state for a dtype; given ones are kept."""
    usual = (1e-9, 1e-12) if dtype == np.float64 else (1e-4, 1e-7)
    rtol = usual[0] if rtol is None else rtol
    atol = usual[1] if atol is None else atol
    least = 10 * float(np.finfo(dtype).eps)
    if not rtol >= least:
        raise ValueError(f"`rtol={rtol}` is below what {dtype} can resolve ({least:.2g}).")
    if not atol > 0:
        raise ValueError(f"`atol` must be above 0, got {atol}.")
    return float(rtol), float(atol)


def as_chain(method: AbstractSteadyMethod | Chain) -> Chain:
    if isinstance(method, Chain):
        return method
    if isinstance(method, AbstractSteadyMethod):
        return Chain((method,))
    raise TypeError(
        "`method` must be a search such as `Newton()`, `PseudoTransient()` or "
        f"`Chain((...))`, got {method!r}."
    )


@typechecked
def find_steady_state(
    field: VF,
    y0: YLike,
    args: Args = None,
    *,
    t: ScalarLike = 0.0,
    method: AbstractSteadyMethod | Chain = Chain(),
    conserved: Any = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int = 256,
    stability: bool | None = None,
    throw: bool = True,
) -> SteadyState:
    """Finds y with f(t, y, args) = 0 near `y0`, differentiably.

    The default method is damped Newton from `y0`; if what it finds is not admissible (not
    converged in every component, outside the guard's box, off the conserved manifold, or
    unstable), pseudo-transient continuation from `y0`, polished by Newton. Convergence is tested
    per component on the Newton step, and again at the root that is returned. The search is not
    differentiated; derivatives follow from the implicit function theorem, in forward and in
    reverse mode.

    **Arguments:**

    - `field`: any callable `f(t, y, args)`; a guarded one brings its bounds.
    - `y0`: where to start, and, with `conserved`, what fixes the conserved totals. A PyTree of
        floating arrays; Python floats and numpy arrays are converted.
    - `args`: the condition.
    - `t`: the time at which a non-autonomous field is frozen.
    - `method`: `Newton()`, `PseudoTransient()` or a `Chain` of methods.
    - `conserved`: rows L with L f = 0, shape `(quantities, components)` (or one row), columns in
        the order of `jax.flatten_util.ravel_pytree`; the steady state keeps L y = L y0, and its
        derivatives are those of the constrained problem. `"detect"` finds L as the left null
        space of the Jacobian. Without it, a field that conserves something has a singular
        Jacobian at its steady state, which is reported.
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
    y0 = as_state(y0, "y0")
    if max_steps < 1:
        raise ValueError(f"`max_steps` must be at least 1, got {max_steps}.")
    dtype = state_dtype(y0)
    t = jnp.asarray(t, dtype)
    args = as_args(args, dtype)
    rtol, atol = default_tolerances(rtol, atol, dtype)
    conserved = as_conserved(conserved)
    steady = _find(
        Split(field, "field"),
        y0,
        args,
        t,
        as_chain(method),
        conserved,
        rtol,
        atol,
        max_steps,
        stability,
    )
    refuse_rows_of(steady, field, y0, args, t, conserved)
    if not throw:
        return steady
    names = component_names(y0)
    return raise_if(
        steady,
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
    guarded = as_guarded(field)
    flat_y0, unravel = ravel_pytree(y0)
    refuse_rows(
        conserved,
        lambda y: ravel_pytree(guarded(t, unravel(y), args))[0],
        flat_y0,
        lambda y: ravel_pytree(guarded.guard.clip(unravel(y)))[0],
    )


def explain_steady(facts, names: list[str]) -> str:
    """Why there is no steady state, from `(result, residual, component)` of one sample."""
    result, residual, component = facts
    text = message(result, int(jax.tree.leaves(result)[0]))
    if text == "":
        return "Successful."
    if int(component) < 0:
        return text
    text += f" Farthest from steady is {names[int(component)]}"
    if residual < 1e100:
        text += f", by {float(residual):.2g} of its size"
    return text + "."


def steady_facts(steady: SteadyState):
    """What `explain_steady` needs, small enough to carry out of `jit`."""
    return steady.result, steady.residual, steady.component


@eqx.filter_jit
def _find(split, y0, args, t, chain, conserved, rtol, atol, max_steps, stability):
    return steady_state(split.tree, y0, args, t, chain, conserved, rtol, atol, max_steps, stability)


def steady_state(
    field: VF, y0, args, t, chain: Chain, conserved, rtol, atol, max_steps, stability
) -> SteadyState:
    """[`find_steady_state`][] for checked inputs, inside `jit`."""
    guarded = as_guarded(field)
    guard = guarded.guard
    flat_y0, unravel = ravel_pytree(y0)
    # The user's Python code is traced once; the parameters become explicit inputs.
    closed = eqx.filter_closure_convert(guarded, t, y0, args)

    def flat_field(closed, y, t, args):
        return ravel_pytree(closed(t, unravel(y), args))[0]

    stopped = jtu.tree_map(
        lambda x: lax.stop_gradient(x) if eqx.is_inexact_array(x) else x,
        (closed, flat_y0, t, args),
    )
    closed_, flat_y0_, t_, args_ = stopped
    autonomous = lambda y: flat_field(closed_, y, t_, args_)
    clip = lambda y: ravel_pytree(guard.clip(unravel(y)))[0]
    conserving = projector(conserved, autonomous, flat_y0_, clip)
    lower, upper = (ravel_pytree(b)[0] for b in guard.bounds(y0))
    problem = SteadyProblem(
        autonomous,
        flat_y0_,
        conserving,
        lower,
        upper,
        rtol,
        atol,
        guard.reject,
        guarded.jacobian or Dense(),
        lambda jacobian, y: jacobian(t_, unravel(y), args_),
    )
    found, steps = _run_chain(problem, chain, max_steps, stability)
    ok = found.result == RESULTS.successful
    inputs = (closed, flat_y0, t, args)
    y = _differentiable(
        found.y, ok, conserving, inputs, _Residual(flat_field, conserved == "detect")
    )
    return SteadyState(
        y=unravel(y),
        residual=found.residual,
        result=found.result,
        method=found.stage,
        num_steps=steps,
        component=found.component,
        stable=found.stable if _with_stability(flat_y0.size, stability) else None,
        stages=tuple(m.name for m in chain.methods),
    )


class _Verdict(eqx.Module):
    """A state, and whether it is an admissible steady state."""

    y: Array
    residual: Array
    result: RESULTS
    stable: Array
    stage: Array
    component: Array


def _run_chain(
    problem: SteadyProblem, chain: Chain, max_steps: int, stability: bool | None
) -> tuple[_Verdict, Array]:
    """The verdict on the stage that won (or that says most about why none did), and the steps of
    all stages."""
    finite = all_finite(problem.y0)
    conserved = problem.conserves()
    startable = finite & conserved & problem.inside(problem.y0)
    refused = RESULTS.where(conserved, RESULTS.left_bounds, RESULTS.not_conserved)
    refused = RESULTS.where(finite, refused, RESULTS.not_finite)

    done = ~startable
    best = None
    steps = jnp.array(0)
    for index, method in enumerate(chain.methods):
        attempt = method.search(problem, max_steps, done)
        steps = steps + attempt.num_steps
        new = _judge(problem, attempt.y, stability, jnp.array(index))
        # A later failure replaces an earlier one unless it knows less.
        worse = False if best is None else done | (_rank(new.result) > _rank(best.result))
        best = new if best is None else select(worse, best, new)
        done = done | (best.result == RESULTS.successful)
    assert best is not None
    verdict = _Verdict(
        y=jnp.where(jnp.isfinite(best.y), best.y, 0),
        residual=jnp.minimum(best.residual, jnp.finfo(best.y.dtype).max),
        result=RESULTS.where(startable, best.result, refused),
        stable=best.stable,
        stage=best.stage,
        component=jnp.where(startable, best.component, -1),
    )
    return verdict, steps


def _rank(result: Any) -> Array:
    """Which of two results says more: a steady state before a reason, a reason before none."""
    rank = jnp.where(result == RESULTS.successful, 0, 2)
    return jnp.where(result == RESULTS.no_steady_state, 3, rank)


def _judge(problem: SteadyProblem, y: Array, stability: bool | None, stage: Array) -> _Verdict:
    """Looks at the bare residual at `y`, whatever the search said."""
    value, jacobian = problem.linearise(y)
    finite = all_finite((y, value, jacobian))
    jacobian = jnp.where(finite, jacobian, jnp.eye(y.size, dtype=y.dtype))
    factored = problem.factorise(jacobian)
    singular = factored.is_singular()
    step = factored.solve(value)
    residual = problem.size(step, y)
    residual = jnp.where(jnp.isnan(residual), jnp.inf, residual)
    # Where the step says nothing (a singular Jacobian), the residual itself does.
    far = jnp.where(jnp.all(jnp.isfinite(step)), step, value) / (jnp.abs(y) + problem.atol)
    component = jnp.argmax(jnp.where(jnp.isnan(far), jnp.inf, jnp.abs(far)))
    # Rounding in f can hold the last step a little above the tolerance.
    converged = finite & (residual < 10 * problem.rtol) & ~singular
    admissible = converged & problem.inside(y) & problem.keeps_conserved(y)
    leak = problem.leak(y, problem.field(y), jacobian + problem.projector)
    leaks = finite & jnp.any(leak > 1)
    # A flat spot: nothing moves, but the Jacobian cannot say where the steady state is.
    moves = problem.size(problem.field(y), y)
    scale = jnp.max(jnp.abs(jacobian))
    flat = finite & singular & (moves <= jnp.sqrt(problem.rtol) * scale) & problem.inside(y)
    if _with_stability(y.size, stability):
        # On the conserved directions the Jacobian of F is -1, so they do not count.
        stable = finite & jnp.all(jnp.real(jnp.linalg.eigvals(jacobian)) < 0)
    else:
        stable = jnp.array(True)
    steady = RESULTS.where(
        stable,
        RESULTS.successful,  # pyright: ignore[reportArgumentType]
        RESULTS.unstable_steady_state,
    )
    missing = RESULTS.where(flat, RESULTS.singular_steady_state, RESULTS.no_steady_state)
    result = RESULTS.where(admissible, steady, missing)
    result = RESULTS.where(admissible & leaks, RESULTS.not_conserved, result)
    return _Verdict(y, residual, result, stable, stage, component)


def _with_stability(size: int, stability: bool | None) -> bool:
    return size <= _LARGEST_FOR_STABILITY if stability is None else stability


class _Residual(eqx.Module):
    """The residual as a function of all that its root depends on."""

    flat_field: Any = eqx.field(static=True)
    detected: bool = eqx.field(static=True)

    def __call__(self, inputs, conserving, y):
        closed, y0, t, args = inputs
        return self.flat_field(closed, y, t, args) - conserving @ (y - y0)

    def shift_of_projector(self, inputs, conserving, y):
        """A function of `inputs` that is zero and whose derivative is that of -P (y - y0) in P,
        where P was detected and so depends on the parameters.

        With y - y0 = J z, from P J = 0 follows -dP J z = P dJ z.
        """
        closed, y0, t, args = inputs
        field = lambda y, inputs=inputs: self.flat_field(inputs[0], y, *inputs[2:])
        jacobian = jax.jacfwd(field)(y)
        z = lax.stop_gradient(jnp.linalg.pinv(jacobian) @ (y - y0))
        along = lambda inputs: jax.jvp(lambda y: field(y, inputs), (y,), (z,))[1]
        return lambda inputs: conserving @ along(inputs)


@eqx.filter_custom_jvp
def _differentiable(y, ok, conserving, inputs, residual_fn):
    return y


@_differentiable.def_jvp
def _differentiable_jvp(primals, tangents):
    """dy = -F_y^-1 F_inputs d(inputs); zero where there is no steady state."""
    y, ok, conserving, inputs, residual_fn = primals
    y = _differentiable(*primals)
    vary = lambda inputs: residual_fn(inputs, conserving, y)
    if residual_fn.detected:
        shift = residual_fn.shift_of_projector(inputs, conserving, y)
        fixed, vary = vary, lambda inputs: fixed(inputs) + shift(inputs)
    _, dresidual = eqx.filter_jvp(vary, (inputs,), (tangents[3],))
    jacobian = jax.jacfwd(lambda y: residual_fn(inputs, conserving, y))(y)
    jacobian = jnp.where(ok, jacobian, jnp.eye(y.size, dtype=y.dtype))
    rows = lax.stop_gradient(1 / jnp.max(jnp.abs(jacobian), axis=1))
    operator = lx.MatrixLinearOperator(rows[:, None] * jacobian)
    right = jnp.where(ok, -rows * dresidual, 0)
    # `throw=False`: a failed lane of a batch must not raise.
    dy = lx.linear_solve(operator, right, lx.LU(), throw=False).value
    return y, jnp.where(ok, dy, 0)
