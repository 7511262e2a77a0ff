"""`check_gradient`: automatic differentiation against the truth."""

from collections.abc import Callable, Iterator

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
from jaxtyping import Array, PyTree

from .._models import AbstractModel, with_options
from .._results import RESULTS, name_of
from .._static import is_traced
from .._types import typechecked
from ._differences import REACH, STEPS, Difference, differentiate
from ._finer import finer, tolerance_of
from ._gradient_check import (
    SEVERITY,
    AdjointCheck,
    DirectionCheck,
    FinerCheck,
    GradientCheck,
    in_words,
)

_ADJOINTS: dict[str, Callable[[], diffrax.AbstractAdjoint]] = {
    "RecursiveCheckpointAdjoint": diffrax.RecursiveCheckpointAdjoint,
    "DirectAdjoint": diffrax.DirectAdjoint,
    "ForwardMode": diffrax.ForwardMode,
    "BacksolveAdjoint": diffrax.BacksolveAdjoint,
}


_RTOL = 1e-3  # of a function of which no tolerance is known
_LEAST_RTOL = 1e-6
_UNSETTLED = 10  # times `rtol`: what differs more at a tenth of the tolerance is not settled


@typechecked
def check_gradient(
    fn: Callable[..., Array],
    model: PyTree,
    *inputs: PyTree,
    rtol: float | None = None,
    directions: int = 2,
    adjoints: tuple[str, ...] | None = None,
    seed: int = 0,
) -> GradientCheck:
    """Whether the gradient of a loss is right: automatic differentiation against differences of
    the loss, in random directions and for each parameter leaf, forward against reverse mode, and
    across adjoints.

    ```python
    def loss(model, y0, ts):
        return jnp.mean(model(y0, ts).ys ** 2)

    print(sx.check_gradient(loss, model, y0, ts))
    ```

    An adaptive solver makes the loss scatter by about its tolerance, and a difference over a small
    step is that scatter, magnified. It is measured, and part of the uncertainty of a difference;
    where it hides the derivative the verdict is `"undecided"`, and a smaller tolerance of the
    solver decides. A gradient can be that of a solution that is wrong: so the loss and its
    derivative are looked at once more with a tenth of the tolerances and steps of at most 1 % of
    the time span, in the stablax models in `model`, and the verdict is `"unresolved"` if they are
    others. For debugging, outside
    `jit`: about 75 evaluations a direction, and one compilation for each adjoint.

    **Arguments:**

    - `fn`: the loss, `fn(model, *inputs)`, a real number. Any function will do, with a solve of
        stablax, of plain diffrax, or none.
    - `model`: what it is differentiated in: a model, or any PyTree with floating-point arrays.
    - `inputs`: the other arguments of `fn`.
    - `rtol`: by how much the gradient may differ, relative to the derivative in the direction; by
        default 100 times the largest `rtol` of a controller in `model`, or 1e-3 if there is none.
        The gradient of a solve has less digits than its solution: reverse mode holds step sizes
        fixed.
    - `directions`: >= 1. How many random directions of all parameters.
    - `adjoints`: the names of the diffrax adjoints to compare; by default
        `RecursiveCheckpointAdjoint`, `DirectAdjoint`, `ForwardMode` and `BacksolveAdjoint`. They
        replace the adjoint of every stablax model in `model` (which refuses `BacksolveAdjoint`),
        and every diffrax adjoint that is an attribute of a module in it. `()`: none.
    - `seed`: of the random directions.

    **Returns:** a [`GradientCheck`][].

    **Raises:** `ValueError` if there is nothing to differentiate, or the loss itself is no finite
    real number; `TypeError` under `jit`, or for a loss that no mode differentiates.
    """
    if is_traced((model, inputs)):
        raise TypeError("`check_gradient` looks at values: call it outside `jit` and `grad`.")
    if directions < 1:
        raise ValueError(f"`directions` must be at least 1, got {directions}.")
    names = tuple(_ADJOINTS) if adjoints is None else adjoints
    for name in names:
        if name not in _ADJOINTS:
            known = ", ".join(f'"{n}"' for n in _ADJOINTS)
            raise ValueError(f'`adjoints` has "{name}"; the names are {known}.')
    params, _ = eqx.partition(model, eqx.is_inexact_array)
    if not jtu.tree_leaves(params):
        raise ValueError(
            "`model` has no floating-point array to differentiate in. Pass the parameters as "
            "`model`: any PyTree of arrays."
        )
    dtypes = [x.dtype for x in jtu.tree_leaves(params)]
    dtype = max(dtypes, key=lambda dtype: float(jnp.finfo(dtype).eps))
    if rtol is None:
        rtol = _reachable(model, dtype)
    check = _Check(fn, model, params, inputs, rtol, dtype)
    moves = dict(_directions(params, directions, seed))
    gradient = check.reverse(model)
    raised = check.raised
    found = [check.direction(name, move, gradient) for name, move in moves.items()]
    differences, checks = [exact for exact, _ in found], tuple(one for _, one in found)
    first = next(iter(moves.values()))
    others = tuple(check.by_adjoint(name, first, differences[0]) for name in names)
    verdict = max((c.verdict for c in checks), key=SEVERITY.index)
    broken = verdict == "not finite"
    look = None if broken else check.look_finer(first, checks[0].forward, differences[0].reach)
    if look is not None and not look.settled:
        verdict = "unresolved"
    return GradientCheck(
        verdict=verdict,
        result=name_of(RESULTS.gradient_not_finite if broken else RESULTS.successful),
        text=in_words(verdict, checks, check.value, look)
        + (f" Differentiating raised: {raised}" * bool(raised)),
        value=check.value,
        directions=checks,
        adjoints=others,
        finer=look,
        steps=STEPS,
    )


