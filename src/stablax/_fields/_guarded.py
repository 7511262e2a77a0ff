"""Guarded vector fields: evaluate inside the box, go on outside, mask."""

import abc
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, final

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import Array, PyTree

from .._lanes import only_where, spread
from .._linalg import AbstractJacobian, as_jacobian
from .._parameters import natural
from .._precision import full_precision
from .._states import any_nonzero, as_state, same_shape_and_dtype, state_dtype, stop
from .._types import VF, Args, ScalarLike, Y
from .._words import short
from ._activity import GuardActivity
from ._gate import close, derivative_is_finite, gate
from ._guard import Guard
from ._tangent import AlongTangent


def _evaluate(
    guard: Guard, fn: VF, what: str, t: ScalarLike, y: Y, args: Args, call: Callable, tangent: bool
) -> PyTree:
    y = as_state(y, "y")
    t = jnp.asarray(t, state_dtype(y))
    clipped = guard.clip(y)

    def checked(t, y, args):
        try:
            with full_precision():
                out = fn(t, y, args)
        except Exception as error:
            for note in _notes(fn, y):
                error.add_note(note)
            raise
        same_shape_and_dtype(out, y, what)
        return out

    field = checked
    if tangent and guard.has_tangent:
        inside = guard.inside(y)
        field = AlongTangent(checked, jtu.tree_map(_excess, y, inside), clipped)
        clipped = inside

    out = call(field, t, clipped, args, *guard.bounds(y))
    if guard.pull != 0:
        # `where`, not a sum with zero: inside the box the value is the field's to the last bit.
        out = jtu.tree_map(
            lambda dy, c, x: jnp.where(c == x, dy, dy + guard.pull * (c - x)), out, clipped, y
        )
    fill = guard.fill
    if fill is not None:
        out = jtu.tree_map(lambda dy: jnp.where(jnp.isfinite(dy), dy, fill), out)
    return out


def _excess(y: Array, inside: Array) -> Array:
    """By how much `y` is outside. So far out that squares overflow, a tangent is no number either:
    there the field stays constant."""
    excess = y - inside
    return jnp.where(jnp.abs(excess) < float(jnp.finfo(y.dtype).max) ** 0.5, excess, 0)


def _notes(fn: VF, y: Y) -> Iterator[str]:
    """What may be behind an error that the user's code raises."""
    if isinstance(y, list | tuple):
        yield (
            f"The field got a {type(y).__name__} of {len(y)} arrays, since `y0` is one. For a "
            "vector, write `y0=jnp.array([...])`."
        )
    leaves = jtu.tree_leaves(eqx.filter(fn, eqx.is_inexact_array))
    leading = {x.shape[:1] for x in leaves}
    if len(leaves) > 1 and len(leading) == 1 and () not in leading:
        yield (
            f"All arrays of the field have a leading axis of {leading.pop()[0]}. If it is an "
            "ensemble, made under `vmap`, call the model under `eqx.filter_vmap` too: "
            "`eqx.filter_vmap(lambda model: model(y0, ts))(models)`."
        )


def _check_field(fn: object) -> None:
    if isinstance(fn, type):
        raise TypeError(f"The field is the class `{fn.__name__}`: make one, `{fn.__name__}(...)`.")
    if not callable(fn):
        raise TypeError(f"`fn` must be a callable f(t, y, args), got {short(fn)}.")
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # some callables written in C have none
        return
    try:
        signature.bind(None, None, None)
    except TypeError:
        name = getattr(fn, "__name__", type(fn).__name__)
        takes = ", ".join(signature.parameters)
        text = f"A field is called as f(t, y, args), but `{name}` takes ({takes})."
        if isinstance(fn, eqx.Module):
            text += (
                " Write an `eqx.Module` that holds it, with `__call__(self, t, y, args)`, so that "
                "its arrays are trained (a lambda would hide them); or use `stablax.MLPField`."
            )
        raise TypeError(text) from None


def _check_guard(guard: object) -> None:
    if not isinstance(guard, Guard):
        raise TypeError(f"`guard` must be a `Guard(lower, upper, ...)`, got {short(guard)}.")


def _activity(guard: Guard, fn: VF, t: ScalarLike, y: Y, args: Args) -> GuardActivity:
    y = lax.stop_gradient(as_state(y, "y"))
    t = jnp.asarray(t, state_dtype(y))
    lower, upper = guard.bounds(y)
    clipped = guard.clip(y)
    return GuardActivity(
        below=jtu.tree_map(lambda x, lo: x < lo, y, lower),
        above=jtu.tree_map(lambda x, hi: x > hi, y, upper),
        masked=jtu.tree_map(lambda dy: ~jnp.isfinite(dy), fn(t, clipped, args)),
        derivative=~derivative_is_finite(fn, t, clipped, args),
    )


