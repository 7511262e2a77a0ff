"""Events end a solve where a condition crosses zero: time, state, and their derivatives."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
from helpers import slow

import stablax as sx

jax.config.update("jax_enable_x64", True)


def decay(t, y, p):
    return -p["k"] * y


EVENT = diffrax.Event(
    {
        "low": lambda t, y, p, **kwargs: y - p["low"],
        "theta": lambda t, y, p, **kwargs: y - p["theta"],
        "stop": lambda t, y, p, **kwargs: p["way"] * (t - p["stop"]),
        # Never, with a derivative that is infinite or nan.
        "never": lambda t, y, p, **kwargs: 1 + jnp.sqrt(0 * y) / p["k"],
    },
    direction={"low": None, "theta": False, "stop": True, "never": None},
)
START = dict(k=1.3, low=-1.0, theta=0.5, stop=1e9, way=1.0, y0=2.0, t0=0.0, end=5.0)
# What differs, and what ends the solve.
LANES = [
    (dict(), "theta"),
    (dict(low=0.45), "theta"),  # both cross in one step: the first in time
    (dict(low=0.5, theta=0.45), "low"),
    (dict(stop=0.7), "stop"),
    (dict(theta=0.0), "end"),
    (dict(theta=1.999999), "theta"),  # in the first step
    (dict(low=2.0), "low"),  # at the start
    (dict(theta=2.0), "end"),  # at the start, from where it does not cross from above
    (dict(end=-5.0, low=3.0), "low"),  # backward in time
    (dict(end=-2.0, theta=3.0), "end"),  # where it rises, which the direction excludes
    (dict(end=-5.0, stop=-1.0, way=-1.0), "stop"),
    (dict(t0=-3.0, stop=-2.0), "stop"),
    (dict(low=np.nan), "lost"),
    (dict(end=-5.0, k=2e3), "failed"),  # in float64
]
KINDS = [kind for _, kind in LANES]
PARAMETERS = {
    name: jnp.array([{**START, **changes}[name] for changes, _ in LANES]) for name in START
}


def truth(p):
    """State and time for each kind of end."""
    state = lambda t: p["y0"] * jnp.exp(-p["k"] * (t - p["t0"]))
    time = lambda y: p["t0"] + jnp.log(p["y0"] / y) / p["k"]
    return {
        "theta": (p["theta"], time(p["theta"])),
        "low": (p["low"], time(p["low"])),
        "stop": (state(p["stop"]), p["stop"]),
        "end": (state(p["end"]), p["end"]),
    }


def run(model, p):
    ts = jnp.stack([p["t0"] + 0.99 * (p["end"] - p["t0"]), p["end"]])
    simulation = model(p["y0"], ts, t0=p["t0"], args=p, throw=False)
    return jnp.stack([simulation.ys[-1], simulation.t1]), simulation


def in_reverse(model, lanes):
    """One backward pass: the two outputs are more lanes of it."""

    @jax.jit
    @jax.vmap
    def one(p, seed):
        def weighted(p):
            out, simulation = run(model, p)
            return seed @ out, (out, simulation)

        return jax.grad(weighted, has_aux=True)(p)

    count = lanes["k"].size
    seeds = jnp.repeat(jnp.eye(2, dtype=lanes["k"].dtype), count, axis=0)
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), lanes)
    slopes, (outs, simulations) = one(twice, seeds)
    slopes = jax.tree.map(lambda x: x.reshape(2, count).T, slopes)
    return *jax.tree.map(lambda x: x[:count], (outs, simulations)), slopes


def in_forward(model, lanes):
    def both(p):
        out, simulation = run(model, p)
        return out, (out, simulation)

    slopes, (outs, simulations) = jax.jit(jax.vmap(jax.jacfwd(both, has_aux=True)))(lanes)
    return outs, simulations, slopes


# https://github.com/patrick-kidger/diffrax/issues/451
# https://github.com/patrick-kidger/diffrax/issues/729
@pytest.mark.parametrize(
    ("solver", "adjoint", "dtype", "rtol"),
    [
        (None, None, jnp.float64, 1e-6),
        slow(sx.kvaerno5(), diffrax.ForwardMode(), jnp.float32, 2e-3),
    ],
    ids=["default", "kvaerno5, forward, float32"],
)
def test_time_and_state_of_an_event(solver, adjoint, dtype, rtol):
    controller = sx.StiffPID.preset("precise", solver=solver) if dtype == jnp.float64 else None
    model = sx.Simulate(
        decay, event=EVENT, solver=solver, adjoint=adjoint, controller=controller, max_steps=256
    )
    derive = in_forward if isinstance(adjoint, diffrax.ForwardMode) else in_reverse
    count = len(KINDS) - (dtype == jnp.float32)
    p = jax.tree.map(lambda x: x[:count].astype(dtype), PARAMETERS)
    outs, simulations, derivatives = derive(model, p)
    rights = jax.vmap(truth)(PARAMETERS)
    slopes = jax.vmap(jax.jacfwd(truth))(PARAMETERS)
    for k, kind in enumerate(KINDS[:count]):
        simulation = jax.tree.map(lambda x, k=k: x[k], simulations)
        slope = {name: np.asarray(x[k]) for name, x in derivatives.items()}
        assert simulation.t1.dtype == dtype
        if kind in ("failed", "lost"):
            assert not sx.is_successful(simulation)
            assert all(np.all(x == 0) for x in slope.values())
            continue
        right = [x[k] for x in rights[kind]]
        np.testing.assert_allclose(outs[k], right, rtol=rtol, atol=rtol / 10, err_msg=f"{k} {kind}")
        for name in START:
            expected = [x[name][k] for x in slopes[kind]]
            np.testing.assert_allclose(
                slope[name], expected, rtol=30 * rtol, atol=rtol, err_msg=f"{k} {kind} {name}"
            )
        ended_early = kind != "end"
        assert bool(simulation.reached[-1]) != ended_early
        assert (simulation.result == sx.RESULTS.event_occurred) == ended_early
    lost = jax.tree.map(lambda x: x[KINDS.index("lost")], simulations)
    assert "condition of the event is nan" in sx.explain(lost)
    assert sx.explain(jax.tree.map(lambda x: x[0], simulations)).startswith(
        "Successful: an event ended the solve at t = 1.066"
    )
    if dtype == jnp.float64:
        # The figures of the issue.
        np.testing.assert_allclose(outs[0], [0.5, 1.06638028], rtol=rtol)
        np.testing.assert_allclose(derivatives["k"][0], [0, -0.82029252], atol=3 * rtol)
        np.testing.assert_allclose(derivatives["theta"][0], [1, -1.53846154], atol=3 * rtol)
        # A solve that failed beside others that met an event: where it stopped, the state there.
        y, t1 = np.asarray(outs[-1])
        assert -5 < t1 < 0 and t1 == simulations.stats["t"][-1]
        np.testing.assert_allclose(np.log(y / 2), -2e3 * t1, rtol=1e-2)


def test_an_event_ends_its_phase_and_all_that_follow():
    model = sx.SimulatePhases(
        decay,
        solver=diffrax.Tsit5(),
        adjoint=diffrax.DirectAdjoint(),
        event=diffrax.Event(lambda t, y, p, **kwargs: y - p["theta"]),
        controller=sx.StiffPID.preset("precise", solver=diffrax.Tsit5()),
        max_steps=256,
    )

    def solve(p):
        phases = [sx.Phase(p["first"], p), sx.Phase(p["end"], p, dose=1.0)]
        ts = jnp.stack([0.5 * p["first"], p["first"]])  # the last phase goes on after them
        simulation = model(2.0, ts, phases, throw=False)
        return simulation.t1, simulation

    p = dict(
        k=jnp.full(3, 1.3),
        theta=jnp.array([1.5, 1.4, 0.01]),
        first=jnp.array([0.5, 0.2, 0.2]),
        end=jnp.array([1.0, 1.0, 1.0]),
    )
    slopes, simulations = jax.jit(jax.vmap(jax.jacfwd(solve, has_aux=True)))(p)
    k, theta, first = (np.asarray(p[name]) for name in ("k", "theta", "first"))
    start = 2 * np.exp(-k * first) + 1  # of the second phase
    later = first + np.log(start / theta) / k
    t1 = np.array([np.log(2 / theta[0]) / k[0], later[1], 1.0])
    np.testing.assert_allclose(simulations.t1, t1, rtol=1e-7)
    assert simulations.reached.tolist() == [[False, False], [True, True], [True, True]]
    np.testing.assert_allclose(simulations.ys[0], [1.5, 1.5], rtol=1e-12)
    by_first = 1 - 2 * np.exp(-k[1] * first[1]) / start[1]
    np.testing.assert_allclose(slopes["first"], [0, by_first, 0], rtol=1e-6)
    np.testing.assert_allclose(slopes["theta"][:2], -1 / (k * theta)[:2], rtol=1e-6)
    np.testing.assert_allclose(slopes["end"], [0, 0, 1])
    assert simulations.stats["phase"].tolist() == [0, 1, 1]


@pytest.mark.parametrize("adjoint", [None, slow(diffrax.RecursiveCheckpointAdjoint())])
def test_reverse_mode_has_the_derivatives_of_an_event(adjoint):
    """By closed form, of time and state; in the first step of the solve and in a later one, where
    rows are before and behind it. The default has second derivatives, too."""
    dtmax = sx.StiffPID.preset("precise", solver=diffrax.Tsit5(), dtmax=0.2)
    model = sx.Simulate(
        lambda t, y, k: -k * y,
        event=diffrax.Event(lambda t, y, k, **_: y**2 - k / 10),
        solver=diffrax.Tsit5(),
        controller=dtmax,
        adjoint=adjoint,
        max_steps=256,
    )

    def both(k, y0, t0):
        simulation = model(y0, [0.03, 5.0], t0=t0, args=k, throw=False)
        return jnp.stack([simulation.t1, simulation.ys[0], simulation.ys[1]])

    def exact(k, y0, t0):
        y1 = jnp.sqrt(k / 10)
        t1 = t0 + jnp.log(y0 / y1) / k
        return jnp.stack([t1, jnp.where(t1 > 0.03, y0 * jnp.exp(-k * (0.03 - t0)), y1), y1])

    points = jnp.array([2.0, 2.0]), jnp.array([1.0, 0.46]), jnp.array([-0.1, 0.0])
    derive = lambda f: jax.jit(jax.vmap(jax.jacrev(f, argnums=(0, 1, 2))))
    for ours, theirs in zip(derive(both)(*points), derive(exact)(*points), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-8)
    if adjoint is None:
        second = lambda f: jax.jit(jax.jacfwd(jax.jacrev(f, argnums=(0, 1)), argnums=(0, 1)))
        ours, theirs = second(both)(2.0, 1.0, 0.0), second(exact)(2.0, 1.0, 0.0)
        for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("adjoint", [None, diffrax.ForwardMode()])
def test_a_condition_that_closes_over_what_is_differentiated(adjoint):
    def when(theta):
        event = diffrax.Event(lambda t, y, args, **_: y - theta)
        how = dict(solver=diffrax.Tsit5(), adjoint=adjoint, event=event)
        return sx.Simulate(lambda t, y, args: -y, **how)(1.0, [2.0], throw=False).t1

    slope = jax.jacfwd if adjoint else jax.grad
    np.testing.assert_allclose(slope(when)(0.5), -2.0, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(slope(when))(jnp.array([0.5, 0.25])), [-2, -4], rtol=1e-5)


def test_a_program_with_an_event_has_no_callback():
    model = sx.Simulate(decay, event=EVENT)
    p = {name: float(START[name]) for name in START}
    loss = lambda k: model(2.0, [5.0], args={**p, "k": k}, throw=False).t1
    assert "callback" not in jax.jit(jax.value_and_grad(loss)).lower(1.3).as_text()


EULER = dict(
    solver=diffrax.Euler(),
    controller=diffrax.ConstantStepSize(),
    adjoint=diffrax.ForwardMode(),
)

# The time of an event is found whatever the condition does beside it.
CONDITIONS = [
    lambda x: x**3,
    lambda x: jnp.tanh(1e8 * x),
    lambda x: jnp.where(x > 0, 1.0, -1e-9),
    lambda x: jnp.expm1(40 * x),
    lambda x: -1e-280 * x,
    lambda x: jnp.where(x > 0, jnp.inf, x),
]


def test_conditions_that_are_hard_to_solve():
    def condition(t, y, p, **kwargs):
        return jnp.stack([c(y - p["theta"]) for c in CONDITIONS])[p["which"]]

    model = sx.Simulate(
        lambda t, y, p: jnp.ones_like(y), event=diffrax.Event(condition), **EULER, dt0=10.0
    )
    thetas, which = np.meshgrid([1e-7, 0.3, 7.0], np.arange(len(CONDITIONS)))
    p = dict(theta=jnp.array(thetas.ravel()), which=jnp.array(which.ravel()))
    t1 = jax.vmap(lambda p: model(0.0, [10.0], args=p).t1)(p)
    np.testing.assert_allclose(t1, thetas.ravel(), rtol=1e-9, atol=1e-14)


def test_conditions_that_are_booleans():
    def solve(conditions, y0=2.0):
        field = lambda t, y, theta: -jnp.ones_like(y)
        model = sx.Simulate(field, event=diffrax.Event(conditions), **EULER, dt0=0.5)
        return model(y0, [5.0], args=0.6)

    below = lambda t, y, theta, **kwargs: y < theta
    # A boolean at the end of its step; a number before that ends the solve, whatever the order.
    boolean = solve(below)
    assert boolean.t1 == 1.5 and boolean.ys[-1] == 0.5
    already = solve(below, 0.1)
    assert already.t1 == 0 and already.stats["num_steps"] == 0 and sx.is_successful(already)
    assert "at t = 0 of 5" in sx.explain(already)
    both = solve([below, lambda t, y, theta, **kwargs: y - theta])
    assert both.t1 == pytest.approx(1.4, rel=1e-14)
    with pytest.raises(ValueError, match="one number or one boolean"):
        solve(lambda t, y, theta, **kwargs: jnp.stack([y, y]))


def test_the_root_finder_of_the_user():
    def condition(t, y, theta, **kwargs):
        return jnp.where(theta < 0.5, jnp.sign(y - theta), y - theta)

    event = diffrax.Event(condition, optx.Newton(1e-8, 1e-8))
    model = sx.Simulate(lambda t, y, theta: -jnp.ones_like(y), event=event, **EULER, dt0=0.5)
    found, failed = (model(2.0, [5.0], args=theta, throw=False) for theta in (0.6, 0.4))
    assert sx.is_successful(found) and found.t1 == pytest.approx(1.4, rel=1e-8)
    assert not sx.is_successful(failed) and "`root_finder` of the event" in sx.explain(failed)
    assert np.isfinite(failed.t1) and np.isfinite(failed.ys).all()


def test_where_a_solve_without_an_event_ended():
    model = sx.Simulate(lambda t, y, k: k * y**2, solver=sx.Rosenbrock23())

    @jax.jit
    @jax.vmap
    @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
    def end(k, t):
        simulation = model(1.0, t[None], args=k, throw=False)
        return simulation.t1, simulation

    slopes, simulation = end(jnp.array([0.1, 10.0]), jnp.array([2.0, 2.0]))
    assert simulation.t1[0] == 2.0
    assert simulation.t1[1] == simulation.stats["t"][1] == pytest.approx(0.1, rel=1e-3)
    np.testing.assert_array_equal(slopes, [[0, 0], [1, 0]])


# --- options that follow from others


def test_a_default_follows_what_it_depends_on():
    def banded(t, y, args):
        return -y

    model = sx.Simulate(sx.Guarded(banded, jacobian=sx.Banded(1, 1)))
    event = diffrax.Event(lambda t, y, args, **kwargs: y[0] - 0.5)
    ends = sx.with_options(model, event=event)
    assert isinstance(ends.options.adjoint, sx.DiscreteAdjoint)
    assert sx.with_options(ends, event=None) == model
    remembers = sx.with_options(model, solver=diffrax.LeapfrogMidpoint(), dt0=0.1)
    assert isinstance(remembers.options.adjoint, diffrax.RecursiveCheckpointAdjoint)
    assert sx.with_options(remembers, solver=None, dt0=None) == model
    explicit = sx.with_options(model, solver=diffrax.Tsit5())
    assert explicit.options.controller == sx.StiffPID.preset(solver=diffrax.Tsit5())
    # The structure of the Jacobian is the field's, if the solver has none of its own.
    assert isinstance(model.options.solver.jacobian, sx.Banded)
    assert sx.with_options(model, field=banded).options.solver.jacobian is None
    # What was given stays.
    fixed = sx.Simulate(
        banded, controller=sx.StiffPID.preset("fast"), adjoint=diffrax.DirectAdjoint()
    )
    changed = sx.with_options(fixed, solver=diffrax.Tsit5(), event=event)
    assert changed.options.controller == fixed.options.controller
    assert isinstance(changed.options.adjoint, diffrax.DirectAdjoint)


def test_the_controller_of_a_phase_with_a_solver_of_its_own():
    # A tolerance of `StiffPID.preset(solver=Tsit5())` (its preset is "fast") and steps of it.
    tsit5 = diffrax.Tsit5()
    ts = jnp.array([0.5, 1.0])
    y0 = jnp.array([1.0])
    rate = dict(k=jnp.array(1.0))
    own = sx.SimulatePhases(decay)(y0, ts, [sx.Phase(1.0, args=rate, solver=tsit5)])
    model = sx.SimulatePhases(decay, solver=tsit5)
    assert model.options.controller == sx.StiffPID.preset(solver=tsit5)
    whole = model(y0, ts, [sx.Phase(1.0, args=rate)])
    assert own.stats["num_steps"] == whole.stats["num_steps"]
    np.testing.assert_array_equal(own.ys, whole.ys)


# https://github.com/patrick-kidger/diffrax/issues/363
@pytest.mark.parametrize("name", ["jump_ts", "step_ts"])
@pytest.mark.parametrize(
    "controller",
    [sx.StiffPID.preset, lambda **times: diffrax.PIDController(1e-6, 1e-9, **times)],
    ids=["StiffPID", "PIDController"],
)
def test_a_switch_time_that_is_traced_is_the_end_of_a_phase(controller, name):
    def end(tau):
        return sx.Simulate(decay, controller=controller(**{name: tau[None]}))

    with pytest.raises(TypeError, match=rf"`{name}` is traced.*`Phase\(t1=...\)`"):
        jax.eval_shape(end, 1.0)