def _reachable(model: PyTree, dtype: np.dtype) -> float:
    """How well the gradients of what is solved in `model` can agree with differences."""
    solves = lambda x: isinstance(x, AbstractModel | diffrax.AbstractStepSizeController)
    parts = filter(solves, jtu.tree_leaves(model, is_leaf=solves))
    known = [rtol for part in parts if (rtol := tolerance_of(part, dtype)) is not None]
    return max(_LEAST_RTOL, *(100 * rtol for rtol in known)) if known else _RTOL


def _or_nan(x: float | None) -> float:
    return float("nan") if x is None else x


class _Check:
    """One loss, and the ways to differentiate it."""

    def __init__(self, fn, model, params, inputs, rtol: float, dtype: np.dtype):
        self.fn, self.model, self.inputs, self.rtol = fn, model, inputs, rtol
        self.dtype, self.eps = dtype, float(jnp.finfo(dtype).eps)
        self._value = eqx.filter_jit(_moved)
        self._gradient = eqx.filter_jit(eqx.filter_grad(_loss))
        forward_model = _with_adjoint(model, diffrax.ForwardMode())
        self.forward_model = model if forward_model is None else forward_model
        at_rest = optax.tree.zeros_like(params)
        value = jnp.asarray(self._value(model, at_rest, jnp.asarray(0.0), fn, inputs))
        if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(
                f"`fn` must return one real number, got shape {value.shape} and dtype "
                f"{value.dtype}; take the mean."
            )
        self.value = float(value)
        self.raised = self.missing = ""
        if not np.isfinite(self.value):
            raise ValueError(
                f"`fn` itself is {self.value}: there is no gradient to check. See why with "
                "`stablax.diagnose`."
            )

    def along(self, move: PyTree, s: float) -> float:
        try:
            value = self._value(self.model, move, jnp.asarray(s), self.fn, self.inputs)
            return float(value)
        except RuntimeError:  # a solve that fails there
            return float("nan")

    def reverse(self, model: PyTree) -> PyTree | None:
        """The gradient, or None for a model that was made for forward mode. If the backward pass
        raises, nan, and the reason in `raised`."""
        try:
            return self._gradient(model, self.fn, self.inputs)
        except RuntimeError as error:
            self.raised = _reason(error)
            params = eqx.filter(model, eqx.is_inexact_array)
            return jtu.tree_map(lambda x: jnp.full_like(x, jnp.nan), params)
        except (ValueError, TypeError, NotImplementedError) as error:
            if "everse" not in str(error):
                raise
            self.missing = _reason(error)
            return None

    def forward(self, model: PyTree, move: PyTree) -> tuple[float, float] | None:
        """The value and its derivative along `move`, or None for a function without forward mode.
        Raising as `reverse`."""
        try:
            value, slope = _push(model, move, self.fn, self.inputs)
            return float(value), float(slope)
        except RuntimeError as error:
            self.raised = _reason(error)
            return float("nan"), float("nan")
        except (TypeError, ValueError, NotImplementedError) as error:
            if "orward" not in str(error) and "jvp" not in str(error):
                raise
            self.missing = _reason(error)
            return None

    def direction(
        self, name: str, move: PyTree, gradient: PyTree | None
    ) -> tuple[Difference, DirectionCheck]:
        exact = differentiate(lambda s: self.along(move, s), self.eps, self.rtol)
        reverse = _dot(gradient, move)
        pushed = self.forward(self.forward_model, move)
        forward = None if pushed is None else pushed[1]
        derivatives = [x for x in (reverse, forward) if x is not None]
        if not derivatives:
            raise TypeError(f"`fn` has neither reverse nor forward mode: {self.missing}")
        verdict = self.judge(exact, *derivatives)
        failed = exact.failed
        if verdict != "right" and forward:
            failed += self.failed_silently(move)
        return exact, DirectionCheck(
            name,
            _or_nan(reverse),
            _or_nan(forward),
            exact.value,
            exact.uncertainty,
            exact.noise,
            exact.jump or 0.0,
            failed,
            verdict,
            exact.central,
        )

    def failed_silently(self, move: PyTree) -> int:
        """At how many of the places of the differences the derivative is exactly zero: what a
        failed solve has that does not raise."""
        places = [
            self.forward(_shift(self.forward_model, move, s), move) for s in (*STEPS, *-STEPS)
        ]
        return sum(pushed is not None and pushed[1] == 0 for pushed in places)

    def look_finer(self, move: PyTree, slope: float, reach: float) -> FinerCheck | None:
        """Value and derivative at a tenth of the tolerances and with short steps; None where
        there is no stablax model with a tolerance. `reach`, by how much the function changes with
        its parameters, is the measure where it is next to zero, or its derivative."""
        other = finer(self.forward_model, self.dtype)
        pushed = None if other is None else self.forward(other, move)
        if pushed is None:
            return None
        value, fine = pushed
        far = _UNSETTLED * self.rtol
        settled = abs(self.value - value) <= far * max(abs(value), reach)
        settled = settled and abs(slope - fine) <= far * max(abs(fine), reach / STEPS[REACH])
        return FinerCheck(value, fine, bool(settled))

    def judge(self, exact: Difference, *derivatives: float) -> str:
        if not all(map(np.isfinite, derivatives)):
            return "not finite"
        if exact.jump is not None:
            return "discontinuous"
        if not np.isfinite(exact.value):
            return "undecided"
        verdict = "right"
        # At a minimum a derivative is zero to all that can be resolved of the slopes next to it.
        least = self.eps**0.5 * exact.reach / STEPS[REACH]
        for derivative in derivatives:
            magnitude = max(abs(exact.value), abs(derivative))
            apart = abs(derivative - exact.value)
            if apart > self.rtol * magnitude + 3 * exact.uncertainty + least:
                return "wrong"
            # A derivative of which the noise leaves no digit is neither confirmed nor refuted,
            # unless it is zero to all that the function resolves.
            resolved = magnitude > max(100 * self.eps * abs(self.value), least)
            hidden = resolved and exact.uncertainty > 0.1 * magnitude
            if hidden:
                verdict = "undecided"
        return verdict

    def by_adjoint(self, name: str, move: PyTree, exact: Difference) -> AdjointCheck:
        try:
            other = _with_adjoint(self.model, _ADJOINTS[name]())
        except (TypeError, ValueError) as error:
            return AdjointCheck(name, float("nan"), "not available", str(error).split(". ")[0])
        if other is None:
            note = "`model` holds no adjoint that could be replaced"
            return AdjointCheck(name, float("nan"), "not available", note)
        self.raised = self.missing = ""
        try:
            if name == "ForwardMode":
                pushed = self.forward(other, move)
                value = None if pushed is None else pushed[1]
            else:
                value = _dot(self.reverse(other), move)
        except Exception as error:  # whatever a library raises is the finding
            return AdjointCheck(name, float("nan"), "not available", _reason(error))
        if value is None:
            return AdjointCheck(name, float("nan"), "not available", self.missing)
        return AdjointCheck(name, value, self.judge(exact, value), self.raised)


