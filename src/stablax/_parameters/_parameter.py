"""`Parameter`: a number of a model that has a name."""

import math
from typing import Any, Literal, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._static import Frozen, Static, is_traced, real_array
from .._types import Explained, NumbersLike, typechecked
from .._words import called, short
from ._declares import Declares
from ._priors import AbstractPrior

ParameterScale = Literal["linear", "log", "log10"]
Bounds = tuple[NumbersLike | None, NumbersLike | None]

_LN10 = math.log(10)


@final
class Parameter(Declares):
    """A number of a model that has a name, where the model takes a number.

    ```python
    k = sx.Parameter("k", 0.3, scale="log10", bounds=(1e-3, 1e3))
    field = sx.ReactionField(["A -> B"], [sx.MassAction(k)])
    model = sx.Simulate(field)
    table = sx.parameters(model)        # by name; an optimiser takes it
    ```

    It is a leaf of the model as any other, in the coordinate in which it is estimated: its
    logarithm, with `scale="log"`. The models put its value in its place. A field of your own sees
    the number: `self.k` in a [`GuardedField`][] is it, and so is `args["k"]`. What is called
    outside a model gets the numbers by [`natural`][]; a `Parameter` itself is no number, and an
    operation on it raises an error.

    The same name is the same parameter: [`parameters`][] has it once, however many places there
    are, and an [`Objective`][] trains it as one. (Two places in a model that is trained without a
    table are two leaves.)

    **Arguments:**

    - `name`: unique among the parameters.
    - `value`: a number, or an array, in its own unit; with a `scale` that is a logarithm > 0. Of a
        floating-point array it keeps the dtype.
    - `scale`: of the coordinate in which it is estimated: `"linear"`, `"log"` (natural) or
        `"log10"`.
    - `bounds`: `(lower, upper)`, in its own unit; None for one that is not there. The value is
        inside.
    - `prior`: an [`AbstractPrior`][], such as [`NormalPrior`][].
    - `estimate`: False for one that is held: then it is no leaf.

    **Attributes:** `name`, `scale`, `prior`, `estimate`; `value`; `coordinate`, the leaf (None if
    it is held); `bounds`, two arrays.

    **Raises:** `ValueError` for a value that is not finite, not positive where it must be, or
    outside the bounds.
    """

    coordinate: Float[Array, "..."] | None
    _held: Frozen | None
    name: str = eqx.field(static=True)
    scale: ParameterScale = eqx.field(static=True)
    _bounds: Static
    prior: AbstractPrior | None = eqx.field(static=True)

    @typechecked
    def __init__(
        self,
        name: str,
        value: Explained[NumbersLike],
        *,
        scale: ParameterScale = "linear",
        bounds: Explained[Bounds | None] = None,
        prior: Explained[AbstractPrior | None] = None,
        estimate: bool = True,
    ):
        if not name or name != name.strip() or any(c in name for c in "\t\n"):
            raise ValueError(f"`name` must be a word, got {short(name)}.")
        if prior is not None and not isinstance(prior, AbstractPrior):
            raise TypeError(
                f"The `prior` of `{name}` must be an `AbstractPrior`, such as `NormalPrior(mean, "
                f"standard_deviation)`, got {short(prior)}."
            )
        self.name, self.scale, self.prior = name, scale, prior
        known = None if is_traced(value) else real_array(value, f"value of `{name}`")
        shape = np.shape(value) if known is None else known.shape
        lower, upper = _bounds_of(bounds, scale, name, shape)
        self._bounds = Static((lower, upper), "bounds")
        if known is not None:
            _check_value(known, lower, upper, scale, name)
        if estimate:
            dtype = getattr(value, "dtype", None)
            floating = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
            array = jnp.asarray(value, dtype if floating else float)
            self.coordinate, self._held = self.to_coordinate(array), None
        else:
            self.coordinate, self._held = None, Frozen(real_array(value, f"value of `{name}`"))

    @property
    def estimate(self) -> bool:
        return self._held is None

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        return self._bounds.tree

    @property
    def value(self) -> Array:
        """In its own unit."""
        if self._held is not None:
            return jnp.asarray(self._held.value, float)
        return self.to_value(self.coordinate)

    def to_coordinate(self, value: Any) -> Any:
        """The coordinate of a value; of a numpy array by numpy."""
        xp = np if isinstance(value, np.ndarray | float) else jnp
        if self.scale == "linear":
            return value
        with np.errstate(divide="ignore"):  # the lower bound 0
            return xp.log(value) if self.scale == "log" else xp.log10(value)

    def to_value(self, coordinate: Any) -> Any:
        """The value of a coordinate."""
        if self.scale == "linear":
            return coordinate
        return jnp.exp(_LN10 * coordinate if self.scale == "log10" else coordinate)

    def with_coordinate(self, coordinate: Array | None) -> "Parameter":
        """The same parameter elsewhere."""
        return eqx.tree_at(lambda p: p.coordinate, self, coordinate, is_leaf=lambda x: x is None)

    def with_value(self, value: NumbersLike) -> "Parameter":
        """The same parameter with another value.

        **Raises:** as `Parameter`.
        """
        lower, upper = self.bounds
        return Parameter(
            self.name,
            value,
            scale=self.scale,
            bounds=(lower, upper),
            prior=self.prior,
            estimate=self.estimate,
        )

    def same_as(self, other: "Parameter") -> bool:
        """Whether both are declared alike, whatever their values."""
        mine, theirs = (
            (p.name, p.scale, p._bounds, p.prior, p.estimate, jnp.shape(p.value))
            for p in (self, other)
        )
        return mine == theirs

    def declared(self):
        return [self]

    def put(self, replace):
        return replace(self)

    def resolved(self, value):
        return value(self)

    def __repr__(self) -> str:
        # Of a tree that is split, or of one of types, only what is left.
        known = self._held is not None or eqx.is_array(self.coordinate)
        value = short_number(self.value) if known and not is_traced(self.coordinate) else "..."
        parts = [repr(self.name), value]
        if self.scale != "linear":
            parts.append(f"scale={self.scale!r}")
        lower, upper = (short_number(bound) for bound in self.bounds)
        if (lower, upper) != (short_number(_least(self.scale)), "inf"):
            parts.append(f"bounds=({lower}, {upper})")
        if self.prior is not None:
            parts.append(f"prior={self.prior!r}")
        if not self.estimate:
            parts.append("estimate=False")
        return called("Parameter", parts)


