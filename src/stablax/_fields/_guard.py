"""`Guard`: the bounds of a field, as a value."""

from typing import Literal

import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, PyTree

from .._states import broadcast_prefix, for_each_component, is_none
from .._static import Static, real_array, real_number
from .._words import short

_OUTSIDE = ("tangent", "constant")
# By the bytes of a number. Squares of the second are not zero yet.
_FROM_ZERO = {8: 1e-40, 4: 1e-18, 2: 1e-4}


def _normalise(bounds: PyTree[ArrayLike | None], name: str) -> PyTree[np.ndarray] | None:
    if bounds is None:
        return None
    missing = -np.inf if name == "lower" else np.inf

    def leaf(path, x):
        where = f"{name}{jtu.keystr(path)}"
        value = np.asarray(missing) if x is None else real_array(x, where)
        if np.isnan(value).any():
            raise ValueError(f"`{where}` holds nan: {short(x)}. Use -inf / inf for 'no bound'.")
        return value

    return jtu.tree_map_with_path(leaf, bounds, is_leaf=is_none)


def _further(bound: np.ndarray, way: int) -> np.ndarray:
    """The next number from a bound; from zero one that is small, and above the floors that fields
    give to logarithms (1e-100, often)."""
    from_zero = _FROM_ZERO[bound.dtype.itemsize]
    with np.errstate(invalid="ignore"):
        next_to = np.nextafter(bound, np.asarray(way * np.inf, bound.dtype))
    return np.where(bound == 0, np.asarray(way * from_zero, bound.dtype), next_to)


def _check_order(lower: PyTree, upper: PyTree) -> None:
    lowers, uppers = jtu.tree_leaves(lower), broadcast_prefix(upper, lower)
    if uppers is None:
        lowers, uppers = broadcast_prefix(lower, upper), jtu.tree_leaves(upper)
    if lowers is None:
        raise ValueError(
            "`lower` and `upper` cannot belong to one state: their structures are "
            f"{jtu.tree_structure(lower)} and {jtu.tree_structure(upper)}."
        )
    for low, high in zip(lowers, uppers, strict=True):
        try:
            low, high = np.broadcast_arrays(low, high)
        except ValueError:
            raise ValueError(
                "`lower` and `upper` cannot belong to one state: a leaf has shape "
                f"{low.shape} in `lower` and {high.shape} in `upper`."
            ) from None
        bad = np.argwhere(low >= high)
        if len(bad):
            index = tuple(int(i) for i in bad[0])
            at = str(list(index)) if index else ""
            raise ValueError(
                f"`lower` must be below `upper` in every component, got lower{at} = "
                f"{low[index]:g} and upper{at} = {high[index]:g}."
            )


