"""Rosenbrock methods, in plain diffrax: order, stability, dense output, and what a step must
survive."""

import re

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
from helpers import by_day, richardson

import stablax as sx
from stablax import _linalg

METHODS = {"Rodas5P": sx.Rodas5P(), "Rodas4": sx.Rodas4(), "Rosenbrock23": sx.Rosenbrock23()}
ORDERS = {"Rodas5P": 5, "Rodas4": 4, "Rosenbrock23": 2}
DENSE = {"Rodas5P": 4, "Rodas4": 3, "Rosenbrock23": 2}


@pytest.fixture(params=METHODS)
def name(request):
    return request.param


@eqx.filter_jit
def _solve(field, solver, *args, **kwargs):
    return diffrax.diffeqsolve(diffrax.ODETerm(field), solver, *args, **kwargs)


def fixed(field, solver, y0, t1, steps, args=None, saveat=None):
    """Any number of steps up to 128 is the same program."""
    assert steps <= 128
    saveat = diffrax.SaveAt(t1=True) if saveat is None else saveat
    times = map(jnp.asarray, (0.0, t1, t1 / steps))
    return _solve(field, solver, *times, y0, args, saveat=saveat, max_steps=130)


def adaptive(field, solver, y0, t1, t0=0.0, args=None, rtol=1e-8, atol=1e-11, **kwargs):
    controller = kwargs.pop("controller", diffrax.PIDController(rtol=rtol, atol=atol))
    t0, t1 = jnp.asarray(t0), jnp.asarray(t1)
    return _solve(field, solver, t0, t1, None, y0, args, stepsize_controller=controller, **kwargs)


# --- order


def logistic(t, y, args):
    """Non-linear, non-autonomous, a system; its solution is known."""
    rate = jnp.array([1.0, 2.0]) * (1 + jnp.cos(3 * t))
    return rate * y * (1 - y)


def logistic_solution(t, y0):
    growth = np.exp(np.array([1.0, 2.0]) * (t + np.sin(3 * t) / 3))
    return y0 * growth / (1 - y0 + y0 * growth)


def observed_order(error, steps):
    errors = np.array([error(n) for n in steps])
    return np.log(errors[:-1] / errors[1:]) / np.log(np.array(steps[1:]) / np.array(steps[:-1]))


def test_order_of_convergence(name):
    y0 = jnp.array([0.2, 0.1])

    def error(n):
        y1 = fixed(logistic, METHODS[name], y0, 1.0, n).ys[-1]
        return np.max(np.abs(y1 - logistic_solution(1.0, np.array([0.2, 0.1]))))

    orders = observed_order(error, [36, 54, 80, 120])
    assert np.all(orders > ORDERS[name] - 0.4), orders
    assert np.median(orders) < ORDERS[name] + 0.8, orders


def _times(t, y, z):
    return z * y


def test_the_stability_function_agrees_with_exp_to_the_order_of_the_method(name):
    for z in (0.02, -0.02):
        step = fixed(_times, METHODS[name], jnp.array([1.0]), 1.0, 1, args=jnp.array(z))
        assert abs(float(step.ys[0, 0]) - np.exp(z)) < 2 * abs(z) ** (ORDERS[name] + 1)


def test_dense_output_has_its_order_is_continuous_and_exact_at_the_ends(name):
    y0 = jnp.array([0.2, 0.1])
    inner = np.linspace(0, 2, 50)[1:-1]

    def solve(n):
        return fixed(
            logistic, METHODS[name], y0, 2.0, n, saveat=diffrax.SaveAt(dense=True, steps=True)
        )

    def error(n):
        rows = jax.vmap(solve(n).evaluate)(jnp.asarray(inner))
        exact = np.stack([logistic_solution(t, np.array([0.2, 0.1])) for t in inner])
        return np.max(np.abs(rows - exact))

    orders = observed_order(error, [16, 32, 64])
    assert np.all(orders > DENSE[name] - 0.3), orders
    solution = solve(8)
    for t, y in zip(solution.ts[:8], solution.ys[:8], strict=True):
        for left in (True, False):
            np.testing.assert_allclose(solution.evaluate(t, left=left), y, rtol=1e-13)
    np.testing.assert_array_equal(solution.evaluate(2.0), solution.ys[7])


def _to_the_cosine(t, y, stiffness):
    return -stiffness * (y - jnp.cos(t)) - jnp.sin(t)


