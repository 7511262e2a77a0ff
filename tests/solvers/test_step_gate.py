"""The step gate, for people who use nothing else of stablax."""

import itertools

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import by_day

import stablax as sx


def _solve(field, solver, k, y0, adjoint, dt0=1.0):
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver,
        0.0,
        1.0,
        dt0,
        y0,
        k,
        stepsize_controller=diffrax.PIDController(rtol=1e-8, atol=1e-8),
        adjoint=adjoint,
        max_steps=256,
    ).ys[-1]


def _root(t, y, k):
    return -k * jnp.sqrt(y)


PROTECTIONS = {
    "FiniteSteps": (_root, lambda: sx.FiniteSteps(diffrax.Tsit5())),
    "Guarded": (sx.Guarded(_root, sx.Guard(0.0)), diffrax.Tsit5),
    "Guarded, no bounds": (sx.Guarded(_root), diffrax.Tsit5),
    "Guarded, implicit": (sx.Guarded(_root), sx.kvaerno5),
}


def test_without_protection_the_gradient_is_nan():
    # https://github.com/patrick-kidger/diffrax/issues/143
    adjoint = diffrax.RecursiveCheckpointAdjoint()
    gradient = jax.jit(jax.grad(lambda k: _solve(_root, diffrax.Tsit5(), k, 1.0, adjoint)))(1.5)
    assert jnp.isnan(gradient)


@pytest.mark.parametrize(
    ("protection", "mode"),
    by_day(
        itertools.product(PROTECTIONS, ["reverse", "direct", "forward"]),
        ("FiniteSteps", "direct"),
        ("Guarded", "reverse"),
        ("Guarded, no bounds", "forward"),
        ("Guarded, implicit", "reverse"),
    ),
)
def test_a_rejected_step_cannot_ruin_a_gradient(protection, mode):
    # https://github.com/patrick-kidger/diffrax/issues/143
    field, solver = PROTECTIONS[protection]
    adjoint, derivative = {
        "reverse": (diffrax.RecursiveCheckpointAdjoint(), jax.jacrev),
        "direct": (diffrax.DirectAdjoint(), jax.jacrev),
        "forward": (diffrax.ForwardMode(), jax.jacfwd),
    }[mode]

    @jax.jit
    def both(k, y0):
        fn = lambda k, y0: _solve(field, solver(), k, y0, adjoint)
        return fn(k, y0), derivative(fn, argnums=(0, 1))(k, y0)

    value, (dk, dy0) = both(1.5, 1.0)
    # y(1) = (sqrt(y0) - k/2)^2
    np.testing.assert_allclose(value, 0.0625, rtol=1e-5)
    np.testing.assert_allclose(dk, -0.25, rtol=1e-4)
    np.testing.assert_allclose(dy0, 0.25, rtol=1e-4)


def test_closed_over_parameters_do_not_bypass_the_step_gate():
    adjoint = diffrax.RecursiveCheckpointAdjoint()

    def value(k):
        field = lambda t, y, args: -k * jnp.sqrt(y)
        return _solve(field, sx.FiniteSteps(diffrax.Tsit5()), None, 1.0, adjoint)

    np.testing.assert_allclose(jax.jit(jax.grad(value))(1.5), -0.25, rtol=1e-4)


@pytest.mark.parametrize("solver", [diffrax.Dopri5, diffrax.Euler])
def test_a_finite_solve_is_untouched(solver):
    def run(solver, k):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, k: -k * y),
            solver,
            0.0,
            1.0,
            0.1,
            jnp.ones(2),
            k,
            saveat=diffrax.SaveAt(ts=jnp.linspace(0, 1, 5)),
        ).ys

    @jax.jit
    def both(k):
        gated, plain = sx.FiniteSteps(solver()), solver()
        return [jax.value_and_grad(lambda k, s=s: jnp.sum(run(s, k)))(k) for s in (gated, plain)]

    np.testing.assert_allclose(*both(2.0), rtol=1e-13)


@pytest.mark.parametrize(
    ("solver", "words"),
    [
        (diffrax.Kvaerno5(), r"FiniteSteps\(Kvaerno5\(\)\).*stablax.Guarded"),
        (diffrax.KenCarp4(), r"FiniteSteps\(KenCarp4\(\)\)"),
        (diffrax.HalfSolver(diffrax.Euler()), "wrap the innermost solver"),
    ],
)
def test_what_cannot_be_gated_is_refused_by_name(solver, words):
    with pytest.raises(TypeError, match=words):
        sx.FiniteSteps(solver)


def test_fixed_steps_do_not_hide_a_step_that_is_not_finite():
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: jnp.where(y < 1, 1.0, jnp.nan)),
        sx.FiniteSteps(diffrax.Euler()),
        0.0,
        2.0,
        0.1,
        jnp.array(0.0),
    )
    assert jnp.isnan(solution.ys).all()


def test_kvaerno5_does_not_reject_good_steps():
    """Statistics are snapshots: a solver that got worse inside the tolerances shows here."""

    def van_der_pol(t, y, mu):
        return jnp.stack([y[1], mu * ((1 - y[0] ** 2) * y[1] - y[0])])

    def steps(solver, rtol):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(van_der_pol),
            solver,
            0.0,
            2.0,
            None,
            jnp.array([2.0, 0.0]),
            1e3,
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=rtol * 1e-2),
            max_steps=100_000,
        ).stats

    ours, theirs = (steps(s, 1e-6) for s in (sx.kvaerno5(), diffrax.Kvaerno5()))
    assert ours["num_rejected_steps"] < 0.3 * ours["num_steps"]
    assert ours["num_steps"] < 0.75 * theirs["num_steps"]
    # `optimistix.Chord` gets stuck here, with about 1e5 rejections.
    assert steps(sx.kvaerno5(), 1e-3)["num_steps"] < 1000


def test_kvaerno5_gets_past_rounding_near_a_steady_state():
    """At a steady state of a stiff field the iterates differ by rounding only; their rate is
    noise, and must not pass for divergence."""
    model = sx.Simulate(
        lambda t, y, k: -jnp.exp(17.0) * jnp.expm1(y - k), solver=sx.kvaerno5(), max_steps=200
    )
    simulation = model(jnp.array([5.5]), jnp.array([1e3]), args=jnp.array([6.0]))
    np.testing.assert_allclose(simulation.ys, 6.0, rtol=1e-6)


def test_patient_chord_is_an_optimistix_root_finder():
    import optimistix as optx

    found = optx.root_find(
        lambda y, args: y - jnp.cos(y), sx.PatientChord(rtol=1e-8, atol=1e-8), jnp.array(0.7)
    )
    np.testing.assert_allclose(found.value, 0.7390851332151607, rtol=1e-8)


def test_a_parameter_that_is_an_eqx_module_is_differentiated():
    class Rate(eqx.Module):
        k: jax.Array

        def __call__(self, t, y, args):
            return -self.k * jnp.sqrt(y)

    adjoint = diffrax.RecursiveCheckpointAdjoint()

    def value(field):
        return _solve(field, sx.FiniteSteps(diffrax.Tsit5()), None, 1.0, adjoint)

    gradient = eqx.filter_jit(eqx.filter_grad(value))(Rate(jnp.array(1.5)))
    np.testing.assert_allclose(gradient.k, -0.25, rtol=1e-4)
