"""Events that change the state, and after which the solve goes on: times, states and derivatives
against closed forms, what happens at once, what is seen, and what is refused."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SOLVERS, slow

import stablax as sx

jax.config.update("jax_enable_x64", True)

TIGHT = sx.StiffPID.preset(rtol=1e-9, atol=1e-12)


def keep(t, y, args):
    return y


def times(simulation):
    return simulation.events.t[simulation.events.happened]


# A ball that bounces, from rest at p["h"] at p["t0"].


def falls(t, y, p):
    return jnp.array([y[1], -p["g"]])


BALL = sx.Event(
    lambda t, y, p: y[0],
    direction=False,
    change=lambda t, y, p: jnp.array([0.0, -p["e"] * y[1]]),
    max_count=30,
)
# By an argument, so that the event is not at a zero of a component.
COUNTER = sx.Event(lambda t, y, p: y[0] - p["h"] / 2, change=keep, max_count=60)


def of_ball(p, count):
    """Times of bounces, and the speed before each."""
    first = jnp.sqrt(2 * p["h"] / p["g"])
    speeds = p["g"] * first * p["e"] ** jnp.arange(float(count))
    flights = 2 * speeds * p["e"] / p["g"]
    start = p["t0"] + first
    return start + jnp.concatenate([jnp.zeros(1), jnp.cumsum(flights)[:-1]]), speeds


def ball_at(p, t, count):
    """Its height."""
    when, speeds = of_ball(p, count)
    k = jnp.sum(when <= t)
    since = t - jnp.where(k == 0, p["t0"], when[k - 1])
    rises = jnp.where(k == 0, 0.0, p["e"] * speeds[k - 1])
    return jnp.where(k == 0, p["h"], 0.0) + rises * since - p["g"] * since**2 / 2


def starts(p):
    return jnp.stack([p["h"], 0 * p["h"]])


BOUNCING = dict(h=1.0, g=9.81, e=0.9, t0=0.3)


@functools.cache
def bouncing(solver, adjoint=None):
    model = sx.Simulate(falls, solver=solver, adjoint=adjoint, event=BALL, controller=TIGHT)

    def solve(p, end=8.0):
        ts = jnp.linspace(0.5, end, 9)
        return model(starts(p), ts, t0=p["t0"], args=p)

    return model, solve


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
def test_a_ball_that_bounces_twenty_times(name):
    """Times, speeds, rows, and the gradients of the 1st, 5th and 20th bounce: forward, reverse."""
    _, solve = bouncing(SOLVERS[name]())
    count = 20

    def found(p):
        simulation = solve(p)
        log = simulation.events
        states = jnp.stack([log.before[:count, 1], log.after[:count, 1] / -p["e"]])
        return jnp.concatenate([log.t[:count], *-states, simulation.ys[:, 0]])

    def truth(p):
        when, speeds = of_ball(p, count + 3)
        ts = jnp.linspace(0.5, 8.0, 9)
        rows = [ball_at(p, t, count + 3) for t in ts]
        return jnp.concatenate([when[:count], speeds[:count], speeds[:count], jnp.stack(rows)])

    p = jax.tree.map(jnp.asarray, BOUNCING)
    simulation = jax.jit(solve)(p)
    assert simulation.events.happened.sum() >= count
    np.testing.assert_allclose(jax.jit(found)(p), truth(p), atol=1e-9)
    expected = jax.jacfwd(truth)(p)
    for jacobian in (jax.jacrev, jax.jacfwd):
        got = jax.jit(jacobian(found))(p)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, expected)


@pytest.mark.slow
def test_a_batch_of_balls_of_which_each_bounces_as_often_as_it_does():
    """In lanes, and in turns; gradients of the sum of their times."""
    model, _ = bouncing(sx.Rodas5P())
    n = 64
    p = dict(h=jnp.linspace(0.5, 1.5, n), g=jnp.full(n, 9.81), e=jnp.linspace(0.6, 0.9, n))
    p["t0"] = jnp.zeros(n)
    ends = jnp.linspace(0.2, 4.0, n)

    def one(p, end):
        return model(starts(p), jnp.stack([end / 2, end]), t0=p["t0"], args=p)

    def log_of(p):
        return jax.vmap(one)(p, ends).events

    def in_turn(p):
        inputs = dict(y0=jax.vmap(starts)(p), ts=jnp.stack([ends / 2, ends], 1), t0=p["t0"], args=p)
        return sx.simulate_batch(model, inputs, batch_size=16).events

    each = [jax.tree.map(lambda x, k=k: x[k], p) for k in range(n)]
    counts = [int(jnp.sum(of_ball(p, 40)[0] <= end)) for p, end in zip(each, ends, strict=True)]
    assert len(set(counts)) > 2
    sums = lambda log: jnp.sum(jnp.where(log.happened, log.t * jnp.arange(1.0, 31.0)[None], 0))

    def truth(p):
        total = 0.0
        for k, count in enumerate(counts):
            when, _ = of_ball(jax.tree.map(lambda x, k=k: x[k], p), max(count, 1))
            total += jnp.sum(when[:count] * jnp.arange(1.0, count + 1.0))
        return total

    expected = jax.jit(jax.value_and_grad(truth))(p)
    for log in (log_of, in_turn):
        np.testing.assert_array_equal(jax.jit(log)(p).happened.sum(-1), counts)
        got = jax.jit(jax.value_and_grad(lambda p, log=log: sums(log(p))))(p)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), got, expected
        )


# An integrate-and-fire neuron: at the threshold its voltage is set to zero.
FIRES = sx.Event(
    lambda t, v, p: v - p["theta"], direction=True, change=sx.SetDose(0.0), max_count=40
)
NEURON = sx.Simulate(
    lambda t, v, p: (p["I"] - v) / p["tau"], event=FIRES, controller=TIGHT, max_steps=1024
)
NEURON_AT = dict(theta=1.0, I=1.5, tau=2.0, v0=0.2)


def firing(p, count):
    time = lambda v: p["tau"] * jnp.log((p["I"] - v) / (p["I"] - p["theta"]))
    return time(p["v0"]) + time(0.0) * jnp.arange(float(count))


def neuron_at(p, t):
    when = firing(p, 30)
    k = jnp.sum(when <= t)
    start, v = jnp.where(k == 0, 0.0, when[k - 1]), jnp.where(k == 0, p["v0"], 0.0)
    return p["I"] + (v - p["I"]) * jnp.exp((start - t) / p["tau"])


def test_a_neuron_that_fires():
    """The state behind an event is a constant, so that all derivatives go through its time."""

    def found(p):
        simulation = NEURON(p["v0"], [3.0, 20.0, 50.0], args=p)
        return jnp.concatenate([simulation.events.t[:20], simulation.ys])

    def truth(p):
        return jnp.stack([*firing(p, 20), *(neuron_at(p, t) for t in (3.0, 20.0, 50.0))])

    p = jax.tree.map(jnp.asarray, NEURON_AT)
    np.testing.assert_allclose(jax.jit(found)(p), truth(p), rtol=1e-8)
    expected = jax.jacfwd(truth)(p)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=3e-6)
    for jacobian in (jax.jacrev, jax.jacfwd):
        jax.tree.map(close, jax.jit(jacobian(found))(p), expected)


@slow
def test_second_derivatives_of_the_time_of_an_event():
    p = jax.tree.map(jnp.asarray, NEURON_AT)
    fifth = lambda p: NEURON(p["v0"], [20.0], args=p).events.t[4]
    hessian = jax.jit(jax.hessian(fifth))(p)
    expected = jax.hessian(lambda p: firing(p, 5)[4])(p)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, hessian, expected)


@slow
def test_forward_mode_through_the_loop():
    model = sx.with_options(NEURON, adjoint=diffrax.ForwardMode())
    p = jax.tree.map(jnp.asarray, NEURON_AT)
    got = jax.jit(jax.jacfwd(lambda p: model(p["v0"], [50.0], args=p).events.t[:20]))(p)
    expected = jax.jacfwd(lambda p: firing(p, 20))(p)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), got, expected)


def test_a_thermostat():
    """Two events, with a state that they switch: a PyTree."""
    switch = lambda on: lambda t, y, p: {**y, "on": jnp.full_like(y["on"], on)}
    events = [
        sx.Event(lambda t, y, p: y["T"] - p["low"], direction=False, change=switch(1.0)),
        sx.Event(lambda t, y, p: y["T"] - p["high"], direction=True, change=switch(0.0)),
    ]

    def room(t, y, p):
        return {"T": p["k"] * (p["heat"] * y["on"] - y["T"]), "on": jnp.zeros_like(y["on"])}

    model = sx.Simulate(room, event=events, controller=TIGHT)

    def found(p):
        y0 = {"T": p["high"], "on": jnp.zeros_like(p["k"])}
        return model(y0, [60.0], args=p).events

    def truth(p):
        cools = jnp.log(p["high"] / p["low"]) / p["k"]
        heats = jnp.log((p["heat"] - p["low"]) / (p["heat"] - p["high"])) / p["k"]
        both = jnp.arange(4.0)[:, None] * (cools + heats) + jnp.stack([cools, cools + heats])[None]
        return jnp.ravel(both)

    p = jax.tree.map(jnp.asarray, dict(low=18.0, high=20.0, heat=30.0, k=0.02))
    log = jax.jit(found)(p)
    np.testing.assert_array_equal(log.which[:8], [0, 1] * 4)
    np.testing.assert_array_equal(log.after["on"][:8], [1.0, 0.0] * 4)
    of_second = log.of(1)
    assert of_second.happened.sum() == (log.which == 1).sum()
    np.testing.assert_allclose(of_second.before["T"][of_second.happened], 20.0)
    got = jax.jit(jax.jacrev(lambda p: found(p).t[:8]))(p)
    expected = jax.jacfwd(truth)(p)
    np.testing.assert_allclose(log.t[:8], truth(p), rtol=1e-8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), got, expected)


def test_a_species_that_runs_out_is_set_to_zero():
    """The reset of Liu's kind, in SBML: below 1e-8 there is no molecule left."""
    gone = sx.Event(
        lambda t, y, k: y[0] - 1e-8,
        direction=False,
        change=sx.SetDose(0.0, where=np.array([True, False])),
    )
    decays = lambda t, y, k: jnp.array([-k * y[0], k * y[0]])
    controller = sx.StiffPID.preset(rtol=1e-9, atol=1e-15)
    model = sx.Simulate(decays, event=gone, controller=controller)
    y0 = jnp.array([1.0, 0.0])
    solve = lambda k: model(y0, [1.0, 9.5, 12.0], args=k)
    simulation = solve(2.0)
    np.testing.assert_allclose(times(simulation), [np.log(1e8) / 2], rtol=1e-8)
    np.testing.assert_array_equal(simulation.ys[1:, 0], 0.0)
    np.testing.assert_allclose(simulation.ys[1:, 1], 1 - 1e-8, rtol=1e-12)
    slope = jax.grad(lambda k: solve(k).events.t[0])(2.0)
    np.testing.assert_allclose(slope, -np.log(1e8) / 4, rtol=1e-6)


