"""The discrete adjoint: gradients in everything that a solve depends on."""

import functools
from types import SimpleNamespace

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optimistix as optx
import pytest
from helpers import Counted, richardson, slow
from jax.flatten_util import ravel_pytree

import stablax as sx
from stablax._models._replay import step_by_step
from stablax._solvers import repeat_explicit

TIGHT = dict(rtol=1e-9, atol=1e-12)


def decay(t, y, k):
    return -k * y


def test_rows_of_a_solve_without_steps_are_its_start():
    model = sx.Simulate(decay, solver=diffrax.Tsit5())
    row = lambda y0: model(y0, jnp.array([0.5, 0.5]), t0=0.5, args=1.5).ys
    for slope in jax.jit(lambda y0: (jax.jacrev(row)(y0), jax.jacfwd(row)(y0)))(2.0):
        np.testing.assert_array_equal(slope, [1.0, 1.0])


def test_forward_mode_of_an_imex_method():
    """Its explicit part is zero, and has no tangent."""
    model = sx.Simulate(decay, solver=sx.kencarp4())
    last = lambda k: model(1.0, [1.0], args=k).ys[-1]
    slopes = jax.jit(lambda k: (jax.grad(last)(k), jax.jacfwd(last)(k)))(1.5)
    np.testing.assert_allclose(slopes[0], slopes[1], rtol=1e-10)
    np.testing.assert_allclose(slopes[1], -np.exp(-1.5), rtol=1e-4)


WEIGHTS = jnp.array([1.0, 0.5, -2.0, 3.0])


@functools.cache
def derivatives_of_decay(solver):
    """In reverse and in forward mode, for times that go either way."""
    model = sx.Simulate(decay, solver=solver, controller=sx.StiffPID.preset(solver=solver, **TIGHT))

    def loss(y0, t0, k, ts):
        return jnp.sum(WEIGHTS * model(y0, ts, t0=t0, args=k).ys)

    every = (0, 1, 2, 3)
    return jax.jit(jax.grad(loss, argnums=every)), jax.jit(jax.jacfwd(loss, argnums=every))


@pytest.mark.parametrize("solver", [sx.Rodas5P(), diffrax.Tsit5(), sx.kvaerno5()], ids=repr)
@pytest.mark.parametrize("forth", [True, False], ids=["forth", "back"])
def test_gradients_in_state_times_and_condition(solver, forth):
    """y' = -k y: all of them are known; rows at the start, twice at one time, and at the end."""
    sign = 1.0 if forth else -1.0

    def exact(y0, t0, k, ts):
        return jnp.sum(WEIGHTS * y0 * jnp.exp(-k * (ts - t0)))

    ts = 0.5 + sign * jnp.array([0.0, 0.4, 0.4, 1.0])
    inputs = (jnp.array(2.0), jnp.array(0.5), jnp.array(1.5), ts)
    *theirs, d_ts = jax.jit(jax.grad(exact, argnums=(0, 1, 2, 3)))(*inputs)
    for derivative in derivatives_of_decay(solver):
        *ours, by_ts = derivative(*inputs)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
        # A row at the start moves with the start, not with its own time.
        np.testing.assert_allclose(by_ts[1:], d_ts[1:], rtol=1e-5)


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

    both = jax.jit(jax.value_and_grad(lambda p: loss(p, sx.DiscreteAdjoint())))
    _, ours = both(jnp.asarray(log_k))
    differences = richardson(lambda p: both(jnp.asarray(p))[0], log_k)
    np.testing.assert_allclose(ours, differences, rtol=1e-5)
    # By its forward mode: in reverse (which the contracts hold) it compiles for five times as long.
    loop = diffrax.ForwardMode()
    theirs = jax.jit(jax.jacfwd(lambda p: loss(p, loop)))(jnp.asarray(log_k))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def switched(t, y, args):
    rates, at = args
    return jnp.where(t < at, rates[0], rates[1]) * jnp.ones(1)


