"""What the test suites of diffrax and optimistix ask of a solver, a controller and a root finder,
asked of ours, in plain `diffrax.diffeqsolve` and `optimistix.root_find`.

One field throughout, a rotation that is damped: from (1, 0) at t0, forward or backward in time,
y = exp(-r s) (cos s, -sin s), s = t - t0.
"""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

import stablax as sx

SOLVERS = {"Rodas5P": sx.Rodas5P, "Rodas4": sx.Rodas4, "Rosenbrock23": sx.Rosenbrock23}
FINDERS = {
    "Newton": sx.Newton,
    "PseudoTransient": sx.PseudoTransient,
    "PatientChord": lambda: sx.PatientChord(rtol=1e-10, atol=1e-12),
}
RATE = 0.2
TERM = diffrax.ODETerm(lambda t, y, rate: jnp.stack([y[1] - rate * y[0], -y[0] - rate * y[1]]))


def exact(t, rate=RATE):
    t = np.asarray(t)[..., None]
    return np.exp(-rate * t) * np.concatenate([np.cos(t), -np.sin(t)], axis=-1)


@eqx.filter_jit
def _solve(solver, controller, t0, t1, y0, rate, saveat, event):
    return diffrax.diffeqsolve(
        TERM,
        solver,
        t0,
        t1,
        None,
        y0,
        args=rate,
        stepsize_controller=controller,
        saveat=saveat,
        event=event,
        throw=False,
    )


def solve(solver, *, t0=0.0, t1=4.0, rate=RATE, rtol=1e-6, saveat=None, event=None, **options):
    controller = sx.StiffPID.preset(rtol=rtol, atol=1e-9, **options)
    saveat = diffrax.SaveAt(t1=True) if saveat is None else saveat
    t0, t1, rate = map(jnp.asarray, (t0, t1, rate))
    return _solve(solver, controller, t0, t1, jnp.array([1.0, 0.0]), rate, saveat, event)


# --- solvers


