"""`Objective`: how unlikely data are under a model, as a function of its parameters."""

import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from .._models import AbstractModel, is_successful, simulate_batch
from .._parameters import NormalPrior, Parameter, Parameters, table_of
from .._series import Series
from .._solvers import gated
from .._static import is_traced
from .._types import Explained, typechecked
from .._words import closest, quoted, short
from ._compare import compare
from ._evaluation import Evaluation
from ._observable import Observable
from ._solved import Solved


@final
class Objective(eqx.Module):
    """Minus the logarithm of the likelihood of data, and of the prior densities, as a function of
    the parameters of a model.

    ```python
    objective = sx.Objective(
        sx.Simulate(field),
        series,
        {"B": sx.Observable("B", noise=sx.NormalNoise(sx.Parameter("sigma", 0.1, scale="log")))},
        shared=dict(y0=y0),
    )
    value, gradient = jax.value_and_grad(objective)(objective.parameters)
    ```

    All conditions are solved at once, as by [`simulate_batch`][]. It takes a [`Parameters`][]
    table, which is a PyTree for optax and all else that takes one.

    A condition that cannot be solved makes it +inf, with a gradient that is exactly zero: never an
    improvement, whatever the other conditions are. `evaluate` says which failed, and why.

    **Arguments:**

    - `model`: an [`AbstractModel`][], such as [`Simulate`][]. Its parameters are its
        [`Parameter`][]s, and its other arrays as they are.
    - `series`: a [`Series`][].
    - `observables`: an [`Observable`][] for each name of the series, or what one is made of: a
        function, or a component. By default each is the component of its own name.
    - `inputs`: arguments of the call of the model that differ between the conditions, by name,
        such as `dict(args=...)`: PyTrees whose arrays have a leading axis, the conditions. (`ts` is
        that of the series.)
    - `shared`: the other arguments of the call, such as `dict(y0=y0)`. An entry of it, or of
        `inputs`, that is a function is called with the values of all parameters by name, and
        returns the argument: `dict(y0=lambda p: jnp.stack([p["total"], 0.0]))`.
    - `parameters`: [`Parameter`][]s that only functions read.
    - `batch_size`: how many conditions are solved at a time, as [`simulate_batch`][].

    **Attributes:** `parameters`: the [`Parameters`][] as they were declared. The others are the
    arguments.

    **Raises:** `ValueError` or `TypeError` for what does not fit, by name.
    """

    model: AbstractModel
    series: Series
    observables: tuple[Observable, ...]
    inputs: dict[str, PyTree]
    shared: dict[str, PyTree]
    parameters: Parameters
    batch_size: int | None = eqx.field(static=True)

    @typechecked
    def __init__(
        self,
        model: AbstractModel,
        series: Series,
        observables: Explained[Mapping[str, Any] | None] = None,
        *,
        inputs: Mapping[str, PyTree] | None = None,
        shared: Mapping[str, PyTree] | None = None,
        parameters: Explained[Sequence[Parameter]] = (),
        batch_size: int | None = None,
    ):
        self.model, self.series, self.batch_size = model, series, batch_size
        self.inputs, self.shared = _as_jax(dict(inputs or {})), _as_jax(dict(shared or {}))
        for where, given in (("inputs", self.inputs), ("shared", self.shared)):
            if "ts" in given:
                raise ValueError(f"`{where}` has `ts`: the times are those of the series.")
        if "y0" not in self.inputs and "y0" not in self.shared:
            raise ValueError("`y0` is missing: give it in `shared`, or in `inputs`.")
        self.observables = _as_observables(observables, series)
        for name, one, k in zip(
            series.names, self.observables, range(len(series.names)), strict=True
        ):
            _check_noise(name, one, series, k)
        if wrong := [p for p in parameters if not isinstance(p, Parameter)]:
            raise TypeError(f"`parameters` must be `Parameter`s, got {short(wrong[0])}.")
        declaring = (model, self.observables, self.inputs, self.shared, tuple(parameters))
        self.parameters = table_of(declaring, model)

    def __call__(self, parameters: Parameters) -> Float[Array, ""]:
        """Minus the logarithm of the likelihood and of the prior densities.

        **Arguments:**

        - `parameters`: a table with the parameters of this objective, such as its own
            `parameters`.

        **Returns:** a number; +inf, with a gradient of zero, if a condition failed.
        """
        return _value(self, self._checked(parameters))

    def evaluate(self, parameters: Parameters) -> Evaluation:
        """The same, and what it is made of.

        **Arguments:** `parameters` as in a call.

        **Returns:** an [`Evaluation`][].
        """
        return _evaluate(self, self._checked(parameters))

    def why_no_least_squares(self) -> str | None:
        """In words, why minus the logarithm of the likelihood is no sum of squares; None, where
        it is."""
        for name, one in zip(self.series.names, self.observables, strict=True):
            if not one.noise.is_gaussian:
                return f"the noise of `{name}` is `{type(one.noise).__name__}`"
        for name, parameter in self.parameters.named.items():
            if parameter.estimate and not isinstance(parameter.prior, NormalPrior | None):
                return f"the prior of `{name}` is `{type(parameter.prior).__name__}`"
        return None

    def residuals(self, parameters: Parameters) -> tuple[Float[Array, " residuals"], Array]:
        """For an optimiser of least squares: half the sum of their squares is the value, but for a
        constant.

        A `sigma` that depends on parameters is a residual of its own, sqrt(2 log(sigma) + 50).

        **Arguments:** `parameters` as in a call.

        **Returns:** the residuals, inf if a condition failed; and the value.

        **Raises:** `ValueError` where noise or priors are not normal.
        """
        if (why := self.why_no_least_squares()) is not None:
            raise ValueError(f"There are no least squares: {why}.")
        return _residuals(self, self._checked(parameters))

    def take(self, conditions: Int[ArrayLike, " conditions"]) -> "Objective":
        """The objective of some of the conditions, as for a minibatch: a sum over fewer of them.

        **Arguments:**

        - `conditions`: their numbers, which may be traced.
        """
        at = lambda x: x[jnp.asarray(conditions)] if eqx.is_array(x) else x
        rows = jtu.tree_map(
            lambda x: x if _is_function(x) else jtu.tree_map(at, x),
            self.inputs,
            is_leaf=_is_function,
        )
        if any(map(_is_function, rows.values())):
            rows = {
                name: _Taken(x, jnp.asarray(conditions)) if _is_function(x) else x
                for name, x in rows.items()
            }
        return eqx.tree_at(
            lambda o: (o.series, o.inputs), self, (self.series.take(conditions), rows)
        )

    def __repr__(self) -> str:
        return f"Objective({type(self.model).__name__}, {self.series!r}, {self.parameters!r})"

    def _checked(self, parameters: Parameters) -> Parameters:
        if not isinstance(parameters, Parameters):
            raise TypeError(
                "An objective takes a table of parameters, such as `objective.parameters` or "
                f"`objective.parameters.with_values(...)`, got {short(parameters)}."
            )
        own = self.parameters
        if set(parameters.names) != set(own.names) or set(parameters.arrays) != set(own.arrays):
            raise ValueError(
                f"The table has the parameters {quoted(parameters.names)} and "
                f"{len(parameters.arrays)} arrays, but the objective has {quoted(own.names)} and "
                f"{len(own.arrays)} arrays: start from `objective.parameters`."
            )
        return parameters