@pytest.mark.parametrize(
    ("solver", "declared"),
    [(sx.Rodas5P(), True), (sx.Rodas5P(), False), (sx.kvaerno5(), True), (sx.kvaerno5(), False)],
    ids=["Rodas5P-declared", "Rodas5P", "kvaerno5-declared", "kvaerno5"],
)
def test_a_step_that_ends_at_a_jump_does_not_see_the_other_side(solver, declared):
    """A jump inside, at the start, and at the end; declared, the end of a step is exact."""
    controller = sx.StiffPID.preset(solver=solver, jump_ts=[0.5] if declared else None)
    model = sx.Simulate(switched, solver=solver, controller=controller)

    def last(rates, t0, ts):
        return model(jnp.zeros(1), ts, t0=t0, args=(rates, 0.5)).ys[-1, 0]

    # One mode for each solver: they are equal.
    derivative = jax.grad if declared else jax.jacfwd
    gradient = jax.jit(derivative(last, argnums=(0, 1, 2)))
    rates = jnp.array([1.0, 1e3])
    for t0, t1, exact, slopes in (
        (0.0, 1.0, [0.5, 0.5], (1.0, 1e3)),
        (0.5, 1.0, [0.0, 0.5], (1e3, 1e3)),
        (0.0, 0.5, [0.5, 0.0], (1.0, 1.0)),
    ):
        d_rates, d_t0, d_ts = gradient(rates, t0, jnp.array([(t0 + t1) / 2, t1]))
        sharp = declared and isinstance(solver, sx.Rodas5P)
        np.testing.assert_allclose(d_rates, exact, rtol=1e-9 if sharp else 1e-7, atol=1e-7)
        np.testing.assert_allclose(d_t0, -slopes[0], rtol=1e-9)
        # kvaerno5 has a stage beyond the end, where the field is another one.
        if t1 > 0.5 or isinstance(solver, sx.Rodas5P):
            np.testing.assert_allclose(d_ts[-1], slopes[1], rtol=1e-9)


def test_an_infinite_derivative_is_taken_next_door():
    """The rate of a dead species, sqrt(0), has an infinite derivative; the gradient in what is
    alive is right all the same."""

    def field(t, y, k):
        return jnp.stack([-k * y[0], -jnp.sqrt(y[1])])

    model = sx.Simulate(field, controller=sx.StiffPID.preset(**TIGHT))
    alive = lambda k: model(jnp.array([1.0, 0.0]), [1.0], args=k).ys[0, 0]
    for derivative in (jax.grad, jax.jacfwd):
        np.testing.assert_allclose(jax.jit(derivative(alive))(2.0), -np.exp(-2.0), rtol=1e-6)


def test_the_backward_pass_needs_no_second_trace_of_the_python_code():
    field = Counted(decay)
    model = sx.Simulate(field)
    jax.jit(lambda k: model(1.0, [1.0], args=k).ys)(2.0)
    forward = field.calls
    field.calls = 0
    jax.jit(jax.grad(lambda k: model(1.0, [1.0], args=k).ys[0]))(2.0)
    assert field.calls <= forward


def test_forward_mode_is_reverse_mode_in_the_parameters_of_a_model():
    """The product of the Jacobian with a vector, transposed: equal to rounding, alone, linearised
    and under `vmap` over tangents, parameters and states."""
    key, other = jr.split(jr.key(1))
    model = sx.Simulate(sx.MLPField(2, 8, 1, key=key), solver=sx.Rosenbrock23())
    parameters, rest = sx.partition(model)
    flat, unravel = ravel_pytree(parameters)
    ts = jnp.array([0.3, 1.0])

    def rows(flat, y0):
        return eqx.combine(unravel(flat), rest)(y0, ts).ys.ravel()

    y0 = jnp.array([[1.0, -0.5], [0.2, 2.0]])
    reverse = jax.jit(jax.vmap(jax.jacrev(rows), (None, 0)))(flat, y0)
    forward = jax.jit(jax.vmap(jax.jacfwd(rows), (None, 0)))(flat, y0)
    np.testing.assert_allclose(forward, reverse, rtol=1e-9, atol=1e-12)

    moves = jr.normal(other, flat.shape)

    @jax.jit
    def linearised(flat):
        _, push = jax.linearize(lambda flat: rows(flat, y0[0]), flat)
        return push(moves), jax.linear_transpose(push, flat)(jnp.ones(4))

    pushed, (pulled,) = linearised(flat)
    np.testing.assert_allclose(pushed, reverse[0] @ moves, rtol=1e-9)
    np.testing.assert_allclose(pulled, jnp.sum(reverse[0], axis=0), rtol=1e-9, atol=1e-12)


