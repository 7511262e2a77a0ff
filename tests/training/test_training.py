"""From a model to optax and back: partition, masked means, files."""

import functools
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from helpers import all_finite, updated

import stablax as sx

MODELS = [sx.Simulate, sx.SteadyThenSimulate]


# --- partition


def trees(key) -> dict[str, Any]:
    field = sx.MLPField(2, 4, 1, key=key, guard=sx.Guard(np.array([-2.0, -3.0]), 3.0))
    return {
        "field": field,
        "Simulate": sx.Simulate(field),
        "SteadyThenSimulate": sx.SteadyThenSimulate(field, controller=diffrax.PIDController(1, 1)),
        "network": eqx.nn.MLP(2, 2, 4, 1, key=key),
        "any tree": {"a": jnp.ones(2), "b": [np.ones(3), jnp.arange(2), "name", None, 1.5]},
    }


@pytest.mark.parametrize("name", ["field", *[M.__name__ for M in MODELS], "network", "any tree"])
def test_partition_is_that_of_equinox(key, name):
    tree = trees(key)[name]
    params, static = sx.partition(tree)
    assert eqx.tree_equal((params, static), eqx.partition(tree, eqx.is_inexact_array))
    assert eqx.tree_equal(eqx.combine(params, static), tree)


@pytest.mark.parametrize("name", ["field", *[M.__name__ for M in MODELS]])
def test_partition_of_a_model_leaves_nothing_static(key, name):
    model = trees(key)[name]
    params, static = sx.partition(model)
    assert jax.tree.leaves(static) == []
    assert jax.tree.structure(params) == jax.tree.structure(model)


@pytest.mark.parametrize("name", [M.__name__ for M in MODELS])
def test_a_part_of_a_model_is_trained(key, name):
    """The parameters are reached through `model.field`, in specifications as in models."""
    model = trees(key)[name]
    nothing = jax.tree.map(lambda _: False, model)
    spec = eqx.tree_at(lambda m: m.field.network.layers[1].bias, nothing, True)
    params, static = eqx.partition(model, spec)
    assert len(jax.tree.leaves(params)) == 1
    optimiser = optax.adamw(1e-2, weight_decay=0.1)
    gradient = jax.tree.map(jnp.ones_like, params)
    updates, _ = updated(optimiser, gradient, optimiser.init(params), params)
    trained = eqx.combine(eqx.apply_updates(params, updates), static)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), trained, model)
    assert eqx.tree_equal(moved, spec)


# --- masked_mean

OK = np.array([True, False, True, False])


def results(ok: np.ndarray) -> sx.RESULTS:
    """A batch: successful, or the largest number of steps reached."""

    def one(ok):
        return sx.RESULTS.where(ok, sx.RESULTS.successful, sx.RESULTS.step_budget_spent)

    return jax.tree.map(lambda x: x.reshape(ok.shape), jax.vmap(one)(jnp.asarray(ok.ravel())))


def test_masked_mean_is_the_mean_of_what_succeeded():
    losses = jnp.array([1.0, 2.0, 4.0, 8.0])
    assert sx.masked_mean(losses, results(OK)) == 2.5
    assert sx.masked_mean(losses, results(np.ones(4, bool))) == 3.75
    assert sx.masked_mean(losses.reshape(2, 2), results(OK.reshape(2, 2))) == 2.5
    assert sx.masked_mean(jnp.array(3.0), sx.RESULTS.successful) == 3.0
    assert sx.masked_mean(jnp.array(3.0), diffrax.RESULTS.max_steps_reached) == 0.0
    assert sx.masked_mean(losses.astype(jnp.float32), results(OK)).dtype == jnp.float32


def test_masked_mean_takes_numpy_arrays():
    assert sx.masked_mean(np.array([1.0, 2.0, 4.0, 8.0]), results(OK)) == 2.5


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("compile", [lambda f: f, jax.jit], ids=["eagerly", "jit"])
def test_masked_mean_keeps_failed_samples_out_of_value_and_gradient(poison, compile):
    def loss(x):
        # At a failed sample value and derivative are non-finite.
        bad = jnp.where(OK, 1.0, poison)
        return sx.masked_mean(bad * x**2, results(OK))

    value, gradient = compile(jax.value_and_grad(loss))(jnp.array([1.0, 2.0, 3.0, 4.0]))
    assert value == 5.0
    np.testing.assert_array_equal(np.asarray(gradient)[OK], [1.0, 3.0])


def test_masked_mean_gives_failed_losses_a_gradient_of_zero():
    gradient = jax.grad(sx.masked_mean)(jnp.array([1.0, jnp.nan, 4.0, jnp.inf]), results(OK))
    np.testing.assert_array_equal(gradient, [0.5, 0.0, 0.5, 0.0])


