"""`Input`: a function of time that drives a field, given at knots."""

from collections.abc import Callable
from typing import Any, Literal, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, ArrayLike, PyTree

from .._static import Frozen, is_real, is_traced, refuse_masked
from .._types import Explained, NumbersLike, ScalarLike, YLike, typechecked
from .._words import short


@final
class Input(eqx.Module):
    """A function of time, given by its values at knots: what drives a field from outside.

    ```python
    light = sx.Input([0.0, 6.0, 18.0], [0.0, 1.0, 0.0], kind="previous")
    model = sx.Simulate(lambda t, y, args: light(t) - y)
    ```

    The models know where its kinks and jumps are, and end a step at each: `jump_ts` need not be
    given. It can be an attribute of a field, stand in `args` (where `vmap` gives each lane its
    own), be closed over or made in the field, and be one of the `inputs` of a [`ReactionField`][].
    It has to be called with the `t` of the field itself: an input that comes later is one with
    other knots, `sx.Input(ts + delay, values)`.

    Solutions are differentiable in its values and in its knots, in both modes; in the knots of one
    that jumps, too (kind `"previous"`), which are switch times. There a derivative is the
    jump of the field times what follows, second derivatives are right, and those beyond are not.
    Where several that move jump at one time, it is that of moving them together, in equal shares:
    what switches together is one input with several signals. A knot at the end of a solve can only
    move into it, one at the start has no derivative.

    **Arguments:**

    - `ts`: the knots, strictly rising [time], shape `(knots,)`. Those at the end may be inf or nan,
        which are none: inputs with different numbers of knots are padded with it.
    - `values`: of one signal, shape `(knots, ...)`; or a PyTree of such arrays, of several. (Lists
        of numbers are arrays.)
    - `kind`: between the knots: `"linear"`; `"previous"`, the value at the knot before, also at the
        knot itself; `"cubic"`, a Hermite polynomial whose slope at a knot is that of the chord to
        the knot before (diffrax's `backward_hermite_coefficients`), once differentiable.
    - `outside`: before the first and after the last knot: `"constant"`, the value there; `"zero"`;
        or `"nan"`, with which a solve that comes there fails.

    `ts` and `values` are leaves, which train with the field whose attribute the input is. Given as
    [`Frozen`][] they are constants.

    **Raises:** `ValueError` or `TypeError` for knots that do not rise, and values that do not fit
    them; when a model is called, for knots that depend on the time or the state. (Where knots are
    traced and do not rise, the result of the solve is `bad_knots`.)
    """

    ts: Array | Frozen
    values: PyTree[Array | Frozen]
    kind: str = eqx.field(static=True)
    outside: str = eqx.field(static=True)

    @typechecked
    def __init__(
        self,
        ts: Explained[NumbersLike | Frozen],
        values: Explained[YLike | Frozen],
        kind: Literal["linear", "previous", "cubic"] = "linear",
        *,
        outside: Literal["constant", "zero", "nan"] = "constant",
    ):
        self.ts = _numbers(ts, "ts")
        _check_knots(self.ts)
        self.values = jtu.tree_map_with_path(
            lambda path, x: _numbers(x, f"values{jtu.keystr(path)}"), values, is_leaf=_is_array
        )
        _check_values(self.values, self.ts.shape[0])
        self.kind, self.outside = kind, outside

    def __call__(self, t: ScalarLike, y: Any = None, args: Any = None) -> PyTree[Array]:
        """The signals at time `t`.

        **Arguments:**

        - `t`: the time, shape `()`; or an array of times, to look at it.
        - `y`, `args`: not looked at; so an input is a function of the `inputs` of a
            [`ReactionField`][].

        **Returns:** the structure of `values`, each of the shape of one of its rows (behind the
        axes of `t`).
        """
        if jnp.ndim(t) > 0:
            return jax.vmap(self)(jnp.asarray(t))
        if self.ts.ndim != 1:
            raise ValueError(
                f"`ts` of the `Input` has shape {self.ts.shape}, with an axis of samples: call the "
                "model under `jax.vmap`, or give the input in the `inputs` of `simulate_batch`."
            )
        arrays = [jnp.asarray(x) for x in jtu.tree_leaves(self.values, is_leaf=_is_frozen)]
        ends, between = self.outside != "constant", self.kind == "previous"
        ts = KNOTS.bind(jnp.asarray(self.ts), *arrays, ends=ends, between=between)
        is_time = eqx.is_array(t) and jnp.issubdtype(jnp.result_type(t), jnp.floating)
        t = jnp.asarray(t, None if is_time else ts.dtype)
        ts = knots_of(ts).astype(t.dtype)
        last = jnp.maximum(jnp.sum(jnp.isfinite(ts)) - 1, 0)
        before, after = t < ts[0], t > ts[last]
        at = jnp.where(before, ts[0], jnp.where(after, ts[last], t))
        place = jnp.clip(jnp.sum(ts <= at) - 1, 0, last)
        value = _INTERPOLATIONS[self.kind](ts, at, place, last)

        def leaf(values):
            values = jnp.asarray(values)
            out = value(values).astype(values.dtype)
            if self.outside == "constant":
                return out
            return jnp.where(before | after, 0.0 if self.outside == "zero" else jnp.nan, out)

        return jtu.tree_map(leaf, self.values, is_leaf=_is_frozen)


# diffrax's interpolations search for the interval in a loop: within a field, in each stage of each
# step, that takes 1.3 to 1.4 times as long, and its gradient 1.6 times.


