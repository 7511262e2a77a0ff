"""A chord method for the stage equations of implicit Runge-Kutta methods, and for any root."""

from collections.abc import Callable
from typing import Any, NamedTuple, final

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._linalg import Dense, DenseLU
from .._states import bounds_in

# `kappa` of the tolerance is at least so many units in the last place of the state.
_LEAST_ULPS = 16


class _State(eqx.Module):
    factors: PyTree[Array]  # of the Jacobian where the iteration began
    length: Float[Array, ""]  # of the last iterate difference, in units of the tolerance
    length_before: Float[Array, ""]
    finite: Bool[Array, ""]
    step: Int[Array, ""]


class _Stage(NamedTuple):
    """The equation of one stage of a diffrax solver: its unknown is f(y) or h f(y), and
    y = partial + diagonal h f(y)."""

    partial: PyTree[Array]
    diagonal: Array
    increment: Callable[[PyTree[Array]], PyTree[Array]]  # from the unknown to h f(y)

    def state(self, unknown: PyTree[Array]) -> PyTree[Array]:
        increment = self.increment(unknown)
        return jtu.tree_map(lambda y, dy: y + self.diagonal * dy, self.partial, increment)


def _stage_of(args: PyTree) -> _Stage | None:
    """The stage whose equation has these `args`, or None for any other equation.

    diffrax hands its stage equations this tuple "so that custom nonlinear solvers can
    special-case on the stage"; a test fails if it changes."""
    if not isinstance(args, tuple):
        return None
    match args:
        case (index, diagonal, vf, prod, _, partial, _, control) if callable(prod):
            increment = lambda f: prod(f, control)
        case (index, diagonal, vf, _, partial, _, _):
            increment = lambda k: k
        case _:
            return None
    known = all(eqx.is_array(x) and x.ndim == 0 for x in (index, diagonal)) and callable(vf)
    return _Stage(partial, diagonal, increment) if known else None


@final
class PatientChord(optx.AbstractRootFinder):
    """The chord method (Newton's method with the Jacobian of its start), for the stages of
    diffrax's implicit solvers and for `optimistix.root_find`.

    In a diffrax solver it differs from `diffrax.VeryChord`, the default there, in three ways.

    - It reports a failure only when it gives up. With diffrax 0.7.2 and optimistix 0.1.0
        `VeryChord` reports "diverged" whenever it has not converged by its second iteration,
        though it wants to go on, and the iteration stops on any failure: half of Kvaerno5's
        attempts are rejected for it. (Known upstream: optimistix issues 221 and 230, diffrax
        pull request 754.)
    - It measures convergence where the tolerances belong: on the state y of the stage, in units
        of `atol + rtol |y|`. The unknown itself is f(y) or h f(y), which near a steady state of a
        stiff system is the difference of huge numbers, and has no digits to converge to.
    - One iteration is enough where its change is below the tolerance already; so the explicit
        first stage, which is no equation, costs one evaluation.

    A stage whose iteration diverges is left at zero, where the derivative of the rejected step
    can be taken; one that meets a value that is not finite becomes nan, which tells the
    controller so (a state of inf would lock `diffrax.PIDController`). In plain
    `diffrax.diffeqsolve` reverse mode needs a guarded field to get past the latter.

    ```python
    root_finder = diffrax.with_stepsize_controller_tols(sx.PatientChord)()
    solver = diffrax.KenCarp5(root_finder=root_finder)
    ```

    **Arguments:**

    - `rtol`, `atol`: tolerances, of the state in a diffrax solver, of the root elsewhere.
    - `norm`: of the change by one iteration, in units of the tolerance.
    - `kappa`: > 0. The fraction of the tolerance to converge to (but not below rounding).

    Iterates are clipped to the bounds that `optimistix.root_find` is given as
    `options=dict(lower=..., upper=...)`, as in `optimistix.Chord`. One that a bound holds away from
    a root is no success.

    The iteration ends as divergent where a change is not finite, or more than twice the last one.
    """

    rtol: float
    atol: float
    norm: Callable[[PyTree], Any] = optx.max_norm
    kappa: float = 1e-2

    def init(self, fn, y, args, options, f_struct, aux_struct, tags) -> _State:
        # diffrax takes one Jacobian for all the stages of a step.
        if "init_state" in options:
            return options["init_state"]
        flat, unravel = ravel_pytree(y)

        def residual(x):
            return ravel_pytree(fn(unravel(x), args)[0])[0]

        jacobian = lax.stop_gradient(jax.jacfwd(residual)(flat))
        # Errors of this factorisation slow the iteration, but do not move the root.
        factors = DenseLU().factorise(Dense(), jnp.zeros((), flat.dtype), -jacobian)
        far = jnp.array(jnp.inf, flat.dtype)
        return _State(factors, far, far, jnp.array(True), jnp.array(0))

    def step(self, fn, y, args, options, state: _State, tags):
        residual, aux = fn(y, args)
        flat, unravel = ravel_pytree(y)
        change = DenseLU().apply(state.factors, ravel_pytree(residual)[0], transpose=False)
        following = flat - change
        if not {"lower", "upper"}.isdisjoint(options):
            following = jnp.clip(following, *bounds_in(options, y))
        after = unravel(following)
        # Of the whole change: an iterate that a bound holds is not at rest.
        length = self._length(unravel(change), after, _stage_of(args))
        finite = jnp.all(jnp.isfinite(change))
        return after, _State(state.factors, length, state.length, finite, state.step + 1), aux

    def _length(self, change: PyTree[Array], after: PyTree[Array], stage: _Stage | None) -> Array:
        if stage is not None:
            change, after = stage.increment(change), stage.state(after)

        def in_tolerances(d, y):
            rtol = jnp.maximum(self.rtol, _LEAST_ULPS * jnp.finfo(d.dtype).eps / self.kappa)
            return d / (self.atol + rtol * jnp.abs(y)).astype(d.dtype)

        length = self.norm(jtu.tree_map(in_tolerances, change, after))
        # Without a diagonal the unknown is given, and the first iteration is exact.
        return length if stage is None else jnp.where(stage.diagonal == 0, 0, length)

    def terminate(self, fn, y, args, options, state: _State, tags):
        rate = state.length / state.length_before  # known from the second iteration on
        remaining = state.length * rate / (1 - rate)
        twice = state.step >= 2
        # At the level of rounding the rate is noise, and a change below the tolerance suffices.
        converged = state.length <= self.kappa
        converged |= twice & (rate < 1) & (remaining <= self.kappa)
        diverged = (state.step >= 1) & ~state.finite
        diverged |= twice & ~converged & ~(rate <= 2)
        converged &= (state.step >= 1) & ~diverged
        result = optx.RESULTS.where(
            diverged, optx.RESULTS.nonlinear_divergence, optx.RESULTS.successful
        )
        return converged | diverged, result

    def postprocess(self, fn, y, aux, args, options, state: _State, tags, result):
        if _stage_of(args) is not None:
            solved = result == optx.RESULTS.successful
            unsolved = jnp.where(state.finite, 0, jnp.nan)
            y = jtu.tree_map(lambda x: jnp.where(solved, x, unsolved.astype(x.dtype)), y)
        return y, aux, {}
