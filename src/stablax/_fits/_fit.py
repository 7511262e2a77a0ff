"""`fit`: from a start to the parameters at which a loss is small."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
import optimistix as optx
from jaxtyping import Array, PyTree

from .._objectives import Objective
from .._parameters import Parameters
from .._static import Static
from .._types import Explained, typechecked
from .._words import short
from ._checkpoint import Checkpoint, fingerprint
from ._method import AbstractMethod, Descent, Place, Search
from ._progress import Bar
from ._result import Fit

Optimiser = optax.GradientTransformation | optx.AbstractMinimiser | optx.AbstractLeastSquaresSolver
# A checkpoint is not written more often than so [s].
_SECONDS = 5.0


@typechecked
def fit(
    objective: Explained[Objective | Callable],
    start: PyTree = None,
    *,
    optimiser: Explained[Optimiser | None] = None,
    steps: int = 1000,
    data: PyTree = None,
    batch_size: int | None = None,
    seed: int = 0,
    validation: Explained[Callable | None] = None,
    validate_every: int = 10,
    patience: int | None = None,
    callbacks: Explained[Sequence[Callable]] = (),
    progress: bool = True,
    checkpoint: str | Path | None = None,
) -> Fit:
    """Searches for the parameters at which a loss is small, with an optimiser of optax or
    optimistix.

    ```python
    result = sx.fit(objective)                                            # an Objective
    result = sx.fit(loss, params, optimiser=optax.adam(1e-2), steps=500)    # any function
    ```

    It is the loop that one would write, and no optimiser: parameters are where they are put, the
    optimiser is what it is given. Where a loss or a gradient is not finite the state of the
    optimiser stays as it is, and so do the parameters in a batch: the next may do. Of all samples
    they go back, half the way to where it was finite. The best parameters are kept.

    **Arguments:**

    - `objective`: an [`Objective`][]; or a function `loss(params)`, or with `data`
        `loss(params, batch)`, that returns a number (for least squares, an array of residuals).
    - `start`: a [`Parameters`][] table, or any PyTree of floating-point arrays (`sx.partition`
        makes one of a model). By default the parameters of the objective.
    - `optimiser`: of optax, any; then parameters that leave their bounds are put back on them. Or a
        minimiser of optimistix (`BFGS`, `LBFGS`, ...), or one of least squares
        (`LevenbergMarquardt`, `Dogleg`, `GaussNewton`), which search a table in coordinates without
        bounds. By default Levenberg and Marquardt's, if the noise of the objective is normal or
        log-normal and its priors are normal, and BFGS otherwise; for another loss there is no
        default.
    - `steps`: >= 1; how many at most.
    - `data`: PyTree whose arrays have a leading axis, the samples; an objective has its own.
    - `batch_size`: how many samples (of an objective, conditions) a step sees; by default all.
        Every sample comes once before any comes again. For optimisers of optax.
    - `seed`: of the order of the samples.
    - `validation`: a function of the parameters, or another `Objective`, that is evaluated after
        every `validate_every` steps: the best parameters are those at which it is least.
    - `patience`: after how many validations without improvement to stop.
    - `callbacks`: functions `callback(step, value, params)`, called after each step with numbers
        and where the optimiser is now; one that returns True ends the fit.
    - `progress`: whether to show a bar (with `tqdm`, of the extra `train`).
    - `checkpoint`: a folder. The same call goes on where it was ended, by whatever, and returns the
        same to the last bit. The folder of another fit is refused. Written at most every five
        seconds, and at the end; where it cannot be written the fit goes on, with a warning.

    **Returns:** a [`Fit`][].

    **Raises:** `ValueError` or `TypeError` for what does not fit, by name; `OSError` for a folder
    that cannot be used.
    """
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1, got {steps}.")
    if validate_every < 1 or (patience is not None and patience < 1):
        raise ValueError("`validate_every` and `patience` must be at least 1.")
    if patience is not None and validation is None:
        raise ValueError("`patience` counts validations: give `validation`, too.")
    start = _as_start(objective, start)
    method, least_squares = _as_method(optimiser, objective, start)
    data = jtu.tree_map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, data)
    samples = _samples(objective, data)
    if batch_size is not None:
        _check_batches(batch_size, samples, method)
    if isinstance(method, Search) and isinstance(start, Parameters):
        start.unbounded()  # raises, if it is on a bound
    loss = _Loss(objective, data, least_squares, batch_size, samples)
    order = _Order(samples or 0, batch_size, seed)
    first = _begin(method, loss, start, order.batch(0))
    saved = None
    if checkpoint is not None:
        problem = dict(
            loss=fingerprint(objective), data=fingerprint(data), start=fingerprint(start),
            optimiser=fingerprint(method), order=f"{batch_size}, seed {seed}",
            validation=fingerprint((validation, validate_every)),
        )  # fmt: skip
        saved = Checkpoint(checkpoint, problem)
    watch = _Watch(start, None if validation is None else _Validation(validation), validate_every)
    return _run(method, loss, first, order, watch, steps, patience, callbacks, progress, saved)


def _run(
    method: AbstractMethod,
    loss: "_Loss",
    place: Place,
    order: "_Order",
    watch: "_Watch",
    steps: int,
    patience: int | None,
    callbacks: Sequence[Callable],
    progress: bool,
    saved: Checkpoint | None,
) -> Fit:
    if saved is not None and (found := saved.load((place, watch.best))) is not None:
        (place, watch.best), named = found
        watch.restore(named)
    last_saved = time.monotonic()
    ended = watch.ended(patience)
    with Bar(steps, watch.steps, progress) as bar:
        while ended is None and watch.steps < steps:
            place = _step(method, loss, place, order.batch(watch.steps))
            value, is_done = float(place.value), bool(place.is_done)
            if is_done:
                # It reports where it was before: one more for where it is.
                place = _step(method, loss, place, order.batch(watch.steps))
            watch.add(method, place, value, is_done, loss.batch_size is None)
            bar.show(value)
            stop = [callback(watch.steps, value, method.params_of(place)) for callback in callbacks]
            watch.has_been_stopped = any(map(bool, stop))
            ended = watch.ended(patience)
            if saved is not None and time.monotonic() - last_saved > _SECONDS:
                saved.save((place, watch.best), watch.named)
                last_saved = time.monotonic()
    watch.validate(method, place)
    if saved is not None:
        saved.save((place, watch.best), watch.named)
    return watch.fit(method, place, ended or "steps", loss.batch_size is None)


@eqx.filter_jit
def _begin(method: AbstractMethod, loss: "_Loss", start: PyTree, batch: Array | None) -> Place:
    return method.begin(loss, start, batch)


@eqx.filter_jit
def _step(method: AbstractMethod, loss: "_Loss", place: Place, batch: Array | None) -> Place:
    return method.step(loss, place, batch)


class _Loss(eqx.Module):
    """What an optimiser makes small, and the value that is reported."""

    objective: Any
    data: PyTree
    least_squares: bool = eqx.field(static=True)
    batch_size: int | None = eqx.field(static=True)
    samples: int | None = eqx.field(static=True)

    def __call__(self, params: PyTree, batch: Array | None) -> tuple[Array, Array]:
        if isinstance(self.objective, Objective):
            if self.least_squares:
                return self.objective.residuals(params)
            if batch is None:
                value = self.objective(params)
            else:  # as if there were as many as all
                assert self.batch_size is not None and self.samples is not None
                prior = params.log_prior()
                part = self.objective.take(batch)(params) + prior
                value = part * (self.samples / self.batch_size) - prior
            return value, value
        if self.data is None:
            out = self.objective(params)
        else:
            at = lambda x: x[batch] if eqx.is_array(x) and batch is not None else x
            out = self.objective(params, jtu.tree_map(at, self.data))
        out = jnp.asarray(out)
        if self.least_squares:
            return out, 0.5 * jnp.sum(out**2)
        if out.ndim:
            raise ValueError(
                f"The loss returned shape {out.shape}; return one number (an array of residuals is "
                "for an optimiser of least squares)."
            )
        return out, out


class _Validation(eqx.Module):
    fn: Any

    @eqx.filter_jit
    def __call__(self, params: PyTree) -> Array:
        return jnp.asarray(self.fn(params), float)


class _Order:
    """Which samples each step sees."""

    def __init__(self, samples: int, batch_size: int | None, seed: int):
        self.samples, self.size, self.seed = samples, batch_size, seed

    def batch(self, step: int) -> Array | None:
        if self.size is None:
            return None
        first = step * self.size
        rounds = range(first // self.samples, (first + self.size - 1) // self.samples + 1)
        orders = [np.random.default_rng([self.seed, i]).permutation(self.samples) for i in rounds]
        offset = first - rounds[0] * self.samples
        return jnp.asarray(np.concatenate(orders)[offset : offset + self.size])


class _Watch:
    """What has been seen: the best parameters, and the values of all steps."""

    def __init__(self, start: PyTree, validation: _Validation | None, every: int):
        self.best, self.best_value = start, np.inf
        self.validation, self.every = validation, every
        self.values: list[float] = []
        self.validations: list[float] = []
        self.validated: list[int] = []
        self.unused, self.is_done, self.has_been_stopped = 0, False, False
        self.is_stuck = False

    @property
    def steps(self) -> int:
        return len(self.values)

    @property
    def named(self) -> dict[str, np.ndarray]:
        """What a checkpoint keeps of it."""
        return dict(
            values=np.array(self.values),
            validations=np.array(self.validations),
            validated=np.array(self.validated, int),
            scalars=np.array(
                [self.best_value, self.unused, self.is_done, self.has_been_stopped], float
            ),
        )

    def restore(self, named: dict[str, np.ndarray]) -> None:
        self.values, self.validations = named["values"].tolist(), named["validations"].tolist()
        self.validated = named["validated"].tolist()
        best, unused, is_done, stopped = named["scalars"].tolist()
        self.best_value, self.unused = best, int(unused)
        self.is_done, self.has_been_stopped = bool(is_done), bool(stopped)

    def add(self, method, place: Place, value: float, is_done: bool, is_whole: bool) -> None:
        self.values.append(value)
        self.unused += not place.is_used
        self.is_done = is_done
        # Nothing was ever finite, and nothing will be other than it was.
        self.is_stuck = is_whole and not np.isfinite(self.values).any()
        if self.validation is not None:
            if self.steps % self.every == 0:
                self.validate(method, place)
        elif is_whole:
            self._keep(place.seen, float(place.value))

    def validate(self, method: AbstractMethod, place: Place) -> None:
        """Unless there is nothing to validate, or it has been."""
        if self.validation is None or self.steps in self.validated[-1:]:
            return
        params = method.params_of(place)
        value = float(self.validation(params))
        self.validations.append(np.inf if np.isnan(value) else value)
        self.validated.append(self.steps)
        self._keep(params, self.validations[-1])

    def _keep(self, params: PyTree, value: float) -> None:
        if value < self.best_value:
            self.best, self.best_value = params, value

    def ended(self, patience: int | None) -> str | None:
        """Why a fit ends here; None, where it goes on."""
        if self.has_been_stopped:
            return "callback"
        if self.is_done:
            return "converged"
        if self.is_stuck:
            return "failed"
        if patience is not None and len(self.validations) > patience:
            since = len(self.validations) - 1 - int(np.argmin(self.validations))
            if since >= patience:
                return "patience"
        return None

    def fit(self, method, place: Place, ended: str, is_whole: bool) -> Fit:
        best, value = self.best, self.best_value
        if self.validation is None and not is_whole:
            best, value = method.params_of(place), self.values[-1]
        if not np.isfinite(self.values).any():
            ended = "failed"
        return Fit(
            parameters=best,
            value=float(value),
            values=np.array(self.values),
            validations=np.array(self.validations),
            validated=np.array(self.validated, int),
            steps=self.steps,
            ended=ended,
            unused=self.unused,
        )


def _as_start(objective: object, start: PyTree) -> PyTree:
    if not isinstance(objective, Objective) and not callable(objective):
        raise TypeError(
            f"`objective` must be an `Objective` or a function, got {short(objective)}."
        )
    if start is None:
        if not isinstance(objective, Objective):
            raise TypeError("`start` is missing: the parameters at which the search begins.")
        start = objective.parameters
    leaves = jtu.tree_leaves(start)
    if not leaves:
        raise ValueError("`start` holds no array: there is nothing to fit.")
    for path, x in jtu.tree_leaves_with_path(start):
        if not eqx.is_inexact_array_like(x):
            raise TypeError(
                f"`start{jtu.keystr(path)}` is {short(x)}, and not a floating-point array. Of a "
                "model, `params, static = sx.partition(model)` are those that are trained, and "
                "the rest."
            )
    return jtu.tree_map(lambda x: jnp.asarray(x, jnp.result_type(x)), start)


def _as_method(
    optimiser: Optimiser | None, objective: object, start: PyTree
) -> tuple[AbstractMethod, bool]:
    own = objective if isinstance(objective, Objective) else None
    if optimiser is None:
        if own is None:
            raise TypeError("`optimiser` is missing, such as `optax.adam(1e-2)`.")
        makes = optx.BFGS if own.why_no_least_squares() else optx.LevenbergMarquardt
        optimiser = makes(rtol=1e-6, atol=1e-8)
    if isinstance(optimiser, optx.AbstractLeastSquaresSolver):
        if own is not None and (why := own.why_no_least_squares()) is not None:
            raise ValueError(
                f"`{type(optimiser).__name__}` is for least squares, but {why}. "
                "`optimistix.BFGS(rtol=1e-6, atol=1e-8)` takes any likelihood."
            )
        count = sum(x.size for x in jtu.tree_leaves(start))
        residuals = np.inf if own is None else own.series.values.size
        mode = "fwd" if count <= residuals else "bwd"
        return Search(Static(optimiser), Static((("jac", mode),))), True
    if isinstance(optimiser, optx.AbstractMinimiser):
        return Search(Static(optimiser), Static(())), False
    if not isinstance(optimiser, optax.GradientTransformation):
        raise TypeError(
            "`optimiser` must be one of optax, or a minimiser or least squares solver of "
            f"optimistix, got {short(optimiser)}."
        )
    return Descent(Static(optimiser)), False


def _samples(objective: object, data: PyTree) -> int | None:
    if isinstance(objective, Objective):
        if data is not None:
            raise ValueError("`data` is for a function; an `Objective` has its own.")
        return len(objective.series)
    sizes = {x.shape[0] if x.ndim else 0 for x in jtu.tree_leaves(data) if eqx.is_array(x)}
    if len(sizes) > 1:
        raise ValueError(f"The arrays of `data` must have one leading axis, got {sorted(sizes)}.")
    return sizes.pop() if sizes else None


def _check_batches(batch_size: int, samples: int | None, method: AbstractMethod) -> None:
    if samples is None:
        raise ValueError("`batch_size` is a part of the `data`: give them.")
    if not 1 <= batch_size <= samples:
        raise ValueError(f"`batch_size` must be 1 to {samples}, the samples, got {batch_size}.")
    if not isinstance(method, Descent):
        raise ValueError(
            "`batch_size`: an optimiser of optimistix compares values, which are different ones "
            "with each batch. Use one of optax, or all samples."
        )