# Issue 12: it raised in JAX's words, since forward mode was missing.
def test_least_squares_of_optimistix_take_a_model_as_it_is():
    ts, right = jnp.linspace(0.2, 2.0, 5), jnp.array([2.0, 0.7])
    model = sx.Simulate(lambda t, y, p: -p[0] * y**2 + p[1], solver=diffrax.Tsit5())
    rows = lambda p: model(1.5, ts, args=p).ys
    measured = rows(right)
    for method in (optx.LevenbergMarquardt(1e-8, 1e-8), optx.GaussNewton(1e-8, 1e-8)):
        fit = optx.least_squares(lambda p, _: rows(p) - measured, method, jnp.array([1.0, 1.0]))
        np.testing.assert_allclose(fit.value, right, rtol=1e-5)


# --- second and third derivatives


def modulated(t, y, p):
    """A <-> B, and C + C -> 0, faster and slower with the time."""
    factor = 1 + p[2] * jnp.sin(3 * t)
    flux = p[0] * y[0] - p[1] * y[1]
    return factor * jnp.stack([-flux, flux, -p[1] * y[2] ** 2])


def modulated_exactly(t, y0, p):
    passed = t + p[2] * (1 - jnp.cos(3 * t)) / 3
    total, rate = y0[0] + y0[1], p[0] + p[1]
    rest = total * p[1] / rate
    a = rest + (y0[0] - rest) * jnp.exp(-rate * passed)
    return jnp.stack([a, total - a, y0[2] / (1 + p[1] * y0[2] * passed)])


@pytest.mark.parametrize("solver", [sx.Rodas5P(), slow(sx.kvaerno5())], ids=["Rodas5P", "kvaerno5"])
def test_a_hessian(solver):
    """Symmetric to rounding and right to the tolerance: in parameters, state and times; stiff or
    not; and where the loss is stationary, so that it is all second derivative."""
    controller = sx.StiffPID.preset("precise", solver=solver)
    model = sx.Simulate(modulated, solver=solver, controller=controller)
    weights = jnp.array([1.0, 2.0, -1.0])

    def loss_of(last):
        def loss(x, data):
            residuals = last(x["t"], x["y0"], x["p"]) - data
            return jnp.sum(weights * (residuals + residuals**2 / 2) ** 2)

        return loss

    ours = loss_of(lambda t, y0, p: model(y0, t[None], args=p).ys[-1])
    p = jnp.array([[3.0, 2.0, 0.3], [3e4, 2.0, 0.3], [3.0, 2.0, 0.3]])
    y0, t = jnp.array([1.0, 0.2, 0.7]), jnp.array(0.8)
    data = jnp.stack([jnp.zeros(3), jnp.zeros(3), modulated_exactly(t, y0, p[2])])

    def hessians(loss):
        inputs = {"p": p, "y0": jnp.stack([y0] * 3), "t": jnp.stack([t] * 3)}

        def one(x, data):
            flat, unravel = ravel_pytree(x)
            gradient = jax.grad(lambda flat: loss(unravel(flat), data))
            push = lambda v: jax.jvp(gradient, (flat,), (v,))[1]
            return jax.vmap(push)(jnp.eye(flat.size))

        return jax.jit(jax.vmap(one))(inputs, data)

    found, exact = hessians(ours), hessians(loss_of(modulated_exactly))
    scale = jnp.max(jnp.abs(exact), axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(found / scale, exact / scale, atol=1e-6)
    # The time is the last but three of the inputs in alphabetical order.
    held = jnp.array([0, 1, 2, 4, 5, 6])
    square = (found / scale)[:, held][:, :, held]
    np.testing.assert_allclose(square, square.swapaxes(1, 2), atol=1e-11)


@pytest.mark.slow
def test_a_third_derivative():
    model = sx.Simulate(decay, solver=diffrax.Tsit5(), controller=sx.StiffPID.preset("precise"))
    last = lambda k: model(1.0, [1.0], args=k).ys[-1]
    for second in (jax.hessian(last), jax.jacfwd(jax.jacfwd(last))):
        third = jax.jit(jax.jacfwd(second))(1.3)
        np.testing.assert_allclose(third, -np.exp(-1.3), rtol=1e-7)


def test_modes_that_an_adjoint_does_not_have_are_named():
    last = lambda k, **options: sx.Simulate(decay, **options)(1.0, [1.0], args=k).ys[-1]
    with pytest.raises(TypeError, match="jax.hessian"):
        jax.jit(jax.jacrev(jax.jacrev(lambda k: last(k, solver=diffrax.Tsit5()))))(1.0)
    with pytest.raises(TypeError, match="jax.hessian"):
        jax.jit(jax.jacrev(jax.jacfwd(lambda k: last(k, solver=diffrax.Tsit5()))))(1.0)
    options = dict(solver=diffrax.Tsit5(), adjoint=diffrax.RecursiveCheckpointAdjoint())
    with pytest.raises(TypeError, match="RecursiveCheckpointAdjoint.*DiscreteAdjoint"):
        jax.jit(jax.jacfwd(lambda k: last(k, **options)))(1.0)
    options = dict(solver=diffrax.Tsit5(), adjoint=diffrax.ForwardMode())
    with pytest.raises(TypeError, match="DiscreteAdjoint"):
        jax.jit(jax.grad(lambda k: last(k, **options)))(1.0)


@pytest.mark.parametrize("solver", [diffrax.LeapfrogMidpoint, diffrax.ReversibleHeun])
def test_a_step_that_depends_on_the_one_before_has_another_adjoint(solver):
    options = dict(solver=solver(), controller=diffrax.ConstantStepSize(), dt0=0.1)
    model = sx.Simulate(decay, **options)
    assert isinstance(model.options.adjoint, diffrax.RecursiveCheckpointAdjoint)
    with pytest.raises(ValueError, match="RecursiveCheckpointAdjoint"):
        sx.Simulate(decay, adjoint=sx.DiscreteAdjoint(), **options)


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
        slow(sx.Rodas5P(), 12, 2),  # more components than stages
        (sx.Rodas5P(), 30, 2),
        slow(sx.Rodas4(), 3, 4),
        slow(sx.Rosenbrock23(), 3, 4),
        slow(sx.Rosenbrock23(), 30, 2),
        slow(sx.Rodas5P(jacobian=sx.Banded(1, 0)), 30, 2),
        slow(sx.Rodas5P(jacobian=sx.Banded(1, 0)), 5, 2),
        (sx.Rodas5P(jacobian=sx.MatrixFree()), 5, 2),
        # Wrong, so that it makes a difference whether it is this that is differentiated.
        slow(sx.Rodas5P(jacobian=by_hand), 3, 2),
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


EXPLICIT = ["Heun", "Midpoint", "Ralston", "Bosh3", "Tsit5", "Dopri5", "Dopri8"]


@pytest.mark.parametrize("name", EXPLICIT)
def test_a_step_is_repeated_as_diffrax_takes_it(name):
    """Issue 13: stages and dense output, of a state that is a PyTree."""
    solver = getattr(diffrax, name)()
    terms = diffrax.ODETerm(lambda t, y, k: {"a": k * jnp.cos(t) * y["b"][0], "b": -k * y["b"]})
    t0, t1, y0 = jnp.array(0.2), jnp.array(0.5), {"a": jnp.array(1.0), "b": jnp.array([2.0, 3.0])}

    @jax.jit
    def theirs(y0):
        state = solver.init(terms, t0, t1, y0, 1.5)
        y1, _, dense, *_ = solver.step(terms, t0, t1, y0, 1.5, state, False)
        return y1, dense

    ours = jax.jit(lambda y0: repeat_explicit(solver, terms, t0, t1, y0, 1.5))(y0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14), ours, theirs(y0))