# What happens at once. The first component is the time, the others count.


def counts(*which):
    """A change that adds one to some components, and writes the order in the last."""

    def change(t, y, args):
        y = y.at[-1].set(10 * y[-1] + which[0])
        return y.at[jnp.array(which)].add(1.0)

    return change


def ticking(events, y0, end=2.0, **options):
    field = lambda t, y, args: jnp.zeros_like(y).at[0].set(1.0)
    model = sx.Simulate(field, event=events, **options)
    return model(jnp.array(y0), [end / 2, end], args=1.0, throw=False)


def test_ties_are_in_order():
    """Also where rounding separates them, and where the first sends the second back."""
    one = sx.Event(lambda t, y, a: y[0] - a, change=counts(1))
    two = sx.Event(lambda t, y, a: 3 * (t - 1.0), change=counts(2))
    for events, order in (([one, two], [0, 1]), ([two, one], [0, 1])):
        simulation = ticking(events, [0.0, 0.0, 0.0, 0.0])
        log = simulation.events
        np.testing.assert_array_equal(log.which[:2], order)
        np.testing.assert_allclose(log.t[:2], 1.0, rtol=1e-13)
        np.testing.assert_array_equal(simulation.ys[-1, 1:3], 1.0)
    assert simulation.ys[-1, -1] == 21.0
    # At a time that is stepped to, and at the end of the solve.
    controller = sx.StiffPID.preset(step_ts=[1.0])
    for events in ([one, two], [two, one]):
        log = ticking(events, [0.0] * 4, 1.0, controller=controller).events
        np.testing.assert_array_equal(log.which[:2], [0, 1])
    back = sx.Event(lambda t, y, a: y[0] - a, change=lambda t, y, a: y.at[0].add(-0.5))
    simulation = ticking([back, two], [0.0, 0.0, 0.0, 0.0], 1.4)
    np.testing.assert_array_equal(simulation.events.which[:2], [0, 1])