def _reason(error: Exception) -> str:
    """The message of an error, without the stack that Equinox puts around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    ours = [line for line in lines if "EquinoxRuntimeError: " in line]
    return ours[-1].split("EquinoxRuntimeError: ")[-1] if ours else lines[0]


def _loss(model, fn, inputs):
    return fn(model, *inputs)


def _shift(model, move, s):
    """`model` with its parameters moved by `s` times `move`, which may have been made for another
    adjoint."""
    params, static = eqx.partition(model, eqx.is_inexact_array)
    move = jtu.tree_unflatten(jtu.tree_structure(params), jtu.tree_leaves(move))
    moved = jtu.tree_map(lambda p, d: p + jnp.asarray(s, p.dtype) * d, params, move)
    return eqx.combine(moved, static)


def _moved(model, move, s, fn, inputs):
    return fn(_shift(model, move, s), *inputs)


@eqx.filter_jit
def _push(model, move, fn, inputs):
    loss = lambda s: fn(_shift(model, move, s), *inputs)
    return jax.jvp(loss, (0.0,), (1.0,))


def _dot(gradient: PyTree | None, move: PyTree) -> float | None:
    if gradient is None:
        return None
    pairs = zip(jtu.tree_leaves(gradient), jtu.tree_leaves(move), strict=True)
    return float(sum(np.vdot(np.asarray(g), np.asarray(d)) for g, d in pairs))


def _directions(params: PyTree, number: int, seed: int) -> Iterator[tuple[str, PyTree]]:
    """Random directions, in units of the magnitude of each parameter: of all, then of each leaf."""
    leaves, treedef = jtu.tree_flatten_with_path(params)

    def random(key, leaf):
        typical = jnp.sqrt(jnp.mean(jnp.square(leaf)))
        magnitude = jnp.where(leaf != 0, jnp.abs(leaf), jnp.where(typical > 0, typical, 1.0))
        sign = jr.rademacher(key, leaf.shape, leaf.dtype)
        return sign * magnitude * jr.uniform(key, leaf.shape, leaf.dtype, 0.5, 1.0)

    def tree(key, only: int | None = None):
        keys = jr.split(key, len(leaves))
        moves = [
            random(k, leaf) if only in (None, i) else jnp.zeros_like(leaf)
            for i, (k, (_, leaf)) in enumerate(zip(keys, leaves, strict=True))
        ]
        return jtu.tree_unflatten(treedef, moves)

    for i, key in enumerate(jr.split(jr.key(seed), number)):
        yield f"all #{i + 1}", tree(key)
    if len(leaves) > 1:
        for i, key in enumerate(jr.split(jr.key(seed + 1), len(leaves))):
            yield jtu.keystr(leaves[i][0]), tree(key, i)


def _with_adjoint(model: PyTree, adjoint: diffrax.AbstractAdjoint) -> PyTree | None:
    """`model` with another adjoint in all that solves in it; None if nothing does."""

    def solves(x):
        return isinstance(x, AbstractModel | diffrax.AbstractAdjoint)

    parts = jtu.tree_leaves(model, is_leaf=solves)
    if not any(map(solves, parts)):
        return None

    def change(part):
        if isinstance(part, AbstractModel):
            return with_options(part, adjoint=adjoint)
        return adjoint if isinstance(part, diffrax.AbstractAdjoint) else part

    return jtu.tree_map(change, model, is_leaf=solves)
