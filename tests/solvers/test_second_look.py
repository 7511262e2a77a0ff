"""The second part of the error estimate of Rosenbrock methods: a Jacobian that is huge at the start
of a step, and nowhere else, must not hide an error; and what one step hands on to the next."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq

import stablax as sx

METHODS = {"Rodas5P": sx.Rodas5P(), "Rodas4": sx.Rodas4(), "Rosenbrock23": sx.Rosenbrock23()}
TIMES = (0.01, 0.1)


def _root_law(y0, a, b, t):
    """y(t) for y' = b - a sqrt(y): with s = sqrt(y), t is an integral over s in closed form."""
    start = b - a * np.sqrt(y0)
    time = lambda w: 2 * (start * np.expm1(-w) + b * w) / a**2
    w = float(brentq(lambda w: time(w) - t, 0, a**2 * t / b + a + 1, xtol=1e-300, rtol=1e-14))
    return ((b - start * np.exp(-w)) / a) ** 2


@pytest.mark.parametrize("name", METHODS)
def test_a_jacobian_that_is_huge_at_the_start_only_hides_no_error(name):
    """Without a second look a third of these values are wrong, and called successful."""
    rng = np.random.default_rng(0)
    y0 = np.concatenate([[1e-20, 1e-60, 1e-150, 1e-300], 10 ** rng.uniform(-30, 0, 60)])
    a = np.append([16.833] * 4, 10 ** rng.uniform(-1, np.log10(30), 60))
    b = np.append([0.4194] * 4, 10 ** rng.uniform(-1, 1, 60))

    def solve(y0, a, b):
        field = lambda t, y, args: b - a * jnp.sign(y) * jnp.sqrt(jnp.abs(y))
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            METHODS[name],
            0.0,
            TIMES[-1],
            None,
            y0[None],
            stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-9),
            saveat=diffrax.SaveAt(ts=jnp.asarray(TIMES)),
            adjoint=diffrax.ForwardMode(),
        )
        return solution.ys[:, 0]

    right = [[_root_law(*lane, t) for t in TIMES] for lane in zip(y0, a, b, strict=True)]
    np.testing.assert_allclose(jax.jit(jax.vmap(solve))(y0, a, b), right, rtol=1e-3)


def test_a_reaction_of_order_one_half_from_almost_nothing():
    """Value and gradient in a model with its defaults: A is made at a constant rate, and degraded
    at a sqrt(A) / (1 + sqrt(A))."""

    def last(rates, y0):
        laws = [sx.MassAction(rates[0]), sx.Hill(rates[1], 1.0, 0.5)]
        model = sx.Simulate(sx.ReactionField(["0 -> A", "A -> 0"], laws))
        return model(y0[None], [TIMES[0]]).ys[0, 0]

    def right(rates):
        b, a = rates
        time = lambda s: quad(lambda x: 2 * x * (1 + x) / (b + (b - a) * x), 0, s, epsabs=1e-15)[0]
        most = b / (a - b)  # where production and degradation are equal
        root = brentq(lambda part: time(part * most) - TIMES[0], 1e-9, 1 - 1e-9, rtol=1e-13)
        return (root * most) ** 2

    rates = np.array([0.4194, 16.833])
    starts = jnp.array([1e-14, 1e-20, 1e-30])
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(last), (None, 0)))(rates, starts)
    np.testing.assert_allclose(values, right(rates), rtol=1e-4)
    steps = 1e-4 * np.diag(rates)
    differences = [(right(rates + s) - right(rates - s)) / (2 * np.sum(s)) for s in steps]
    np.testing.assert_allclose(slopes, [differences] * 3, rtol=1e-3)


def test_nothing_is_handed_on_over_a_jump():
    """f and J of the end of a step are no longer those of the next where the field jumps between
    them, lane by lane."""

    def last(p, jump):
        field = lambda t, y, p: -p[0] * (y - jnp.where(t < jump, 1.0, p[1]))
        controller = diffrax.ClipStepSizeController(
            diffrax.PIDController(rtol=1e-7, atol=1e-9), jump_ts=jump[None]
        )
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            sx.Rodas5P(),
            0.0,
            1.0,
            None,
            jnp.zeros(1),
            p,
            stepsize_controller=controller,
            max_steps=500,
        )
        return solution.ys[-1, 0], solution.stats["num_steps"]

    def right(p, jump):
        rate, level = p
        before = 1 - jnp.exp(-rate * jump)
        return level + (before - level) * jnp.exp(-rate * (1 - jump))

    lanes = jnp.array([[1.0, 2.0], [30.0, 3.0], [1e4, -1.0]]), jnp.array([0.5, 0.7, 0.1])
    gradient = jax.value_and_grad(last, has_aux=True)
    (values, attempts), slopes = jax.jit(jax.vmap(gradient))(*lanes)
    np.testing.assert_allclose(values, jax.vmap(right)(*lanes), rtol=1e-6)
    np.testing.assert_allclose(slopes, jax.vmap(jax.grad(right))(*lanes), rtol=1e-3, atol=1e-8)
    assert np.all(attempts < 110)
