"""The invariants of the design, each over every member of the registries."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    ADJOINTS,
    CONTROLLERS,
    FIELDS,
    METHODS,
    MODELS,
    NETWORK_FIELDS,
    SOLVERS,
    all_finite,
    by_day,
    dt0_for,
    slow,
)
from jax.flatten_util import ravel_pytree

import stablax as sx

EXTREMES = (np.nan, np.inf, -np.inf, 1e300, -1e300, 0.0)


@pytest.fixture(params=FIELDS)
def case(request):
    return FIELDS[request.param]


def in_turn(which: int) -> pytest.MarkDecorator:
    """Every field by night. By day all but the neural fields, which share what is tested here, and
    every third of those: others in another test."""
    networks = list(NETWORK_FIELDS)
    chosen = [x for x in FIELDS if x not in networks or networks.index(x) % 3 == which]
    return pytest.mark.parametrize("case", by_day(FIELDS, *chosen), indirect=True)


# --- inside the guard nothing changes


def _value_and_tangent(case, fn, y):
    """Along all components."""
    tangent = jax.tree.map(lambda x: jnp.sin(jnp.arange(1.0, x.size + 1)).reshape(x.shape), y)
    return jax.jvp(lambda y: fn(jnp.array(0.5), y, case.args), (y,), (tangent,))


def _assert_same_inside(case, y, bitwise):
    field = case.make(case.guard)
    bare = case.bare(field)
    same = np.testing.assert_array_equal if bitwise else np.testing.assert_allclose

    def pair(fn):
        return _value_and_tangent(case, fn, y)

    ours, theirs = pair(field), pair(bare)
    if not bitwise:
        ours, theirs = jax.jit(lambda: pair(field))(), jax.jit(lambda: pair(bare))()
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        if bitwise:
            same(np.asarray(a), np.asarray(b))
        else:
            same(np.asarray(a), np.asarray(b), rtol=1e-12, atol=1e-14)


@in_turn(1)
@pytest.mark.parametrize("bitwise", [True, slow(False)], ids=["eagerly", "jit"])
def test_inside_the_guard_nothing_changes(case, bitwise):
    _assert_same_inside(case, case.y, bitwise)


@in_turn(2)
@pytest.mark.parametrize("side", ["lower", slow("upper")])
def test_the_bounds_are_inside(case, side):
    lower, upper = case.guard.bounds(case.y)
    bound = lower if side == "lower" else upper
    y = jax.tree.map(lambda b, x: jnp.where(np.isfinite(b), b, x), bound, case.y)
    field = case.make(case.guard)
    if not all_finite(_value_and_tangent(case, case.bare(field), y)):
        pytest.skip("the bare field has no derivative on this bound")
    _assert_same_inside(case, y, bitwise=True)
    assert not field.activity(0.5, y, case.args).any


# --- outside, derivatives are finite


def _at_extremes(case):
    """The flat output as a function of parameters and flat state, and both of them."""
    params, static = sx.partition(case.make(case.guard))
    flat, unravel = ravel_pytree(case.y)
    flat = np.asarray(flat)

    def out(params, flat):
        dy = eqx.combine(params, static)(0.5, unravel(flat), case.args)
        return ravel_pytree(dy)[0]

    first = np.arange(flat.size) == 0
    states = [np.full_like(flat, x) for x in EXTREMES]
    states += [np.where(first, x, flat) for x in EXTREMES]
    return out, params, np.stack(states)


@in_turn(0)
def test_derivatives_are_finite_everywhere(case):
    out, params, states = _at_extremes(case)

    def both_modes(y):
        return jax.jacfwd(out, argnums=1)(params, y), jax.jacrev(out, argnums=(0, 1))(params, y)

    assert all_finite(jax.jit(jax.vmap(both_modes))(states))


# One of each kind by day: operation by operation is another program for each operation.
BY_DAY = ("square root", "MLPField")


@pytest.mark.parametrize("name", [x if x in BY_DAY else slow(x) for x in FIELDS])
def test_derivatives_are_finite_eagerly_too(name):
    out, params, states = _at_extremes(FIELDS[name])
    nan = jnp.asarray(states[0])
    eagerly = jax.grad(lambda *at: jnp.sum(out(*at)), argnums=(0, 1))
    assert all_finite(eagerly(params, nan))
    along = jax.tree.map(jnp.ones_like, (params, nan))
    assert all_finite(jax.jvp(out, (params, nan), along)[1])


@in_turn(1)
def test_a_masked_output_is_not_finite_unless_filled(case):
    y = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), case.y)
    bare = case.make(case.guard)(0.5, y, case.args)
    assert not all_finite(bare)
    g = case.guard
    filled = case.make(sx.Guard(g.lower, g.upper, fill=0.25))(0.5, y, case.args)
    masked = case.make(case.guard).activity(0.5, y, case.args).masked
    for value, mask in zip(jax.tree.leaves(filled), jax.tree.leaves(masked), strict=True):
        assert np.all(np.asarray(value)[np.asarray(mask)] == 0.25)
        assert all_finite(value)


@in_turn(0)
def test_a_pull_draws_back_and_changes_nothing_inside(case):
    g = case.guard
    pulling = case.make(sx.Guard(g.lower, g.upper, pull=3.0))
    plain = case.make(g)
    inside = [f(0.5, case.y, case.args) for f in (pulling, plain)]
    assert eqx.tree_equal(*inside)
    lower, _ = g.bounds(case.y)
    below = jax.tree.map(lambda lo, y: jnp.where(np.isfinite(lo), lo - 2.0, y), lower, case.y)
    difference = jax.tree.map(
        lambda a, b: a - b, pulling(0.5, below, case.args), plain(0.5, below, case.args)
    )
    for d, lo in zip(jax.tree.leaves(difference), jax.tree.leaves(lower), strict=True):
        np.testing.assert_allclose(d, np.where(np.isfinite(lo), 6.0, 0.0), atol=1e-12)


# --- leaves are parameters


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_leaves_are_parameters(case, controller):
    """Every field with every controller; models in turn, so that each meets every one of both."""
    place = [c is case for c in FIELDS.values()].index(True) + list(CONTROLLERS).index(controller)
    Model = list(MODELS.values())[place % len(MODELS)]
    field = case.make(case.guard)
    made = CONTROLLERS[controller]()
    model = Model(field, controller=made, dt0=dt0_for(made))
    expected = jax.tree.leaves(eqx.filter(field, eqx.is_inexact_array))
    leaves = jax.tree.leaves(model)
    assert len(leaves) == len(expected)
    assert all(a is b for a, b in zip(leaves, expected, strict=True))
    assert eqx.tree_equal(model.field, field)
    again = Model(field, controller=CONTROLLERS[controller](), dt0=dt0_for(made))
    assert jax.tree.structure(again) == jax.tree.structure(model)
    assert hash(jax.tree.structure(again)) == hash(jax.tree.structure(model))


def test_fields_can_be_constructed_abstractly_and_in_batches(case):
    shapes = eqx.filter_eval_shape(case.make, case.guard)
    leaves = jax.tree.leaves(eqx.filter(case.make(case.guard), eqx.is_array))
    for abstract, leaf in zip(
        jax.tree.leaves(eqx.filter(shapes, lambda x: hasattr(x, "shape"))), leaves, strict=True
    ):
        assert abstract.shape == leaf.shape


def test_members_can_be_made_in_a_batch():
    def make(key):
        return sx.Simulate(sx.MLPField(2, 4, 1, key=key))

    ensemble = eqx.filter_vmap(make)(jax.random.split(jax.random.key(0), 3))
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(ensemble))


# --- failure is data, gradients are the gradients: every solver, every adjoint


KNOTS = jnp.array([0.0, 1.0, 2.0, 3.0, 3.5, 5.0])


def _follows(t, y, args):
    """A fast component that follows an input u(t), the sum of a line through knots and of a sine,
    and a slow one that follows the fast one; nan beyond the wall."""
    u = jnp.interp(t, KNOTS, args["values"]) + args["size"] * jnp.sin(3.0 * t)
    dy = jnp.stack([args["rate"] * (u - y[0]), y[0] - y[1]])
    return jnp.where(y[0] < args["wall"], dy, jnp.nan)


def _follows_exactly(args, y0, t0, ts):
    """The solution in closed form."""
    rate, values = args["rate"], args["values"]

    def integral(mu, t):
        """Of u(s) exp(-mu (t - s)) from `t0` to `t`."""
        at = jnp.clip(KNOTS, t0, t)
        u, decay = jnp.interp(at, KNOTS, values), jnp.exp(-mu * (t - at))
        slope = jnp.diff(values) / jnp.diff(KNOTS)
        line = jnp.sum(jnp.diff(u * decay) / mu - slope * jnp.diff(decay) / mu**2)
        wave = lambda s: jnp.exp(-mu * (t - s)) * (mu * jnp.sin(3 * s) - 3 * jnp.cos(3 * s))
        return line + args["size"] * (wave(t) - wave(t0)) / (mu**2 + 9)

    def at(t):
        one, fast = jnp.exp(-(t - t0)), jnp.exp(-rate * (t - t0))
        both = rate * (integral(1.0, t) - integral(rate, t)) + y0[0] * (one - fast)
        return jnp.stack([y0[0] * fast + rate * integral(rate, t), y0[1] * one + both / (rate - 1)])

    return jax.vmap(at)(ts)


# autonomous; runs into the wall; knots and a sine; the same, stiff: some solvers run out of steps
LANES = {
    "rate": jnp.array([0.5, -2.0, 5.0, 1e5]),
    "values": jnp.array([[0.2] * 6, [0.0] * 6, *[[0.0, 1.0, 0.2, 0.2, 2.0, 0.0]] * 2]),
    "size": jnp.array([0.0, 0.0, 0.5, 0.5]),
    "wall": jnp.array([10.0, 1.5, 10.0, 10.0]),
}
TIMES = jnp.array([1.7, 3.2])
# Every solver with the default adjoint; the others, and its forward mode, each with a solver of
# each family. Those that differentiate diffrax's loop in reverse compile for up to half a minute
# with an implicit solver: at night (by day `test_phases.py` and `test_step_gate.py` have them).
BY_FAMILY = ("Rodas5P", "kvaerno5", "Tsit5", "FiniteSteps(Tsit5)")
PAIRS = [
    (slow if solver not in BY_FAMILY else pytest.param)(solver, "DiscreteAdjoint")
    for solver in SOLVERS
] + [
    ("Tsit5", "DiscreteAdjoint, forward"),
    slow("Rodas4", "DiscreteAdjoint, forward"),
    ("kvaerno3", "DiscreteAdjoint, forward"),
    ("Dopri5", "RecursiveCheckpointAdjoint"),
    slow("Rodas4", "RecursiveCheckpointAdjoint"),
    slow("kvaerno3", "RecursiveCheckpointAdjoint"),
    ("Tsit5", "DirectAdjoint"),
    slow("Rodas5P", "DirectAdjoint"),
    slow("kvaerno5", "DirectAdjoint"),
    ("FiniteSteps(Tsit5)", "ForwardMode"),
    slow("Rosenbrock23", "ForwardMode"),
    slow("kencarp4", "ForwardMode"),
]


def _over_lanes(fn):
    inputs = (LANES, jnp.ones((4, 2)), jnp.array(0.2), TIMES)
    return jax.jit(jax.vmap(fn, (0, 0, None, None)))(*inputs)


@functools.cache
def _follows_in_lanes():
    derivative = jax.jacfwd(_follows_exactly, argnums=(0, 1, 2, 3))
    return _over_lanes(lambda *inputs: (_follows_exactly(*inputs), derivative(*inputs)))


# https://github.com/patrick-kidger/diffrax/issues/716
# https://github.com/patrick-kidger/diffrax/issues/723
@pytest.mark.parametrize(("solver", "adjoint"), PAIRS)
def test_failures_are_data_and_gradients_are_right(solver, adjoint):
    """In parameters, an input of time, state and times."""
    method = SOLVERS[solver]()
    # What a step over a kink gets wrong depends on where it happens to begin.
    controller = sx.StiffPID.preset(solver=method, step_ts=np.asarray(KNOTS[1:4]))
    name, _, forward = adjoint.partition(", ")
    budget = 192 if name == "DirectAdjoint" else 1000  # its cost is that of the budget
    options = dict(adjoint=ADJOINTS[name](), controller=controller, max_steps=budget)
    model = sx.Simulate(_follows, solver=method, **options)

    def ys(*inputs):
        args, y0, t0, ts = inputs
        sim = model(y0, ts, t0=t0, args=args, throw=False)
        return sim.ys, sim

    derivative = jax.jacfwd if forward or name == "ForwardMode" else jax.jacrev
    slopes, sim = _over_lanes(derivative(ys, argnums=(0, 1, 2, 3), has_aux=True))
    values, exact = _follows_in_lanes()

    ok = np.asarray(sx.is_successful(sim))
    if name not in ("DiscreteAdjoint", "ForwardMode"):
        # No derivative in the save times of a sample that failed (a documented limit).
        slopes = (*slopes[:3], jnp.where(ok[:, None, None, None], slopes[3], 0.0))
    assert all_finite((slopes, sim.ys))
    # Explicit solvers do, and one of order 2.
    runs_out = solver in ("Tsit5", "Dopri5", "FiniteSteps(Tsit5)", "Rosenbrock23")
    assert ok.tolist() == [True, False, True, not runs_out]
    np.testing.assert_allclose(sim.ys[ok], values[ok], rtol=1e-4, atol=2e-5)
    # The steps of a constant input are too long for what it could be.
    wanders = np.array([False, False, True, True])
    for key, ours in slopes[0].items():
        kept = ok & wanders if key in ("values", "size") else ok
        np.testing.assert_allclose(ours[kept], exact[0][key][kept], rtol=1e-4, atol=5e-5)
    for ours, theirs in zip(slopes[1:3], exact[1:3], strict=True):
        np.testing.assert_allclose(ours[ok], theirs[ok], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(slopes[3][ok], exact[3][ok], rtol=1e-3, atol=1e-3)
    # A failed sample has no gradient at all, and says where it stopped.
    assert not any(np.any(x[~ok]) for x in jax.tree.leaves(slopes))
    assert "not finite" in sx.explain(sim)
    assert not sim.reached[1].any()
    if runs_out:
        assert f"budget of {budget} steps" in sx.explain(sim)


# good; runs into the wall; good
RATES, WALLS = jnp.array([-1.0, 2.0, 0.5]), jnp.array([10.0, 1.5, 10.0])


def _wall(t, y, args):
    """y' = k y, and nan beyond the wall."""
    rate, wall = args
    return jnp.where(y < wall, rate * y, jnp.nan)


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_every_controller_solves_and_ends_at_a_wall(controller):
    made = CONTROLLERS[controller]()
    model = sx.Simulate(_wall, controller=made, dt0=dt0_for(made), max_steps=2000)
    times = jnp.array([0.5, 1.0])
    sim = jax.vmap(lambda r, w: model(1.0, times, args=(r, w), throw=False))(RATES, WALLS)
    assert np.asarray(sx.is_successful(sim)).tolist() == [True, False, True]
    exact = np.exp(np.outer(RATES, times))
    tolerance = 5e-3 if "fast" in controller else 1e-4
    np.testing.assert_allclose(sim.ys[0], exact[0], rtol=tolerance)
    assert all_finite(sim.ys)
    assert int(sim.guard.rejected_not_finite[1]) > 0