class _Taken(eqx.Module):
    """Some rows of what a function returns."""

    fn: Callable
    rows: Array

    def __call__(self, values: Mapping[str, Array]) -> PyTree:
        return jtu.tree_map(lambda x: x[self.rows] if eqx.is_array(x) else x, self.fn(values))


def _as_jax(tree: PyTree) -> PyTree:
    """With jax arrays for those of numpy, which are data as well."""
    return jtu.tree_map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, tree)


def _is_function(x: object) -> bool:
    # An `Input` can be called, too, and is a condition.
    return isinstance(x, types.FunctionType | functools.partial | _Taken)


def _as_observables(given: Mapping[str, Any] | None, series: Series) -> tuple[Observable, ...]:
    given = {name: name for name in series.names} if given is None else given
    if not isinstance(given, Mapping):
        raise TypeError(
            f"`observables` must be a dict by the names of the series, got {short(given)}."
        )
    for name in given:
        if name not in series.names:
            hint = closest(str(name), series.names)
            raise ValueError(f"`observables` has {short(name)}, which the series has not. {hint}")
    if missing := [name for name in series.names if name not in given]:
        raise ValueError(f"`observables` has nothing for {quoted(missing)} of the series.")
    as_one = lambda x: x if isinstance(x, Observable) else Observable(x)
    return tuple(as_one(given[name]) for name in series.names)


