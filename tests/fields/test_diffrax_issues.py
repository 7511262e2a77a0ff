"""Fields on which diffrax alone loses its gradient, guarded and by the step gate."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import all_finite, richardson

import stablax as sx

jax.config.update("jax_enable_x64", True)


# --- https://github.com/patrick-kidger/diffrax/issues/386

A = np.array(
    [6.026932645397832, 4.41195014234956, 5.884199824299863, 3.673504195449191, 4.17957753821087]
)
B = -2.823760940491063
START = jnp.array([0.0, 1.0])


def _issue_386(t, y, a):
    c = jnp.exp(a[1]) - y[0]
    d = jnp.exp(jnp.log(y[1]) - jnp.log(c + jnp.exp(B)))
    first = jnp.exp(a[2]) * d * c - jnp.exp(a[4]) * y[0]
    return jnp.stack([first, jnp.exp(a[3]) * (jnp.exp(a[0]) - y[1])])


def _solve_386(a, upper, controller):
    guard = sx.Guard(np.array([0.0, 1e-8]), np.array([upper, 1e6]))
    model = sx.Simulate(sx.Guarded(_issue_386, guard), controller=controller)
    simulation = model(START, [10.0], args=a)
    return simulation.ys[-1], simulation


def test_issue_386_guarded():
    controller = sx.StiffPID.preset(rtol=1e-6, atol=1e-8)
    upper = float(np.exp(A[1]))

    def loss(a):
        end, simulation = _solve_386(a, upper, controller)
        return end[0] + jnp.log(end[1]), (end, simulation)

    gradient, (end, simulation) = jax.jit(jax.grad(loss, has_aux=True))(A)
    np.testing.assert_allclose(end, [82.427828998, 414.441837637], rtol=1e-6)
    assert sx.is_successful(simulation) and int(simulation.stats["num_steps"]) < 500
    precise = sx.StiffPID.preset("precise")
    # The perturbed solutions pass the unperturbed bound.
    end_of = jax.jit(lambda a: _solve_386(a, 1.1 * upper, precise)[0])

    def value(a):
        end = end_of(a)
        return end[0] + jnp.log(end[1])

    exact = richardson(value, A, 1e-3)
    np.testing.assert_allclose(gradient, exact, rtol=1e-4, atol=1e-6 * np.abs(exact).max())


def test_issue_386_is_diagnosed():
    report = sx.diagnose(sx.Simulate(_issue_386), START, [10.0], args=jnp.asarray(A))
    assert report.causes[0] == "field_not_finite"
    # The logarithms: of y[1], and of exp(a1) + exp(b) - y[0].
    assert "y[1] is below 0" in report.suggestions[0].why
    assert f"y[0] is above {np.exp(A[1]) + np.exp(B):.6g}" in report.suggestions[0].why


# --- https://github.com/patrick-kidger/diffrax/issues/143


@pytest.mark.parametrize("solver", [diffrax.Tsit5, sx.Rodas5P], ids=["Tsit5", "Rodas5P"])
@pytest.mark.parametrize("guard", [sx.Guard(0.0), None], ids=["guarded", "step gate"])
def test_issue_143(solver, guard):
    """y' = -k sqrt(y): with dt0 = 1 the first step takes the root of a negative number."""
    field = lambda t, y, k: -k * jnp.sqrt(y)
    if guard is not None:
        field = sx.Guarded(field, guard)
    model = sx.Simulate(field, solver=solver(), dt0=1.0)
    loss = lambda k: model(1.0, [1.0], args=k).ys[-1]
    value, gradient = jax.jit(jax.value_and_grad(loss))(1.5)
    assert float(value) == pytest.approx(0.0625, rel=1e-4)
    assert float(gradient) == pytest.approx(-0.25, rel=1e-3)


# --- the heat equation in float32, where Kvaerno5 with diffrax's defaults gives up


def test_heat_equation_in_single_precision():
    def loss(k, dtype, controller):
        model = sx.Simulate(sx.problems.HEAT.field, controller=controller)
        times = jnp.array([0.05, 0.5], dtype)
        simulation = model(jnp.ones(60, dtype), times, args=k, throw=False)
        return jnp.mean(jnp.abs(simulation.ys)), simulation

    gradient = jax.jit(jax.grad(loss, has_aux=True), static_argnums=(1, 2))
    loose = sx.StiffPID.preset(rtol=1e-3, atol=1e-5)
    single, simulation = gradient(jnp.float32(1.0), jnp.float32, loose)
    assert sx.is_successful(simulation) and int(simulation.stats["num_steps"]) < 100
    assert all_finite(simulation) and single.dtype == jnp.float32
    double, _ = gradient(jnp.float64(1.0), jnp.float64, sx.StiffPID.preset("precise"))
    assert float(single) == pytest.approx(float(double), rel=0.02)