def test_an_event_sets_off_others_at_once():
    first = sx.Event(lambda t, y, a: y[0] - a, change=counts(1))
    second = sx.Event(lambda t, y, a: y[1] - 0.5, direction=True, change=counts(2))
    third = sx.Event(lambda t, y, a: 0.5 - y[2], direction=False, change=counts(3))
    not_set_off = sx.Event(lambda t, y, a: y[2] - 0.5, direction=False, change=counts(3))
    simulation = ticking([third, not_set_off, second, first], [0.0] * 5)
    log = simulation.events
    assert log.happened.sum() == 3
    np.testing.assert_array_equal(log.which[:3], [3, 2, 0])
    np.testing.assert_allclose(log.t[:3], 1.0, rtol=1e-13)
    np.testing.assert_allclose(simulation.ys[-1], [2.0, 1.0, 1.0, 1.0, 123.0], rtol=1e-13)
    np.testing.assert_array_equal(log.before[1:3], log.after[:2])
    ends = sx.Event(lambda t, y, a: y[1] - 0.5)
    simulation = ticking([first, ends], [0.0] * 5)
    assert float(simulation.t1) == pytest.approx(1.0) and not simulation.reached[-1]
    assert "an event ended the solve at t = 1" in sx.explain(simulation)
    assert simulation.ys[-1, 1] == 1.0


