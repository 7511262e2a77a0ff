"""Stiffness: eigenvalues of known systems, and the probe along a trajectory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stablax as sx

jax.config.update("jax_enable_x64", True)

BASIS = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]


def _linear(rates):
    matrix = BASIS @ np.diag(rates) @ BASIS.T
    return lambda t, y, args: jnp.asarray(matrix) @ y


def test_rates_of_a_linear_system():
    found = sx.stiffness(_linear([-1e4, -10.0, -2.0, 0.5]), 0.0, jnp.ones(4))
    np.testing.assert_allclose(found.eigenvalues.real, [0.5, -2.0, -10.0, -1e4], rtol=1e-9)
    assert float(found.fastest) == pytest.approx(1e4)
    assert float(found.slowest) == pytest.approx(2.0)
    assert float(found.ratio) == pytest.approx(5e3)
    assert float(found.growth) == pytest.approx(0.5)


def test_a_conserved_quantity_is_no_slow_rate():
    def exchange(t, y, k):
        flux = k[0] * y["A"] - k[1] * y["B"]
        return {"A": -flux, "B": flux}

    y = {"A": jnp.array(1.0), "B": jnp.array(2.0)}
    found = sx.stiffness(exchange, 0.0, y, np.array([2.0, 3.0]))
    assert float(found.fastest) == pytest.approx(5.0)
    assert float(found.ratio) == 1.0


def test_what_does_not_decay_is_not_stiff():
    found = sx.stiffness(lambda t, y, args: jnp.stack([y[1], -y[0]]), 0.0, jnp.ones(2))
    assert float(found.ratio) == 1.0 and float(found.fastest) == 0.0
    np.testing.assert_allclose(sorted(found.eigenvalues.imag), [-1.0, 1.0])


def test_where_the_jacobian_is_not_finite_the_rates_are_nan():
    found = sx.stiffness(lambda t, y, args: jnp.sqrt(y), 0.0, jnp.array([0.0, 1.0]))
    assert np.isnan(found.ratio) and np.isnan(found.eigenvalues).all()


def test_along_a_trajectory():
    """Robertson: the start misleads."""
    problem = sx.problems.ROBERTSON
    robertson, k, y0 = problem.field, problem.args, problem.y0
    ts = jnp.array([1e-4, 1.0, 1e4])
    simulation = sx.Simulate(robertson)(y0, ts, args=k)
    profile = sx.stiffness_along(robertson, ts, simulation.ys, k)
    assert profile.ratio.shape == (3,) and profile.eigenvalues.shape == (3, 3)
    start = sx.stiffness(robertson, 0.0, y0, k)
    assert float(start.fastest) == pytest.approx(0.04)
    assert np.all(np.asarray(profile.ratio)[1:] > 1e3)
    at_end = sx.stiffness(robertson, ts[-1], simulation.ys[-1], k)
    np.testing.assert_allclose(profile.fastest[-1], at_end.fastest, rtol=1e-12)
    compiled = jax.jit(jax.vmap(lambda y: sx.stiffness(robertson, 0.0, y, k).ratio))
    np.testing.assert_allclose(compiled(simulation.ys), profile.ratio, rtol=1e-6)
    with pytest.raises(ValueError, match=r"`ts` has shape \(2,\)"):
        sx.stiffness_along(robertson, ts[:2], simulation.ys, k)
