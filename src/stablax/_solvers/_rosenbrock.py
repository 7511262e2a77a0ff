"""Rosenbrock methods: linearly implicit, one Jacobian and one factorisation a step, no inner
iteration."""

from typing import Any, ClassVar, final

import diffrax
import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from .._fields import Guard
from .._linalg import AbstractJacobian, Dense, Mass, MatrixFree, as_jacobian, as_mass
from .._precision import full_precision
from .._states import all_finite
from .._words import short
from ._algebraic import slope
from ._gate import gated_step
from ._rosenbrock_reverse import replay_step
from ._rosenbrock_step import Step, at_start, repeat_step, step_of, take_step
from ._tableaus import RODAS4, RODAS5P, ROSENBROCK23, RosenbrockTableau


@final
class RosenbrockInterpolation(diffrax.AbstractLocalInterpolation):
    """The dense output of a Rosenbrock step: continuous, and exact at both ends."""

    t0: Any
    t1: Any
    y0: PyTree[Array]
    y1: PyTree[Array]
    stages: PyTree[Array]
    tableau: RosenbrockTableau = eqx.field(static=True)

    def evaluate(self, t0, t1=None, left=True):
        if t1 is not None:
            return optax.tree.sub(self.evaluate(t1), self.evaluate(t0))
        span = self.t1 - self.t0
        theta = jnp.where(span == 0, 0, (t0 - self.t0) / jnp.where(span == 0, 1, span))

        def at(y0, y1, stages):
            weights = jnp.asarray(self.tableau.H, y0.dtype)
            part = theta.astype(y0.dtype)
            inner = jnp.zeros(weights.shape[1], y0.dtype)
            for row in reversed(weights):
                inner = row + part * inner
            with full_precision():
                bend = jnp.tensordot(inner, stages, axes=1)
            return (1 - part) * y0 + part * (y1 + (1 - part) * bend)

        return jtu.tree_map(at, self.y0, self.y1, self.stages)


@final
class _Interpolates(eqx.Module):
    """What makes the dense output of a step. A value, as a class would be."""

    tableau: RosenbrockTableau = eqx.field(static=True)

    def __call__(self, **step: Any) -> RosenbrockInterpolation:
        return RosenbrockInterpolation(tableau=self.tableau, **step)