def test_derivatives_through_what_is_set_off():
    """The second change depends on the time, on the state and on a parameter."""
    first = sx.Event(lambda t, y, p: y[0] - p[0], change=lambda t, y, p: y.at[1].set(y[0] * t))
    second = sx.Event(
        lambda t, y, p: y[1] - 0.1, direction=True, change=lambda t, y, p: y.at[0].mul(p[1] * y[1])
    )
    model = sx.Simulate(lambda t, y, p: -p[2] * y, event=[first, second], controller=TIGHT)

    def found(p):
        return model(jnp.array([2.0, 0.0]), [2.0], args=p).ys[-1]

    def truth(p):
        t = jnp.log(2.0 / p[0]) / p[2]
        return jnp.exp(-p[2] * (2.0 - t)) * jnp.stack([p[0] * p[1] * p[0] * t, p[0] * t])

    p = jnp.array([1.1, 0.7, 0.8])
    expected = jax.jacfwd(truth)(p)
    for jacobian in (jax.jacrev, jax.jacfwd):
        both = jax.jit(
            lambda p, jacobian=jacobian: jacobian(lambda p: (found(p),) * 2, has_aux=True)(p)
        )
        got, value = both(p)
        np.testing.assert_allclose(value, truth(p), rtol=1e-8)
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_at_the_start():
    """A condition that is zero there is an event if it goes on in a direction that is taken, also
    from rest; the row at `t0` is what comes after."""
    rises = sx.Event(lambda t, y, a: y[0], direction=True, change=counts(1))
    falls_ = sx.Event(lambda t, y, a: y[0], direction=False, change=counts(2))
    simulation = ticking([rises, falls_], [0.0] * 4)
    np.testing.assert_array_equal(simulation.events.which[:2], [0, -1])
    np.testing.assert_array_equal(simulation.events.t[0], 0.0)
    pushed = sx.Simulate(falls, event=BALL)
    simulation = pushed(jnp.array([0.0, -1.0]), [0.0, 0.05], args=BOUNCING)
    np.testing.assert_allclose(simulation.ys[0], [0.0, 0.9])
    # It is there by definition, from rest too.
    for speed in (0.0, -1.0):
        first = lambda y0, t0: pushed(y0, t0[None] + 0.05, t0=t0, args=BOUNCING).events.t[0]
        slopes = jax.grad(first, (0, 1))(jnp.array([0.0, speed]), jnp.array(0.5))
        np.testing.assert_array_equal(slopes[0], 0.0)
        assert slopes[1] == 1.0
    # From rest a change that changes nothing keeps nothing from going on; another one does not.
    assert pushed(jnp.zeros(2), [1.0], args=BOUNCING).events.happened.sum() == 1
    event = sx.Event(lambda t, y, a: y[0] - a, change=lambda t, y, a: y.at[0].set(a).at[1].add(1.0))
    stuck = sx.Simulate(lambda t, y, a: jnp.stack([-t, 0 * t]), event=event)
    simulation = stuck(jnp.array([1.0, 0.0]), [1.0], args=1.0, throw=False)
    assert "happened again at the same time" in sx.explain(simulation)