class GuardedField(eqx.Module):
    """A vector field that a solver can evaluate anywhere. Abstract: subclass it and write
    `vector_field`.

    ```python
    class Decay(sx.GuardedField):
        rate: jax.Array

        def vector_field(self, t, y, args):
            return -self.rate * jnp.sqrt(y)

    field = Decay(jnp.array(1.5), guard=sx.Guard(lower=0.0))
    ```

    Calling it evaluates `vector_field` inside the guard's bounds (outside it goes on along its
    tangent), and treats non-finite outputs as the guard says. Inside the bounds, where value and
    derivative are finite, both are those of `vector_field`; elsewhere derivatives are finite.
    Works with `jacfwd`, `jacrev`, `grad`, `vmap` and `jit`, in plain `diffrax.diffeqsolve` as in
    stablax's models.

    A subclass with an `__init__` of its own takes the guard with one line,
    `self.guard = guard`.

    **Arguments:**

    - `guard`: a [`Guard`][]; keyword-only; by default no bounds. A subclass can set another
        default: `guard: sx.Guard = eqx.field(default=sx.Guard(0.0), kw_only=True)`.
    - `jacobian`: the structure of the Jacobian, for the solvers of stablax's models:
        [`Banded`][], [`Sparse`][], [`MatrixFree`][], a function `fn(t, y, args) -> (n, n)`, or
        `None` (dense, by automatic differentiation); keyword-only.

    **Raises:** a `TypeError` when a subclass (or a mixin) replaces `__call__`, which would
    remove the guard silently; a `ValueError` or `TypeError` at the first call if the state does
    not fit the bounds, or `vector_field` returns another structure, shape or dtype than its
    state has.
    """

    guard: Guard = eqx.field(default=Guard(), kw_only=True)
    jacobian: AbstractJacobian | None = eqx.field(default=None, converter=as_jacobian, kw_only=True)

    def __check_init__(self):
        _check_guard(self.guard)

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        owner = next(k for k in cls.__mro__ if "__call__" in vars(k))
        if owner is not GuardedField:
            raise TypeError(
                f"`{cls.__name__}` gets `__call__` from `{owner.__name__}`, which would remove "
                "the guard. Write the dynamics in `vector_field(self, t, y, args)`; to change "
                "what a call does, wrap the field with `stablax.Guarded`."
            )

    @abc.abstractmethod
    def vector_field(self, t: Any, y: Y, args: Args) -> PyTree:  # `t`: of the type a user writes
        """dy/dt at time `t`, state `y` (inside the bounds) and condition `args`; returns the
        structure, shapes and dtype of `y`."""

    @final
    def __call__(self, t: ScalarLike, y: Y, args: Args) -> PyTree:
        return evaluate(self, t, y, args)

    def activity(self, t: ScalarLike, y: Y, args: Args = None) -> GuardActivity:
        """Which components are clipped, which outputs are masked, and whether a derivative is
        made safe at `(t, y, args)`. Costs two evaluations of the field."""
        return _activity(self.guard, self.vector_field, t, y, args)


@final
class Guarded(eqx.Module):
    """Any callable `fn(t, y, args)` as a guarded field; see [`GuardedField`][].

    **Arguments:**

    - `fn`: the vector field. Its parameters should be reachable as PyTree leaves (an
        `eqx.Module`) if they are to be trained through a model.
    - `guard`: a [`Guard`][]; by default no bounds: then only derivatives are made safe.
    - `jacobian`: as in [`GuardedField`][].
    """

    fn: VF
    guard: Guard = Guard()
    jacobian: AbstractJacobian | None = eqx.field(default=None, converter=as_jacobian)

    def __check_init__(self):
        _check_guard(self.guard)
        _check_field(self.fn)

    def __call__(self, t: ScalarLike, y: Y, args: Args) -> PyTree:
        return evaluate(self, t, y, args)

    def activity(self, t: ScalarLike, y: Y, args: Args = None) -> GuardActivity:
        """As [`GuardedField.activity`][]."""
        return _activity(self.guard, self.fn, t, y, args)


def _parts(field: GuardedField | Guarded) -> tuple[Guard, VF, str]:
    """The guard, the function, and what errors call it; a function of numbers, where the field has
    parameters."""
    field = natural(field)
    if isinstance(field, Guarded):
        name = getattr(field.fn, "__name__", type(field.fn).__name__)
        return field.guard, field.fn, f"The field `{name}`"
    return field.guard, field.vector_field, f"`{type(field).__name__}.vector_field`"


def bare(field: VF) -> tuple[Guard, VF]:
    """The guard of a field (the empty one if it has none), and the field without it."""
    return _parts(as_guarded(field))[:2]


def evaluate(
    field: GuardedField | Guarded, t: ScalarLike, y: Y, args: Args, rounding: float = 0.0
) -> PyTree:
    """What calling a guarded field does; `rounding` as in `gate`."""
    call = functools.partial(gate, rounding=rounding)
    return _evaluate(*_parts(field), t, y, natural(args), call, True)


def evaluate_ungated(
    field: GuardedField | Guarded,
    t: ScalarLike,
    y: Y,
    args: Args,
    shift: PyTree | None = None,
    *,
    tangent: bool = False,
) -> PyTree:
    """What calling a guarded field does, with derivatives that are not made safe, for callers
    that are not differentiated or look at what they get. With a `shift`, at the clipped `y` plus
    that. Without the `tangent`, for callers that stay inside the box, or go on outside by
    themselves."""

    def call(fn, t, y, args, lower, upper):
        return fn(t, y if shift is None else jtu.tree_map(jnp.add, y, shift), args)

    return _evaluate(*_parts(field), t, y, args, call, tangent)


def evaluate_aside(
    field: GuardedField | Guarded, t: ScalarLike, y: Y, args: Args, shift: PyTree
) -> PyTree:
    """As `evaluate_ungated`, but with the value at the clipped `y`."""

    def call(fn, t, y, args, lower, upper):
        still, t_still, y_still, args_still = stop((close(fn, t, y, args), t, y, args))
        nothing = spread(optax.tree.zeros_like(y_still), still, t_still, args_still)
        value = only_where(moved, lambda: still(t_still, y_still, args_still), nothing)
        out = fn(t, jtu.tree_map(jnp.add, y, shift), args)
        return jtu.tree_map(
            lambda x, v: jnp.where(moved, v + (x - lax.stop_gradient(x)), x), out, value
        )

    moved = any_nonzero(shift)
    return _evaluate(*_parts(field), t, y, args, call, True)


def as_guarded(field: VF) -> GuardedField | Guarded:
    """`field` itself if it is guarded, or with the empty guard around it."""
    return field if isinstance(field, GuardedField | Guarded) else Guarded(field)