def _previous(ts: Array, t: Array, place: Array, last: Array) -> Callable[[Array], Array]:
    """Of values at the knots `ts` that at `t`, which is from knot `place` on; behind the `last` one
    they stay as they are."""
    return lambda values: values[place]


def _linear(ts: Array, t: Array, place: Array, last: Array) -> Callable[[Array], Array]:
    """As `_previous`."""
    after = jnp.minimum(place + 1, last)
    part = (t - ts[place]) / _length(ts[after] - ts[place])
    return lambda values: (
        values[place] + part.astype(values.dtype) * (values[after] - values[place])
    )


def _cubic(ts: Array, t: Array, place: Array, last: Array) -> Callable[[Array], Array]:
    """As `_previous`: what diffrax's `backward_hermite_coefficients` say, of the one interval."""
    before, after = jnp.maximum(place - 1, 0), jnp.minimum(place + 1, last)
    length, length_before = _length(ts[after] - ts[place]), _length(ts[place] - ts[before])
    part = (t - ts[place]) / length

    def value(values):
        step = values[after] - values[place]
        # That of the interval before it, if there is one, at its length.
        ratio = (length / length_before).astype(values.dtype)
        slope = jnp.where(place > 0, (values[place] - values[before]) * ratio, step)
        p = part.astype(values.dtype)
        return values[place] + p * (slope + p * (2 - p) * (step - slope))

    return value


def _length(x: Array) -> Array:
    """`x`, or what can be divided by where there is no interval."""
    return jnp.where(x > 0, x, 1)


_INTERPOLATIONS = {"previous": _previous, "linear": _linear, "cubic": _cubic}


# What an input leaves of itself in the program of a field: `ts`, of which it is the identity, with
# the arrays of values; and whether they jump at the `ends` and at knots `between`.
KNOTS = Primitive("knots")
KNOTS.def_impl(lambda ts, *values, **params: ts)
KNOTS.def_abstract_eval(lambda ts, *values, **params: ts)
mlir.register_lowering(KNOTS, lambda ctx, ts, *values, **params: [ts])


def _jvp(primals, tangents, **params):
    return KNOTS.bind(*primals, **params), tangents[0]


def _batch(operands, axes, *, axis_data=None, **params):
    size = next(x.shape[a] for x, a in zip(operands, axes, strict=True) if a is not None)
    wide = [
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(operands, axes, strict=True)
    ]
    return KNOTS.bind(*wide, **params), 0


ad.primitive_jvps[KNOTS] = _jvp
batching.primitive_batchers[KNOTS] = _batch


def _is_input(x: object) -> bool:
    return isinstance(x, Input)


def inputs_in(*trees: PyTree) -> list[Input]:
    """Those that are parts of `trees`, with their knots."""
    found = filter(_is_input, jtu.tree_leaves(trees, is_leaf=_is_input))
    return [one for one in found if one.ts is not None]


def _is_frozen(x: object) -> bool:
    return isinstance(x, Frozen)


def _is_array(x: object) -> bool:
    """Whether it is one, or lists of numbers, which are meant as one."""
    if not isinstance(x, list | tuple):
        return _is_frozen(x)
    leaves = jtu.tree_leaves(x)
    return bool(leaves) and all(isinstance(leaf, int | float) for leaf in leaves)


def _numbers(x: object, name: str) -> Array | Frozen:
    refuse_masked(x, name)
    is_frozen = isinstance(x, Frozen)
    given = x.value if is_frozen else x
    given: Any = given if eqx.is_array(given) else np.asarray(given)
    if not is_real(given.dtype):
        raise TypeError(f"`{name}` must be real numbers, got {short(x)}.")
    is_floating = jnp.issubdtype(given.dtype, jnp.floating)
    if is_frozen:
        return x if is_floating else Frozen(given.astype(float))
    return jnp.asarray(given, given.dtype if is_floating else float)  # no weak type


def knots_of(ts: Array) -> Array:
    """`ts`, where what is no knot is inf."""
    return jnp.where(jnp.isfinite(ts), ts, jnp.inf)


def _check_knots(ts: Array | Frozen) -> None:
    if ts.ndim != 1 or ts.shape[0] == 0:
        raise ValueError(
            f"`ts` must be a vector of one or more knots, got shape {ts.shape}. Of a batch, make "
            "each its own under `jax.vmap`: `jax.vmap(sx.Input)(ts, values)`."
        )
    if is_traced(ts):
        return
    knots = np.asarray(ts)
    asked = np.isfinite(knots)
    if not asked[0] or (asked[1:] & ~asked[:-1]).any():
        raise ValueError(
            f"`ts` must begin with finite times, behind which inf pads them, got {short(knots)}."
        )
    if (np.diff(knots[asked]) <= 0).any():
        k = int(np.argmax(np.diff(knots[asked]) <= 0))
        raise ValueError(
            f"`ts` must rise strictly, but ts[{k}] = {knots[k]:g} and ts[{k + 1}] = "
            f'{knots[k + 1]:g} (as {knots.dtype}). A jump is an input of `kind="previous"`.'
        )


def _check_values(values: PyTree[ArrayLike], knots: int) -> None:
    leaves = jtu.tree_leaves_with_path(values, is_leaf=_is_frozen)
    if not leaves:
        raise ValueError("`values` holds no array: an `Input` needs the values at its knots.")
    for path, leaf in leaves:
        if leaf.ndim == 0 or leaf.shape[0] != knots:
            raise ValueError(
                f"`values{jtu.keystr(path)}` has shape {leaf.shape}, but must have one row for "
                f"each of the {knots} knots."
            )
