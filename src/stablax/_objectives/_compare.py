"""Measurements beside what a model predicts."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, PyTree

from .._fields import names_of
from .._models import AbstractModel
from .._series import Series
from .._states import as_state, stop_unless
from .._types import Args
from .._words import closest
from ._observable import Observable
from ._solve_factors import solve_factors, solve_sigmas
from ._solved import Solved


def compare(
    model: AbstractModel,
    series: Series,
    used: Bool[Array, "conditions times observables"],
    batched: bool,
    ys: PyTree[Array],
    args: Args,
    observables: tuple[Observable, ...],
    values: Mapping[str, Array],
) -> tuple[Array, Array, Array, Array, dict[str, Array]]:
    """States and measurements: the logarithms of densities, the residuals, the predictions, their
    sigma, and what was solved for. Zero where not `used`."""
    raw, sigma = _observed(model, series, used, batched, ys, args, observables, values)
    measured = jnp.where(used, series.values, 1)
    predictions, factors = solve_factors(observables, series.names, measured, raw, sigma, used)
    sigma, spreads = solve_sigmas(observables, series.names, measured, predictions, sigma, used)
    # In place of what is not used: with it, a logarithm could be none.
    predictions = jnp.where(used, predictions, 1)
    density, residuals = [], []
    for k, observable in enumerate(observables):
        parts = (measured[..., k], predictions[..., k], sigma[..., k])
        density.append(observable.noise.log_likelihood(*parts))
        residuals.append(observable.noise.residual(*parts))
    density, residuals = (jnp.stack(x, axis=-1) for x in (density, residuals))
    nothing = lambda x: jnp.where(used, x, 0)
    density, residuals, predictions, sigma = map(nothing, (density, residuals, predictions, sigma))
    return density, residuals, predictions, sigma, {**factors, **spreads}


def _observed(
    model: AbstractModel,
    series: Series,
    used: Bool[Array, "conditions times observables"],
    batched: bool,
    ys: PyTree[Array],
    args: Args,
    observables: tuple[Observable, ...],
    values: Mapping[str, Array],
) -> tuple[Array, Array]:
    """The values of all observables, without scale and offset, and their sigma as far as it is
    known; 1 where not."""
    where = jnp.where(jnp.isfinite(series.ts), series.ts, 0)
    components = _components(model, ys)
    each = 0 if batched else None

    def over_all(fn: Any, what: str, used: Array) -> Array:
        """`fn` at all times of all conditions; where not `used`, 1 and no derivative."""

        def at(t, y, args, used):
            parts = stop_unless(used, (fn, t, y, args, dict(values)))
            out = jnp.asarray(_call(parts[0], what, components, *parts[1:]))
            if out.shape != ():
                raise ValueError(f"{what} returned shape {out.shape}; return one number.")
            return jnp.where(used, out, 1)

        of_times = jax.vmap(at, in_axes=(0, 0, None, 0))
        return jax.vmap(of_times, in_axes=(0, 0, each, 0))(where, ys, args, used)

    raw, spread = [], []
    for k, (name, one) in enumerate(zip(series.names, observables, strict=True)):
        mine = used[..., k]
        raw.append(over_all(one.value.tree, f"The observable `{name}`", mine))
        sigma = None if one.noise.sigma is None else one.noise.sigma.tree
        if sigma is None:
            assert series.sigma is not None
            spread.append(jnp.where(mine, series.sigma[..., k], 1))
        elif isinstance(sigma, Solved):
            spread.append(jnp.ones(mine.shape))
        elif callable(sigma):
            spread.append(over_all(sigma, f"The `sigma` of `{name}`", mine))
        else:
            spread.append(jnp.where(mine, sigma, 1))
    return jnp.stack(raw, axis=-1), jnp.stack(spread, axis=-1)


def _components(model: AbstractModel, ys: PyTree[Array]) -> tuple[str, ...]:
    """The names of the components of the state."""
    one = jtu.tree_map(lambda x: jnp.zeros(x.shape[2:], x.dtype), ys)
    return tuple(names_of(model.field, as_state(one, "y0")))


def _call(fn: Any, what: str, names: tuple[str, ...], t, y, args, values) -> Any:
    if callable(fn):
        return fn(t, y, args, values)
    flat = jnp.concatenate([jnp.ravel(x) for x in jtu.tree_leaves(y)])
    if isinstance(fn, str):
        bare = [name.removeprefix("['").removesuffix("']") for name in names]  # of a dict
        if fn not in (*names, *bare):
            hint = closest(fn, bare)
            raise ValueError(f"{what} is `{fn}`, which is no component of the state. {hint}")
        fn = (names if fn in names else bare).index(fn)
    if not -len(names) <= fn < len(names):
        raise ValueError(f"{what} is component {fn}, but the state has {len(names)}.")
    return flat[fn]