@jtu.register_static
class Guard:
    """The admissible box of a state, and what happens at its walls.

    A value object: no PyTree leaves, compared and hashed by content. Bounds are held in
    double precision and applied in the dtype of the state.

    **Arguments:**

    - `lower`, `upper`: the bounds, in the units of the state. A number applies to every
        component; an array to the components of a leaf (it broadcasts); lists, tuples and
        dicts are tree structure and must match the state's (or a prefix of it). `None` and
        -inf / +inf are no bound. The bounds themselves are inside.
    - `fill`: what a non-finite output of the field becomes. `None` (the default): it stays
        non-finite, so that the step is rejected, and only its derivative is made safe. A
        number: it is replaced by that number, and counted.
    - `pull`: rate >= 0 [1/time] of a restoring term `pull * (clip(y) - y)`, which draws a
        state outside the box back. 0 inside.
    - `outside`: how the field goes on outside the box. `"tangent"` (the default): along its
        tangent at the nearest point c of the box, f(c) + J(c) (y - c), so that value and slope
        are continuous and a species that hovers about its bound stays damped. `"constant"`: f(c).
        Either way the field is evaluated inside the box only.
    - `reject`: `True` (the default): the box is the admissible domain, and a step that
        leaves it by more than `atol + rtol |bound|` is rejected and retried with a smaller
        step. `False`: the box limits only where the field is evaluated.

    **Raises:** `ValueError` for lower >= upper, nan bounds, structures that cannot match;
    `TypeError` for a traced bound.
    """

    def __init__(
        self,
        lower: PyTree[ArrayLike | None] = None,
        upper: PyTree[ArrayLike | None] = None,
        *,
        fill: float | None = None,
        pull: float = 0.0,
        outside: Literal["tangent", "constant"] = "tangent",
        reject: bool = True,
    ):
        self.lower = _normalise(lower, "lower")
        self.upper = _normalise(upper, "upper")
        if self.lower is not None and self.upper is not None:
            _check_order(self.lower, self.upper)
        self.fill = None if fill is None else real_number(fill, "fill")
        if self.fill is not None and not np.isfinite(self.fill):
            raise ValueError(f"`fill` must be finite or None, got {short(fill)}.")
        self.pull = real_number(pull, "pull")
        if not (np.isfinite(self.pull) and self.pull >= 0):
            raise ValueError(f"`pull` must be a finite rate >= 0, got {short(pull)}.")
        if outside not in _OUTSIDE:
            raise ValueError(f"`outside` must be one of {_OUTSIDE}, got {short(outside)}.")
        self.outside = outside
        if not isinstance(reject, bool):
            raise TypeError(f"`reject` must be True or False, got {short(reject)}.")
        self.reject = reject
        self._key = Static(
            (self.lower, self.upper, self.fill, self.pull, self.outside, self.reject)
        )

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return type(other) is Guard and self._key == other._key

    def __repr__(self) -> str:
        defaults = dict(lower=None, upper=None, fill=None, pull=0.0, outside="tangent", reject=True)

        def show(x):
            if isinstance(x, np.ndarray):
                # As it can be pasted: numpy writes `inf`.
                text = repr(x.item()) if x.ndim == 0 else f"np.{x!r}"
                return text.replace("inf", "np.inf")
            if isinstance(x, dict):
                return "{" + ", ".join(f"{k!r}: {show(v)}" for k, v in x.items()) + "}"
            if type(x) in (list, tuple):
                return type(x).__name__ + "((" + ", ".join(map(show, x)) + ",))"
            return repr(x)

        def is_default(x, default):
            return x is default or isinstance(x, float | str) and x == default

        given = [
            f"{k}={show(getattr(self, k))}"
            for k, d in defaults.items()
            if not is_default(getattr(self, k), d)
        ]
        return f"Guard({', '.join(given)})"

    def bounds(self, y: PyTree[Array]) -> tuple[PyTree[np.ndarray], PyTree[np.ndarray]]:
        """The bounds in the structure, shapes and dtype of `y`.

        **Raises:** `ValueError` if they do not fit the state.
        """
        return self._fit(self.lower, "lower", -np.inf, y), self._fit(self.upper, "upper", np.inf, y)

    def _fit(self, bounds: PyTree, name: str, missing: float, y: PyTree[Array]) -> PyTree:
        bounds = np.asarray(missing) if bounds is None else bounds
        return for_each_component(bounds, y, f"`Guard({name}=...)`")

    @property
    def is_bounded(self) -> bool:
        """Whether any component has a bound."""
        return any(np.isfinite(x).any() for x in jtu.tree_leaves((self.lower, self.upper)))

    def clip(self, y: PyTree[Array]) -> PyTree[Array]:
        """`y` moved into the box. The derivative is 1 inside and on the bounds (`jnp.clip`
        halves it there) and 0 outside; nan stays nan."""
        if not self.is_bounded:
            return y
        lower, upper = self.bounds(y)
        return jtu.tree_map(
            lambda x, lo, hi: jnp.where(x < lo, lo, jnp.where(x > hi, hi, x)), y, lower, upper
        )

    @property
    def has_tangent(self) -> bool:
        """Whether the field goes on along a tangent anywhere."""
        return self.is_bounded and self.outside == "tangent"

    @property
    def is_kept(self) -> bool:
        """Whether no state of an accepted step is further outside than its tolerances, and nothing
        draws it back but the tangent."""
        return self.has_tangent and self.reject and self.pull == 0

    def inside(self, y: PyTree[Array], mirrored: bool = False) -> PyTree[Array]:
        """The point of the box whose tangent is taken at `y`: `clip(y)`, further in by a least
        amount where it was moved. On a bound a field that clips its input too has half of a slope,
        or none.

        If `mirrored`, as far inside as `y` is outside: where a slope grows without limit towards
        the bound (a root at zero), it is then none that the state is too coarse for."""
        lower, upper = self.bounds(y)
        by = (lambda excess: excess) if mirrored else jnp.zeros_like

        def leaf(x, low, high):
            # A side without a bound costs nothing: this is done in every stage of a step.
            has_low, has_high = np.isfinite(low).any(), np.isfinite(high).any()
            moved = x
            if has_low:
                above = jnp.maximum(low + by(low - x), _further(low, 1))
                moved = jnp.where(x < low, jnp.minimum(above, high) if has_high else above, moved)
            if has_high:
                below = jnp.minimum(high - by(x - high), _further(high, -1))
                moved = jnp.where(x > high, jnp.maximum(below, low) if has_low else below, moved)
            return moved

        return jtu.tree_map(leaf, y, lower, upper)

    def excess(self, y: PyTree[Array], rtol: float, atol: PyTree) -> PyTree[Array]:
        """How far each component is outside the box, in units of `atol + rtol |bound|` (`atol`: a
        number, or a PyTree as `y`); a step whose largest excess is above 1 leaves the box."""
        lower, upper = self.bounds(y)
        atols = broadcast_prefix(atol, y)
        assert atols is not None
        atols = jtu.tree_unflatten(jtu.tree_structure(y), atols)

        def leaf(x, lo, hi, atol):
            scale = lambda b: atol + rtol * np.abs(np.where(np.isfinite(b), b, 0))
            return jnp.maximum(0, jnp.maximum((lo - x) / scale(lo), (x - hi) / scale(hi)))

        return jtu.tree_map(leaf, y, lower, upper, atols)

    def contains(self, y: PyTree[Array], rtol: float, atol: PyTree) -> Bool[Array, ""]:
        """Whether `y` is in the box to within `atol + rtol |bound|`."""
        inside = [jnp.all(x <= 1) for x in jtu.tree_leaves(self.excess(y, rtol, atol))]
        return jnp.all(jnp.stack(inside))
