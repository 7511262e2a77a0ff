"""Neural fields in scaled form."""

from typing import final

import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._fields import Guard, GuardedField
from .._series import Series
from .._static import Static, concrete_array, real_array, real_number
from .._types import Args, Explained, NumbersLike, ScalarLike, Y, YLike, typechecked
from .._words import short
from ._sized import positive


@jtu.register_static
class Scales:
    """The sizes of a state and of time, in which a network sees numbers near one, and in which the
    misfit of every component counts alike.

    A value object: no PyTree leaves, compared and hashed by content, never trained.

    **Arguments:**

    - `yscale`: > 0, one number for each component [state], in the structure of the state.
    - `tscale`: > 0, a number [time].

    **Raises:** `ValueError` for a scale that is not finite and positive; `TypeError` for a traced
    one.
    """

    @typechecked
    def __init__(self, yscale: YLike, tscale: ScalarLike):
        def leaf(path, x):
            where = f"yscale{jtu.keystr(path)}"
            value = real_array(x, where)
            if not (np.isfinite(value) & (value > 0)).all():
                raise ValueError(f"`{where}` must be finite and > 0, got {short(x)}.")
            return value

        self.yscale = jtu.tree_map_with_path(leaf, yscale)
        self.tscale = positive(real_number(tscale, "tscale"), "tscale")
        self._key = Static((self.yscale, self.tscale))

    @classmethod
    @typechecked
    def fit(
        cls, ts: Explained[NumbersLike | Series], ys: YLike | None = None, *, axis: int = 0
    ) -> "Scales":
        """The scales of data: `yscale` is the largest |y| of each component (1 for a component
        that is zero throughout), `tscale` the time from the first to the last, as in Kim et al.
        (2021).

        **Arguments:**

        - `ts`: times, shape `(times,)`; two or more. Or a [`Series`][], whose observables are the
            components of the state in their order; what was not measured does not count.
        - `ys`: states at `ts`, as in `Simulation.ys`: leaves of shape `(times, *state)`, or
            `(*samples, times, *state)`.
        - `axis`: of `times` in `ys`; those before it are samples. By default 0.

        **Raises:** `ValueError` for shapes that do not fit, or numbers that are not finite.
        """
        if isinstance(ts, Series):
            if ys is not None:
                raise TypeError("`ys` are those of the series: give one of them.")
            return cls(*_sizes_of(ts))
        times = real_array(ts, "ts")
        if ys is None:
            raise TypeError("`ys` is missing: the states at the times `ts`.")
        if times.ndim != 1 or times.size < 2 or not np.isfinite(times).all():
            raise ValueError(f"`ts` must be a vector of two or more finite times, got {short(ts)}.")
        if axis < 0:
            raise ValueError(f"`axis` must be at least 0, got {axis}.")

        def leaf(path, y):
            where = f"ys{jtu.keystr(path)}"
            value = np.abs(real_array(y, where))
            if value.ndim <= axis or value.shape[axis] != times.size:
                raise ValueError(
                    f"`{where}` has shape {value.shape}, which has not the {times.size} times of "
                    f"`ts` at axis {axis}."
                )
            if not np.isfinite(value).all():
                raise ValueError(f"`{where}` holds numbers that are not finite.")
            size = value.max(axis=tuple(range(axis + 1)))
            return np.where(size > 0, size, 1.0)

        return cls(jtu.tree_map_with_path(leaf, ys), float(np.ptp(times)))

    def _yscale(self, y: PyTree, name: str) -> PyTree[Array]:
        """`yscale` in the dtype of `y`."""
        if jtu.tree_structure(y) != jtu.tree_structure(self.yscale):
            raise ValueError(
                f"`{name}` has the structure {jtu.tree_structure(y)}, but `yscale` has "
                f"{jtu.tree_structure(self.yscale)}. A list or tuple is tree structure: for the "
                "components of an array, use `np.array([...])`."
            )
        return jtu.tree_map(lambda s, x: jnp.asarray(s, jnp.result_type(x)), self.yscale, y)

    @typechecked
    def loss(self, ys: YLike, data: Explained[YLike | Series]) -> Float[Array, ""]:
        """The mean of |ys - data| / yscale over all that the arrays hold: the loss of Kim et al.
        (2021), in which a component of size 1e-5 counts as much as one of size 1.

        **Arguments:**

        - `ys`, `data`: states, with any axes before those of the state; of equal shapes. Or `data`
            is a [`Series`][], and `ys` the states at its times, an array of shape `(conditions,
            times, components)`; the mean is over what was measured.

        **Returns:** a scalar; for one value a sample, `jax.vmap` it.

        **Raises:** `ValueError` if shapes or structures differ.
        """
        if isinstance(data, Series):
            return self._loss_of(jnp.asarray(ys), data)
        ys, data = (jtu.tree_map(jnp.asarray, x) for x in (ys, data))
        scale = self._yscale(ys, "ys")
        self._yscale(data, "data")

        def leaf(a, b, s):
            if a.shape != b.shape or a.shape[a.ndim - s.ndim :] != s.shape:
                raise ValueError(
                    f"`ys` has shape {a.shape}, `data` {b.shape}; both must be equal and end with "
                    f"the shape of `yscale`, {s.shape}."
                )
            return jnp.abs(a - b) / jnp.expand_dims(s, tuple(range(a.ndim - s.ndim)))

        errors = jtu.tree_leaves(jtu.tree_map(leaf, ys, data, scale))
        return jnp.mean(jnp.concatenate([e.reshape(-1) for e in errors]))

    def _loss_of(self, ys: Array, series: Series) -> Array:
        if ys.shape != series.values.shape:
            raise ValueError(
                f"`ys` has shape {ys.shape}, but the series has {series.values.shape}: the states "
                "of each condition at its times."
            )
        scale = self._yscale(ys[0, 0], "ys")
        measured = series.measured
        # In both, so that no nan has a way out.
        error = jnp.where(measured, ys, 0) - jnp.where(measured, series.values, 0)
        return jnp.sum(jnp.abs(error) / jnp.expand_dims(scale, (0, 1))) / jnp.maximum(
            jnp.sum(measured.astype(ys.dtype)), 1
        )

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return type(other) is Scales and self._key == other._key

    def __repr__(self) -> str:
        return f"Scales(yscale={self.yscale!r}, tscale={self.tscale!r})"