@pytest.mark.parametrize("faulty", [(), (0,), (99,), (37,), (36, 37, 90), tuple(range(100))])
def test_a_pass_finds_the_steps_at_fault(faulty):
    """And takes each of them aside, and no other; with at most four passes for one of them, and
    six tries a step where all are."""
    tried = []
    steps = SimpleNamespace(
        inputs=SimpleNamespace(y0=jnp.zeros(1)),
        accepted=SimpleNamespace(count=jnp.array(100)),
        guard=sx.Guard(),
        width=None,
        record=None,
        at=lambda k, _: SimpleNamespace(y=jnp.zeros(1)),
        blank=lambda: None,
    )

    def take(k, total, aside, reads, writes):
        (shift, _), fails = aside, jnp.isin(k, jnp.array(faulty, int))
        jax.debug.callback(tried.append, k)
        moved = shift[0] != 0
        more = jnp.where(moved, 1000.0, jnp.where(fails, jnp.nan, 0.0)) + k.astype(float)
        return total + more, writes, None

    over = SimpleNamespace(steps=steps, order=lambda i: 99 - i, take=take)
    over.fixed = over
    total, _ = step_by_step(over, jnp.array(0.0), None, None)
    jax.effects_barrier()
    assert total == 4950 + 1000 * len(faulty)
    assert len(tried) <= 100 * (1 + min(3 * len(faulty), 5))
