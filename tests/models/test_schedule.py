"""Doses, infusions and resets of a schedule, against closed forms of a linear drug."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stablax as sx

ABSORB, ELIMINATE = 1.0, 0.2
RATES = {"in": jnp.array(ABSORB), "out": jnp.array(ELIMINATE)}
EMPTY = jnp.zeros(2)
END = 30.0


def drug(t, y, rates):
    gut, plasma = y
    absorbed = rates["in"] * gut
    return jnp.stack([-absorbed, absorbed - rates["out"] * plasma])


PRECISE = sx.StiffPID.preset(rtol=1e-9, atol=1e-11)
MODEL = sx.SimulatePhases(drug, controller=PRECISE)


def swallowed(t, amount, ts):
    """What a dose into the gut at `t` leaves in gut and plasma."""
    s = jnp.where(ts >= t, ts - t, jnp.inf)
    gut, out = jnp.exp(-ABSORB * s), jnp.exp(-ELIMINATE * s)
    return amount * jnp.stack([gut, ABSORB / (ABSORB - ELIMINATE) * (out - gut)], axis=-1)


def infused(t, amount, duration, ts):
    """What an infusion into the plasma leaves there."""
    since = lambda start: jnp.exp(-ELIMINATE * jnp.where(ts > start, ts - start, 0.0))
    part = jnp.where(ts > t, since(t + duration) - since(t), 0.0)
    plasma = amount / duration / ELIMINATE * part
    return jnp.stack([jnp.zeros_like(plasma), plasma], axis=-1)


def solve(schedule, ts, end=END, **options):
    phases = schedule.phases(drug, EMPTY, end, args=RATES)
    return MODEL(EMPTY, ts, phases, **options)


def test_values_and_derivatives_in_all_that_is_given():
    """Of tablets with a lag, and overlapping infusions."""
    ts = jnp.array([5.0, 11.0, 20.0, END])
    weights = jnp.array([[1.0, -0.5], [0.3, 2.0], [1.0, 1.0], [-2.0, 3.0]])

    def total(v):
        tablets = sx.Dose(
            v["t"], v["mg"], lag=v["lag"], bioavailability=v["part"], every=v["every"], count=3
        )
        drip = sx.Infusion(v["start"], v["drip"], v["for"], into=1, every=v["every"], count=2)
        return jnp.sum(weights * solve(sx.Schedule([drip, tablets]), ts).ys)

    def exact(v):
        starts = v["t"] + v["lag"] + v["every"] * jnp.arange(3.0)
        out = sum(swallowed(t, v["mg"] * v["part"], ts) for t in starts)
        for start in v["start"] + v["every"] * jnp.arange(2.0):
            out += infused(start, v["drip"], v["for"], ts)
        return jnp.sum(weights * out)

    values = {"t": 1.0, "mg": 100.0, "lag": 0.3, "part": 0.8, "every": 8.0}
    values |= {"start": 2.5, "drip": 40.0, "for": 9.0}
    values = jax.tree.map(lambda x: jnp.asarray(x, float), values)
    found, gradient = jax.jit(jax.value_and_grad(total))(values)
    expected, slope = jax.value_and_grad(exact)(values)
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    for name in values:
        np.testing.assert_allclose(gradient[name], slope[name], rtol=1e-6, err_msg=name)


def patients(count):
    """Schedules of different length and kind, and what they leave at `ts`."""
    random = np.random.default_rng(1)
    ts = jnp.linspace(1.0, END, 5)
    schedules, exact = [], []
    for k in range(count):
        tablets = int(random.integers(1, 4))
        starts, amounts = random.uniform(0, 20, tablets), random.uniform(10, 100, tablets)
        given = [sx.Dose(starts, amounts)]
        out = sum(swallowed(t, mg, ts) for t, mg in zip(starts, amounts, strict=True))
        if k % 3 == 0:
            start, mg, duration = random.uniform(0, 10), random.uniform(5, 50), 6.0
            given.append(sx.Infusion(start, mg, duration, into=1))
            out += infused(start, mg, duration, ts)
        schedules.append(sx.Schedule(given))
        exact.append(out)
    return ts, schedules, jnp.stack(exact)


def test_forty_patients_are_one_program():
    """Padded, each with a lag of its own; other schedules of these sizes compile nothing."""
    ts, schedules, exact = patients(40)
    stack = sx.Schedule.stack(schedules)
    traced = []

    @jax.jit
    def run(stack, lags):
        traced.append(1)

        def one(schedule, lag):
            later = schedule.adjusted(lag=lag)
            phases = later.phases(drug, EMPTY, END + 5.0, args=RATES)
            return MODEL(EMPTY, ts + lag, phases, throw=False).ys

        return jax.vmap(one)(stack, lags)

    # All that is given later is seen as much later.
    for lags in (jnp.zeros(40), jnp.linspace(0.0, 2.0, 40)):
        np.testing.assert_allclose(run(stack, lags), exact, atol=2e-6)
    assert len(traced) == 1
    assert stack._doses.t.shape == (40, 3) and stack._infusions.t.shape == (40, 1)
    with pytest.raises(ValueError, match=r"call `phases` under `jax.vmap`"):
        stack.phases(drug, EMPTY, END)


def test_patients_have_derivatives_of_their_own():
    """In times and amounts, of which the padded ones have none; in a batch with lanes in turn."""
    ts, schedules, _ = patients(4)
    stack = sx.Schedule.stack(schedules)

    def total(t, amount):
        moved = eqx.tree_at(lambda s: (s._doses.t, s._doses.amount), stack, (t, amount))
        phases = jax.vmap(lambda s: s.phases(drug, EMPTY, END, args=RATES))(moved)
        shared = dict(y0=EMPTY, ts=ts)
        batch = sx.simulate_batch(MODEL, dict(phases=phases), shared=shared, batch_size=2)
        return jnp.sum(batch.ys[..., 1])

    def exact(t, amount):
        each = jax.vmap(jax.vmap(lambda t, mg: swallowed(t, mg, ts)[:, 1]))
        is_given = jnp.isfinite(stack._doses.t)[..., None]
        return jnp.sum(jnp.where(is_given, each(jnp.where(is_given[..., 0], t, 0.0), amount), 0.0))

    inputs = (stack._doses.t, stack._doses.amount)
    found, expected = (jax.grad(f, argnums=(0, 1))(*inputs) for f in (total, exact))
    is_given = jnp.isfinite(inputs[0])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one[is_given], other[is_given], rtol=1e-5, atol=1e-6)
        assert jnp.all(jnp.isfinite(one)) and jnp.all(jnp.where(is_given, 0, found[0]) == 0)


def test_a_reset_is_the_start_anew():
    """It ends infusions, and comes before what is given with it."""
    start = jnp.array([0.0, 7.0])
    schedule = sx.Schedule(
        [
            sx.Infusion(0.0, 60.0, 20.0, into=1),
            sx.Reset([6.0, 12.0]),
            sx.Dose(12.0, 50.0),
            sx.Infusion(12.0, 10.0, 4.0, into=1),
        ]
    )
    ts = jnp.array([3.0, 6.0, 9.0, 15.0, 28.0])
    phases = schedule.phases(drug, start, END, args=RATES)
    found = MODEL(start, ts, phases).ys
    decay = lambda s: 7.0 * jnp.exp(-ELIMINATE * s)
    plain = jnp.stack([jnp.zeros(5), decay(jnp.array([3.0, 0.0, 3.0, 3.0, 16.0]))], axis=-1)
    given = swallowed(12.0, 50.0, ts) + infused(12.0, 10.0, 4.0, ts)
    given = given.at[0].add(infused(0.0, 60.0, 20.0, ts)[0])
    np.testing.assert_allclose(found, plain + given, atol=1e-6)


def test_together_at_the_end_and_beyond():
    """Doses of one time add up, one at the end is given, one behind it is not; an infusion goes on
    to the end."""
    mg = jnp.array([10.0, 20.0, 30.0, 40.0])
    times = [4.0, 4.0, 10.0, 11.0]
    schedule = sx.Schedule([sx.Dose(times, mg), sx.Infusion(8.0, 8.0, 8.0, into=1)])
    phases = schedule.phases(drug, EMPTY, 10.0, args=RATES)
    ts = jnp.array([4.0, 9.0, 10.0])
    found = MODEL(EMPTY, ts, phases).ys
    before = swallowed(4.0, 30.0, ts) + infused(8.0, 8.0, 8.0, ts)
    np.testing.assert_allclose(found, before.at[2, 0].add(30.0), atol=1e-7)
    trough = sx.SimulatePhases(drug, boundary="before")(EMPTY, ts, phases).ys
    np.testing.assert_allclose(trough[2], before[2], atol=1e-5)
    assert float(trough[0, 0]) == 0.0


def test_places_have_names():
    """Of species, of a state that is a dict, and by number; in any order of `Schedule.stack`."""
    flows = [sx.MassAction(1.0), sx.MassAction(0.2)]
    field = sx.ReactionField(["gut -> plasma", "plasma -> 0"], flows)
    schedule = sx.Schedule([sx.Dose(0.0, 10.0, into="plasma"), sx.Dose(0.0, 5.0, into="gut")])
    phases = schedule.phases(field, field.state({}), 1.0)
    assert phases.dose.amount.tolist() == [[0.0, 0.0], [0.0, 10.0], [5.0, 0.0]]
    state = {"gut": jnp.zeros(()), "plasma": jnp.zeros(())}
    tree = schedule.phases(lambda t, y, a: y, state, 1.0)
    assert tree.dose.amount["plasma"].tolist() == [0.0, 10.0, 0.0]
    other = sx.Schedule([sx.Dose(0.0, 1.0, into="gut"), sx.Infusion(0.0, 2.0, 1.0, into=-1)])
    stack = sx.Schedule.stack([schedule, other])
    many = jax.vmap(lambda s: s.phases(field, field.state({}), 2.0))(stack)
    assert many.dose.amount[1].tolist()[:3] == [[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]
    assert many.inflow[1].max(axis=0).tolist() == [0.0, 2.0] and many.inflow[0].max() == 0.0


def test_phases_with_and_without_an_inflow_are_one_program():
    """An inflow fits the state, and is zero where there is none."""
    on = sx.Phase(4.0, RATES, inflow=jnp.array([0.0, 2.0]))
    off = sx.Phase(10.0, RATES)
    found = MODEL(EMPTY, [4.0, 10.0], [on, off]).ys
    np.testing.assert_allclose(found, infused(0.0, 8.0, 4.0, jnp.array([4.0, 10.0])), atol=1e-7)
    daily = sx.Phase.repeat(2, 5.0, args=RATES, inflow=jnp.array([0.0, 1.0]))
    found = MODEL(EMPTY, [10.0], daily).ys
    np.testing.assert_allclose(found, infused(0.0, 10.0, 10.0, jnp.array([10.0])), atol=1e-7)
    with pytest.raises(ValueError, match=r"The inflow of phase 0 .*\(inflow=...\)` has shape"):
        MODEL(EMPTY, [4.0], sx.Phase(4.0, RATES, inflow=jnp.ones(3)))
    with pytest.raises(ValueError, match=r"`inflow` is not finite"):
        sx.Phase(4.0, RATES, inflow=jnp.array([0.0, jnp.nan]))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: sx.Dose(0.0, "much"), r"`amount` must be a number, or an array of numbers, got"),
        (lambda: sx.Dose([0.0, jnp.inf], 1.0), r"`t` must be finite"),
        (lambda: sx.Dose([0.0, 1.0], [1.0, 2.0, 3.0]), r"must have one entry for each dose, got t"),
        (lambda: sx.Dose(0.0, 1.0, count=3), r"give both or none, got every=None, count=3"),
        (lambda: sx.Dose(0.0, 1.0, every=2.0), r"give both or none, got every=2.0, count=1"),
        (lambda: sx.Dose(0.0, 1.0, every=0.0, count=2), r"`every` must be above 0, got 0.0"),
        (lambda: sx.Dose(0.0, 1.0, into=1.5), r"`into` must be the name of a component or its"),
        (lambda: sx.Infusion(0.0, 1.0, 0.0), r"`duration` must be above 0"),
        (lambda: sx.Schedule([0.0]), r"`doses\[0\]` must be a `Dose`, an `Infusion` or a `Reset`"),
        (lambda: sx.Schedule.stack([]), r"`schedules` must be a sequence of one or more"),
        (
            lambda: sx.Schedule([sx.Dose(0.0, 1.0, into="guts")]).phases(
                drug, {"gut": 0.0, "plasma": 0.0}, 1.0
            ),
            r"`into` is `guts`, which is no component. Did you mean `gut`\?",
        ),
        (
            lambda: sx.Schedule([sx.Dose(0.0, 1.0, into=2)]).phases(drug, EMPTY, 1.0),
            r"`into` is 2, but the state has 2 components",
        ),
        (
            lambda: sx.Schedule([sx.Dose(1.0, 1.0, lag=-2.0)]).phases(drug, EMPTY, 1.0),
            r"given at t = -1, before the start, t0 = 0",
        ),
    ],
)
def test_what_does_not_fit_has_words(make, text):
    with pytest.raises((ValueError, TypeError), match=text):
        make()


def test_what_comes_together_moves_apart():
    """A lag of zero at the start, infusions back to back, two routes with one lag: a phase of
    length zero is as long as its ends say."""
    ts, start = jnp.array([5.0, 24.0]), jnp.array([5.0, 30.0])
    decay = jnp.stack([swallowed(0.0, 5.0, ts)[:, 1] + 30 * jnp.exp(-ELIMINATE * ts)])[0]

    def run(lags, duration):
        given = [
            sx.Dose(0.0, 100.0, lag=lags[0]),
            sx.Dose(0.0, 40.0, into=1, lag=lags[1]),
            sx.Infusion(5.5, 100.0, duration, into=1),
            sx.Infusion(12.0, 60.0, 6.0, into=1),
        ]
        phases = sx.Schedule(given).phases(drug, start, 24.0, args=RATES)
        return MODEL(start, ts, phases).ys[:, 1]

    def exact(lags, duration):
        out = decay + swallowed(lags[0], 100.0, ts)[:, 1]
        out += 40.0 * jnp.exp(-ELIMINATE * (ts - lags[1]))
        return out + (infused(5.5, 100.0, duration, ts) + infused(12.0, 60.0, 6.0, ts))[:, 1]

    at = (jnp.array([0.0, 0.0]), jnp.array(6.5))
    np.testing.assert_allclose(run(*at), exact(*at), rtol=1e-7)
    found, expected = (jax.jacrev(f, argnums=(0, 1))(*at) for f in (run, exact))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_phases_of_no_length_move_in_forward_mode():
    """As in reverse mode, with either adjoint."""

    def last(adjoint):
        field = lambda t, y, rate: -rate * y
        model = sx.SimulatePhases(field, adjoint=adjoint, controller=PRECISE)

        def run(lag):
            doses = sx.Schedule([sx.Dose(0.0, 2.0, lag=lag)])
            phases = doses.phases(field, jnp.ones(1), 1.0, args=0.5)
            return model(jnp.ones(1), [1.0], phases).ys

        return run

    for adjoint in (sx.DiscreteAdjoint(), diffrax.ForwardMode()):
        slope = jax.jacfwd(last(adjoint))(0.0)
        np.testing.assert_allclose(slope, 2.0 * 0.5 * np.exp(-0.5) * np.ones((1, 1)), rtol=1e-7)


def test_what_is_read_can_be_adjusted():
    """Lags, bioavailability and durations of a schedule that is there already, by place."""
    read = sx.Schedule([sx.Dose(0.0, 10.0), sx.Dose(0.0, 4.0, into=1), sx.Infusion(1.0, 6.0, 2.0)])
    ts = jnp.array([9.0])
    known = sx.Schedule(
        [
            sx.Dose(0.5, 5.0),
            sx.Dose(0.0, 4.0, into=1),
            sx.Infusion(1.5, 3.0, 4.0),
        ]
    )
    changed = read.adjusted(lag=0.5, bioavailability=0.5, duration=2.0, into=0)
    np.testing.assert_allclose(solve(changed, ts).ys, solve(known, ts).ys, rtol=1e-12)
    assert read.adjusted(lag=1.0).ts.tolist() == [4.0, 1.0, 1.0, 2.0]
    with pytest.raises(ValueError, match=r"`into` is 'gut', into which nothing is given. Known"):
        read.adjusted(lag=1.0, into="gut")
    with pytest.raises(ValueError, match=r"`duration` must be above 0, got -1.0"):
        read.adjusted(duration=-1.0)


def test_traced_durations_that_cannot_be_fail():
    run = lambda d: solve(sx.Schedule([sx.Infusion(1.0, 9.0, d)]), [2.0], throw=False).result
    assert jax.jit(run)(0.0) == sx.RESULTS.bad_phases and sx.is_successful(jax.jit(run)(1.0))


def test_a_traced_time_before_the_start_fails():
    def run(lag):
        schedule = sx.Schedule([sx.Dose(1.0, 1.0, lag=lag)])
        return solve(schedule, [2.0], throw=False).result == sx.RESULTS.bad_phases

    assert jax.jit(run)(-2.0) and not jax.jit(run)(0.5)


def test_single_precision():
    start = jnp.zeros(2, jnp.float32)
    schedule = sx.Schedule([sx.Dose(0.5, 10.0), sx.Infusion(1.0, 5.0, 2.0, into=1)])
    rates = {"in": jnp.float32(ABSORB), "out": jnp.float32(ELIMINATE)}
    phases = schedule.phases(drug, start, 5.0, args=rates)
    found = sx.SimulatePhases(drug)(start, [4.0], phases).ys
    ts = jnp.array([4.0])
    expected = swallowed(0.5, 10.0, ts) + infused(1.0, 5.0, 2.0, ts)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def steady_gut(amount, every, lag):
    """What doses every so often have left in the gut and the plasma, `lag` before the next."""
    since = every - lag
    geometric = lambda rate: jnp.exp(-rate * since) / (1 - jnp.exp(-rate * every))
    gut = geometric(ABSORB)
    plasma = ABSORB / (ABSORB - ELIMINATE) * (geometric(ELIMINATE) - gut)
    return amount * jnp.stack([gut, plasma])


def test_a_regimen_at_steady_state():
    """The state from which it starts, with its derivatives, and what comes after; and of one who
    takes nothing before."""

    def run(v):
        tablet = sx.Dose(0.0, v["mg"], lag=v["lag"], every=v["every"], count=2, steady=True)
        return sx.Schedule([tablet]).at_steady_state(MODEL, EMPTY, args=RATES)

    v = {"mg": jnp.array(100.0), "every": jnp.array(12.0), "lag": jnp.array(0.5)}
    exact = lambda v: steady_gut(v["mg"], v["every"], v["lag"])
    gradient = jax.jit(jax.jacrev(lambda v: run(v)[0].y))(v)
    for name, slope in jax.jacrev(exact)(v).items():
        np.testing.assert_allclose(gradient[name], slope, rtol=1e-6, err_msg=name)

    start, rest = run(v)
    np.testing.assert_allclose(start.y, exact(v), rtol=1e-8)
    phases = rest.phases(drug, EMPTY, 24.0, args=RATES)
    # The second dose is the last one: until it has arrived all repeats itself.
    np.testing.assert_allclose(MODEL(start.y, [12.0], phases).ys[0], start.y, rtol=1e-7)
    same, schedule = sx.Schedule([sx.Dose(0.0, 1.0)]).at_steady_state(MODEL, EMPTY)
    assert jnp.array_equal(same.y, EMPTY) and schedule.phases(drug, EMPTY, 1.0).t1.shape == (2,)


def test_traced_doses_that_do_not_fit_the_period_are_a_result():
    """Under `vmap` nobody can raise: one that comes too late, and an infusion that is too long."""

    def run(t, duration):
        drip = sx.Infusion(t, 10.0, duration, into=1, every=12.0, steady=True)
        return sx.Schedule([drip]).at_steady_state(MODEL, EMPTY, args=RATES, throw=False)[0]

    found = jax.vmap(run)(jnp.array([0.0, 24.0, 0.0]), jnp.array([2.0, 2.0, 18.0]))
    assert sx.is_successful(found).tolist() == [True, False, False]


def test_some_patients_are_at_steady_state():
    """In a stack with one who is not, who starts from nothing; with an infusion."""
    drip = sx.Infusion(0.0, 24.0, 2.0, into=1, every=8.0, count=3, steady=True)
    stack = sx.Schedule.stack([sx.Schedule([drip]), sx.Schedule([sx.Dose(0.0, 10.0)])])

    def one(schedule):
        start, rest = schedule.at_steady_state(MODEL, EMPTY, args=RATES)
        return start.y, MODEL(start.y, [16.0], rest.phases(drug, EMPTY, 24.0, args=RATES)).ys[0]

    start, later = jax.jit(jax.vmap(one))(stack)
    peak = 24.0 / 2.0 / ELIMINATE * (1 - jnp.exp(-ELIMINATE * 2.0))
    trough = peak * jnp.exp(-ELIMINATE * 6.0) / (1 - jnp.exp(-ELIMINATE * 8.0))
    np.testing.assert_allclose(start, [[0.0, trough], [0.0, 0.0]], atol=1e-7)
    alone = swallowed(0.0, 10.0, jnp.array([16.0]))[0]
    np.testing.assert_allclose(later, [[0.0, trough], alone], atol=1e-7)


def test_what_has_no_periodic_state_says_so():
    saturated = sx.SimulatePhases(lambda t, y, rate: -rate * y / (1.0 + y))
    too_much = sx.Phase(1.0, 8.0, dose=10.0)
    with pytest.raises(RuntimeError, match=r"No periodic state was found: .*accumulates"):
        sx.find_periodic_state(saturated, 0.0, too_much)
    found = sx.find_periodic_state(saturated, 0.0, too_much, throw=False)
    assert not sx.is_successful(found) and "No periodic state" in sx.explain(found)
    with pytest.raises(ValueError, match=r"`max_periods` must be at least 1"):
        sx.find_periodic_state(saturated, 0.0, too_much, max_periods=0)
    resting = sx.SimulatePhases(lambda t, y, rate: -rate * y, steady=True)
    with pytest.raises(ValueError, match=r"make it without `steady=True`"):
        sx.find_periodic_state(resting, 0.0, too_much)
    late = sx.Dose(13.0, 1.0, every=12.0, steady=True)
    for given, text in (
        ([late], r"repeats every 12, but a dose arrives at 13"),
        ([sx.Infusion(0.0, 1.0, 9.0, every=8.0, steady=True)], r"an infusion ends at 9"),
        ([sx.Dose(0.0, 1.0, every=x, steady=True) for x in (6.0, 8.0)], r"every 6 and every 8"),
    ):
        with pytest.raises(ValueError, match=text):
            sx.Schedule(given).at_steady_state(MODEL, EMPTY, args=RATES)
    with pytest.raises(ValueError, match=r"is `steady`: `start, rest = schedule.at_steady_state"):
        sx.Schedule([late]).phases(drug, EMPTY, 24.0)