def short_number(x: Any) -> str:
    """One number, or several, in few digits."""
    x = np.asarray(x)
    return f"{float(x):.6g}" if x.ndim == 0 else np.array2string(x, precision=6, threshold=4)


def _least(scale: ParameterScale) -> float:
    return -math.inf if scale == "linear" else 0.0


def _bounds_of(
    bounds: Bounds | None, scale: ParameterScale, name: str, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    bounds = (None, None) if bounds is None else bounds
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise TypeError(
            f"The `bounds` of `{name}` must be two numbers, (lower, upper), got {short(bounds)}."
        )
    least = _least(scale)
    given = [
        real_array(missing if bound is None else bound, f"bounds of `{name}`")
        for bound, missing in zip(bounds, (least, math.inf), strict=True)
    ]
    if any(bound.shape not in ((), shape) for bound in given):
        raise ValueError(
            f"The `bounds` of `{name}` have shapes {given[0].shape} and {given[1].shape}, but its "
            f"value has shape {shape}."
        )
    lower, upper = given
    if not (lower < upper).all():
        raise ValueError(
            f"The `bounds` of `{name}` must be (lower, upper) with lower < upper, got "
            f"{short(bounds)}. For a parameter that is held, `estimate=False`."
        )
    if (lower < least).any():
        raise ValueError(
            f"`{name}` is estimated as a logarithm (scale={scale!r}), and its lower bound is "
            f"{short_number(lower)}: give one >= 0, or scale='linear'."
        )
    return lower, upper


def _check_value(
    value: np.ndarray, lower: np.ndarray, upper: np.ndarray, scale: ParameterScale, name: str
) -> None:
    if not np.isfinite(value).all():
        raise ValueError(f"The value of `{name}` must be finite, got {short_number(value)}.")
    if scale != "linear" and not (value > 0).all():
        raise ValueError(
            f"`{name}` is estimated as a logarithm (scale={scale!r}), so its value must be above "
            f"0, got {short_number(value)}."
        )
    if not ((lower <= value) & (value <= upper)).all():
        raise ValueError(
            f"The value of `{name}`, {short_number(value)}, is outside its bounds, "
            f"{short_number(lower)} to {short_number(upper)}."
        )