def test_rows_at_an_event():
    """They hold the state after it, unless it is at the end."""
    event = sx.Event(lambda t, y, a: t - 1.0, change=lambda t, y, a: y + 5.0)
    model = sx.Simulate(lambda t, y, a: a * jnp.ones_like(y), event=event)
    solve = lambda a, ts: (model(0.0, ts, args=a).ys,) * 2
    for jacobian in (jax.jacrev, jax.jacfwd):
        both = jax.jit(jacobian(solve, has_aux=True))
        slope, rows = both(1.0, jnp.array([0.5, 1.0, 2.0]))
        np.testing.assert_allclose(rows, [0.5, 6.0, 7.0])
        np.testing.assert_allclose(slope, [0.5, 1.0, 2.0])
        _, rows = both(1.0, jnp.array([0.5, 0.5, 1.0]))
        np.testing.assert_allclose(rows, [0.5, 0.5, 1.0])


def test_a_condition_that_only_just_crosses():
    """It is there for sqrt(depth) of a step; its slope is that small, too."""
    event = sx.Event(lambda t, y, a: y[0] - 1.0, change=keep)
    model = sx.Simulate(lambda t, y, a: jnp.array([y[1], -1.0]), event=event)
    solve = lambda d: model(jnp.array([0.0, jnp.sqrt(2 * (1 + d))]), [5.0])
    truth = lambda d: jnp.sqrt(2 * (1 + d)) + jnp.array([-1.0, 1.0]) * jnp.sqrt(2 * d)
    depths = jnp.array([1e-2, 1e-6, 1e-10, -1e-10])
    both = jax.vmap(jax.jacrev(lambda d: (solve(d).events.t[:2], solve(d).events), has_aux=True))
    slopes, log = jax.jit(both)(depths)
    np.testing.assert_array_equal(log.happened.sum(-1), [2, 2, 2, 0])
    np.testing.assert_allclose(log.t[:3, :2], jax.vmap(truth)(depths[:3]), rtol=1e-9)
    np.testing.assert_allclose(slopes[:2], jax.vmap(jax.jacfwd(truth))(depths[:2]), rtol=1e-4)


def test_what_comes_to_rest_ends_with_words():
    """Bounces that accumulate, at any number; a switch that throws itself back."""
    p = {**BOUNCING, "e": 0.5, "t0": 0.0}
    for most, word in ((200, "resolution"), (7, "max_count")):
        event = sx.Event(BALL.condition, direction=False, change=BALL.change, max_count=most)
        model = sx.Simulate(falls, event=event)
        y0 = jnp.array([1.0, 0.0])
        simulation = model(y0, [3.0], args=p, throw=False)
        text = sx.explain(simulation)
        assert word in text and "the last events were event 0 at t = 1.3" in text
        assert simulation.t1 < 1.3546 and simulation.ys[-1, 0] > -1e-9
        gradient = jax.grad(
            lambda y0, model=model: model(y0, [3.0], args=p, throw=False).events.t[0]
        )(y0)
        np.testing.assert_array_equal(gradient, 0.0)
        with pytest.raises(RuntimeError, match=word):
            model(y0, [3.0], args=p)