def test_masked_mean_of_failures_is_zero_without_gradient():
    losses = jnp.array([1.0, jnp.nan, jnp.inf, -1.0])
    value, gradient = jax.value_and_grad(sx.masked_mean)(losses, results(np.zeros(4, bool)))
    assert value == 0.0
    np.testing.assert_array_equal(gradient, np.zeros(4))


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_failure_can_count_as_infinity_with_a_gradient_of_zero(poison):
    """Left out, the failure of the sample with the largest loss would be an improvement."""
    losses, ok = jnp.array([1.0, 4.0, 1.0, 4.0]), np.array([True, True, True, False])

    def loss(losses, ok=ok):
        return sx.masked_mean(losses, results(ok), failed="inf", has_aux=True)

    for failed in (losses, losses.at[3].set(poison)):
        (value, counts), gradient = jax.value_and_grad(loss, has_aux=True)(failed)
        assert value == np.inf and counts.failed == 1
        np.testing.assert_array_equal(gradient, np.zeros(4))
    (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(losses, np.ones(4, bool))
    assert value == sx.masked_mean(losses, results(np.ones(4, bool))) == 2.5
    np.testing.assert_array_equal(gradient, np.full(4, 0.25))
    with pytest.raises(ValueError, match="`fn` itself is inf"):
        sx.check_gradient(lambda x: loss(x)[0], losses, adjoints=())


def test_masked_mean_names_both_shapes():
    with pytest.raises(ValueError, match=r"`losses` has shape \(3,\).* batch of shape \(4,\)"):
        sx.masked_mean(jnp.ones(3), results(OK))
    with pytest.raises(ValueError, match=r"`losses` has shape \(4, 1\).* batch of shape \(4,\)"):
        sx.masked_mean(jnp.ones((4, 1)), results(OK))
    with pytest.raises(ValueError, match=r"`losses` has shape \(\).* batch of shape \(4,\)"):
        sx.masked_mean(jnp.ones(()), results(OK))
    with pytest.raises(TypeError, match="Simulation"):
        sx.masked_mean(jnp.ones(4), jnp.asarray(OK))


def test_masked_mean_under_vmap():
    losses = jnp.arange(12.0).reshape(3, 4)
    ok = np.array([OK, ~OK, np.zeros(4, bool)])
    means = jax.vmap(sx.masked_mean)(losses, results(ok))
    np.testing.assert_array_equal(means, [1.0, 6.0, 0.0])


# --- a batch, one sample of which fails, in training


class Wall(eqx.Module):
    """y' = network(y) + args, and nan beyond 2."""

    network: eqx.nn.MLP

    def __call__(self, t, y, args):
        return jnp.where(y < 2, self.network(y) + args, jnp.nan)


TS = np.array([0.5, 1.0])
Y0 = jnp.array([0.1, 0.2])
SLOPES = jnp.array([0.1, 50.0, -0.3])  # with the second, every start runs into the wall


def build(key, Model=sx.Simulate):
    field = Wall(eqx.nn.MLP(2, 2, 4, 1, key=key))
    return Model(field, solver=diffrax.Heun(), controller=sx.StiffPID.preset("fast"))


@functools.cache
def solve():
    @eqx.filter_jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(model, slopes):
        sims = jax.vmap(lambda slope: model(Y0, TS, args=slope, throw=False))(slopes)
        losses = jnp.mean((sims.ys - 0.5) ** 2, axis=(1, 2))
        return sx.masked_mean(losses, sims), (sims, losses)

    return loss


def test_a_failed_sample_does_not_touch_the_others(key):
    model = build(key)
    (value, (sims, losses)), gradient = solve()(model, SLOPES)
    np.testing.assert_array_equal(sx.is_successful(sims), [True, False, True])
    np.testing.assert_allclose(value, (losses[0] + losses[2]) / 2, rtol=1e-14)
    # The same batch with a good sample twice: (2 a + c) / 3; and with the other twice.
    (_, _), first = solve()(model, SLOPES[jnp.array([0, 0, 2])])
    (_, _), second = solve()(model, SLOPES[jnp.array([0, 2, 2])])
    assert all_finite(gradient)
    for g, a, b in zip(*map(jax.tree.leaves, (gradient, first, second)), strict=True):
        np.testing.assert_allclose(g, (a + b) / 2, rtol=1e-9, atol=1e-12)

    (value, (sims, _)), gradient = solve()(model, SLOPES[jnp.array([1, 1, 1])])
    assert value == 0.0 and not np.any(sx.is_successful(sims))
    assert all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(gradient))


# --- files


def train(model, steps=5):
    optimiser = optax.adam(3e-2)
    state = optimiser.init(model)
    update = jax.jit(functools.partial(updated, optimiser))
    values = []
    for _ in range(steps):
        (value, _), gradient = solve()(model, SLOPES)
        updates, state = update(gradient, state, model)
        model = optax.apply_updates(model, updates)
        values.append(float(value))
    return model, values


