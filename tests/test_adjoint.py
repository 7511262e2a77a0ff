"""The discrete adjoint: gradients in everything that a solve depends on."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Counted, richardson

import stablax as sx

TIGHT = dict(rtol=1e-9, atol=1e-12)


def decay(t, y, k):
    return -k * y


@pytest.mark.parametrize("solver", [sx.Rodas5P(), diffrax.Tsit5(), sx.kvaerno5()], ids=repr)
@pytest.mark.parametrize("forth", [True, False], ids=["forth", "back"])
def test_gradients_in_state_times_and_condition(solver, forth):
    """y' = -k y: all of them are known; rows at the start, twice at one time, and at the end."""
    sign = 1.0 if forth else -1.0
    model = sx.Simulate(decay, solver=solver, controller=sx.StiffPID.preset(solver=solver, **TIGHT))
    weights = jnp.array([1.0, 0.5, -2.0, 3.0])

    def loss(y0, ts, t0, k):
        return jnp.sum(weights * model(y0, ts, t0=t0, args=k).ys)

    def exact(y0, ts, t0, k):
        return jnp.sum(weights * y0 * jnp.exp(-k * (ts - t0)))

    ts = 0.5 + sign * jnp.array([0.0, 0.4, 0.4, 1.0])
    inputs = (jnp.array(2.0), ts, jnp.array(0.5), jnp.array(1.5))
    ours = jax.jit(jax.grad(loss, argnums=(0, 2, 3)))(*inputs)
    theirs = jax.grad(exact, argnums=(0, 2, 3))(*inputs)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    # A row at the start moves with the start, not with its own time.
    np.testing.assert_allclose(
        jax.jit(jax.grad(loss, argnums=1))(*inputs)[1:],
        jax.grad(exact, argnums=1)(*inputs)[1:],
        rtol=1e-5,
    )


class Robertson(eqx.Module):
    log_k: jax.Array

    def __call__(self, t, y, args):
        k = jnp.exp(self.log_k)
        a, b, c = k[0] * y["A"], k[1] * y["B"] * y["C"], k[2] * y["B"] ** 2
        return {"A": -a + b, "B": a - b - c, "C": c}


def test_agrees_with_differences_and_with_the_derivative_of_the_loop():
    log_k = np.log([0.04, 1e4, 3e7])
    y0 = {"A": 1.0, "B": 0.0, "C": 0.0}

    def loss(log_k, adjoint):
        controller = sx.StiffPID.preset(rtol=1e-8, atol=1e-13)
        model = sx.Simulate(Robertson(log_k), controller=controller, adjoint=adjoint)
        ys = model(y0, jnp.geomspace(1e-2, 1e4, 5)).ys
        return jnp.sum(ys["A"] ** 2) + 1e8 * jnp.sum(ys["B"] ** 2)

    ours = jax.jit(jax.grad(lambda p: loss(p, sx.DiscreteAdjoint())))(jnp.asarray(log_k))
    value = jax.jit(lambda p: loss(p, sx.DiscreteAdjoint()))
    np.testing.assert_allclose(ours, richardson(lambda p: value(jnp.asarray(p)), log_k), rtol=1e-5)
    loop = diffrax.RecursiveCheckpointAdjoint(checkpoints=200)
    theirs = jax.jit(jax.grad(lambda p: loss(p, loop)))(jnp.asarray(log_k))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_a_step_that_ends_at_a_jump_does_not_see_the_other_side():
    def field(t, y, k):
        return jnp.where(t < 0.5, k[0], k[1]) * jnp.ones(1)

    model = sx.Simulate(field, controller=sx.StiffPID.preset(jump_ts=[0.5]))
    gradient = jax.grad(lambda k: model(jnp.zeros(1), [1.0], args=k).ys[0, 0])
    np.testing.assert_allclose(gradient(jnp.array([1.0, 1e3])), [0.5, 0.5], rtol=1e-9)


def test_an_infinite_derivative_is_taken_next_door():
    """The rate of a dead species, sqrt(0), has an infinite derivative; the gradient in what is
    alive is right all the same."""

    def field(t, y, k):
        return jnp.stack([-k * y[0], -jnp.sqrt(y[1])])

    model = sx.Simulate(field, controller=sx.StiffPID.preset(**TIGHT))
    gradient = jax.grad(lambda k: model(jnp.array([1.0, 0.0]), [1.0], args=k).ys[0, 0])
    np.testing.assert_allclose(gradient(2.0), -np.exp(-2.0), rtol=1e-6)


def test_the_backward_pass_needs_no_second_trace_of_the_python_code():
    field = Counted(decay)
    model = sx.Simulate(field)
    jax.jit(lambda k: model(1.0, [1.0], args=k).ys)(2.0)
    forward = field.calls
    field.calls = 0
    jax.jit(jax.grad(lambda k: model(1.0, [1.0], args=k).ys[0]))(2.0)
    assert field.calls <= forward


def test_an_event_has_another_adjoint():
    event = diffrax.Event(lambda t, y, args, **kwargs: y - 0.5)
    model = sx.Simulate(decay, event=event)
    assert isinstance(model.options.adjoint, diffrax.RecursiveCheckpointAdjoint)
    with pytest.raises(ValueError, match="event.*RecursiveCheckpointAdjoint"):
        sx.Simulate(decay, event=event, adjoint=sx.DiscreteAdjoint())


def test_forward_mode_says_which_adjoint_has_it():
    with pytest.raises(TypeError, match="ForwardMode"):
        jax.jvp(lambda k: sx.Simulate(decay)(1.0, [1.0], args=k).ys, (1.0,), (1.0,))
