"""`simulate_batch`: many solves that differ in cost."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, reshard
from jaxtyping import Array, ArrayLike, PyTree

from .._failure import inputs_with_finite_derivative
from .._states import as_args, as_state, state_dtype
from .._static import is_traced
from .._steady import as_conserved, exchanges_lanes
from .._types import typechecked
from ._call import explain_forward_mode, given_times, tolerance_of
from ._explain import raise_on_failed_lanes
from ._model import AbstractModel, of_width, signature_of
from ._run_phases import options_in, options_of, phases_in
from ._simulate import Simulate
from ._simulate_phases import SimulatePhases
from ._simulation import Simulation
from ._steady_then_simulate import SteadyThenSimulate
from ._stepping import Stepping, as_stepping, planned
from ._times import as_times, told_apart

# Lanes that a device wants, measured (`benchmarks/batches_order.py`): beyond the first a CPU's
# cache is full, below the second a GPU waits for its kernels.
_LANES_CPU, _LANES_ELSEWHERE = 64, 32_768

_MODELS = (Simulate, SteadyThenSimulate, SimulatePhases)


@typechecked
def simulate_batch(
    model: AbstractModel,
    inputs: Mapping[str, PyTree],
    *,
    shared: Mapping[str, PyTree] | None = None,
    batch_size: int | None = None,
    order_by: ArrayLike | Callable | None = None,
    ensemble: bool = False,
    mesh: Mesh | None = None,
    throw: bool = True,
) -> Simulation:
    """Solves many samples, of which none waits for a slow one.

    ```python
    simulations = sx.simulate_batch(model, dict(args=conditions), shared=dict(y0=y0, ts=ts))
    ```

    In one wide `vmap` every sample takes as many steps as the slowest. Here `batch_size` lanes step
    together, and a lane that is done takes the next sample: in the solve, in the search for a
    steady state, and in the derivative. The samples, their gradients and their order are those of
    `jax.vmap` of the model. Works under `jit`, `grad` and the other transformations that the
    model's adjoint has; a call with other values of the same shapes is not compiled again.

    In some cases the lanes step to the end of the slowest of them, and then all take the next
    sample: with diffrax's `RecursiveCheckpointAdjoint` or `DirectAdjoint`; with `trace`; with a
    search for a steady state that is not stablax's own; in second derivatives, and in the forward
    mode of diffrax's `ForwardMode`; and for a model that is a subclass of [`AbstractModel`][].

    Memory: a derivative keeps `max_steps * (n + 1)` numbers of each sample for n components, and
    cotangents of what a sample depends on. It does so for as many samples as fit in half a
    gigabyte of float64, at least `4 * batch_size`; of more samples it solves one such group after
    the other, and each once more where its derivative is taken. (Where lanes are not exchanged,
    the steps of all samples are kept.)

    **Arguments:**

    - `model`: an [`AbstractModel`][], such as [`Simulate`][].
    - `inputs`: what differs between the samples: arguments of the model's call by name, such as
        `dict(y0=..., args=...)`, PyTrees whose arrays all have a leading axis of the same size,
        the samples.
    - `shared`: the other arguments of the call, the same for all samples, such as `dict(ts=ts)`.
    - `batch_size`: >= 1. How many samples are solved at a time, at most. By default 64 on a CPU
        (32 to 128 are best), and 32,768 on another device, which is idle in a small batch.
    - `order_by`: the expected cost of each sample, in any unit: an array of shape `(samples,)`,
        such as `stats["num_steps"]` of the last call with similar parameters; or a function of
        one sample's arguments (a dict of `inputs` and `shared`) that returns a number, such as
        `lambda sample: sample["args"]["rate"]`. The dearest are solved first, so that at the end
        no slow one is left alone. By default the samples stay in their order.
    - `ensemble`: whether `model` is many models, whose arrays have a leading axis, the samples, as
        `eqx.filter_vmap` makes them. Then `inputs` may be empty.
    - `mesh`: devices, each of which solves an equal part of the samples, `batch_size` at a time.
        What is returned is divided among them as the inputs are, along all axes of the mesh, which
        are all automatic or all explicit (`jax.sharding.AxisType`).
    - `throw`: raise an error that names the samples that failed, or return the reasons as
        `result`.

    **Returns:** a [`Simulation`][] in which every array has a leading axis, the samples, in the
    order of `inputs`.

    **Raises:** `ValueError` or `TypeError` for inputs that do not fit, by name; with `throw=True`
    a `RuntimeError` that says which samples failed, and why.
    """
    common: Mapping[str, PyTree] = {} if shared is None else shared
    batch_size = _usual_lanes(mesh) if batch_size is None else batch_size
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    _check_names(model, inputs, common)
    given = {**common, **inputs}
    inputs, common = _as_arrays(dict(inputs), dict(common))
    samples = _number_of_samples(inputs, model if ensemble else None)
    _check_mesh(mesh, samples)
    _check_values(model, given, inputs)
    cost = _cost(order_by, inputs, common, samples)
    if throw:
        model, inputs, common = inputs_with_finite_derivative(
            field=model, inputs=inputs, shared=common
        )
    room = _NUMBERS // _numbers(model, inputs, common, ensemble)
    with explain_forward_mode():
        simulations = _simulate_batch(model, inputs, common, cost, batch_size, room, ensemble, mesh)
    return raise_on_failed_lanes(simulations) if throw else simulations


@eqx.filter_jit
def _simulate_batch(
    model: AbstractModel,
    inputs: Mapping[str, PyTree],
    shared: Mapping[str, PyTree],
    cost: Array | None,
    lanes: int,
    room: int,
    ensemble: bool,
    mesh: Mesh | None,
) -> Simulation:
    # What differs between the samples, and what does not.
    each, both = ((model, inputs), shared) if ensemble else (inputs, (model, shared))
    each, static = eqx.partition(each, eqx.is_array)
    both, static_both = eqx.partition(both, eqx.is_array)

    def solve(each, both, width: int | None) -> Simulation:
        each, both = eqx.combine(each, static), eqx.combine(both, static_both)
        (model, inputs), shared = (each, both) if ensemble else ((both[0], each), both[1])
        model = model if width is None else of_width(model, width)
        return model(**inputs, **shared, throw=False)

    in_turn = _steps_in_turn(model, {**shared, **inputs})
    run = functools.partial(_solve_all, solve, lanes, room, in_turn)
    if mesh is not None:
        rows = PartitionSpec(mesh.axis_names)
        specs = (rows, PartitionSpec(), rows)
        if AxisType.Explicit in mesh.axis_types:  # elsewhere `shard_map` places what it takes
            each, both, cost = (
                jtu.tree_map(lambda x, to=NamedSharding(mesh, spec): reshard(x, to), tree)
                for tree, spec in zip((each, both, cost), specs, strict=True)
            )
        # With types of what differs, what the field closes over would be refused.
        run = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)
    return run(each, both, cost)


def _solve_all(
    solve: Callable,
    lanes: int,
    room: int,
    in_turn: bool,
    each: PyTree[Array],
    both: PyTree[Array],
    cost: Array | None,
) -> Simulation:
    """Of one device: the samples, at most `lanes` at once; there is `room` for what so many
    keep of their steps."""
    samples = jtu.tree_leaves(each)[0].shape[0]
    width = lanes if in_turn and samples > lanes else None
    # There is something to exchange for only where there are several samples a lane.
    together = lanes if width is None else max(4 * lanes, room)
    groups = -(-samples // together)
    size = -(-samples // groups)
    order = None if cost is None else jnp.argsort(cost, descending=True)
    # Groups of equal size are one program: the last sample again fills the last one.
    places = jnp.minimum(jnp.arange(groups * size), samples - 1)
    if order is not None:
        places = order[places]

    def solve_group(places):
        return jax.vmap(lambda one: solve(one, both, width))(
            jtu.tree_map(lambda x: x[places], each)
        )

    if groups == 1:
        out = solve_group(places)
    else:
        # What one group has kept of its steps makes room for the next.
        once_more = functools.partial(jax.checkpoint, prevent_cse=False)  # a loop does
        group = solve_group if width is None else once_more(solve_group)
        out = lax.map(group, places.reshape(groups, size))
        out = jtu.tree_map(lambda x: x.reshape(groups * size, *x.shape[2:]), out)
    back = jnp.arange(samples) if order is None else jnp.argsort(order)
    return jtu.tree_map(lambda x: x[back], out)


def _usual_lanes(mesh: Mesh | None) -> int:
    """How many lanes a device wants."""
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    return _LANES_CPU if platform == "cpu" else _LANES_ELSEWHERE


# How many numbers a group of samples keeps: half a gigabyte in float64.
_NUMBERS = 2**26


def _steps_in_turn(model: AbstractModel, call: Mapping[str, PyTree]) -> bool:
    """Whether a lane of all loops of a call can be exchanged for another."""
    search = getattr(model, "steady_options", None)
    return (
        isinstance(model, _MODELS)
        and (search is None or exchanges_lanes(search.chain))
        and all(
            options.tree.on_own_loop and options.tree.trace is None
            for options in options_in(model, call)
        )
    )


def _numbers(
    model: AbstractModel, inputs: Mapping[str, PyTree], shared: Mapping[str, PyTree], ensemble: bool
) -> int:
    """How many a sample keeps: of its steps, of its cotangents, and of its Jacobians."""

    def size(tree: PyTree, each: bool) -> int:
        leaves = filter(eqx.is_array, jtu.tree_leaves(tree))
        return sum(x.size // (max(x.shape[0], 1) if each else 1) for x in leaves)

    state, rows = (
        size(inputs[name], True) if name in inputs else size(shared[name], False)
        for name in ("y0", "ts")
    )
    steps = 0
    for given, each in ((inputs, True), (shared, False)):
        for phase in phases_in(given):
            steps += size(phase.t1, each) * options_of(model, phase.overrides).tree.capacity
    steps = steps or model.options.capacity
    moving = size(inputs, True) + size(shared, False) + size(model, ensemble)
    return steps * (state + 1) + 2 * (rows * state + moving) + 4 * state**2


def _check_names(
    model: AbstractModel, inputs: Mapping[str, PyTree], shared: Mapping[str, PyTree]
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
    if inputs.get("conserved") is not None:
        raise TypeError(
            "`conserved` is in `inputs`, but the same for all samples: move it to `shared`."
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


def _as_arrays(inputs: dict[str, PyTree], shared: dict[str, PyTree]) -> tuple[dict, dict]:
    """Python numbers and numpy arrays as jax arrays, so that a new value is not a new program."""
    where = inputs if "y0" in inputs else shared
    y0 = as_state(where["y0"], "y0")
    dtype = state_dtype(y0)

    def convert(name: str, value: PyTree) -> PyTree:
        if name == "y0":
            return y0
        if name in ("ts", "t0"):
            return jnp.asarray(value, None if is_traced(value) else dtype)
        if name == "conserved":
            return None if value is None else as_conserved(value)
        return as_args(value, dtype)

    return (
        {name: convert(name, value) for name, value in inputs.items()},
        {name: convert(name, value) for name, value in shared.items()},
    )


def _check_values(
    model: AbstractModel, given: dict[str, PyTree], inputs: dict[str, PyTree]
) -> None:
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


def _check_mesh(mesh: Mesh | None, samples: int) -> None:
    if mesh is None:
        return
    if set(mesh.axis_types) not in ({AxisType.Auto}, {AxisType.Explicit}):
        raise ValueError(
            f"`mesh` has axes of the types {mesh.axis_types}; make it with axes that are all "
            "automatic or all explicit, such as "
            "`jax.make_mesh(..., axis_types=(jax.sharding.AxisType.Auto,))`, one for each axis."
        )
    if samples % mesh.size:
        raise ValueError(
            f"`inputs` has {samples} samples, which {mesh.size} devices of `mesh` cannot share "
            "equally. Give a number of samples that they can: repeat the last, for instance."
        )


def _number_of_samples(inputs: dict[str, PyTree], ensemble: AbstractModel | None) -> int:
    """The size of the leading axis of all arrays."""
    sizes: dict[str, int] = {}
    for path, leaf in jtu.tree_flatten_with_path((ensemble, inputs))[0]:
        if not eqx.is_array(leaf):
            continue
        if path[0].idx == 0:
            name, remedy = "an array of `model`", "leave out `ensemble=True`"
        else:  # the first entry is the name of the argument
            argument = path[1].key
            name = f"`{argument}{jtu.keystr(path[2:])}` in `inputs`"
            remedy = f"move `{argument}` to `shared`"
        if leaf.ndim == 0:
            raise ValueError(
                f"{name} is a single number, without an axis of samples. Give one for each sample, "
                f"or {remedy}."
            )
        sizes.setdefault(name, leaf.shape[0])
        if leaf.shape[0] != sizes[name]:
            name = f"{name}{jtu.keystr(path[1:])}"
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
                f"{name} has a leading axis of {size}, but {first} one of {sizes[first]}: every "
                "array needs one entry for each sample. What is the same for all samples belongs "
                "to `shared`."
            )
    if sizes[first] == 0:
        raise ValueError(f"`inputs` has no samples: the leading axis of {first} is 0.")
    return sizes[first]


def _cost(
    order_by: ArrayLike | Callable | None,
    inputs: dict[str, PyTree],
    shared: dict[str, PyTree],
    samples: int,
) -> Array | None:
    """What each sample is expected to cost."""
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

        cost = jax.vmap(cost_of, axis_size=samples)(batched)
    else:
        cost = jnp.asarray(order_by)
        if cost.shape != (samples,):
            raise ValueError(
                f"`order_by` has shape {np.shape(cost)}, but there are {samples} samples; give "
                "one expected cost for each, or a function of one sample's arguments."
            )
    return lax.stop_gradient(cost)