def test_events_that_set_each_other_off_end_with_words():
    to = lambda place, value: lambda t, y, a: y.at[place].set(value)
    events = [
        sx.Event(lambda t, y, a: y[0] - a, change=to(1, 1.0)),
        sx.Event(lambda t, y, a: y[1] - 0.5, change=to(2, 1.0)),
        sx.Event(lambda t, y, a: y[2] - 0.5, change=to(1, 0.0)),
    ]
    simulation = ticking(events, [0.0] * 3)
    assert "happened again at the same time" in sx.explain(simulation)
    assert simulation.events.happened.sum() == 2


def test_events_that_fail_with_words():
    decays = lambda t, y, args: -y
    fails = {
        "is nan": sx.Event(lambda t, y, args: jnp.sqrt(y - 0.5) - 0.1 * y, change=keep),
        "not finite": sx.Event(lambda t, y, args: y - 0.5, change=lambda t, y, args: y / 0.0),
    }
    for words, event in fails.items():
        simulation = sx.Simulate(decays, event=event)(1.0, [3.0], throw=False)
        assert not sx.is_successful(simulation) and words in sx.explain(simulation)
        assert np.isfinite(simulation.ys).all()
    # Behind the event it may be.
    event = sx.Event(lambda t, y, args: jnp.sqrt(y - 0.5), direction=False)
    kept = sx.Event(
        lambda t, y, args: jnp.where(y > 0.4, y - 0.5, jnp.nan),
        direction=False,
        change=lambda t, y, args: y + 1.0,
    )
    assert not sx.is_successful(sx.Simulate(decays, event=event)(1.0, [3.0], throw=False))
    assert len(times(sx.Simulate(decays, event=kept)(1.0, [3.0]))) == 3


def test_time_events_that_close_over_what_is_differentiated():
    """Doses at times that a condition holds: derivatives in time and amount; backward in time."""

    def found(when, amount, end):
        event = sx.Event(lambda t, y, k: t - when, change=lambda t, y, k: y + amount)
        model = sx.Simulate(lambda t, y, k: -k * y, event=event, controller=TIGHT)
        return model(1.0, end[None], args=0.5, throw=False).ys[-1]

    def truth(when, amount, end):
        return jnp.exp(-0.5 * end) + amount * jnp.exp(-0.5 * (end - when))

    both = jnp.array([0.7, -0.7]), jnp.array([3.0, 2.0]), jnp.array([2.0, -2.0])
    for gradient in (jax.value_and_grad(found, (0, 1)), jax.jacfwd(found, (0, 1))):
        got = jax.jit(jax.vmap(gradient))(*both)
        expected = jax.vmap(jax.value_and_grad(truth, (0, 1)))(*both)
        expected = expected if isinstance(got[1], tuple) else expected[1]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, expected)


def test_an_event_without_a_change_ends_the_solve():
    event = sx.Event(lambda t, y, k: y - 0.3)
    model = sx.Simulate(lambda t, y, k: -k * y, event=event, controller=TIGHT)
    simulation = model(1.0, [0.1, 5.0], args=2.0)
    np.testing.assert_array_equal(simulation.reached, [True, False])
    np.testing.assert_allclose(simulation.ys[-1], 0.3)
    end = lambda k, t0: model(1.0, [5.0], t0=t0, args=k).t1
    np.testing.assert_allclose(end(2.0, 0.0), np.log(1 / 0.3) / 2)
    slopes = jax.grad(end, (0, 1))(2.0, 0.0)
    np.testing.assert_allclose(slopes, [-np.log(1 / 0.3) / 4, 1.0], rtol=1e-6)