def _sizes_of(series: Series) -> tuple[np.ndarray, float]:
    ts, values = (concrete_array(x, "ts") for x in (series.ts, series.values))
    times = ts[np.isfinite(ts)]
    size = np.where(np.isfinite(values), np.abs(values), 0).max(axis=(0, 1))
    span = float(np.ptp(times))
    if span == 0:
        raise ValueError("All times of the series are equal: they have no scale.")
    return np.where(size > 0, size, 1.0), span


def _in_units(guard: Guard, scales: Scales) -> Guard:
    """A guard of the scaled state as one of the state itself."""
    if guard.fill:
        raise ValueError(
            f"The guard of `network` fills with {guard.fill}, which in other units is another "
            "number for each component. Give the scaled field a guard of its own: `guard=...`."
        )
    lower = upper = None
    if guard.is_bounded:
        bounds = guard.bounds(scales.yscale)
        lower, upper = (jtu.tree_map(np.multiply, b, scales.yscale) for b in bounds)
    pull = guard.pull / scales.tscale
    return Guard(lower, upper, fill=guard.fill, pull=pull, reject=guard.reject)


@final
class ScaledNeuralField(GuardedField):
    """A neural field in scaled form: dy/dt = yscale / tscale * network(t / tscale, y / yscale).

    ```python
    scales = sx.Scales.fit(ts, ys)
    field = sx.ScaledNeuralField(sx.MLPField(3, 16, 2, key=key), scales)
    loss = scales.loss(simulation.ys, ys)
    ```

    The network sees states near one and returns rates near one, whatever their units are, and the
    loss weighs all components alike: what makes neural ODEs of stiff systems trainable. What the
    network guarantees in its coordinates (contraction, stability, positivity) holds in these too.

    Cost: that of the network. Reference: Kim, Ji, Deng, Ma and Rackauckas (2021), Stiff neural
    ordinary differential equations, Chaos 31, 093122.

    **Arguments:**

    - `network`: a guarded field in scaled coordinates, such as [`MLPField`][] or one that is
        stable by construction.
    - `scales`: a [`Scales`][]; `Scales.fit(ts, ys)` takes them from data.
    - `guard`: a [`Guard`][] in the units of the state; by default that of `network`, converted.

    **Raises:** `ValueError` if `yscale` has not the structure of the state.
    """

    network: GuardedField
    scales: Scales

    @typechecked
    def __init__(self, network: GuardedField, scales: Scales, *, guard: Guard | None = None):
        self.network = network
        self.scales = scales
        self.guard = _in_units(network.guard, scales) if guard is None else guard

    def vector_field(self, t: ScalarLike, y: Y, args: Args) -> PyTree:
        yscale, tscale = self.scales._yscale(y, "y"), self.scales.tscale
        scaled = jtu.tree_map(jnp.divide, y, yscale)
        out = self.network.vector_field(t / tscale, scaled, args)
        return jtu.tree_map(lambda dy, s: s / tscale * dy, out, yscale)