# --- steady states


def _exchange(t, y, k):
    """A <-> B, with a wall where the first rate is above 100."""
    flux = k[0] * y[0] - k[1] * y[1]
    return jnp.stack([-flux, flux]) * jnp.where(k[0] > 100, jnp.nan, 1.0)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_steady_state_and_its_sensitivities(method):
    """The truth is in closed form; a lane that fails changes nothing in the others."""
    make = METHODS[method]

    def root(k, y0):
        found = sx.find_steady_state(
            _exchange, y0, k, method=make(), conserved=np.ones((1, 2)), throw=False
        )
        return found.y, found

    def both_modes(k, y0):
        """With one search: a linear map, and its transpose."""
        _, push, found = jax.linearize(root, k, y0, has_aux=True)
        eye, zero = jnp.eye(2), jnp.zeros((2, 2))
        forward = jax.vmap(push, out_axes=1)(eye, zero), jax.vmap(push, out_axes=1)(zero, eye)
        return (forward, jax.vmap(jax.linear_transpose(push, k, y0))(eye)), found

    k, y0 = jnp.array([[2.0, 3.0], [200.0, 3.0], [2.0, 3.0]]), jnp.array([1.0, 0.0])
    slopes, found = jax.jit(jax.vmap(both_modes, in_axes=(0, None)))(k, y0)
    assert sx.is_successful(found).tolist() == [True, False, True]
    for dk, dy0 in slopes:
        assert all_finite((found.y, found.residual, dk, dy0))
        assert not dk[1].any() and not dy0[1].any()
        for lane in (0, 2):
            np.testing.assert_allclose(found.y[lane], [0.6, 0.4], atol=1e-9)
            np.testing.assert_allclose(dk[lane, 0], [-0.12, 0.08], atol=1e-8)
            np.testing.assert_allclose(dy0[lane, 0], [0.6, 0.6], atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_a_value(method):
    one, other = METHODS[method](), METHODS[method]()
    assert one == other and hash(one) == hash(other)
    assert not jax.tree.leaves(eqx.filter(one, eqx.is_array))
