"""How a field goes on outside of its guard's box."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SOLVERS, all_finite, by_day, richardson, slow
from jax.flatten_util import ravel_pytree

import stablax as sx
from stablax.problems import CLIPPED, PROBLEMS

LOWER, UPPER = np.array([0.5, -1.0, -np.inf]), np.array([2.0, np.inf, 3.0])
BOX = sx.Guard(LOWER, UPPER)
INSIDE = jnp.array([1.0, 0.3, -4.0])
OUTSIDE = {
    "one below": jnp.array([-0.2, 0.3, -4.0]),
    "one above": jnp.array([1.0, 0.3, 3.7]),
    "all": jnp.array([2.9, -1.5, 3.1]),
}


def smooth(t, y, k):
    mixed = jnp.stack([y[0] * y[1], jnp.sin(y[2]) * y[0], y[1] ** 3 + y[0] * y[2]])
    return k * mixed - t * y


def along(t, y, k):
    c = jnp.clip(y, LOWER, UPPER)
    # Held apart, as `jnp.clip` has half a slope on a bound.
    value, slope = jax.jvp(lambda c: smooth(t, c, k), (c,), (y - c,))
    return value + slope


@pytest.mark.parametrize("place", OUTSIDE)
def test_value_and_derivatives_of_any_order_are_those_of_the_tangent(place):
    field, y, k = sx.Guarded(smooth, BOX), OUTSIDE[place], jnp.array([0.7, -1.2, 0.4])
    inputs = (jnp.array(0.3), y, k)
    close = dict(rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(field(*inputs), along(*inputs), **close)
    for take in (jax.jacrev, lambda f, n: jax.jacfwd(jax.jacrev(f, n), n)):
        found, expected = (jax.jit(take(f, (0, 1, 2)))(*inputs) for f in (field, along))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), found, expected)


def test_inside_it_is_the_field_to_the_bit():
    field, k = sx.Guarded(smooth, BOX), jnp.ones(3)
    np.testing.assert_array_equal(field(0.0, INSIDE, k), smooth(0.0, INSIDE, k))
    for y in (INSIDE, jnp.asarray(np.where(np.isfinite(LOWER), LOWER, 0.0))):
        slopes = (jax.jacfwd(f, 1)(0.0, y, k) for f in (field, smooth))
        np.testing.assert_array_equal(*slopes)


@pytest.mark.parametrize("side", [-1, 1])
def test_value_and_slope_are_continuous_over_a_bound(side):
    field = sx.Guarded(lambda t, y, args: jnp.exp(3 * y), sx.Guard(-1.0, 1.0))
    value = lambda y: field(0.0, y, None)
    near = np.array([side * (1 - 1e-9), side * 1.0, side * (1 + 1e-9)])
    for fn in (value, jax.jacfwd(value)):
        inside, on, outside = (np.asarray(fn(jnp.array([y]))) for y in near)
        np.testing.assert_allclose(inside, on, rtol=1e-7)
        np.testing.assert_allclose(outside, on, rtol=1e-7)


def test_trees_and_parameters_of_a_module():
    class Pair(sx.GuardedField):
        k: jax.Array

        def vector_field(self, t, y, args):
            return {"a": -self.k * y["a"] ** 2, "b": y["a"] * y["b"]}

    field = Pair(jnp.array(0.8), guard=sx.Guard(lower={"a": 0.5, "b": None}))
    y = {"a": jnp.array(0.2), "b": jnp.array([3.0])}

    def total(field, y):
        return sum(jnp.sum(x) for x in jax.tree.leaves(field(0.0, y, None)))

    # -k (c^2 + 2 c (a - c)) + c b + b (a - c), with c = 0.5
    np.testing.assert_allclose(total(field, y), -0.8 * (0.25 - 0.3) + 1.5 - 0.9, rtol=1e-14)
    slope = jax.grad(total, (0, 1))(field, y)
    np.testing.assert_allclose(slope[0].k, -(0.25 - 0.3), rtol=1e-14)
    np.testing.assert_allclose([slope[1]["a"], slope[1]["b"][0]], [-0.8 + 3.0, 0.2], rtol=1e-14)


@pytest.mark.parametrize("name", by_day(SOLVERS, "Rodas5P", "kvaerno5", "Tsit5"))
def test_the_field_is_evaluated_inside_its_box_only(name):
    """A field that is nan outside. It decays to its bound, and past it by rounding."""

    def field(t, y, args):
        return jnp.where(jnp.all(y >= 0), -5.0 * y, jnp.nan)

    model = sx.Simulate(sx.Guarded(field, sx.Guard(lower=0.0)), solver=SOLVERS[name]())
    ts = jnp.array([1.0, 20.0])
    simulation = model(jnp.array([1.0, -1e-10]), ts, throw=False)
    assert sx.is_successful(simulation), sx.explain(simulation)
    np.testing.assert_allclose(simulation.ys[0], [np.exp(-5.0), 0.0], rtol=1e-3, atol=1e-8)


def test_a_slope_that_is_infinite_at_the_bound():
    """Of a root at zero: no tangent can be taken. The field stays what it is there."""
    root = sx.Guarded(lambda t, y, args: -jnp.sqrt(y), sx.Guard(lower=0.0))
    y = jnp.array([-1e-9, 4.0])
    np.testing.assert_allclose(root(0.0, y, None), [0.0, -2.0], atol=1e-18)
    assert all_finite(jax.jacrev(lambda y: root(0.0, y, None))(y))
    # y' = -sqrt(y): sqrt(y) falls by t / 2, to zero at t = 2.
    simulation = sx.Simulate(root)(jnp.array([1.0]), jnp.array([1.0, 5.0]))
    np.testing.assert_allclose(simulation.ys[:, 0], [0.25, 0.0], atol=1e-5)


def test_far_out_and_not_a_number():
    field = sx.Guarded(smooth, BOX)
    for far in (1e300, jnp.inf, -jnp.inf):
        out = field(0.0, jnp.array([far, 0.3, -4.0]), jnp.ones(3))
        assert not np.isnan(np.asarray(out)).any()
    assert np.isnan(np.asarray(field(0.0, jnp.array([jnp.nan, 0.3, -4.0]), jnp.ones(3)))).any()


# A bound that is passed by far: y' = y (1 - y / 2) to 1, and on along the tangent, y' = 1/2.
@pytest.mark.parametrize(
    ("name", "adjoint"),
    [
        ("Rodas5P", sx.DiscreteAdjoint()),
        ("kvaerno5", sx.DiscreteAdjoint()),
        ("Tsit5", diffrax.RecursiveCheckpointAdjoint()),
        slow("Rodas5P", diffrax.RecursiveCheckpointAdjoint()),
        slow("Tsit5", sx.DiscreteAdjoint()),
    ],
)
def test_a_solution_outside_of_the_box(name, adjoint):
    guard = sx.Guard(upper=1.0, reject=False)
    field = sx.Guarded(lambda t, y, k: k * y * (1 - y / 2), guard)
    model = sx.Simulate(
        field,
        solver=SOLVERS[name](),
        adjoint=adjoint,
        controller=sx.StiffPID.preset(rtol=1e-9, atol=1e-11),
    )
    y0, ts = jnp.array([0.5]), jnp.array([1.0, 4.0])

    @jax.jit
    def last(k, y0):
        return model(y0, ts, args=k).ys[-1, 0]

    # u = y / (2 - y) = u0 exp(k t) is 1 at y = 1; from there on y = 1 + k (t - t1) / 2.
    def exact(k, y0):
        t1 = -jnp.log(y0[0] / (2 - y0[0])) / k
        return 1 + k * (ts[-1] - t1) / 2

    k = jnp.array(0.9)
    np.testing.assert_allclose(last(k, y0), exact(k, y0), rtol=1e-7)
    found, expected = (jax.grad(fn, (0, 1))(k, y0) for fn in (last, exact))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), found, expected)


STIFF = ["Rodas4", "Rosenbrock23", "kvaerno3", "kvaerno5", "kencarp4"]


def _steps(field, rtol, solver=None, max_steps=4096):
    controller = sx.StiffPID.preset(rtol=rtol, atol=rtol * CLIPPED.floor)
    model = sx.Simulate(field, solver=solver, controller=controller, max_steps=max_steps)
    simulation = model(CLIPPED.y0, CLIPPED.ts, args=CLIPPED.args, throw=False)
    return simulation, int(simulation.stats["num_steps"])


@pytest.mark.parametrize("rtol", [slow(1e-4), 1e-6])
def test_a_field_that_clips_needs_a_tenth_of_the_steps(rtol):
    """Beyond its own clip it has no slope; with the tangent the radicals stay damped."""
    simulation, steps = _steps(sx.Guarded(CLIPPED.field, sx.Guard(0.0)), rtol)
    assert sx.is_successful(simulation) and CLIPPED.error(simulation.ys) < 100 * rtol
    constant = sx.Guarded(CLIPPED.field, sx.Guard(0.0, outside="constant"))
    for field in (CLIPPED.field, constant):
        worse, needed = _steps(field, rtol)
        assert needed > 10 * steps and not sx.is_successful(worse)


@pytest.mark.parametrize("name", by_day(STIFF, "kvaerno5"))
def test_every_stiff_solver_gets_through(name):
    simulation, _ = _steps(sx.Guarded(CLIPPED.field, sx.Guard(0.0)), 1e-4, SOLVERS[name]())
    assert sx.is_successful(simulation), sx.explain(simulation)
    assert CLIPPED.error(simulation.ys) < 5e-2  # of a method of order 2


def test_gradients_through_steps_that_end_outside():
    """By hand in reverse mode, by JAX in forward mode, and by differences of a tight solve."""
    guarded = sx.Guarded(CLIPPED.field, sx.Guard(0.0))
    ts = CLIPPED.ts[::3]

    def loss(logs, rtol=1e-6, adjoint=None):
        controller = sx.StiffPID.preset(rtol=rtol, atol=rtol * CLIPPED.floor)
        model = sx.Simulate(guarded, controller=controller, adjoint=adjoint, telemetry=True)
        simulation = model(CLIPPED.y0, ts, args=CLIPPED.args * jnp.exp(logs))
        return jnp.sum(simulation.ys[:, 2]), simulation.guard

    logs = jnp.zeros(len(CLIPPED.args))
    value = lambda logs: loss(logs)[0]
    _, guard = jax.jit(loss)(logs)
    assert sum(int(x.sum()) for x in jax.tree.leaves(guard.accepted.clipped)) > 0
    reverse = jax.jit(jax.grad(value))(logs)
    forward = jax.jit(jax.jacfwd(value))(logs)
    np.testing.assert_allclose(reverse, forward, rtol=1e-9, atol=1e-12)
    several = jax.jit(jax.vmap(jax.grad(value)))(jnp.stack([logs, logs + 0.1]))
    np.testing.assert_allclose(several[0], reverse, rtol=1e-6, atol=1e-10)
    tight = jax.jit(lambda x: loss(jnp.asarray(x), 1e-11)[0])
    np.testing.assert_allclose(
        reverse, richardson(lambda x: float(tight(x)), np.zeros(6)), rtol=2e-4, atol=1e-7
    )


def _sinks(t, y, k):
    """All fall to -1e-4, at rates that depend on the next one: a tree of more components than a
    step has stages."""
    flat, unravel = ravel_pytree(y)
    return unravel(-k * (flat + 1e-4) * (1 + jnp.roll(flat, 1) ** 2) * (1 + 0.1 * t))


def _by_hand(t, y, k):
    flat, unravel = ravel_pytree(y)
    return jax.jacfwd(lambda flat: ravel_pytree(_sinks(t, unravel(flat), k))[0])(flat)


STRUCTURES = {"dense": None, "by hand": _by_hand, "matrix-free": sx.MatrixFree()}


@pytest.mark.slow
@pytest.mark.parametrize("name", STRUCTURES)
def test_a_step_taken_back_by_hand_outside(name):
    """With trees, and any structure of the Jacobian, in parameters and states: equal to forward
    mode, which is JAX's. It ends outside, by less than the tolerance."""
    model = sx.Simulate(
        sx.Guarded(_sinks, sx.Guard(0.0)),
        solver=sx.Rodas5P(jacobian=STRUCTURES[name]),
        controller=sx.StiffPID.preset(rtol=1e-3, atol=1e-3),
    )
    k = jnp.geomspace(0.5, 50.0, 10)
    y0 = {"a": jnp.linspace(0.5, 2.0, 4), "b": jnp.linspace(1.0, 3.0, 6)}

    def last(k, y0):
        rows = model(y0, [3.0, 8.0], args=k).ys
        flat = ravel_pytree(rows)[0]
        return jnp.sum(jnp.cos(jnp.arange(flat.size)) * jnp.sin(1e4 * flat))

    outside = ravel_pytree(jax.jit(lambda: model(y0, [8.0], args=k).ys)())[0]
    assert np.sum(outside < 0) > 5
    reverse = jax.jit(jax.grad(last, (0, 1)))(k, y0)
    forward = jax.jit(jax.jacfwd(last, (0, 1)))(k, y0)
    rtol = 1e-5 if name == "matrix-free" else 1e-8  # it solves to 1e-8
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(forward))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * largest)
    jax.tree.map(close, reverse, forward)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("floor", [0.0, 1.0, -2.0])