class AbstractRosenbrock(diffrax.AbstractAdaptiveSolver):
    """A Rosenbrock method, which differs from the others in its tableau only. Abstract: a subclass
    that says which is a solver, with the two parts of the error estimate, the gradients and the
    protection of [`Rodas5P`][].

    ```python
    class ROS3P(sx.AbstractRosenbrock):
        tableau = sx.RosenbrockTableau.published(...)

    model = sx.Simulate(field, solver=ROS3P())
    ```

    **Arguments:**

    - `jacobian`: as in [`Rodas5P`][].
    - `box`, `mass`: as in [`Rodas5P`][]; keyword-only. A `mass` that is singular needs a tableau
        that is stiffly accurate: its last stage ends at the new state.
    """

    term_structure: ClassVar = diffrax.ODETerm
    tableau: eqx.AbstractClassVar[RosenbrockTableau]
    jacobian: AbstractJacobian | None = eqx.field(converter=as_jacobian, default=None)
    box: Guard | None = eqx.field(default=None, kw_only=True)
    mass: Mass | None = eqx.field(converter=as_mass, default=None, kw_only=True)

    def __check_init__(self):
        if self.has_algebraic and not self.tableau.is_stiffly_accurate:
            raise ValueError(
                f"`mass` is singular, for which `{type(self).__name__}` is not made: it is not "
                "stiffly accurate, so that its steps would not end where the algebraic equations "
                "hold. Use `Rodas5P(mass=...)` or `Rodas4(mass=...)`."
            )
        if not (self.box is None or isinstance(self.box, Guard)):
            raise TypeError(
                f"`box` must be a `Guard(lower, upper)` or None, got {short(self.box)}."
            )

    @property
    def interpolation_cls(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Interpolates(self.tableau)

    @property
    def structure(self) -> AbstractJacobian:
        """That of the Jacobian: `jacobian`, or else dense."""
        return Dense() if self.jacobian is None else self.jacobian

    @property
    def has_algebraic(self) -> bool:
        """Whether some of the equations are algebraic."""
        return self.mass is not None and self.mass.is_singular

    def order(self, terms):
        return self.tableau.order

    def error_order(self, terms):
        return self.tableau.error_order

    def check(self, y: PyTree[Array]) -> None:
        """Raises a `ValueError` if `jacobian` or `mass` does not fit a state like `y`."""
        size = sum(x.size for x in jtu.tree_leaves(y))
        self.structure.check(size)
        if self.mass is not None:
            self.mass.check(self.structure, y)

    def init(self, terms, t0, t1, y0, args):
        self.check(y0)
        # A product with J is a function, which diffrax's loop cannot carry.
        if isinstance(self.structure, MatrixFree):
            return None
        step = step_of(terms, self.structure, self.box, self.mass, args, t0, t1, y0)
        known = step.known(self.structure, t0, ravel_pytree(y0)[0])
        return jtu.tree_map(lax.stop_gradient, known)

    def func(self, terms, t0, y0, args):
        """dy/dt, in the time of the `terms`' field."""
        if self.mass is None:
            return terms.vf(t0, y0, args)
        t0 = jnp.asarray(t0)
        direction = terms.contr(jnp.zeros_like(t0), jnp.ones_like(t0))
        field = lambda *at: terms.vf_prod(*at, direction)
        onward = slope(self.mass, self.structure, field, t0, y0, args)
        return jtu.tree_map(lambda dy: direction.astype(dy.dtype) * dy, onward)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """`solver_state` is what is known of the field at the start of the step, as a value: its
        derivative is that of an evaluation there. Without one, it is evaluated."""

        def take(step: Step, y0, handed):
            start = ravel_pytree(y0)[0]
            known = at_start(step, self.structure, start, handed)
            (end, error, u), known = take_step(self.tableau, self.structure, step, start, known)
            out = step.unravel(end), step.unravel(error), jax.vmap(step.unravel)(u)
            return out, None if solver_state is None else known

        step = step_of(terms, self.structure, self.box, self.mass, args, t0, t1, y0, closed=True)
        known = solver_state is not None and made_jump is not True
        handed = (solver_state, made_jump) if known else None
        (y1, error, stages), known = gated_step(take, (step, y0), handed)
        ok = all_finite((y1, error, stages))
        # To be rejected by any controller; diffrax's own would lock up on a state of inf.
        y1_or_nan = jtu.tree_map(lambda x: jnp.where(ok, x, jnp.nan), y1)
        error = jtu.tree_map(lambda x: jnp.where(ok, x, jnp.inf), error)
        dense_info = dict(y0=y0, y1=y1, stages=stages)
        return y1_or_nan, error, dense_info, known, diffrax.RESULTS.successful

    def repeat(self, terms, t0, t1, y0, args, held=None):
        """An accepted step: the new state, and what makes its dense output. `held`: whether the
        stages have the values given, and not their own, and these."""
        how = (self.tableau, self.structure, self.box, self.mass)
        return repeat_step(*how, terms, args, t0, t1, y0, held)

    def replay(self, system, moving, t0, t1, y0, held=None):
        """An accepted step, and its derivative in reverse mode; see `replay_step`."""
        how = (self.tableau, self.structure, self.box, self.mass)
        return replay_step(*how, system, moving, t0, t1, y0, held)


def family_of(solver: diffrax.AbstractSolver) -> str:
    """`"rosenbrock"`, `"esdirk"` (every solver with a root finder) or `"explicit"`."""
    if isinstance(solver, AbstractRosenbrock):
        return "rosenbrock"
    return "esdirk" if isinstance(solver, diffrax.AbstractImplicitSolver) else "explicit"


def is_implicit(solver: diffrax.AbstractSolver) -> bool:
    """Whether a step solves linear systems in I - h J."""
    return family_of(solver) != "explicit"


@final
class Rodas5P(AbstractRosenbrock):
    """Rodas5P (Steinebach 2023, BIT Numer. Math. 63, 27): order 5(4), L-stable, stiffly accurate,
    made to keep its order on stiff problems. The default of stablax's models, and the method to
    try first on a stiff system.

    Linearly implicit: a step costs one Jacobian, one factorisation and eight evaluations of the
    field, and has no inner iteration. For any PyTree state, autonomous or not (the df/dt term is
    included), forward and backward in time, with events and a dense output of its own (order 4,
    continuous, exact at both ends of a step). Works in plain `diffrax.diffeqsolve`.

    The error estimate has two parts, and in each component the larger counts. One is that of the
    embedded method, whose stages are all damped by the Jacobian at the start of the step: where
    that is huge there and nowhere else, as of -a sqrt(y) + b from y = 1e-20, they agree on a step
    that is wrong. The other is a tenth of the defect at the end, h (f - y') with y' of the dense
    output, damped by the Jacobian at the end. (Defects as error estimates: Enright 1989, SIAM J.
    Numer. Anal. 26, 588.) f, J and df/dt there are what the next step starts from: the solver's
    state hands them on, as values; a derivative is that of an evaluation at the start.

    A step that is not finite (a stage that overflows, a singular matrix), or that ends where the
    field is not, reports a state of nan and an infinite error, which every adaptive controller
    rejects, and contributes nothing to a gradient.

    **Arguments:**

    - `jacobian`: the structure of the Jacobian: [`Dense`][] by default; [`Banded`][] and
        [`Sparse`][], with which a step of a large system costs O(n); [`MatrixFree`][]; or a
        function `fn(t, y, args) -> (n, n)`. Inside a model, `None` means what the field declares.
    - `box`: a [`Guard`][]: the field is evaluated inside its bounds, and a step goes on outside
        along the tangent with the Jacobian at its start. For controllers that keep the states
        next to the box. By default `None`; the models set it from the guard of the field.
        Keyword-only.
    - `mass`: the M of M dy/dt = f(t, y, args), constant: its diagonal, of shape `(n,)` or a PyTree
        like the state; or a matrix, `(n, n)`; in the order of the ravelled state. With zeros, or
        otherwise singular, some of the equations are algebraic; they must determine what M leaves
        open (index 1). A model makes the start consistent, and the state behind a jump or an event;
        in plain `diffeqsolve` the start has to be. By default `None`, the identity. Keyword-only.

    **Raises:** `TypeError` or `ValueError` for another `jacobian`, `box` or `mass`, `ValueError` at
    the first step if they do not fit the state.
    """

    tableau: ClassVar[RosenbrockTableau] = RODAS5P


@final
class Rodas4(AbstractRosenbrock):
    """Rodas4 (Hairer and Wanner 1996, code RODAS): order 4(3), L-stable, stiffly accurate. Steps
    are cheaper than those of [`Rodas5P`][], and more are needed.

    A step costs one Jacobian, one factorisation and six evaluations of the field; the dense
    output has order 3. In all else, the two parts of its error estimate and its arguments
    `jacobian`, `box` and `mass`, as [`Rodas5P`][].
    """

    tableau: ClassVar[RosenbrockTableau] = RODAS4


@final
class Rosenbrock23(AbstractRosenbrock):
    """Rosenbrock23, also known as ode23s (Shampine and Reichelt 1997, SIAM J. Sci. Comput. 18, 1):
    order 2(3), L-stable. For one to three digits, and for fields that are not smooth.

    A step costs one Jacobian, one factorisation and three evaluations of the field; the dense
    output has order 2. In all else, the two parts of its error estimate and its arguments
    `jacobian` and `box`, as [`Rodas5P`][]. Its `mass` must be regular.
    """

    tableau: ClassVar[RosenbrockTableau] = ROSENBROCK23
