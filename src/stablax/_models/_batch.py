"""`simulate_batch`: many solves that differ in cost."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from .._failure import inputs_with_finite_derivative
from .._states import as_args, as_state, state_dtype
from .._static import is_traced
from .._types import typechecked
from ._call import explain_forward_mode, given_times, tolerance_of
from ._explain import raise_on_failed_lanes
from ._model import AbstractModel, signature_of
from ._run_phases import options_in
from ._simulation import Simulation
from ._stepping import Stepping, as_stepping, planned
from ._times import as_times, told_apart


@typechecked
def simulate_batch(
    model: AbstractModel,
    inputs: Mapping[str, Any],
    *,
    shared: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    order_by: ArrayLike | Callable | None = None,
    throw: bool = True,
) -> Simulation:
    """Solves many samples in chunks, so that few of them wait for a slow one.

    ```python
    simulations = sx.simulate_batch(model, dict(args=conditions), shared=dict(y0=y0, ts=ts))
    ```

    In one wide `vmap` every sample takes as many steps as the slowest. Here `batch_size` samples
    at a time are solved together, one chunk after the other, and with `order_by` those of
    similar cost are in one chunk. The samples, their gradients and their order are those of
    `jax.vmap` of the model. Works under `jit`, `grad` and the other transformations that the
    model's adjoint has; a call with other values of the same shapes is not compiled again.

    On a GPU, which is idle in a small chunk, take a `batch_size` of thousands.

    **Arguments:**

    - `model`: a [`Simulate`][], a [`SteadyThenSimulate`][] or a [`SimulatePhases`][].
    - `inputs`: what differs between the samples: arguments of the model's call by name, such as
        `dict(y0=..., args=...)`, PyTrees whose arrays all have a leading axis of the same size,
        the samples.
    - `shared`: the other arguments of the call, the same for all samples, such as `dict(ts=ts)`.
    - `batch_size`: >= 1. How many samples are solved together, at most: the samples are divided
        into chunks of equal size.
    - `order_by`: the expected cost of each sample, in any unit: an array of shape `(samples,)`,
        such as `stats["num_steps"]` of the last call with similar parameters; or a function of
        one sample's arguments (a dict of `inputs` and `shared`) that returns a number, such as
        `lambda sample: sample["args"]["rate"]`. By default the samples stay in their order.
    - `throw`: raise an error that names the samples that failed, or return the reasons as
        `result`.

    **Returns:** a [`Simulation`][] in which every array has a leading axis, the samples, in the
    order of `inputs`.

    **Raises:** `ValueError` or `TypeError` for inputs that do not fit, by name; with `throw=True`
    a `RuntimeError` that says which samples failed, and why.
    """
    common: Mapping[str, Any] = {} if shared is None else shared
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    _check_names(model, inputs, common)
    given = {**common, **inputs}
    inputs, common = _as_arrays(dict(inputs), dict(common))
    samples = _number_of_samples(inputs)
    _check_values(model, given, inputs)
    order = _order(order_by, inputs, common, samples)
    if throw:
        model, inputs, common = inputs_with_finite_derivative(
            field=model, inputs=inputs, shared=common
        )
    with explain_forward_mode():
        simulations = _simulate_batch(model, inputs, common, order, batch_size)
    return raise_on_failed_lanes(simulations) if throw else simulations


@eqx.filter_jit
def _simulate_batch(
    model: AbstractModel,
    inputs: Mapping[str, Any],
    shared: Mapping[str, Any],
    order: Array | None,
    most: int,
) -> Simulation:
    batched, static = eqx.partition(inputs, eqx.is_array)
    samples = jtu.tree_leaves(batched)[0].shape[0]
    chunks = -(-samples // most)
    size = -(-samples // chunks)
    # Chunks of equal size are one program: the last sample again fills the last one.
    places = jnp.minimum(jnp.arange(chunks * size), samples - 1)
    if order is not None:
        places = order[places]

    def solve(sample):
        return model(**eqx.combine(sample, static), **shared, throw=False)

    def chunk(places):
        return jax.vmap(solve)(jtu.tree_map(lambda x: x[places], batched))

    out = lax.map(chunk, places.reshape(chunks, size))
    out = jtu.tree_map(lambda x: x.reshape(chunks * size, *x.shape[2:]), out)
    back = jnp.arange(samples) if order is None else jnp.argsort(order)
    return jtu.tree_map(lambda x: x[back], out)


def _check_names(
    model: AbstractModel, inputs: Mapping[str, Any], shared: Mapping[str, Any]
) -> None:
    parameters = signature_of(model, "simulate_batch").parameters.values()
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names = [p.name for p in parameters if p.name not in ("self", "throw")]
    shown = ", ".join(f"`{n}`" for n in names)
    for where, given in (("inputs", inputs), ("shared", shared)):
        for name in given:
            if name == "throw":
                raise TypeError(
                    f"`{where}` has `throw`, which is an argument of `simulate_batch` itself."
                )
            if name not in names and not takes_any:
                raise TypeError(
                    f"`{where}` has {name!r}, but {type(model).__name__} is called with {shown}."
                )
    for name in inputs:
        if name in shared:
            raise TypeError(f"`{name}` is in `inputs` and in `shared`; give it once.")
    for name in ("y0", "ts"):
        if name not in inputs and name not in shared:
            raise TypeError(
                f"`{name}` is missing: give it in `inputs` (one for each sample) or in `shared` "
                f"(`shared=dict({name}={name})`)."
            )


def _as_arrays(inputs: dict[str, Any], shared: dict[str, Any]) -> tuple[dict, dict]:
    """Python numbers and numpy arrays as jax arrays, so that a new value is not a new program."""
    where = inputs if "y0" in inputs else shared
    y0 = as_state(where["y0"], "y0")
    dtype = state_dtype(y0)

    def convert(name: str, value: Any) -> Any:
        if name == "y0":
            return y0
        if name in ("ts", "t0"):
            return jnp.asarray(value, None if is_traced(value) else dtype)
        if name == "conserved" and not isinstance(value, str | None):
            return jnp.asarray(value, dtype)
        return as_args(value, dtype)

    return (
        {name: convert(name, value) for name, value in inputs.items()},
        {name: convert(name, value) for name, value in shared.items()},
    )


def _check_values(model: AbstractModel, given: dict[str, Any], inputs: dict[str, Any]) -> None:
    """Raises for a `stepping` that the model cannot follow, and for times that the dtype of the
    state does not tell apart. In the model, where they are traced, there is no error to raise."""
    dtype = state_dtype(as_state(given["y0"], "y0"))
    stepping, guard = as_stepping(given.get("stepping")), model.guard
    each = stepping if "stepping" in inputs else None
    hardest = stepping if each is None else _hardest(each)
    for options in options_in(model, given):
        planned(options, guard, dtype, hardest)
    ts, t0 = as_times(given["ts"], dtype, "ts"), as_times(given.get("t0", 0.0), dtype, "t0")
    if is_traced((ts, t0)) or ts.rounded.size == 0 or ts.rounded.ndim != 1 + ("ts" in inputs):
        return
    if "t0" in inputs:
        t0 = t0._replace(rounded=t0.rounded[:, None], lost=t0.lost[:, None])
    times = given_times(model._options, stepping, dtype)
    times = {name: x for name, x in times.items() if not is_traced(x)}

    def rtol() -> Any:
        if each is not None and each.rtol is not None and not is_traced(each.rtol):
            return each.rtol[:, None]
        pace = planned(model._options, guard, dtype, hardest)[1]
        return tolerance_of(model._options, pace, guard, dtype)

    told_apart(t0, dict(ts=ts, **times), None, rtol)


def _hardest(stepping: Stepping) -> Stepping:
    """Of one for each sample, the values of which a model refuses one if it refuses any. Those that
    are traced are looked at in the model."""
    known: Any = jtu.tree_map(lambda x: None if is_traced(x) else np.asarray(x), stepping)
    least = lambda tree: jtu.tree_map(lambda x: x.min(axis=0), tree)
    return Stepping(
        rtol=least(known.rtol),
        atol=least(known.atol) if jtu.tree_leaves(known.atol) else None,
        dtmax=least(known.dtmax),
        max_steps=jtu.tree_map(lambda x: x.max(axis=0), known.max_steps),
        step_ts=least(known.step_ts),
        jump_ts=least(known.jump_ts),
    )


def _number_of_samples(inputs: dict[str, Any]) -> int:
    """The size of the leading axis of all arrays."""
    sizes: dict[str, int] = {}
    for path, leaf in jtu.tree_flatten_with_path(inputs)[0]:
        if not eqx.is_array(leaf):
            continue
        # Of the path, the first entry is the name of the argument.
        name = path[0].key + jtu.keystr(path[1:])
        if leaf.ndim == 0:
            raise ValueError(
                f"`{name}` in `inputs` is a single number, without an axis of samples. Give one "
                f"for each sample, or move `{path[0].key}` to `shared`."
            )
        sizes[name] = leaf.shape[0]
    if not sizes:
        raise ValueError(
            "`inputs` holds no array, so that the number of samples is unknown. Give what differs "
            "between the samples with a leading axis, for instance `dict(args=conditions)`."
        )
    first, *_ = sizes
    for name, size in sizes.items():
        if size != sizes[first]:
            raise ValueError(
                f"`{name}` in `inputs` has a leading axis of {size}, but `{first}` one of "
                f"{sizes[first]}: every array needs one entry for each sample. What is the same "
                "for all samples belongs to `shared`."
            )
    if sizes[first] == 0:
        raise ValueError(f"`inputs` has no samples: the leading axis of `{first}` is 0.")
    return sizes[first]


def _order(
    order_by: Any, inputs: dict[str, Any], shared: dict[str, Any], samples: int
) -> Array | None:
    """The samples from the cheapest to the dearest."""
    if order_by is None:
        return None
    if callable(order_by):
        batched, static = eqx.partition(inputs, eqx.is_array)

        def cost_of(sample: PyTree) -> Array:
            cost = jnp.asarray(order_by({**shared, **eqx.combine(sample, static)}))
            if cost.ndim != 0:
                raise ValueError(
                    f"`order_by` returned shape {cost.shape} for one sample; return one number."
                )
            return cost

        cost = jax.vmap(cost_of)(batched)
    else:
        cost = jnp.asarray(order_by)
        if cost.shape != (samples,):
            raise ValueError(
                f"`order_by` has shape {np.shape(cost)}, but there are {samples} samples; give "
                "one expected cost for each, or a function of one sample's arguments."
            )
    return jnp.argsort(lax.stop_gradient(cost))
