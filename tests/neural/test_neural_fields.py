"""Neural fields: inputs, scales, and what they cannot be made of."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from helpers import all_finite, richardson, updated

import stablax as sx


def by_hand(layers, activation, x):
    """A perceptron in numpy."""
    x = np.asarray(x, float)
    for layer in layers[:-1]:
        x = np.asarray(activation(np.asarray(layer.weight) @ x + np.asarray(layer.bias)))
    return np.asarray(layers[-1].weight) @ x + np.asarray(layers[-1].bias)


# --- MLPField


@pytest.mark.parametrize("activation", [jnp.tanh, jax.nn.gelu, jax.nn.softplus, jnp.sin])
def test_an_mlp_of_state_time_and_args(activation):
    scale = np.array([1.0, 1e-3])
    field = sx.MLPField(
        2,
        8,
        2,
        key=jr.key(0),
        activation=activation,
        time=True,
        args_size=3,
        output_scale=scale,
    )
    y, args = jnp.array([0.3, -0.2]), {"k": jnp.array([1.0, 2.0]), "dose": 3.0}
    inputs = [0.3, -0.2, 0.7, 3.0, 1.0, 2.0]  # y, t, args in the order of its leaves
    expected = scale * by_hand(field.network.layers, activation, inputs)
    np.testing.assert_allclose(field(0.7, y, args), expected, rtol=1e-13)
    for i in (0, 1):
        slope = jax.jacfwd(lambda t, i=i: field(t, y, args)[i])(0.7)
        truth = richardson(lambda t, i=i: field(float(t[0]), y, args)[i], np.array([0.7]))
        np.testing.assert_allclose(slope, truth[0], rtol=1e-6)
    assert jnp.any(jax.jacfwd(lambda d: field(0.7, y, {**args, "dose": d}))(3.0) != 0)


def test_an_mlp_is_autonomous_unless_asked():
    field = sx.MLPField(2, 8, 1, key=jr.key(0))
    y = jnp.array([0.3, -0.2])
    np.testing.assert_array_equal(field(0.0, y, None), field(5.0, y, "a condition"))
    assert sum(x.size for x in jax.tree.leaves(field)) == (2 * 8 + 8) + (8 * 2 + 2)


def test_training_starts_near_rest():
    field = sx.MLPField(3, 32, 2, key=jr.key(1))
    y = 3 * jr.normal(jr.key(2), (100, 3))
    assert jnp.max(jnp.abs(jax.vmap(lambda y: field(0.0, y, None))(y))) < 0.02
    assert all_finite(jax.grad(lambda f: jnp.sum(f(0.0, y[0], None)))(field))
    still = sx.MLPField(3, 32, 2, key=jr.key(1), initial_scale=0.0)
    np.testing.assert_array_equal(still(0.0, y[0], None), 0.0)
    large = sx.MLPField(3, 32, 2, key=jr.key(1), initial_scale=1.0)
    np.testing.assert_allclose(field(0.0, y[0], None), 0.01 * large(0.0, y[0], None), rtol=1e-12)


def test_single_precision_stays_single():
    field = sx.MLPField(
        2,
        4,
        1,
        key=jr.key(0),
        time=True,
        args_size=1,
        output_scale=np.array([2.0, 3.0]),
        dtype=jnp.float32,
    )
    y = jnp.ones(2, jnp.float32)
    assert field(0.5, y, np.float64(3.0)).dtype == jnp.float32
    scaled = sx.ScaledNeuralField(field, sx.Scales(np.array([1.0, 1e-5]), 1e3))
    assert scaled(0.5, y, 3).dtype == jnp.float32
    with (
        jax.numpy_dtype_promotion("standard"),
        pytest.raises(TypeError, match="returned dtype float64 .* float32"),
    ):
        sx.MLPField(2, 4, 1, key=jr.key(0))(0.0, {"a": y}, None)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda key: sx.MLPField(2, 4, 1, key=key, args_size=-1), "`args_size` must be at least 0"),
        (lambda key: sx.MLPField(2, 4, 1, key=key, output_scale=0.0), "`output_scale` .* > 0"),
        (lambda key: sx.MLPField(2, 4, 1, key=key, output_scale=np.ones(3)), "`output_scale`"),
        (lambda key: sx.MLPField(2, 4, 1, key=key, initial_scale=-1.0), "`initial_scale`"),
        (
            lambda key: sx.MLPField(2, 4, 1, key=key, args_size=2)(0.0, jnp.ones(2), None),
            "`args` holds 0 numbers in total, .* `args_size=2`",
        ),
        (
            lambda key: sx.MLPField(2, 4, 1, key=key, args_size=2)(0.0, jnp.ones(2), jnp.ones(3)),
            "`args` holds 3 numbers",
        ),
        (
            lambda key: sx.MLPField(3, 4, 1, key=key)(0.0, {"a": jnp.ones(2)}, None),
            r"got a PyTree of 2 in total",
        ),
    ],
)
def test_a_wrong_value_names_its_argument(key, wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong(key)


def test_args_that_are_no_numbers():
    field = sx.MLPField(2, 4, 1, key=jr.key(0), args_size=1)
    with pytest.raises(TypeError, match="`args` holds 'fast', which is no number"):
        field(0.0, jnp.ones(2), "fast")


# --- scales


TIMES = np.array([0.5, 1.0, 2.5])
STATES = {"a": np.array([[1.0, 0.0], [-3.0, 0.0], [2.0, 0.0]]), "b": np.array([1e-5, 4e-5, 0.0])}


def test_scales_of_data():
    scales = sx.Scales.fit(TIMES, STATES)
    np.testing.assert_array_equal(scales.yscale["a"], [3.0, 1.0])  # 1 where all is zero
    np.testing.assert_array_equal(scales.yscale["b"], 4e-5)
    assert scales.tscale == 2.0
    # Samples before the times.
    doubled = jax.tree.map(lambda x: np.stack([x, 2 * x]), STATES)
    of_samples = sx.Scales.fit(TIMES, doubled, axis=1)
    np.testing.assert_array_equal(of_samples.yscale["a"], [6.0, 1.0])
    assert scales == sx.Scales(scales.yscale, 2.0) and hash(scales) == hash(
        sx.Scales(scales.yscale, 2.0)
    )
    assert scales != of_samples and not jax.tree.leaves(scales)


def test_the_loss_weighs_components_alike():
    scales = sx.Scales(np.array([2.0, 1e-5]), 1.0)
    data = jnp.array([[1.0, 1e-5], [2.0, 2e-5]])
    off = data + jnp.array([[0.2, 0.0], [0.0, 1e-6]])
    np.testing.assert_allclose(scales.loss(off, data), (0.1 + 0.1) / 4)
    samples = jax.vmap(scales.loss)(jnp.stack([off, data]), jnp.stack([data, data]))
    np.testing.assert_allclose(samples, [0.05, 0.0], atol=1e-15)
    np.testing.assert_allclose(scales.loss(jnp.stack([off, data]), jnp.stack([data, data])), 0.025)
    slope = jax.grad(lambda x: scales.loss(x, data))(off)
    np.testing.assert_allclose([slope[0, 0], slope[1, 1]], [1 / 8, 1e5 / 4])


def test_the_scaled_form_is_its_network_in_other_units():
    yscale, tscale = np.array([1.0, 1e-5, 20.0]), 50.0
    network = sx.MLPField(3, 8, 1, key=jr.key(3), time=True, initial_scale=1.0)
    field = sx.ScaledNeuralField(network, sx.Scales(yscale, tscale))
    y0 = jnp.array([0.3, -1.2, 0.5])
    ts = jnp.linspace(0.2, 2.0, 5)
    precise = sx.StiffPID.preset("precise")
    solver = diffrax.Tsit5()
    inner = sx.Simulate(network, solver=solver, controller=precise)(y0, ts).ys
    outer = sx.Simulate(field, solver=solver, controller=precise)(y0 * yscale, ts * tscale).ys
    np.testing.assert_allclose(outer / yscale[None], inner, rtol=1e-5, atol=1e-6)


def test_the_guard_of_the_network_in_units_of_the_state():
    scales = sx.Scales(np.array([2.0, 1e-5]), 10.0)

    def made(inner, guard=None):
        network = sx.MLPField(2, 4, 1, key=jr.key(0), guard=inner)
        return sx.ScaledNeuralField(network, scales, guard=guard).guard

    guard = made(sx.Guard(0.0, np.array([3.0, 4.0]), pull=5.0, reject=False))
    np.testing.assert_array_equal(guard.lower, [0.0, 0.0])
    np.testing.assert_array_equal(guard.upper, [6.0, 4e-5])
    assert guard.pull == 0.5 and not guard.reject
    assert made(sx.Guard()) == sx.Guard()
    assert made(sx.Guard(fill=0.0)) == sx.Guard(fill=0.0)
    with pytest.raises(ValueError, match="fills with 1.0, which in other units"):
        made(sx.Guard(fill=1.0))
    assert made(sx.Guard(fill=1.0), guard=sx.Guard(0.0)) == sx.Guard(0.0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: sx.Scales(np.array([1.0, 0.0]), 1.0), "`yscale` must be finite and > 0"),
        (lambda: sx.Scales(1.0, -1.0), "`tscale` .* > 0, got -1.0"),
        (lambda: sx.Scales.fit(TIMES[:2], STATES), r"`ys\['a'\]` has shape \(3, 2\), .* 2 times"),
        (lambda: sx.Scales.fit(TIMES, STATES, axis=1), "at axis 1"),
        (lambda: sx.Scales.fit(TIMES, STATES, axis=-1), "`axis` must be at least 0"),
        (lambda: sx.Scales.fit(TIMES[:1], STATES), "`ts` must be a vector of two or more"),
        (lambda: sx.Scales.fit(TIMES, np.full(3, np.nan)), "`ys` holds numbers that are not fin"),
        (lambda: sx.Scales(np.ones(2), 1.0).loss(jnp.ones((4, 2)), jnp.ones(2)), "`ys` has shape"),
        (lambda: sx.Scales(np.ones(2), 1.0).loss({"a": jnp.ones(2)}, jnp.ones(2)), "structure"),
        (
            lambda: sx.ScaledNeuralField(
                sx.MLPField(2, 4, 1, key=jr.key(0)), sx.Scales([1.0, 2.0], 1.0)
            )(0.0, jnp.ones(2), None),
            r"`yscale` has .*A list or tuple is tree structure",
        ),
    ],
)
def test_wrong_scales_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_traced_scales_are_refused():
    with pytest.raises(TypeError, match="`yscale` is a traced array"):
        jax.jit(lambda s: sx.Scales(s, 1.0).tscale)(jnp.ones(2))


# --- what positive fields see


def test_features_and_rates_over_decades():
    field = sx.QuasiPositiveField(
        2, 8, 1, key=jr.key(4), features=lambda y: jnp.log(y + 1e-9), rate=jnp.exp
    )
    y = jnp.array([1e-7, 2.0])
    outputs = by_hand(field.network.layers, np.tanh, np.log(np.asarray(y) + 1e-9))
    expected = np.exp(outputs[:2]) - np.exp(outputs[2:]) * np.asarray(y)
    np.testing.assert_allclose(field(0.0, y, None), expected, rtol=1e-12)
    assert field.guard == sx.Guard(lower=0.0)


# --- fitting


def test_a_scaled_field_learns_where_an_unscaled_one_cannot():
    """Decay of components of sizes 1 and 1e-5, over times of 1e4: the scaled field fits both."""
    ts = jnp.linspace(1e3, 1e4, 10)
    y0 = jnp.array([1.0, 1e-5])
    data = y0[None] * jnp.exp(-ts[:, None] * jnp.array([1e-4, 3e-4])[None])
    scales = sx.Scales.fit(ts, data)
    network = sx.MLPField(2, 8, 1, key=jr.key(5))
    model = sx.Simulate(sx.ScaledNeuralField(network, scales), solver=diffrax.Tsit5())
    optimiser = optax.adam(0.03)

    @eqx.filter_jit
    def fit(model):
        def loss(model):
            return scales.loss(model(y0, ts).ys, data)

        def step(carry, _):
            model, state = carry
            value, gradient = jax.value_and_grad(loss)(model)
            updates, state = updated(optimiser, gradient, state, model)
            return (optax.apply_updates(model, updates), state), value

        (model, _), values = jax.lax.scan(step, (model, optimiser.init(model)), length=150)
        return model, values

    fitted, values = fit(model)
    assert values[0] > 0.3 and values[-1] < 0.02
    assert fitted.field.scales == scales