def _check_noise(name: str, observable: Observable, series: Series, k: int) -> None:
    noise = observable.noise
    if noise.sigma is None and series.sigma is None:
        raise ValueError(
            f"The noise of `{name}` has no `sigma`, and the series has none: give one, such as "
            f"`Observable(..., noise={type(noise).__name__}(0.1))`, or `Series(..., sigma=...)`."
        )
    values = series.values[..., k]
    if noise.logarithmic and not is_traced(values):
        known = np.asarray(values)[np.isfinite(values)]
        if (known <= 0).any():
            raise ValueError(
                f"`{name}` has a measurement of {known.min():g}, of which there is no logarithm: "
                f"`{type(noise).__name__}` is for what is above 0."
            )
    if not noise.is_gaussian:
        if isinstance(observable.scale, Solved) or isinstance(observable.offset, Solved):
            raise ValueError(
                f"`{name}`: a scale or an offset is `Solved` by least squares, which is not the "
                f"largest likelihood of `{type(noise).__name__}`. Use a `Parameter`."
            )
    if noise.logarithmic and isinstance(observable.offset, Solved):
        raise ValueError(f"`{name}`: an offset is not linear in a logarithm. Use a `Parameter`.")


@eqx.filter_jit
def _value(objective: Objective, table: Parameters) -> Array:
    return _evaluated(objective, table).value


@eqx.filter_jit
def _evaluate(objective: Objective, table: Parameters) -> Evaluation:
    return _evaluated(objective, table)


# sqrt(2 log(sigma) + this) is a number for every sigma above exp(-25).
_SIGMA_OFFSET = 50.0


@eqx.filter_jit
def _residuals(objective: Objective, table: Parameters) -> tuple[Array, Array]:
    out = _evaluated(objective, table)
    parts = [out.residuals]
    used = objective.series.measured & out.successful[:, None, None]
    for k, observable in enumerate(objective.observables):
        sigma = observable.noise.sigma
        if sigma is not None and not isinstance(sigma.tree, float):
            size = 2 * jnp.log(jnp.where(used[..., k], out.sigma[..., k], 1)) + _SIGMA_OFFSET
            parts.append(jnp.where(used[..., k], jnp.sqrt(size), 0))
    for parameter in table.named.values():
        prior, x = parameter.prior, parameter.coordinate
        if isinstance(prior, NormalPrior) and x is not None:
            at = parameter.value if prior.of == "value" else x
            parts.append((at - prior.mean) / prior.standard_deviation)
    flat = jnp.concatenate([jnp.ravel(x) for x in parts])
    return jnp.where(jnp.isfinite(out.value), flat, jnp.inf), out.value


def _evaluated(objective: Objective, table: Parameters) -> Evaluation:
    series, values = objective.series, table.values
    model, observables = table.natural(objective.model), table.natural(objective.observables)
    inputs, shared = (
        {name: x(values) if _is_function(x) else table.natural(x) for name, x in given.items()}
        for given in (objective.inputs, objective.shared)
    )
    _check_conditions(inputs, len(series))
    inputs = {**inputs, "ts": series.ts}
    simulations = simulate_batch(
        model, inputs, shared=shared, batch_size=objective.batch_size, throw=False
    )
    ok = is_successful(simulations)
    used = series.measured & ok[:, None, None]
    args = inputs.get("args", shared.get("args"))
    batched = "args" in inputs

    def compared(ys, args, observables, values):
        return compare(model, series, used, batched, ys, args, observables, values)

    # Where something is not finite, the value is inf and has no derivative.
    density, residuals, predictions, sigma, solved = gated(
        compared, (simulations.ys, args, observables, values)
    )
    each = jnp.sum(density, axis=(1, 2))
    ok &= jnp.isfinite(each)
    prior = table.log_prior()
    # Selected before the sum, so that a nan of a failed condition has no way out.
    total = -jnp.sum(jnp.where(ok, each, 0)) - prior
    return Evaluation(
        value=jnp.where(jnp.all(ok) & jnp.isfinite(total), total, jnp.inf),
        log_likelihoods=jnp.where(ok, each, -jnp.inf),
        log_prior=prior,
        predictions=predictions,
        sigma=sigma,
        residuals=residuals,
        solved=solved,
        simulations=simulations,
        successful=ok,
        conditions=series.conditions,
        names=series.names,
    )


def _check_conditions(inputs: Mapping[str, PyTree], conditions: int) -> None:
    for name, tree in inputs.items():
        for path, x in jtu.tree_leaves_with_path(tree):
            if eqx.is_array_like(x) and jnp.shape(x)[:1] != (conditions,):
                raise ValueError(
                    f"`inputs[{name!r}]{jtu.keystr(path)}` has shape {jnp.shape(x)}, but there "
                    f"are {conditions} conditions: give one entry for each, or put it in `shared`."
                )