def squares(t, y, rate):
    return t, jnp.sum(y**2)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_form_of_saving_in_both_directions(name):
    """At the start, the end, given times, every step, every second one, through a function, and
    densely: all from one solve."""
    for t0, t1 in ((1.0, 5.0), (1.0, -3.0)):
        ts = jnp.array([t0, 0.7 * t0 + 0.3 * t1, 0.2 * t0 + 0.8 * t1, t1])
        saveat = diffrax.SaveAt(
            subs=[
                diffrax.SubSaveAt(t0=True, t1=True),
                diffrax.SubSaveAt(ts=ts),
                diffrax.SubSaveAt(steps=True),
                diffrax.SubSaveAt(steps=2),
                diffrax.SubSaveAt(ts=ts, t0=True, fn=squares),
            ],
            dense=True,
        )
        solution = solve(SOLVERS[name](), t0=t0, t1=t1, saveat=saveat, rtol=1e-7)
        assert solution.result == diffrax.RESULTS.successful
        assert solution.ts is not None and solution.ys is not None
        (ends_t, at_t, step_t, second_t, fn_t) = solution.ts
        (ends_y, at_y, step_y, second_y, (seen_t, fn_y)) = solution.ys
        close = dict(rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(ends_t, [t0, t1])
        np.testing.assert_array_equal(ends_y[0], [1.0, 0.0])
        np.testing.assert_array_equal(at_t, ts)
        np.testing.assert_allclose(at_y, exact(ts - t0), **close)
        np.testing.assert_array_equal(at_y[-1], ends_y[-1])

        taken = int(solution.stats["num_accepted_steps"])
        assert step_t[taken - 1] == t1 and np.isinf(step_t[taken:]).all()
        assert np.all(np.diff(step_t[:taken]) * (t1 - t0) > 0)
        np.testing.assert_allclose(step_y[:taken], exact(step_t[:taken] - t0), **close)
        second = slice(1, taken, 2)
        np.testing.assert_array_equal(second_t[: taken // 2], step_t[second])
        np.testing.assert_array_equal(second_y[: taken // 2], step_y[second])
        np.testing.assert_array_equal(fn_t, [t0, *ts])
        np.testing.assert_array_equal(seen_t, fn_t)
        np.testing.assert_allclose(fn_y[1:], np.sum(np.square(at_y), axis=-1), rtol=1e-12)

        middle = (t0 + t1) / 2 + 0.1
        np.testing.assert_allclose(solution.evaluate(ts[1]), at_y[1], rtol=1e-12, atol=1e-14)
        slope = TERM.vf(middle, jnp.asarray(exact(middle - t0)), RATE)
        np.testing.assert_allclose(solution.derivative(middle), slope, rtol=1e-2, atol=1e-2)
        between = solution.evaluate(t0, ts[1])
        np.testing.assert_allclose(between, at_y[1] - ends_y[0], rtol=1e-10, atol=1e-12)


def test_fixed_steps_land_on_the_end():
    """A step that does not divide the interval is cut at its end."""

    @jax.jit
    def end(t1, dt0):
        return diffrax.diffeqsolve(
            TERM,
            sx.Rodas5P(),
            0.0,
            t1,
            dt0,
            jnp.array([1.0, 0.0]),
            args=RATE,
            saveat=diffrax.SaveAt(t1=True),
            throw=False,
        )

    for t1, dt0, count in ((1.0, 0.3, 4), (1.0, 0.25, 4), (-1.0, -0.3, 4), (0.0, 0.3, 0)):
        solution = end(t1, dt0)
        assert solution.result == diffrax.RESULTS.successful
        assert solution.stats["num_steps"] == count and solution.ts[-1] == t1
        np.testing.assert_allclose(solution.ys[-1], exact(t1), rtol=1e-4, atol=1e-6)


def test_a_batch_over_one_input_is_one_by_one():
    """Over parameters alone, and over ends and save times alone."""
    saved = jnp.array([0.5, 1.0])

    def one(rate, t1):
        saveat = diffrax.SaveAt(ts=saved * t1)
        return solve(sx.Rodas5P(), t1=t1, rate=rate, saveat=saveat).ys

    rates, ends = jnp.array([0.2, 3.0]), jnp.array([4.0, 2.5])
    for axes, inputs in (((0, None), (rates, ends[0])), ((None, 0), (rates[0], ends))):
        together = jax.vmap(one, axes)(*inputs)
        for lane in range(2):
            rate, t1 = (
                x if axis is None else x[lane] for x, axis in zip(inputs, axes, strict=True)
            )
            expected = exact(saved * t1, float(rate))
            np.testing.assert_allclose(together[lane], expected, rtol=1e-4, atol=1e-5)


# --- events


def crossing(direction):
    """Where y[0] = exp(-r t) cos t crosses zero: falling at pi / 2, rising at 3 pi / 2."""
    return diffrax.Event(
        lambda t, y, args, **kwargs: y[0], optx.Newton(1e-9, 1e-9), direction=direction
    )


@pytest.mark.parametrize(("direction", "expected"), [(False, np.pi / 2), (True, 3 * np.pi / 2)])
def test_events_have_a_direction(direction, expected):
    solution = solve(sx.Rodas5P(), t1=10.0, event=crossing(direction), rtol=1e-8)
    assert solution.result == diffrax.RESULTS.event_occurred
    np.testing.assert_allclose(solution.ts[-1], expected, rtol=1e-7)
    np.testing.assert_allclose(solution.ys[-1], exact(expected), atol=1e-7)


def test_the_first_of_several_events_wins():
    conditions = {
        "late": lambda t, y, args, **kwargs: t - 3.0,
        "early": lambda t, y, args, **kwargs: y[0] - 0.5,
        "never": lambda t, y, args, **kwargs: t > 100.0,
    }
    event = diffrax.Event(conditions, optx.Newton(1e-9, 1e-9))
    solution = solve(sx.Rodas5P(), t1=10.0, event=event, rtol=1e-8)
    assert solution.event_mask == {"late": False, "early": True, "never": False}
    np.testing.assert_allclose(solution.ys[-1][0], 0.5, atol=1e-8)


def test_an_infinite_horizon_ends_at_the_steady_state():
    """To t = inf; a first step without a scale of time is no reason to end after it."""
    event = diffrax.Event(diffrax.steady_state_event(rtol=1e-4, atol=1e-6))
    solution = solve(sx.Rodas5P(), t1=jnp.inf, event=event)
    assert solution.result == diffrax.RESULTS.event_occurred
    assert solution.stats["num_accepted_steps"] > 10
    np.testing.assert_allclose(solution.ys[-1], [0.0, 0.0], atol=1e-4)


# --- controllers


def test_given_times_are_stepped_on():
    """All of them, however close, also where they are the ends and beyond."""
    close = 1.0 + 2.0**-52
    step_ts, jump_ts = [-1.0, 0.0, 0.7, 1.0, 2.5, 4.0, 9.0], [close, 2.5]
    saveat = diffrax.SaveAt(steps=True)
    for t0, t1 in ((0.0, 4.0), (4.0, 0.0)):
        solution = solve(
            sx.Rodas5P(), t0=t0, t1=t1, step_ts=step_ts, jump_ts=jump_ts, saveat=saveat
        )
        assert solution.result == diffrax.RESULTS.successful
        steps = np.asarray(solution.ts)
        for t in (0.7, 1.0, 2.5):
            assert np.min(np.abs(steps - t)) <= 2.0**-51
        taken = int(solution.stats["num_accepted_steps"])
        np.testing.assert_allclose(solution.ys[taken - 1], exact(t1 - t0), rtol=1e-4, atol=1e-5)


def test_step_sizes_keep_their_limits():
    solution = solve(sx.Rodas5P(), saveat=diffrax.SaveAt(t0=True, steps=True), dtmax=0.1)
    taken = int(solution.stats["num_accepted_steps"])
    sizes = np.diff(solution.ts[: taken + 1])
    assert sizes.max() <= 0.1 * (1 + 1e-12) and taken >= 40
    forced = solve(sx.Rodas5P(), rtol=1e-12, dtmin=0.05, force_dtmin=True)
    assert forced.result == diffrax.RESULTS.successful
    assert forced.stats["num_steps"] <= 4.0 / 0.05 + 10


# --- root finders


def unknowns(y, args):
    """Roots (sqrt(a), b / sqrt(a)), with an auxiliary output."""
    residual = {"x": y["x"] ** 2 - args["a"], "z": y["x"] * y["z"] - args["b"]}
    return residual, {"sum": y["x"] + y["z"]}


@pytest.mark.parametrize("name", FINDERS)
def test_a_root_of_a_tree_with_auxiliary_output_in_a_batch_and_its_derivatives(name):
    def root(a):
        found = optx.root_find(
            unknowns,
            FINDERS[name](),
            {"x": jnp.array(1.5), "z": jnp.array(1.0)},
            {"a": a, "b": jnp.array(3.0)},
            has_aux=True,
            throw=False,
        )
        return found.value, found.aux, found.result == optx.RESULTS.successful

    a = jnp.array([1.0, 2.0, 4.0])
    value, aux, okay = jax.jit(jax.vmap(root))(a)
    assert okay.all()
    np.testing.assert_allclose(value["x"], np.sqrt(a), rtol=1e-8)
    np.testing.assert_allclose(value["z"], 3 / np.sqrt(a), rtol=1e-8)
    np.testing.assert_allclose(aux["sum"], np.sqrt(a) + 3 / np.sqrt(a), rtol=1e-6)
    for derivative in (jax.jacfwd, jax.jacrev):
        slope = jax.jit(derivative(lambda a: root(a)[0]))(a[1])
        np.testing.assert_allclose(slope["x"], 0.5 / np.sqrt(2), rtol=1e-7)
        np.testing.assert_allclose(slope["z"], -1.5 / np.sqrt(8), rtol=1e-7)


@pytest.mark.parametrize("name", FINDERS)
def test_no_root_is_no_success(name):
    nothing = lambda y, _: 1 + y**2
    found = optx.root_find(nothing, FINDERS[name](), jnp.array(0.7), throw=False, max_steps=50)
    assert found.result != optx.RESULTS.successful
    with pytest.raises(Exception, match="(?i)diverge|steps"):
        optx.root_find(nothing, FINDERS[name](), jnp.array(0.7), max_steps=50)