@pytest.mark.parametrize("stiffness", [1e2, 1e4, 1e6])
def test_no_order_reduction_on_a_stiff_non_autonomous_problem(stiffness):
    """Prothero and Robinson's y' = -k (y - cos t) - sin t: the df/dt term keeps Rodas5P, which is
    made for it, at order 4 or better; without it the error stagnates."""

    def error(n):
        given = dict(args=jnp.asarray(stiffness))
        y1 = fixed(_to_the_cosine, sx.Rodas5P(), jnp.array([1.0]), 1.0, n, **given).ys[-1]
        return float(jnp.max(jnp.abs(y1 - np.cos(1.0))))

    assert error(32) < 1e-6
    assert observed_order(error, [8, 16, 32]).min() > 2.7


# --- stability


def test_l_stability(name):
    """One step on y' = z y: the result vanishes as z -> -inf, and never exceeds 1 on the left
    half plane (a rotating system stands for complex z)."""
    solver = METHODS[name]

    def amplification(real, imaginary):
        matrix = jnp.array([[real, -imaginary], [imaginary, real]])
        field = lambda t, y, args: matrix @ y
        return jnp.linalg.norm(fixed(field, solver, jnp.array([1.0, 0.0]), 1.0, 1).ys[-1])

    real = -np.logspace(-2, 8, 21)
    factor = jax.jit(jax.vmap(amplification))
    for angle in (0.0, 0.5, 1.0, 1.4):
        sizes = factor(jnp.asarray(real), jnp.asarray(real * np.tan(angle)))
        assert np.all(sizes <= 1 + 1e-12)
        assert sizes[-1] < 1e-6
    on_axis = factor(jnp.zeros(21), jnp.asarray(-real))
    assert np.all(on_axis <= 1 + 1e-9)


# --- use in diffrax


def robertson(t, y, args):
    a, b, c = 0.04 * y["A"], 1e4 * y["B"] * y["C"], 3e7 * y["B"] ** 2
    return {"A": -a + b, "B": a - b - c, "C": c}


ROBERTSON = {"A": jnp.array(1.0), "B": jnp.array(0.0), "C": jnp.array(0.0)}
# Hairer and Wanner 1996; by scipy's Radau at rtol 1e-12 too
AT_40 = {"A": 0.7158270687, "B": 9.185534765e-06, "C": 0.2841637457}


def test_a_pytree_state_and_statistics(name):
    rtol = 1e-4 if name == "Rosenbrock23" else 1e-6
    solution = adaptive(robertson, METHODS[name], ROBERTSON, 40.0, rtol=rtol, atol=rtol * 1e-5)
    for key, value in AT_40.items():
        np.testing.assert_allclose(solution.ys[key][-1], value, rtol=1e-4)
    assert sum(float(solution.ys[k][-1]) for k in "ABC") == pytest.approx(1.0, abs=1e-12)
    stats = solution.stats
    assert stats["num_steps"] == stats["num_accepted_steps"] + stats["num_rejected_steps"]
    assert stats["num_steps"] < {"Rodas5P": 90, "Rodas4": 150, "Rosenbrock23": 250}[name]
    assert stats["num_rejected_steps"] < 12


def test_backward_in_time(name):
    forth = adaptive(logistic, METHODS[name], jnp.array([0.2, 0.1]), 2.0, rtol=1e-6)
    back = adaptive(
        logistic,
        METHODS[name],
        forth.ys[-1],
        0.0,
        t0=2.0,
        rtol=1e-6,
        saveat=diffrax.SaveAt(ts=[1.0, 0.0]),
    )
    np.testing.assert_allclose(back.ys[-1], [0.2, 0.1], rtol=1e-4)
    np.testing.assert_allclose(back.ys[0], logistic_solution(1.0, np.array([0.2, 0.1])), rtol=1e-4)


def test_save_functions_and_events(name):
    solution = adaptive(
        lambda t, y, args: -y,
        METHODS[name],
        jnp.array([1.0]),
        5.0,
        rtol=1e-6,
        saveat=diffrax.SaveAt(t1=True, fn=lambda t, y, args: 2 * y),
        event=diffrax.Event(
            lambda t, y, args, **kwargs: y[0] - 0.5,
            root_finder=optx.Newton(1e-8, 1e-8),
        ),
    )
    np.testing.assert_allclose(solution.ts[-1], np.log(2), rtol=1e-4)
    np.testing.assert_allclose(solution.ys[-1], [1.0], rtol=1e-4)


