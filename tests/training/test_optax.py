"""The optimisers of optax on whole models, and on what `sx.partition` makes of them.

The gradient of the loss is compiled once for each controller, and every optimiser runs on its
output. The truth is the same optimiser on the bare list of parameter arrays.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
import optax.contrib
import pytest
from helpers import CONTROLLERS, FIELDS, Counted, all_finite, dt0_for, slow, updated

import stablax as sx


class Flows(sx.GuardedField):
    """Two linear flows and a small network: all that a model can hold."""

    log_rates: jax.Array
    network: eqx.nn.MLP
    volumes: sx.Frozen
    species: tuple[str, ...] = ("inside", "outside")

    def vector_field(self, t, y, args):
        inward, outward, across = jnp.exp(self.log_rates)
        flow = jnp.stack([inward * args - outward * y[0], across * (y[0] - y[1])])
        return flow + 0.1 * self.network(y) / self.volumes


def flows() -> Flows:
    return Flows(
        jnp.array([0.0, 1.0, 2.5]),
        eqx.nn.MLP(2, 2, 3, 1, use_bias=False, use_final_bias=False, key=jax.random.key(1)),
        sx.Frozen([1.0, 0.5]),
        guard=sx.Guard(np.array([-1.0, -2.0]), 10.0),
    )


def pid() -> diffrax.PIDController:
    return diffrax.PIDController(rtol=1e-4, atol=1e-6)


MODELS: dict[str, Callable[[], Any]] = {
    "StiffPID": lambda: sx.Simulate(flows(), controller=sx.StiffPID.preset("fast")),
    "PIDController": lambda: sx.Simulate(flows(), solver=diffrax.Tsit5(), controller=pid()),
    "ClipStepSizeController": lambda: sx.Simulate(
        flows(),
        solver=diffrax.Tsit5(),
        controller=diffrax.ClipStepSizeController(pid(), jump_ts=jnp.array([0.3])),
    ),
    "ConstantStepSize": lambda: sx.SteadyThenSimulate(
        flows(), solver=diffrax.Heun(), controller=diffrax.ConstantStepSize(), dt0=0.02
    ),
    "phases": lambda: sx.SimulatePhases(flows(), solver=diffrax.Tsit5()),
}

Y0 = jnp.array([0.5, 0.2])
TS = jnp.linspace(0.25, 1.0, 4)


class Fit(NamedTuple):
    """A model, the compiled gradient of its loss, and the loss, which counts its traces."""

    model: Any
    gradient: Callable[[Any], Any]
    loss: Counted


@functools.cache
def fit_of(controller: str) -> Fit:
    model = MODELS[controller]()
    steady = {"steady_args": 1.0} if isinstance(model, sx.SteadyThenSimulate) else {}

    inputs: Any = dict(args=2.0, **steady)
    if isinstance(model, sx.SimulatePhases):
        inputs = dict(phases=[sx.Phase(0.5, args=2.0), sx.Phase(1.0, args=1.0, dose=Y0)])

    @Counted
    def loss(model, y0):
        return jnp.mean(model(y0, TS, **inputs).ys ** 2)

    gradient = eqx.filter_jit(eqx.filter_grad(loss))
    return Fit(model, lambda model: gradient(model, Y0), loss)


@pytest.fixture(scope="module", params=MODELS)
def fit(request) -> Fit:
    return fit_of(request.param)


# --- the optimisers


def is_matrix(params: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim == 2, params)


def is_vector(params: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim != 2, params)


def multi_steps(every: int) -> optax.GradientTransformation:
    return optax.MultiSteps(optax.adam(1e-2), every).gradient_transformation()


OPTIMISERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "adam": lambda: optax.adam(1e-2),
    "clip and adamw": lambda: optax.chain(
        optax.clip_by_global_norm(0.1), optax.adamw(1e-2, weight_decay=0.1)
    ),
    "MultiSteps(1)": lambda: multi_steps(1),
    "MultiSteps(4)": lambda: multi_steps(4),
    "MultiSteps(10)": lambda: multi_steps(10),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(1e-2), 3),
    "MultiSteps in apply_if_finite": lambda: optax.chain(optax.apply_if_finite(multi_steps(4), 3)),
    "masked": lambda: optax.chain(
        optax.masked(optax.adam(1e-2), is_vector), optax.masked(optax.set_to_zero(), is_matrix)
    ),
    "multi_transform": lambda: optax.multi_transform(
        {"matrix": optax.adam(1e-2), "vector": optax.sgd(1e-1, momentum=0.9)},
        lambda params: jax.tree.map(lambda x: "matrix" if x.ndim == 2 else "vector", params),
    ),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adamw)(
        learning_rate=optax.exponential_decay(1e-2, 1, 0.5)
    ),
    "schedule_free": lambda: optax.contrib.schedule_free_adamw(1e-2, weight_decay=0.1),
    "ema": lambda: optax.chain(optax.adam(1e-2), optax.ema(0.9)),
    "lbfgs": lambda: optax.lbfgs(1e-1, linesearch=None),
}

STEPS = {"MultiSteps(4)": 5, "MultiSteps(10)": 11, "MultiSteps in apply_if_finite": 5}


class Optimiser(NamedTuple):
    init: Callable[[Any], Any]
    step: Callable[[Any, Any, Any], tuple[Any, Any]]


@functools.cache
def optimiser_of(name: str) -> Optimiser:
    transformation = OPTIMISERS[name]()

    @jax.jit
    def step(gradient, state, params):
        updates, state = updated(transformation, gradient, state, params)
        return optax.apply_updates(params, updates), state

    return Optimiser(jax.jit(transformation.init), step)


def assert_same_leaves(tree: Any, other: Any) -> None:
    """To the last bit."""
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def same_leaves(tree: Any, other: Any) -> bool:
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return all(bool(jnp.array_equal(a, b)) for a, b in pairs)


def without_parameters(model: Any) -> tuple[Any, ...]:
    """All that training must not move."""
    field = model.field
    return (
        jax.tree.structure(model),
        model.options,
        field.guard,
        field.volumes,
        field.species,
        field.network.activation,
    )


# --- the matrix


# By day every optimiser meets two of the models, and every model five or six of the optimisers.
MATRIX = [
    (model, name) if (i - j) % len(MODELS) in (0, 2) else slow(model, name)
    for i, model in enumerate(MODELS)
    for j, name in enumerate(OPTIMISERS)
]


@pytest.mark.parametrize(("model", "name"), MATRIX)
def test_updates_are_those_of_the_bare_arrays(model, name):
    fit, optimiser = fit_of(model), optimiser_of(name)
    whole, (params, static) = fit.model, sx.partition(fit.model)
    bare = jax.tree.leaves(fit.model)
    states = [optimiser.init(x) for x in (whole, params, bare)]
    assert_same_leaves(states[0], states[2])
    for _ in range(STEPS.get(name, 3)):
        gradient = fit.gradient(whole)
        same = fit.gradient(eqx.combine(params, static))
        whole, states[0] = optimiser.step(gradient, states[0], whole)
        params, states[1] = optimiser.step(same, states[1], params)
        bare, states[2] = optimiser.step(jax.tree.leaves(gradient), states[2], bare)
        assert_same_leaves(whole, bare)
        assert_same_leaves(params, bare)
        assert_same_leaves(states[0], states[2])
    assert not same_leaves(whole, fit.model)
    assert all_finite(whole)
    assert without_parameters(whole) == without_parameters(fit.model)
    assert without_parameters(eqx.combine(params, static)) == without_parameters(fit.model)


def test_one_trace_for_all_optimisers(fit):
    optimiser = optimiser_of("adam")
    model, state = fit.model, optimiser.init(fit.model)
    for _ in range(2):
        model, state = optimiser.step(fit.gradient(model), state, model)
    # Every other test, too, calls this compiled gradient, with models of its own making.
    assert fit.loss.calls == 1


@pytest.mark.parametrize(
    ("name", "every"),
    [
        ("MultiSteps(1)", 1),
        ("MultiSteps(4)", 4),
        ("MultiSteps(10)", 10),
        ("MultiSteps in apply_if_finite", 4),
    ],
)
def test_micro_steps_leave_the_parameters_to_the_bit(fit, name, every):
    optimiser = optimiser_of(name)
    model, state = fit.model, optimiser.init(fit.model)
    for micro_step in range(1, 2 * every + 2):
        before = model
        model, state = optimiser.step(fit.gradient(model), state, model)
        assert same_leaves(model, before) == (micro_step % every != 0)


def test_accumulated_gradients_are_averaged(fit):
    model, state = fit.model, optimiser_of("MultiSteps(4)").init(fit.model)
    gradient = fit.gradient(model)
    gradients = [jax.tree.map(lambda g, i=i: i * g, gradient) for i in (1, 2, 3, 4)]
    for gradient in gradients:
        model, state = optimiser_of("MultiSteps(4)").step(gradient, state, model)
    mean = jax.tree.map(lambda *g: sum(g) / 4, *gradients)
    adam = optimiser_of("adam")
    at_once, _ = adam.step(mean, adam.init(fit.model), fit.model)
    for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(at_once), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["apply_if_finite", "MultiSteps in apply_if_finite"])
def test_a_gradient_of_nan_is_skipped(fit, name):
    optimiser = optimiser_of(name)
    good = fit.gradient(fit.model)
    bad = eqx.tree_at(
        lambda m: jax.tree.leaves(m)[0], good, replace_fn=lambda g: g.at[0].set(jnp.nan)
    )
    clean, clean_state = fit.model, optimiser.init(fit.model)
    model, state = clean, clean_state
    for _ in range(4):
        clean, clean_state = optimiser.step(good, clean_state, clean)
        before = model
        model, state = optimiser.step(bad, state, model)
        assert same_leaves(model, before)
        model, state = optimiser.step(good, state, model)
        assert_same_leaves(model, clean)
    assert not same_leaves(model, fit.model)


def test_weight_decay_moves_nothing_but_parameters(fit):
    decay = optax.adamw(1e-2, weight_decay=0.1)
    model, state = fit.model, decay.init(fit.model)
    step = jax.jit(functools.partial(updated, decay))
    zero = jax.tree.map(jnp.zeros_like, model)
    for _ in range(100):
        updates, state = step(zero, state, model)
        model = optax.apply_updates(model, updates)
    for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(fit.model), strict=True):
        np.testing.assert_allclose(np.asarray(a), (1 - 1e-3) ** 100 * np.asarray(b), rtol=1e-10)
    assert without_parameters(model) == without_parameters(fit.model)
    np.testing.assert_array_equal(model.field.guard.lower, [-1.0, -2.0])
    np.testing.assert_array_equal(model.field.volumes, [1.0, 0.5])


def test_averages_and_evaluation_points_are_models(fit):
    """What optax makes of parameters besides updates can be called as the model can."""
    ema = optax.ema(0.9)
    average, _ = updated(ema, fit.model, ema.init(fit.model))
    free = optimiser_of("schedule_free")
    trained, state = free.step(fit.gradient(fit.model), free.init(fit.model), fit.model)
    evaluated = optax.contrib.schedule_free_eval_params(state, trained)
    for model in (average, evaluated):
        assert without_parameters(model) == without_parameters(fit.model)
        assert all_finite(fit.gradient(model))
    assert fit.loss.calls == 1


def test_learning_rates_are_injected(fit):
    state = optimiser_of("inject_hyperparams").init(fit.model)
    model = fit.model
    for rate in (1e-2, 5e-3):
        model, state = optimiser_of("inject_hyperparams").step(fit.gradient(model), state, model)
        np.testing.assert_allclose(float(state.hyperparams["learning_rate"]), rate)


def test_lbfgs_searches_along_a_whole_model():
    def loss(model):
        return jnp.sum((model.field.vector_field(0.0, Y0, 2.0) - 0.3) ** 2)

    optimiser = optax.lbfgs()

    @jax.jit
    def step(model, state):
        value, gradient = jax.value_and_grad(loss)(model)
        updates, state = updated(
            optimiser, gradient, state, model, value=value, grad=gradient, value_fn=loss
        )
        return optax.apply_updates(model, updates), state

    start = sx.Simulate(flows())
    model, state = start, optimiser.init(start)
    for _ in range(10):
        model, state = step(model, state)
    assert loss(model) < 1e-5 * loss(start)
    assert without_parameters(model) == without_parameters(start)


# --- one controller for another


def named_leaves(tree: Any) -> dict[str, Any]:
    return {jtu.keystr(path): leaf for path, leaf in jtu.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("Model", [sx.Simulate, sx.SteadyThenSimulate, sx.SimulatePhases])
@pytest.mark.parametrize("controller", CONTROLLERS)
def test_controllers_change_nothing_in_parameters_or_optimiser_state(controller, Model):
    def build(controller):
        return Model(flows(), controller=controller, dt0=dt0_for(controller))

    model, other = build(CONTROLLERS[controller]()), build(sx.StiffPID.preset("robust"))
    for make in OPTIMISERS.values():
        transformation = make()
        trees = [(x, transformation.init(x)) for x in (model, other)]
        leaves, others = map(named_leaves, trees)
        assert list(leaves) == list(others)
        for name, leaf in leaves.items():
            np.testing.assert_array_equal(np.asarray(leaf), np.asarray(others[name]))


def test_training_goes_on_with_another_controller(tmp_path):
    first, then = fit_of("StiffPID"), fit_of("PIDController")
    optimiser = optimiser_of("clip and adamw")
    model, state = first.model, optimiser.init(first.model)
    for _ in range(3):
        model, state = optimiser.step(first.gradient(model), state, model)

    eqx.tree_serialise_leaves(tmp_path / "training.eqx", (model, state))
    like = (then.model, optimiser.init(then.model))
    loaded, loaded_state = eqx.tree_deserialise_leaves(tmp_path / "training.eqx", like)

    assert_same_leaves((loaded, loaded_state), (model, state))
    assert isinstance(loaded.options.controller, diffrax.PIDController)
    ours, theirs = then.gradient(loaded), first.gradient(model)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-2, atol=1e-4)
    loaded, _ = optimiser.step(ours, loaded_state, loaded)
    bare = jax.tree.leaves(model)
    bare_state = jax.tree.unflatten(
        jax.tree.structure(optimiser.init(bare)), jax.tree.leaves(state)
    )
    bare, _ = optimiser.step(jax.tree.leaves(ours), bare_state, bare)
    assert_same_leaves(loaded, bare)
    assert then.loss.calls == 1


# --- regressions of other projects


def accumulate(model: Any, gradient: Any) -> Any:
    """Two gradients, in the way that breaks where a leaf is not an array: the state is made of
    the arrays, and the update takes the whole model."""
    optimiser = optax.MultiSteps(optax.sgd(1e-2), 2)
    state = optimiser.init(eqx.filter(model, eqx.is_array))
    for _ in range(2):
        updates, state = updated(optimiser, gradient, state, model)
        model = eqx.apply_updates(model, updates)
    return model


def some_gradient(model: Any) -> Any:
    """In the structure that `eqx.filter_grad` returns."""
    return jax.tree.map(jnp.cos, eqx.filter(model, eqx.is_inexact_array))


class Holder(eqx.Module):
    """A plain model: what it holds is in the tree."""

    field: Any
    held: Any


class Decay(eqx.Module):
    rate: jax.Array

    def __call__(self, t, y, args):
        return -self.rate * y


# https://github.com/patrick-kidger/diffrax/issues/521
@pytest.mark.parametrize("Model", [sx.Simulate, sx.SteadyThenSimulate, sx.SimulatePhases])
def test_diffrax_521_controller_in_a_model_under_multi_steps(Model):
    field = Decay(jnp.array([1.5, 0.5]))
    raw = Holder(field, pid())
    assert any(callable(leaf) for leaf in jax.tree.leaves(raw))  # the controller's `norm`
    with pytest.raises(TypeError, match="rms_norm"):
        accumulate(raw, some_gradient(raw))

    model = Model(field, controller=pid())
    trained = accumulate(model, some_gradient(model))
    assert_same_leaves(trained, accumulate(field.rate, some_gradient(field.rate)))
    assert not same_leaves(trained, model)


class NetworkField(eqx.Module):
    network: Any

    def __call__(self, t, y, args):
        return self.network(y)


# https://github.com/patrick-kidger/equinox/issues/590
# https://github.com/patrick-kidger/equinox/issues/853
@pytest.mark.parametrize("Model", [sx.Simulate, sx.SteadyThenSimulate, sx.SimulatePhases])
def test_equinox_590_853_activation_of_a_field_under_multi_steps(key, Model):
    field = sx.Guarded(NetworkField(eqx.nn.MLP(2, 2, 4, 1, key=key)))
    assert any(callable(leaf) for leaf in jax.tree.leaves(field))  # the MLP's activations
    raw = Holder(field, None)
    with pytest.raises(TypeError, match="function|custom_jvp"):
        accumulate(raw, some_gradient(raw))

    model = Model(field)
    trained = accumulate(model, some_gradient(model))
    bare = jax.tree.leaves(model)
    assert_same_leaves(trained, accumulate(bare, some_gradient(bare)))
    assert not same_leaves(trained, model)
    assert trained.field(0.0, Y0, None).shape == (2,)


# The same for all else that may be put into a model.
@pytest.mark.parametrize("Model", [sx.Simulate, sx.SteadyThenSimulate, sx.SimulatePhases])
@pytest.mark.parametrize(
    "options",
    [
        {"solver": diffrax.Kvaerno5()},
        {"solver": diffrax.KenCarp4()},
        {"solver": sx.kvaerno5()},
        {"adjoint": diffrax.RecursiveCheckpointAdjoint(checkpoints=16)},
        {"event": diffrax.Event(lambda t, y, args, **kwargs: y[0] - 0.1)},
        {"progress_meter": diffrax.TextProgressMeter(minimum_increase=0.1)},
    ],
    ids=lambda options: type(next(iter(options.values()))).__name__,
)
def test_what_a_model_holds_is_no_leaf(key, Model, options):
    field = sx.MLPField(2, 4, 1, key=key)
    (raw,) = options.values()
    assert jax.tree.leaves(raw), "nothing to hide"
    model = Model(field, **options)
    assert_same_leaves(model, field)
    assert jax.tree.structure(model) == jax.tree.structure(Model(field, **options))


# --- every field of the zoo


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_is_a_parameter_tree(field):
    case = FIELDS[field]
    model = sx.Simulate(case.make(case.guard))
    gradient, bare = some_gradient(model), jax.tree.leaves(model)
    if not bare:
        pytest.skip("a function without parameters")
    optimiser = optimiser_of("MultiSteps(1)")
    trained, _ = optimiser.step(gradient, optimiser.init(model), model)
    bare, _ = optimiser.step(jax.tree.leaves(gradient), optimiser.init(bare), bare)
    assert_same_leaves(trained, bare)
    assert not same_leaves(trained, model)
    assert jax.tree.structure(trained) == jax.tree.structure(model)
    assert trained.field.guard == case.guard