def test_in_phases():
    """Of all phases the log is one; the numbers of each phase are its own."""
    event = sx.Event(
        lambda t, y, k: y - 0.5, direction=False, change=lambda t, y, k: y + 0.5, max_count=3
    )
    model = sx.SimulatePhases(lambda t, y, k: -k * y, event=event, controller=TIGHT)
    phases = [sx.Phase(1.0, args=1.0), sx.Phase(3.0, args=0.4, dose=jnp.asarray(0.2))]

    def log(k):
        return model(1.0, [2.0], [sx.Phase(1.0, args=k), *phases[1:]]).events

    found = log(1.0)
    recorded = sx.with_options(model, trace="record")(1.0, [2.0], phases)
    assert isinstance(recorded.steps, sx.StepLog) and isinstance(recorded.events, sx.EventLog)
    assert model(1.0, [2.0], phases).steps is None
    ln2 = np.log(2.0)
    after = np.exp(-(1.0 - ln2)) + 0.2
    second = 1.0 + np.log(after / 0.5) / 0.4
    np.testing.assert_allclose(found.t[:2], [ln2, second], rtol=1e-8)
    assert found.t.shape == (6,) and found.happened.sum() == 2
    slope = jax.grad(lambda k: log(k).t[1])(1.0)
    exact = jax.grad(lambda k: 1.0 + jnp.log((jnp.exp(jnp.log(2.0) - k) + 0.2) / 0.5) / 0.4)(1.0)
    np.testing.assert_allclose(slope, exact, rtol=1e-6)


def test_an_event_at_the_end_of_a_phase_happens_once():
    """And one at the start of a call behind phases of length zero, too."""
    for when, ends in ((1.0, (1.0, 3.0)), (0.0, (0.0, 3.0))):
        event = sx.Event(lambda t, y, a, when=when: t - when, change=lambda t, y, a: y + 1.0)
        model = sx.SimulatePhases(lambda t, y, a: jnp.zeros_like(y), event=event)
        simulation = model(0.0, [0.5, 1.0, 3.0], [sx.Phase(end, args=1.0) for end in ends])
        np.testing.assert_array_equal(times(simulation), [when])
        assert simulation.ys[-1] == 1.0


def test_the_same_condition_in_both_directions():
    """A bounce is no crossing upward, whichever way the time is rounded."""
    lift = sx.Event(BALL.condition, direction=True, change=keep)
    model = sx.Simulate(falls, event=[BALL, lift])
    log = model(jnp.array([1.0, 0.0]), [6.0], args=BOUNCING).events
    assert log.happened.sum() > 8
    assert not log.of(1).happened.any()
    np.testing.assert_array_equal(log.of(1).which, -1)
    np.testing.assert_array_equal(log.of(1).t, log.t[-1])


def test_one_lane_that_fails_beside_those_that_do_not():
    """In reverse, with two events in a step; in float32."""
    model = sx.Simulate(falls, event=[BALL, COUNTER])
    scale = jnp.array([0.9, 0.3, 0.8], jnp.float32)  # the second comes to rest before the end
    at = {k: jnp.asarray(v, jnp.float32) for k, v in BOUNCING.items()}

    def second(e):
        """The bounce behind the first, between which the counter is passed twice."""
        p = {**at, "e": e}
        simulation = model(starts(p), jnp.array([1.7], jnp.float32), args=p, throw=False)
        return simulation.events.t[4], simulation

    slopes, simulations = jax.jit(jax.vmap(jax.grad(second, has_aux=True)))(scale)
    np.testing.assert_array_equal(sx.is_successful(simulations), [True, False, True])
    np.testing.assert_array_equal(simulations.events.which[::2, :5], [[1, 0, 1, 1, 0]] * 2)
    assert slopes.dtype == simulations.events.t.dtype == jnp.float32
    first = np.sqrt(2 / 9.81)
    found = simulations.events.t[::2, 4]
    np.testing.assert_allclose(found, first * (1 + 2 * np.array([0.9, 0.8])), rtol=1e-4)
    np.testing.assert_allclose(slopes, [2 * first, 0.0, 2 * first], rtol=1e-3)


