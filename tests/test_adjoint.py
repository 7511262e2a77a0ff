"""The discrete adjoint: gradients in everything that a solve depends on."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import Counted, richardson

import stablax as sx

TIGHT = dict(rtol=1e-9, atol=1e-12)


def decay(t, y, k):
    return -k * y


def test_rows_of_a_solve_without_steps_are_its_start():
    model = sx.Simulate(decay, solver=diffrax.Tsit5())
    row = lambda y0: model(y0, jnp.array([0.5, 0.5]), t0=0.5, args=1.5).ys
    np.testing.assert_array_equal(jax.jacrev(row)(2.0), [1.0, 1.0])


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


class Layered(eqx.Module):
    """Not autonomous, nonlinear in everything, with `width` hidden units; tridiagonal."""

    inner: jax.Array
    outer: jax.Array

    def __init__(self, size, width):
        keys = jr.split(jr.key(0))
        self.inner = jr.normal(keys[0], (width, size))
        self.outer = jr.normal(keys[1], (size, width)) / width

    def __call__(self, t, y, args):
        # Units act on one component each, so that the bands are narrow.
        hidden = jnp.tanh(self.inner * y[None, :] + t)
        near = jnp.roll(y, 1).at[0].set(0.0)
        return -50.0 * y + args * near**2 + jnp.sum(self.outer * hidden.T, axis=1) * jnp.cos(3 * t)


def by_hand(t, y, args):
    return jnp.diag(-50.0 - y**2) + args * t * jnp.outer(y, y)


@pytest.mark.parametrize(
    ("solver", "size", "width"),
    [
        (sx.Rodas5P(), 3, 4),
        (sx.Rodas5P(), 3, 700),  # more than 4096 parameters
        (sx.Rodas5P(), 12, 2),  # more components than stages
        (sx.Rodas5P(), 30, 2),
        (sx.Rodas4(), 3, 4),
        (sx.Rosenbrock23(), 3, 4),
        (sx.Rosenbrock23(), 30, 2),
        (sx.Rodas5P(jacobian=sx.Banded(1, 0)), 30, 2),
        (sx.Rodas5P(jacobian=sx.Banded(1, 0)), 5, 2),
        (sx.Rodas5P(jacobian=sx.MatrixFree()), 5, 2),
        # Wrong, so that it makes a difference whether it is this that is differentiated.
        (sx.Rodas5P(jacobian=by_hand), 3, 2),
        (sx.Rodas5P(jacobian=by_hand), 30, 2),
    ],
    ids=lambda x: x if isinstance(x, int) else repr(x),
)
def test_a_step_taken_back_by_hand(solver, size, width):
    """Equal to automatic differentiation of the step, for any cotangent."""
    field = Layered(size, width)
    system = lambda moving: (diffrax.ODETerm(moving[0]), moving[1])
    y0 = jnp.linspace(0.5, 1.5, size)
    primals = ((field, jnp.array(0.7)), jnp.array(0.2), jnp.array(0.23), y0)

    def step(moving, t0, t1, y0):
        terms, args = system(moving)
        y1, _, dense, *_ = solver.step(terms, t0, t1, y0, args, None, False)
        return y1, dense

    @eqx.filter_jit
    def both(primals):
        out, pull = jax.vjp(step, *primals)
        grads = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size)).reshape(x.shape), out)
        dense, pull_by_hand = solver.replay(system, *primals)
        return (out[1], pull(grads)), (dense, pull_by_hand(*grads))

    expected, ours = both(primals)
    scale = max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(expected[1]))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * scale)


def test_a_relaxation_oscillation():
    """van der Pol, mu = 1e3, beyond its first jump: the phase of a thousand steps has to be right.
    The truth is the derivative of the loop at a tight tolerance."""

    def field(t, y, mu):
        return jnp.stack([y[1], mu * ((1 - y[0] ** 2) * y[1]) - y[0]])

    def last(mu, rtol, adjoint=None):
        controller = sx.StiffPID.preset(rtol=rtol, atol=1e-3 * rtol)
        model = sx.Simulate(field, controller=controller, adjoint=adjoint, max_steps=16384)
        return model(jnp.array([2.0, 0.0]), [1000.0], args=mu).ys[0, 0]

    ours = jax.jit(jax.grad(lambda mu: last(mu, 1e-9)))(1e3)
    truth = jax.jit(jax.jacfwd(lambda mu: last(mu, 1e-11, diffrax.ForwardMode())))(1e3)
    np.testing.assert_allclose(ours, truth, rtol=1e-3)
