"""The system of diffrax issue 368: a rejected step must not ruin the gradient.

https://github.com/patrick-kidger/diffrax/issues/368
"""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_368 as reference

import stablax as sx

PARAMETERS = np.concatenate([reference.NAMED_PARAMETERS, reference.random_parameters(50)])


class Field368(sx.GuardedField):
    p: jax.Array

    def vector_field(self, t, y, args):
        k = args
        p0, p1, p2 = self.p
        return jnp.stack(
            [
                jnp.expm1(p2 - y[0] - y[1]) * jnp.exp(p0),
                jnp.expm1(k - y[1]) * jnp.exp(p1),
            ]
        )


def _loss(p, guard, stepping=None):
    model = sx.SteadyThenSimulate(Field368(p, guard=guard))
    simulation = model(
        jnp.array(reference.Y0),
        jnp.array(reference.TIMES),
        steady_args=reference.K1,
        args=reference.K2,
        stepping=stepping,
        throw=False,
    )
    return jnp.mean(simulation.ys**2), simulation


@pytest.fixture(scope="module")
def gradients():
    """Compiled once for each guard: 52 systems, value and gradient."""

    def run(guard):
        fn = jax.jit(jax.value_and_grad(lambda p: _loss(p, guard), has_aux=True))
        return [fn(jnp.asarray(p)) for p in PARAMETERS]

    return {name: run(guard) for name, guard in GUARDS.items()}


GUARDS = {"box": sx.Guard(-30.0, 30.0), "empty": sx.Guard()}


def test_diffrax_alone_gives_nan_or_raises():
    """The problem exists; without it this file tests nothing."""

    def loss(p):
        y0 = jnp.stack([p[2] - reference.K1, jnp.array(reference.K1)])
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, k: Field368(p).vector_field(t, y, k)),
            diffrax.Kvaerno5(),
            0.0,
            1e3,
            None,
            y0,
            reference.K2,
            saveat=diffrax.SaveAt(ts=jnp.array(reference.TIMES)),
            stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-9),
            throw=False,
        )
        return jnp.mean(solution.ys**2)

    try:
        gradient = eqx.filter_jit(jax.grad(loss))(jnp.asarray(PARAMETERS[1]))
    except RuntimeError as e:
        assert "linear solver" in str(e)
    else:
        assert jnp.isnan(gradient).all()


@pytest.mark.parametrize("guard", GUARDS)
def test_steady_state_trajectory_and_gradient(gradients, guard):
    results = gradients[guard]
    successful = 0
    for p, ((value, simulation), gradient) in zip(PARAMETERS, results, strict=True):
        assert np.isfinite(gradient).all() and np.isfinite(simulation.ys).all()
        if not sx.is_successful(simulation):
            assert not np.any(gradient)
            continue
        successful += 1
        exact, slope = reference.value_and_gradient(p)
        np.testing.assert_allclose(simulation.steady.y, reference.steady_state(p), atol=1e-6)
        np.testing.assert_allclose(simulation.ys, reference.trajectory(p), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(value, exact, rtol=1e-4)
        assert np.max(np.abs(gradient - slope)) < 1e-3 * np.max(np.abs(slope))
    assert successful >= 51


@pytest.fixture(scope="module")
def batch():
    """The mean over a batch of four, with the steps each needs and with too few for one."""
    # The last needs most steps by far.
    ps = jnp.asarray(PARAMETERS[[0, 1, 2, 3]])

    def loss(ps, max_steps):
        stepping = sx.Stepping(max_steps=max_steps)
        losses, simulations = jax.vmap(lambda p: _loss(p, sx.Guard(), stepping))(ps)
        return sx.masked_mean(losses, simulations), (losses, simulations)

    return ps, jax.jit(jax.value_and_grad(loss, has_aux=True))


def test_the_gradient_of_a_batch_is_the_mean(batch, gradients):
    ps, mean = batch
    (value, _), gradient = mean(ps, 4096)
    single = [gradients["empty"][i] for i in range(4)]
    np.testing.assert_allclose(value, np.mean([s[0][0] for s in single]), rtol=1e-8)
    expected = np.stack([s[1] for s in single]) / 4
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-9)


def test_one_failing_sample_changes_nothing_in_the_others(batch, gradients):
    ps, mean = batch
    steps = np.array([int(gradients["empty"][i][0][1].stats["num_steps"]) for i in range(4)])
    longest = int(np.argmax(steps))
    budget = int(np.sort(steps)[-2])
    assert budget < steps[longest]
    (_, (_, simulations)), gradient = mean(ps, budget)
    ok = np.asarray(sx.is_successful(simulations))
    assert ok.tolist() == [i != longest for i in range(4)]
    assert not np.any(np.asarray(gradient)[longest])
    expected = np.stack([gradients["empty"][i][1] for i in range(4)]) / 3
    np.testing.assert_allclose(gradient[ok], expected[ok], rtol=1e-5, atol=1e-9)
    assert f"lanes ({longest})" in sx.explain(simulations)
    assert np.isfinite(simulations.ys).all()