def test_given_times_are_met_behind_an_event():
    """The event cuts a step short that would have ended at one."""
    event = sx.Event(lambda t, y, a: t - 1.0, change=keep)
    controller = sx.StiffPID.preset(jump_ts=[1.05, 3.0], step_ts=[2.0])
    field = lambda t, y, a: (
        jnp.where(t < 1.05, 0.0, jnp.where(t < 3.0, 1.0, 0.0)) * jnp.ones_like(y)
    )
    model = sx.Simulate(field, event=event, controller=controller, trace="record", max_steps=64)
    simulation = model(0.0, [4.0])
    np.testing.assert_allclose(simulation.ys[-1], 1.95, rtol=1e-9)
    assert simulation.stats["num_rejected_steps"] == 0


def test_fixed_steps_stay_on_their_grid():
    event = sx.Event(lambda t, y, a: t - 0.3, change=lambda t, y, a: y + 1.0)
    options = dict(solver=diffrax.Euler(), controller=diffrax.ConstantStepSize(), dt0=0.25)
    model = sx.Simulate(lambda t, y, a: -y, event=event, **options)
    simulation = model(1.0, [1.0])
    assert simulation.stats["num_accepted_steps"] == 5
    at_event = 0.75 * (1 - 0.05) + 1.0
    np.testing.assert_allclose(simulation.ys, [at_event * (1 - 0.2) * 0.75**2], rtol=1e-12)


def test_a_change_that_leaves_the_box_has_nowhere_to_go():
    event = sx.Event(lambda t, y, a: y - 0.5, change=lambda t, y, a: y - 1.0)
    model = sx.Simulate(sx.Guarded(lambda t, y, a: -y, sx.Guard(lower=0.0)), event=event)
    simulation = model(1.0, [1.0], throw=False)
    assert "leaves the guard's box" in sx.explain(simulation)
    assert float(simulation.t1) == pytest.approx(np.log(2.0), rel=1e-4)


@slow
def test_from_a_steady_state():
    event = sx.Event(lambda t, y, k: y - 1.5, change=lambda t, y, k: y - 0.5)
    model = sx.SteadyThenSimulate(lambda t, y, k: k - y, event=event, controller=TIGHT)
    log = lambda k: model(0.5, [4.0], steady_args=1.0, args=k).events
    exact = lambda k: jnp.log((k - 1.0) / (k - 1.5)) * jnp.arange(1.0, 4.0)
    slopes, found = jax.jit(jax.jacrev(lambda k: (log(k).t[:3], log(k)), has_aux=True))(2.0)
    np.testing.assert_allclose(found.t[:3], exact(2.0), rtol=1e-7)
    np.testing.assert_allclose(slopes, jax.jacfwd(exact)(2.0), rtol=1e-6)


def test_wrong_use():
    decays = lambda t, y, args: -y
    for event, words in (
        (lambda t, y, args: y, "must be a `stablax.Event`, a sequence"),
        ([1.0], "must be a `stablax.Event`, a sequence"),
        (sx.Event(lambda t, y, args: y < 0.5), r"one real number.*return `x - limit`"),
        (sx.Event(lambda t, y, args: jnp.stack([y, y])), "one real number"),
        (sx.Event(lambda t, y, args: None), "one real number"),
        (sx.Event(lambda t, y, args: y, change=lambda t, y, args: jnp.stack([y, y])), "`change`"),
        (sx.Event(lambda t, y, args: y, change=jnp.ones(3)), "`change` of event 0"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            sx.Simulate(decays, event=event)(1.0, [1.0])
    for options in (dict(max_count=0), dict(direction="up"), dict(change="reset")):
        with pytest.raises((TypeError, ValueError), match=next(iter(options))):
            sx.Event(lambda t, y, args: y, **options)
    with pytest.raises(TypeError, match="`condition` must be a function"):
        sx.Event(0.5)
    with pytest.raises(ValueError, match="a step of `LeapfrogMidpoint` depends on the step before"):
        sx.Simulate(decays, event=BALL, solver=diffrax.LeapfrogMidpoint())
    with pytest.raises(ValueError, match="needs the default adjoint or `diffrax.ForwardMode"):
        sx.Simulate(decays, event=BALL, adjoint=diffrax.DirectAdjoint())
    assert sx.Simulate(decays, event=[]).options.event is None
