"""`find_steady_state`: the right root, its sensitivities, or a reason."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import all_finite, richardson, slow

import stablax as sx
from stablax.problems import SWITCH, VAN_DER_POL


def exchange(t, y, k):
    flux = k[0] * y[0] - k[1] * y[1]
    return jnp.stack([-flux, flux])


def switch(t, y, args):
    """Bistable, with stable states 0.18350342 and 1.81649658 and a ridge at 1/3."""
    return SWITCH.field(t, y, SWITCH.args)


K, Y0 = jnp.array([2.0, 3.0]), jnp.array([1.0, 0.0])


@pytest.mark.parametrize(
    "conserved",
    [
        [1.0, 1.0],
        np.ones((1, 2)),
        np.array([[1.0, 1.0], [2.0, 2.0]]),
        sx.Frozen([1.0, 1.0]),
        "detect",
    ],
    ids=["row", "rows", "redundant", "frozen", "detect"],
)
def test_conserved_quantities(conserved):
    # The truth is in closed form: y* = (k2, k1) / (k1 + k2) times the total.
    how = dict(conserved=conserved, method=sx.PseudoTransient())

    def root(k, y0):
        return sx.find_steady_state(exchange, y0, k, **how).y

    found = sx.find_steady_state(exchange, Y0, K, **how)
    np.testing.assert_allclose(found.y, [0.6, 0.4], atol=1e-12)
    assert bool(found.stable) and float(found.residual) < 1e-8
    dk, dy0 = jax.jit(jax.jacrev(root, argnums=(0, 1)))(K, Y0)
    np.testing.assert_allclose(dk, [[-0.12, 0.08], [0.12, -0.08]], atol=1e-6)
    np.testing.assert_allclose(dy0, [[0.6, 0.6], [0.4, 0.4]], atol=1e-6)


def test_higher_derivatives():
    root = lambda k: sx.find_steady_state(exchange, Y0, k, conserved=[1.0, 1.0]).y[0]
    # d2/dk2 of k2 / (k1 + k2)
    exact = np.array([[0.048, 0.008], [0.008, -0.032]])
    np.testing.assert_allclose(jax.jit(jax.jacfwd(jax.jacrev(root)))(K), exact, atol=1e-8)


def test_detection_does_not_depend_on_the_units():
    units = jnp.array([1e-9, 1e6])

    def field(t, y, k):
        return units * exchange(t, y / units, k)

    found = sx.find_steady_state(field, units * Y0, K, conserved="detect")
    np.testing.assert_allclose(found.y / units, [0.6, 0.4], rtol=1e-6)


def test_a_row_that_is_not_conserved_is_an_error():
    with pytest.raises(ValueError, match=r"`conserved\[0\]` = \[1.0, 2.0\] is not conserved"):
        sx.find_steady_state(exchange, Y0, K, conserved=[1.0, 2.0])
    # Where values are traced it is seen at run time.
    found = eqx.filter_jit(
        lambda k: sx.find_steady_state(exchange, Y0, k, conserved=[1.0, 2.0], throw=False)
    )(K)
    assert not sx.is_successful(found) and "not conserved" in sx.explain(found)
    model = sx.SteadyThenSimulate(exchange)
    with pytest.raises(ValueError, match="not conserved"):
        model(Y0, [1.0], steady_args=K, args=K, conserved=[1.0, 2.0])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (dict(conserved=np.ones((1, 3))), ValueError, r"shape \(1, 3\).*2 columns"),
        (dict(conserved="find"), ValueError, '"detect", or None'),
        (dict(conserved=[np.nan, 1.0]), ValueError, "non-finite"),
        (dict(method="newton"), Exception, "method"),
        (dict(max_steps=0), ValueError, "`max_steps` must be at least 1"),
        (dict(rtol=1e-17), ValueError, "below what float64 can resolve"),
        (dict(atol=0.0), ValueError, "`atol` must be a number above 0"),
    ],
)
def test_bad_options_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        sx.find_steady_state(exchange, Y0, K, **options)


def test_a_singular_jacobian_is_noticed_behind_its_rounding():
    """Of rank 3 in 4 components, and never to the last bit: every pivot is a number, and where f
    is zero so is the Newton step."""
    rng = np.random.default_rng(0)
    factors = jnp.asarray(rng.normal(size=(8, 4, 3)))
    steady = jnp.asarray(rng.uniform(1.0, 2.0, size=(8, 4)))

    @jax.vmap
    def search(half, steady):
        field = lambda t, y, args: -half @ (half.T @ (y - steady))
        return sx.find_steady_state(field, steady, throw=False)

    found = jax.jit(search)(factors, steady)
    assert (found.residual == 0).any()
    assert (found.result == sx.RESULTS.singular_steady_state).all()


def test_a_singular_steady_state_is_reported():
    found = sx.find_steady_state(exchange, Y0, K, throw=False)
    assert not sx.is_successful(found) and "conserved=" in sx.explain(found)
    with pytest.raises(RuntimeError, match="conserved="):
        sx.find_steady_state(exchange, Y0, K)


RESTLESS = {
    "source without sink": (lambda t, y, args: jnp.ones(1), jnp.zeros(1), None),
    "limit cycle": (VAN_DER_POL.field, jnp.array([2.0, 0.0]), 5.0),
    "no root": (lambda t, y, args: y**2 + 1.0, jnp.ones(1), None),
    "nan": (lambda t, y, args: y * jnp.nan, jnp.ones(1), None),
}
MODES = {"forward": jax.jacfwd, "reverse": jax.jacrev}


# Each system in one mode by day, and each mode with two systems.
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        (name, mode) if (i + j) % 2 else slow(name, mode)
        for i, name in enumerate(RESTLESS)
        for j, mode in enumerate(MODES)
    ],
)
def test_no_steady_state_is_a_result(name, mode):
    field, y0, args = RESTLESS[name]

    def value(y0):
        found = sx.find_steady_state(field, y0, args, throw=False)
        return jnp.sum(found.y), found

    gradient, found = jax.jit(MODES[mode](value, has_aux=True))(y0)
    assert not sx.is_successful(found) and "No steady state was found" in sx.explain(found)
    assert all_finite((found.y, found.residual)) and not gradient.any()


@pytest.mark.parametrize("name", RESTLESS)
def test_no_steady_state_is_an_error(name):
    field, y0, args = RESTLESS[name]
    with pytest.raises(RuntimeError, match="No steady state was found") as error:
        sx.find_steady_state(field, y0, args)
    paragraph = str(error.value)
    assert "What was tried: PseudoTransient" in paragraph and "\n" not in paragraph


def test_a_bistable_switch_goes_where_the_dynamics_go():
    y0 = jnp.asarray(10 ** np.random.default_rng(1).uniform(-2, 1, (300, 1)))
    found = jax.jit(jax.vmap(lambda y: sx.find_steady_state(switch, y, throw=False)))(y0)
    assert sx.is_successful(found).all()
    np.testing.assert_allclose(found.y, np.where(y0 < 1 / 3, 0.18350342, 1.81649658), rtol=1e-7)
    # On the way from below the ridge's inflection the sign of f' says that there is a choice.
    assert (found.statuses[0] == sx.STATUS.ambiguous).any()
    assert (found.method == 0).any() and (found.method == 1).any()


def test_a_toggle_switch_goes_where_the_dynamics_go():
    """Two genes that repress each other, unequally; the truth by integration at 1e-10."""

    def toggle(t, y, args):
        power = jnp.array([2.0, 2.5])
        return jnp.array([4.0, 3.5]) / (1 + y[::-1] ** power) - jnp.array([1.0, 0.8]) * y

    y0 = jnp.asarray(np.random.default_rng(2).uniform(0, 5, (300, 2)))
    field = sx.Guarded(toggle, sx.Guard(0.0))
    found = jax.jit(jax.vmap(lambda y: sx.find_steady_state(field, y, throw=False)))(y0)
    model = sx.Simulate(field, controller=sx.StiffPID(1e-10, 1e-13), max_steps=10_000)
    end = jax.jit(jax.vmap(lambda y: model(y, [300.0], throw=False).ys[0]))(y0)
    assert np.ptp(np.asarray(end), axis=0).min() > 2  # both states are reached
    ok = np.asarray(sx.is_successful(found))
    assert ok.sum() >= 298
    np.testing.assert_allclose(found.y[ok], end[ok], rtol=1e-6)


def test_a_root_outside_the_box_is_not_a_root():
    """y^2 = 1 - s with s = y0: both roots are steady, only the positive one admissible."""
    field = lambda t, y, args: 1.0 - y**2 * jnp.sign(y)
    bounded = sx.Guarded(lambda t, y, args: (y + 1.0) * (2.0 - y) * y, sx.Guard(0.5))
    found = sx.find_steady_state(bounded, jnp.array([0.6]))
    np.testing.assert_allclose(found.y, 2.0, rtol=1e-9)
    only_outside = sx.Guarded(lambda t, y, args: -(y + 1.0), sx.Guard(0.0))
    found = sx.find_steady_state(only_outside, jnp.array([1.0]), throw=False)
    assert not sx.is_successful(found)
    assert sx.is_successful(sx.find_steady_state(field, jnp.array([0.5])))


def test_a_slow_mode_does_not_pass_for_converged():
    """A rate of 4e-4 beside one of 1, and a huge constant beside a small moving state."""
    rates, target = jnp.array([1.0, 4e-4, 1e-3]), jnp.array([1.0, 2.0, 1e-6])

    def field(t, y, args):
        return rates * (target - y) * jnp.array([1.0, 1.0, 1.0])

    found = sx.find_steady_state(field, jnp.array([1.0, 0.0, 0.0]))
    np.testing.assert_allclose(found.y, target, rtol=1e-9)


def test_guards_that_start_outside_and_states_that_are_trees():
    field = sx.Guarded(lambda t, y, args: {"a": args - y["a"], "b": -y["b"]}, sx.Guard(-1.0, 5.0))
    found = sx.find_steady_state(field, {"a": 0.0, "b": jnp.ones(2)}, 3.0)
    np.testing.assert_allclose(found.y["a"], 3.0)
    found = sx.find_steady_state(field, {"a": 9.0, "b": jnp.ones(2)}, 3.0, throw=False)
    assert "starts outside" in sx.explain(found)


def test_a_non_autonomous_field_is_frozen():
    found = sx.find_steady_state(lambda t, y, args: t - y, jnp.array([0.0]), t=2.0)
    np.testing.assert_allclose(found.y, 2.0)


def test_float32():
    found = sx.find_steady_state(
        lambda t, y, k: exchange(t, y, k),
        Y0.astype(jnp.float32),
        K.astype(jnp.float32),
        conserved="detect",
    )
    assert found.y.dtype == jnp.float32
    np.testing.assert_allclose(found.y, [0.6, 0.4], rtol=1e-4)


def test_stability_can_be_switched_off():
    assert sx.find_steady_state(switch, jnp.array([0.1]), stability=False).stable is None
    big = sx.find_steady_state(lambda t, y, args: 1.0 - y, jnp.zeros(101))
    assert big.stable is None
    ridge = sx.find_steady_state(switch, jnp.array([0.42]), stability=False, method=sx.Newton())
    np.testing.assert_allclose(ridge.y, 1 / 3, rtol=1e-4)


def test_methods():
    for method in (sx.Newton(), sx.PseudoTransient(), sx.Chain((sx.PseudoTransient(),))):
        found = sx.find_steady_state(switch, jnp.array([0.1]), method=method)
        np.testing.assert_allclose(found.y, 0.18350342, rtol=1e-7)
    assert found.method_name == "PseudoTransient"
    with pytest.raises(ValueError, match="one or more methods"):
        sx.Chain(())


# --- many random cases


def test_the_system_of_optimistix_issue_44():
    # https://github.com/patrick-kidger/optimistix/issues/44: Newton finds 19 of 40 starts.
    K44, p = -3.8184977, jnp.array([3.0, 5.0, 1.0])

    def field(t, x, p):
        first = jnp.exp(p[2] - x[0] - x[1] + p[0]) - jnp.exp(p[0])
        return jnp.stack([first, jnp.exp(K44 - x[1] + p[1]) - jnp.exp(p[1])])

    starts = jnp.asarray(np.random.default_rng(0).uniform(-50, 50, (200, 2)))
    found = jax.vmap(lambda x: sx.find_steady_state(field, x, p, throw=False))(starts)
    ok = np.asarray(sx.is_successful(found))
    wrong = np.abs(np.asarray(found.y) - [1 - K44, K44]).max(axis=1) > 1e-6
    assert ok.sum() >= 190
    assert not (ok & wrong).any()


def test_lanes_do_not_depend_on_each_other():
    """A lane that fails, and one that needs the fallback, beside one that does not."""
    y0 = jnp.array([[0.1], [0.3], [0.5]])
    together = jax.vmap(lambda y: sx.find_steady_state(switch, y, throw=False))(y0)
    for i in range(3):
        alone = sx.find_steady_state(switch, y0[i], throw=False)
        np.testing.assert_allclose(together.y[i], alone.y, rtol=1e-12)
        assert int(together.num_steps[i]) == int(alone.num_steps)
    assert list(together.method_name) == ["PseudoTransient", "Integrate", "Integrate"]


def test_sensitivities_against_differences():
    """A nonlinear network with a conserved total: A + B <-> C, C -> A + B catalysed."""

    def field(t, y, k):
        v = k[0] * y[0] * y[1] - k[1] * y[2] - k[2] * y[2] / (1 + y[2])
        return jnp.stack([-v, -v, v])

    def value(k):
        rows = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
        y0 = jnp.array([1.0, 0.7, 0.1])
        return jnp.sum(jnp.sin(sx.find_steady_state(field, y0, k, conserved=rows).y))

    k = np.array([1.3, 0.4, 0.6])
    both = jax.jit(jax.value_and_grad(value))
    exact = richardson(lambda k: both(jnp.asarray(k))[0], k)
    np.testing.assert_allclose(both(jnp.asarray(k))[1], exact, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(value))(jnp.asarray(k)), exact, rtol=1e-6)


def test_a_slow_leak_is_no_conserved_quantity():
    """v = k (y0 - y1) exchanges; y1 leaks at a rate d, a thousand million times slower."""

    def field(t, y, args):
        k, d = args
        v = k * (y[0] - y[1])
        return jnp.stack([-v, v + d * (1 - y[1])])

    with pytest.raises(ValueError, match="not conserved"):
        sx.find_steady_state(field, Y0, (1.0, 1e-7), conserved=[1.0, 1.0])
    for k, d in ((1.0, 1e-7), (1e5, 1e-8)):
        found = sx.find_steady_state(field, Y0, (k, d), conserved="detect", throw=False)
        assert not sx.is_successful(found) or np.allclose(found.y, 1.0, rtol=1e-5)


def test_a_search_can_start_at_the_steady_state():
    """There f is rounding, and so is L f."""
    rates = np.random.default_rng(0).uniform(0.1, 10.0, (6, 6))
    matrix = jnp.asarray(rates - np.diag(rates.sum(axis=0)))
    field = lambda t, y, args: matrix @ y
    first = sx.find_steady_state(field, jnp.eye(6)[0], conserved=np.ones(6))
    again = sx.find_steady_state(field, first.y, conserved=np.ones(6))
    np.testing.assert_allclose(again.y, first.y, rtol=1e-12)


def test_a_detected_row_that_depends_on_the_parameters_is_differentiated():
    """Volumes as parameters: k1 y0 + k0 y1 is conserved, and y* = (k1 a + k0 b) / (k0 + k1)."""

    def field(t, y, k):
        return (y[0] - y[1]) * jnp.stack([-k[0], k[1]])

    def root(k, y0):
        return sx.find_steady_state(field, y0, k, conserved="detect").y[0]

    k, y0 = jnp.array([2.0, 3.0]), jnp.array([1.0, 0.2])
    exact = jax.grad(lambda k, y0: (k[1] * y0[0] + k[0] * y0[1]) / (k[0] + k[1]), (0, 1))(k, y0)
    for derivative in (jax.jacfwd, jax.jacrev):
        ours = jax.jit(derivative(root, argnums=(0, 1)))(k, y0)
        for a, b in zip(ours, exact, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-9)