def test_on_its_bound_a_field_that_clips_has_half_a_slope(floor, dtype):
    """And the tangent the whole of it."""
    field = sx.Guarded(lambda t, y, args: 3 * jnp.maximum(y, floor), sx.Guard(floor))
    y = jnp.array([floor - 0.5], dtype)
    value, slope = jax.jvp(lambda y: field(0.0, y, None), (y,), (jnp.ones_like(y),))
    np.testing.assert_allclose([value[0], slope[0]], [3 * (floor - 0.5), 3.0], rtol=1e-6)


SMOOTH = ["Robertson", "HIRES", "POLLU", "E5", "OREGO"]


@pytest.mark.parametrize("name", by_day(SMOOTH, "HIRES"))
def test_where_the_field_is_smooth_the_steps_are_the_same(name):
    problem = PROBLEMS[name]

    def steps(outside):
        field = sx.Guarded(problem.field, sx.Guard(0.0, outside=outside))
        controller = sx.StiffPID.preset(atol=1e-6 * problem.floor)
        model = sx.Simulate(field, controller=controller, adjoint=diffrax.ForwardMode())
        simulation = model(problem.y0, problem.ts, args=problem.args)
        assert problem.error(simulation.ys) < 1e-3
        return int(simulation.stats["num_steps"])

    assert steps("tangent") <= 1.05 * steps("constant")


def test_wrong_use():
    with pytest.raises(ValueError, match="`outside` must be one of .*'tangent'.* got 'linear'"):
        sx.Guard(0.0, outside="linear")
    assert repr(sx.Guard(0.0, outside="constant")) == "Guard(lower=0.0, outside='constant')"
    assert repr(sx.Guard(0.0)) == "Guard(lower=0.0)"
    assert sx.Guard(0.0) != sx.Guard(0.0, outside="constant")
    partly = sx.Guard(np.array([0.0, -np.inf]), np.array([1.0, np.inf]))
    assert eval(repr(partly), {"Guard": sx.Guard, "np": np}) == partly
    with pytest.raises(
        TypeError, match=r"`box` must be a `Guard\(lower, upper\)` or None, got 0.0"
    ):
        sx.Rodas5P(box=0.0)
    assert hash(sx.Guard(0.0)) == hash(sx.Guard(0.0, outside="tangent"))