@pytest.mark.parametrize("name", by_day(METHODS, "Rodas5P"))
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtypes_do_not_mix(name, dtype):
    y0 = jnp.array([0.2, 0.1], dtype)
    field = lambda t, y, args: y * (1 - y) * t
    solution = _solve(
        field,
        METHODS[name],
        jnp.zeros((), dtype),
        jnp.ones((), dtype),
        jnp.full((), 0.1, dtype),
        y0,
        saveat=diffrax.SaveAt(ts=jnp.array([0.5, 1.0], dtype), dense=True),
    )
    assert solution.ys.dtype == dtype and solution.interpolation.infos["stages"].dtype == dtype
    jaxpr = jax.make_jaxpr(
        lambda y: METHODS[name].step(
            diffrax.ODETerm(field), jnp.zeros((), dtype), jnp.ones((), dtype), y, None, None, False
        )[:3]
    )(y0)
    other = {jnp.float32: "f64", jnp.float64: "f32"}[dtype]
    assert not re.search(other + r"\[\d", str(jaxpr))


@pytest.mark.parametrize("name", by_day(METHODS, "Rodas5P"))
def test_vmap_and_jit_agree_with_one_by_one(name):
    field = lambda t, y, k: -k * (y - jnp.cos(t))

    def solve(k):
        tolerances = dict(rtol=1e-5, atol=1e-8)
        return adaptive(field, METHODS[name], jnp.array([2.0]), 1.0, args=k, **tolerances).ys[-1]

    rates = jnp.array([0.1, 10.0, 1e5])
    together = jax.jit(jax.vmap(solve))(rates)
    np.testing.assert_allclose(together, [solve(k) for k in rates], rtol=1e-9)


# --- what a step must survive


@pytest.mark.parametrize("name", by_day(METHODS, "Rodas5P"))
def test_a_step_that_is_not_finite_is_rejected_and_leaves_no_trace_in_the_gradient(name):
    """diffrax issue #368: the first step tried overflows."""

    def field(t, y, p):  # from above y falls by 2e4 a unit of time, and below p it overflows
        return jnp.expm1(p - y) * jnp.exp(10.0)

    def last(p, adjoint):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            METHODS[name],
            0.0,
            1e-3,
            1.0,
            jnp.array([10.0]),
            p,
            stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-9),
            adjoint=adjoint,
            max_steps=10_000,
        )
        return solution.ys[-1, 0], solution.stats["num_rejected_steps"]

    reverse = diffrax.RecursiveCheckpointAdjoint(checkpoints=100)
    gradient, rejected = jax.jit(jax.grad(lambda p: last(p, reverse), has_aux=True))(jnp.array(1.5))
    assert rejected > 0
    value = jax.jit(lambda p: last(p, reverse)[0])
    np.testing.assert_allclose(
        gradient, richardson(lambda p: value(jnp.asarray(p[0])), [1.5]), rtol=1e-3
    )
    tangent = jax.jit(jax.jacfwd(lambda p: last(p, diffrax.ForwardMode())[0]))(jnp.array(1.5))
    np.testing.assert_allclose(tangent, gradient, rtol=1e-9)


@pytest.mark.parametrize("lanes", ["inf", "singular"])
def test_no_lane_sticks_with_the_controller_of_diffrax(name, lanes):
    """y' = -sinh(y) from far out locks up stock solvers; with y' = k y a step with h k = 1/gamma
    has a singular matrix."""
    if lanes == "inf":
        field = lambda t, y, args: -jnp.sinh(y)
        starts, dt0 = jnp.array([1.0, 12.0, 20.0, 30.0, 300.0, 700.0]), 1.0
    else:
        field = lambda t, y, args: y / METHODS[name].tableau.gamma
        starts, dt0 = jnp.array([1.0, -3.0]), 1.0

    def solve(y0):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            METHODS[name],
            0.0,
            1.0,
            dt0,
            y0[None],
            stepsize_controller=diffrax.PIDController(rtol=1e-5, atol=1e-8),
            max_steps=20_000,
            throw=False,
        )

    solution = jax.jit(jax.vmap(solve))(starts)
    assert np.all(np.asarray(solution.result._value) == 0)
    exact = (
        2 * np.arctanh(np.exp(-1.0) * np.tanh(starts / 2))
        if lanes == "inf"
        else starts * np.exp(1 / METHODS[name].tableau.gamma)
    )
    np.testing.assert_allclose(solution.ys[:, -1, 0], exact, rtol=2e-3)


