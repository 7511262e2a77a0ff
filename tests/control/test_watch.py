"""Telemetry of the guard, the log of steps, and the printed trace: they change nothing."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stablax as sx

jax.config.update("jax_enable_x64", True)


def _oscillator(t, y, args):
    return {"q": y["p"], "p": -y["q"]}


Y0 = {"q": jnp.array(1.0), "p": jnp.array(0.0)}
TS = jnp.linspace(0.5, 6.0, 12)
# cos(t) is below -0.5 between 2 pi / 3 and 4 pi / 3, and the field looks at -0.5 there.
FLOOR = sx.Guarded(_oscillator, sx.Guard(lower={"q": -0.5, "p": None}, reject=False))
MODEL = sx.Simulate(FLOOR, solver=diffrax.Tsit5())


@pytest.fixture(scope="module")
def plain():
    return MODEL(Y0, TS)


@pytest.fixture(scope="module")
def watched():
    return sx.with_options(MODEL, telemetry=True, trace="record")(Y0, TS)


def test_watching_changes_nothing(plain, watched):
    assert plain.steps is None and plain.guard.accepted is None
    # To rounding, which a kink of the guard (the first is at 2.09) amplifies to the tolerance.
    smooth = TS < 2.0
    for name, rows in plain.ys.items():
        np.testing.assert_allclose(rows[smooth], watched.ys[name][smooth], rtol=1e-12)
        np.testing.assert_allclose(rows, watched.ys[name], rtol=1e-3, atol=1e-4)
    assert abs(int(plain.stats["num_steps"]) - int(watched.stats["num_steps"])) <= 2


def test_watching_changes_nothing_of_a_smooth_field():
    model = sx.Simulate(_oscillator, solver=diffrax.Tsit5())
    plain = model(Y0, TS)
    watched = sx.with_options(model, telemetry=True, trace="record")(Y0, TS)
    assert int(plain.stats["num_steps"]) == int(watched.stats["num_steps"])
    for name, rows in plain.ys.items():
        np.testing.assert_allclose(rows, watched.ys[name], rtol=1e-12, atol=1e-14)


def test_telemetry_counts_what_the_guard_did_on_accepted_steps(watched):
    log, counts = watched.steps, watched.guard.accepted
    ends = np.asarray(log.t + log.dt)[np.asarray(log.accepted)]
    rows = MODEL(Y0, ends).ys["q"]
    below = np.asarray(rows) < -0.5
    assert below.sum() > 3
    assert int(counts.clipped["q"]) == below.sum()
    assert float(counts.first_clipped["q"]) == pytest.approx(ends[np.argmax(below)])
    assert abs(float(counts.first_clipped["q"]) - 2 * np.pi / 3) < 0.2
    assert int(counts.clipped["p"]) == 0 and np.isinf(float(counts.first_clipped["p"]))
    assert sx.is_successful(watched)  # the guard allows it


def test_telemetry_counts_masked_outputs():
    field = sx.Guarded(
        lambda t, y, args: jnp.stack([jnp.where(t > 1.0, jnp.nan, 1.0), 1.0]) * jnp.ones(2),
        sx.Guard(fill=0.0, reject=False),
    )
    model = sx.Simulate(field, solver=diffrax.Tsit5(), telemetry=True)
    simulation = model(jnp.zeros(2), [3.0])
    counts = simulation.guard.accepted
    assert int(counts.masked[0]) > 0 and int(counts.masked[1]) == 0
    assert 1.0 < float(counts.first_masked[0]) <= 3.0
    assert np.isinf(float(counts.first_masked[1]))


def test_the_log_has_every_step(watched):
    log = watched.steps
    count = int(log.count)
    assert count == int(watched.stats["num_steps"])
    assert int(jnp.sum(log.accepted)) == int(watched.stats["num_accepted_steps"])
    t, dt = np.asarray(log.t)[:count], np.asarray(log.dt)[:count]
    accepted = np.asarray(log.accepted)[:count]
    ends = (t + dt)[accepted]
    np.testing.assert_allclose(t[accepted][1:], ends[:-1], rtol=1e-12)
    assert ends[-1] == pytest.approx(6.0)
    assert np.all(np.asarray(log.error)[:count][accepted] <= 1.0)


def test_the_log_says_why_a_step_was_rejected():
    def field(t, y, args):
        return jnp.where(y < 1.2, -1e3 * (y - 1 - t / 10), jnp.nan)

    guard = sx.Guard(upper=1.1, outside="constant")
    model = sx.Simulate(sx.Guarded(field, guard), trace="record")
    simulation = model(0.0, [5.0], throw=False)
    log = simulation.steps
    causes = np.asarray(log.cause)[: int(log.count)]
    assert simulation.result == sx.RESULTS.left_bounds
    assert causes[-1] == sx.Cause.left_bounds
    assert int(simulation.guard.rejected_outside) == np.sum(causes == sx.Cause.left_bounds)
    assert int(simulation.guard.rejected_not_finite) == np.sum(causes == sx.Cause.not_finite)
    assert set(causes) >= {sx.Cause.none, sx.Cause.error, sx.Cause.left_bounds}


def test_a_batch_has_a_log_for_each_lane_and_gradients_are_the_same():
    model = sx.Simulate(lambda t, y, k: -k * y)
    traced = sx.with_options(model, trace="record", telemetry=True)

    def loss(k, model):
        simulation = model(1.0, [1.0], args=k)
        return simulation.ys[0], simulation

    rates = jnp.array([0.1, 3.0])

    @jax.jit
    def run(model):
        return jax.vmap(jax.value_and_grad(loss, has_aux=True), (0, None))(rates, model)

    (_, one), gradient = run(model)
    (_, other), same = run(traced)
    np.testing.assert_allclose(gradient, same, rtol=1e-12)
    assert other.steps.count.shape == (2,) and other.steps.accepted.shape == (2, 4096)
    np.testing.assert_array_equal(np.sum(other.steps.accepted, 1), one.stats["num_accepted_steps"])


def test_backwards_in_time_the_log_has_real_times():
    traced = sx.Simulate(lambda t, y, args: y, trace="record", telemetry=True)
    log = traced(1.0, [-2.0]).steps
    assert float(log.t[0]) == 0.0
    assert np.all(np.asarray(log.dt)[: int(log.count)] < 0)


@pytest.mark.parametrize("compiled", [False, True], ids=["eagerly", "jit"])
def test_the_trace_is_printed_as_it_happens(capfd, compiled):
    model = sx.Simulate(lambda t, y, args: -1e3 * (y - 1), trace="print", dt0=0.01)
    solve = eqx.filter_jit(lambda model: model(jnp.zeros(2), [1.0])) if compiled else None
    simulation = model(jnp.zeros(2), [1.0]) if solve is None else solve(model)
    jax.effects_barrier()
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("t = ")]
    assert len(lines) == int(simulation.stats["num_steps"])
    assert "rejected: error" in lines[0] and "worst = y[0]" in lines[0]
    assert lines[-1].endswith("accepted")


def test_options_are_changed_by_name():
    changed = sx.with_options(MODEL, max_steps=7, adjoint=diffrax.ForwardMode())
    assert changed.options.max_steps == 7
    assert isinstance(changed.options.solver, diffrax.Tsit5)
    assert changed.options.controller == MODEL.options.controller
    steady = sx.SteadyThenSimulate(_oscillator)
    nested = sx.with_options({"a": steady, "b": jnp.ones(2)}, trace="record")
    assert nested["a"].options.trace == "record" and nested["a"].field is not None
    other = sx.with_options(MODEL, field=_oscillator)
    assert other.field is _oscillator
    with pytest.raises(TypeError, match="no option 'tolerance'; the options are `solver`"):
        sx.with_options(MODEL, tolerance=1)
    with pytest.raises(TypeError, match="holds no model"):
        sx.with_options(jnp.ones(2), max_steps=3)
    with pytest.raises(ValueError, match='"record", "print" or None'):
        sx.Simulate(_oscillator, trace="log")


def test_phases_are_watched_as_one_solve():
    """Two phases of different budgets, and two equal ones that are scanned."""
    phases = [
        sx.Phase(1.0, max_steps=100),
        sx.Phase.repeat(2, 1.0, t0=1.0, dose={"q": jnp.array(-2.0), "p": jnp.array(0.0)}),
    ]
    model = sx.SimulatePhases(FLOOR, solver=diffrax.Tsit5(), max_steps=300)
    watched = sx.with_options(model, telemetry=True, trace="record")
    plain, simulation = (m(Y0, [0.5, 1.5, 3.0], phases) for m in (model, watched))
    # To rounding: how XLA contracts the arithmetic of a loop over phases is its own affair.
    for name, rows in plain.ys.items():
        np.testing.assert_allclose(rows, simulation.ys[name], rtol=1e-13)
    assert sx.is_successful(simulation)
    assert eqx.tree_equal(plain.stats, simulation.stats)
    log, counts = simulation.steps, simulation.guard.accepted
    count = int(log.count)
    assert count == int(simulation.stats["num_steps"])
    t, dt = np.asarray(log.t)[:count], np.asarray(log.dt)[:count]
    assert np.all(np.diff(t) >= 0) and t[0] == 0
    ends = (t + dt)[np.asarray(log.accepted)[:count]]
    assert set(ends) >= {1.0, 2.0, 3.0}
    assert int(counts.clipped["q"]) > 0
    assert 1.0 < float(counts.first_clipped["q"]) < 1.5
    assert np.isinf(float(counts.first_clipped["p"]))