def test_a_trained_model_is_saved_and_restored(key, tmp_path):
    trained, values = train(build(key))
    assert values == sorted(values, reverse=True) and values[-1] < 0.9 * values[0]

    path = tmp_path / "model.eqx"
    eqx.tree_serialise_leaves(path, trained)
    for like in (build(jr.key(7)), eqx.filter_eval_shape(build, key)):
        restored = eqx.tree_deserialise_leaves(path, like)
        assert eqx.tree_equal(restored, trained)
        (_, (ours, _)), _ = solve()(restored, SLOPES)
        (_, (theirs, _)), _ = solve()(trained, SLOPES)
        np.testing.assert_array_equal(ours.ys, theirs.ys)


@pytest.mark.parametrize("Model", MODELS)
def test_files_hold_the_parameters_and_no_options(key, tmp_path, Model):
    path = tmp_path / "model.eqx"
    saved = build(key, Model)
    eqx.tree_serialise_leaves(path, saved)
    other = Model(Wall(eqx.nn.MLP(2, 2, 4, 1, key=jr.key(7))), max_steps=77)
    restored = eqx.tree_deserialise_leaves(path, other)
    assert restored.options.max_steps == 77
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(saved), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_file_of_another_size_is_refused(key, tmp_path):
    path = tmp_path / "model.eqx"
    eqx.tree_serialise_leaves(path, build(key))
    larger = sx.Simulate(Wall(eqx.nn.MLP(2, 2, 8, 1, key=key)))
    with pytest.raises(RuntimeError, match="shape"):
        eqx.tree_deserialise_leaves(path, larger)


# --- data that a loss closes over


@pytest.mark.parametrize("Model", MODELS)
@pytest.mark.parametrize("convert", [jnp.asarray, np.asarray], ids=["jax", "numpy"])
def test_a_loss_may_close_over_its_data(key, Model, convert):
    """A concrete start is checked against the guard under `jit` as well."""
    model = Model(sx.MLPField(2, 4, 1, key=key, guard=sx.Guard(np.array([-2.0, -3.0]), 3.0)))
    y0 = convert([0.1, 0.2])
    shape = eqx.filter_eval_shape(lambda m: m(y0, TS, throw=False).ys, model)
    assert shape.shape == (2, 2)
    outside = jnp.array([0.1, 5.0])
    with pytest.raises(ValueError, match="outside the guard's box"):
        eqx.filter_eval_shape(lambda m: m(outside, TS, throw=False).ys, model)


def _decay_or_wall(t, y, k):
    return jnp.where(k > 1, jnp.nan, -k * y)


def test_masked_mean_of_a_function_keeps_what_else_a_failed_loss_depends_on_finite():
    """scale * log(y) has an infinite derivative in `scale` at y = 0, where a failed sample is."""
    model = sx.Simulate(_decay_or_wall)

    def loss(params, y0s, as_function):
        factor, scale = params
        solve = lambda y0, k: model(y0, [1.0, 2.0], args=k * factor, throw=False)
        simulations = jax.vmap(solve)(y0s, jnp.array([0.5, 2.0]))
        of_one = lambda simulation: scale * jnp.mean(jnp.log(simulation.ys))
        losses = of_one if as_function else jax.vmap(of_one)(simulations)
        return sx.masked_mean(losses, simulations, has_aux=True)

    run = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=2)
    (value, counts), gradient = run((1.0, 2.0), jnp.array([1.0, 0.0]), True)
    # log y = -t / 2 of the one that is left
    assert float(value) == pytest.approx(-1.5, rel=1e-5)
    np.testing.assert_allclose(gradient, [-1.5, -0.75], rtol=1e-5)
    assert (int(counts.successful), int(counts.failed)) == (1, 1)
    # An array comes with a nan.
    _, poisoned = run((1.0, 2.0), jnp.array([1.0, 0.0]), False)
    assert np.isnan(poisoned[1])

    # All fail: finite, zero, flagged, and an optimiser does not move.
    params = (jnp.array(3.0), jnp.array(2.0))
    (value, counts), gradient = run(params, jnp.zeros(2), True)
    assert float(value) == 0 and not np.any(gradient)
    assert not bool(counts.any_successful) and int(counts.failed) == 2
    optimiser = optax.adam(0.1)
    updates, _ = updated(optimiser, gradient, optimiser.init(params))
    assert not np.any(jax.tree.leaves(updates))


def test_masked_mean_works_in_batches_of_batches():
    ok = np.array([[True, False], [False, False]])
    losses = jnp.array([[1.0, jnp.nan], [2.0, 4.0]])
    mean = lambda losses, results: sx.masked_mean(losses, results, has_aux=True)
    values, counts = jax.vmap(mean)(losses, results(ok))
    np.testing.assert_array_equal(values, [1.0, 0.0])
    np.testing.assert_array_equal(counts.successful, [1, 0])
    np.testing.assert_array_equal(counts.any_successful, [True, False])
    with pytest.raises(ValueError, match=r"returned shape \(2,\) for one sample"):
        sx.masked_mean(lambda result: jnp.ones(2), results(OK))


def test_masked_mean_does_not_hide_a_loss_that_is_not_finite():
    assert np.isnan(sx.masked_mean(lambda result: jnp.nan, results(OK)))