def test_fixed_steps_do_not_hide_what_is_not_finite(name):
    field = lambda t, y, args: jnp.where(t > 0.5, jnp.nan, -y)
    assert not np.all(np.isfinite(fixed(field, METHODS[name], jnp.ones(1), 1.0, 10).ys))


def test_a_solver_is_a_value_without_leaves(name):
    solver = METHODS[name]
    assert jax.tree.leaves(solver) == []
    assert eqx.tree_equal(type(solver)(), solver) and hash(type(solver)()) == hash(solver)


@pytest.mark.parametrize("name", by_day(METHODS, "Rodas5P"))
def test_gradients_are_right_in_every_mode(name):
    def loss(p, adjoint):
        field = lambda t, y, p: jnp.stack([-p[0] * y[0] + p[1] * y[1], p[0] * y[0] - p[2] * y[1]])
        solution = adaptive(
            field,
            METHODS[name],
            jnp.array([1.0, 0.5]),
            1.0,
            args=p,
            rtol=1e-7,
            adjoint=adjoint,
            max_steps=2000,
            saveat=diffrax.SaveAt(ts=jnp.array([0.3, 1.0])),
        )
        return jnp.sum(solution.ys**2)

    p = jnp.array([100.0, 3.0, 5.0])
    reverse = jax.jit(jax.grad(lambda p: loss(p, diffrax.RecursiveCheckpointAdjoint())))(p)
    forward = jax.jit(jax.jacfwd(lambda p: loss(p, diffrax.ForwardMode())))(p)
    matrix = lambda p: jnp.array([[-p[0], p[1]], [p[0], -p[2]]])
    exact = jax.grad(
        lambda p: sum(
            jnp.sum((jax.scipy.linalg.expm(matrix(p) * t) @ jnp.array([1.0, 0.5])) ** 2)
            for t in (0.3, 1.0)
        )
    )(p)
    np.testing.assert_allclose(reverse, exact, rtol=1e-4)
    np.testing.assert_allclose(forward, reverse, rtol=1e-8)


# --- conditioning


@eqx.filter_jit
def _solution(way, matrix, b):
    factors = way.factorise(_linalg.Dense(), jnp.zeros(()), -matrix)
    return way.apply(factors, b, transpose=False)


@pytest.mark.parametrize("size", [2, 3, 5, 6, 12, 24])
def test_the_inverse_loses_no_more_digits_than_lu(size):
    """At a condition number of 1e14 both solutions are wrong in the second digit, in the direction
    that the matrix cannot tell; refining in the same precision would not help."""
    rng = np.random.default_rng(size)
    errors = {"inverse": [], "lu": []}
    for _ in range(20):
        left, _, right = np.linalg.svd(rng.normal(size=(size, size)))
        matrix = left @ np.diag(np.geomspace(1, 1e-14, size)) @ right
        x = rng.normal(size=size)
        # A product in twice the precision, so that x is the solution to the last bit.
        b = np.asarray(matrix.astype(np.longdouble) @ x, float)
        for name, way in (("inverse", _linalg.DenseLU()), ("lu", _linalg.EquilibratedLU())):
            errors[name].append(
                np.linalg.norm(_solution(way, jnp.asarray(matrix), jnp.asarray(b)) - x)
            )
    assert np.median(errors["inverse"]) < 4 * np.median(errors["lu"])


def test_stiffness_in_mixed_components_costs_no_accuracy():
    """y' = V diag(-1 .. -1e11) V^-1 y: all components are fast and slow at once. The inverse (8
    components) is as accurate as LU (the same system, padded to 25)."""
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    rates = np.concatenate([[1.0, 2.0], np.geomspace(1e3, 1e11, 6)])
    matrix = jnp.asarray(basis @ np.diag(-rates) @ basis.T)
    slow = jnp.asarray(basis[:, 0] + basis[:, 1])

    def last(padding):
        def field(t, y, args):
            return jnp.concatenate([matrix @ y[:8], -y[8:]])

        y0 = jnp.concatenate([slow, jnp.ones(padding)])
        return adaptive(field, sx.Rodas5P(), y0, 1.0, rtol=1e-6, atol=1e-9).ys[-1, :8]

    exact = basis[:, 0] * np.exp(-1.0) + basis[:, 1] * np.exp(-2.0)
    errors = [np.max(np.abs(last(padding) - exact)) for padding in (0, 17)]
    # The matrix itself is rounded: its slow part is known to 1e11 eps.
    assert max(errors) < 1e-4, errors
