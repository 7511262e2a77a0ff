"""`diagnose` names planted causes, and its lines of code cure them."""

import functools
import json

import crauste
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import by_day

import stablax as sx
from stablax._diagnostics import _report
from stablax.problems import CLIPPED

jax.config.update("jax_enable_x64", True)

ONE = jnp.ones(1)


def _van_der_pol(t, y, args):
    return jnp.stack([y[1], 5 * (1 - y[0] ** 2) * y[1] - y[0]])


def _wrong_jacobian(t, y, args):
    return jnp.array([[0.0, 1.0], [3.0, -7.0]])


def _pulse(t, y, args):
    return jnp.exp(-0.5 * ((t - 50) / 0.5) ** 2)


def _logarithm(t, y, args):
    return {"a": -y["a"], "b": -jnp.log(2.0 - y["b"])}


def _clips(t, y, args):
    return CLIPPED.field(t, y, jnp.asarray(CLIPPED.args))


def _clips_above(t, y, args):
    """With the other sign."""
    return -_clips(t, -y, args)


def _hovering(field, y0=CLIPPED.y0):
    controller = sx.StiffPID.preset(atol=1e-6 * CLIPPED.floor)
    model = sx.Simulate(field, controller=controller, max_steps=1000)
    return model, y0, CLIPPED.ts, "no_slope_beyond_a_bound", True


# What else a guard says stays; here, a bound of one component far from the solution.
_FUEL = np.where(np.arange(CLIPPED.size) == 0, 1.0, np.inf)


# name -> model, y0, ts, the cause that comes first, whether its code cures
PLANTED = {
    "clips its input": _hovering(_clips),
    "clips, in a guard": _hovering(sx.Guarded(_clips, sx.Guard(upper=_FUEL + 1, reject=False))),
    "clipped by a guard": _hovering(
        sx.Guarded(_clips, sx.Guard(0.0, _FUEL + 1, outside="constant"))
    ),
    "clipped above": _hovering(
        sx.Guarded(_clips_above, sx.Guard(upper=0.0, outside="constant")), -CLIPPED.y0
    ),
    "explicit solver": (
        sx.Simulate(lambda t, y, a: -1e5 * (y - jnp.cos(t)), solver=diffrax.Tsit5(), max_steps=500),
        ONE,
        [2.0],
        "explicit_solver_on_a_stiff_system",
        True,
    ),
    "wall": (
        sx.Simulate(lambda t, y, a: jnp.where(y < 3.0, 1.0, jnp.nan)),
        ONE,
        [5.0],
        "field_not_finite",
        False,
    ),
    "box": (
        sx.Simulate(sx.Guarded(lambda t, y, a: jnp.cos(t) * y / y, sx.Guard(0.0, 1.5))),
        ONE,
        [5.0],
        "guard_excludes_the_solution",
        True,
    ),
    "masked": (
        sx.Simulate(
            sx.Guarded(lambda t, y, a: jnp.where(y < 3.0, 1.0, jnp.nan), sx.Guard(fill=0.0)),
            solver=diffrax.Tsit5(),
        ),
        ONE,
        [5.0],
        "masked_outputs",
        False,
    ),
    "float32": (
        sx.Simulate(
            lambda t, y, a: jnp.stack([y[1], -y[0]]),
            controller=diffrax.PIDController(rtol=1e-9, atol=1e-9),
            max_steps=300,
        ),
        jnp.array([1.0, 0.0], jnp.float32),
        [20.0],
        "tolerance_beyond_the_dtype",
        True,
    ),
    "budget": (
        sx.Simulate(lambda t, y, a: -y, max_steps=5),
        ONE,
        [20.0],
        "budget_too_small",
        True,
    ),
    "blow-up": (sx.Simulate(lambda t, y, a: y**2), ONE, [0.5, 2.0], "blow_up", True),
    "jump in time": (
        sx.Simulate(lambda t, y, a: -y + jnp.where(t > 0.7123, 1e3, 0.0)),
        ONE,
        [2.0],
        "field_jumps_in_time",
        True,
    ),
    "jump in the state": (
        sx.Simulate(lambda t, y, a: jnp.where(y > 0.5, -1.0, -0.1)),
        ONE,
        [2.0],
        "field_jumps_along_the_solution",
        True,
    ),
    "root finder": (
        sx.Simulate(_van_der_pol, solver=diffrax.Kvaerno5()),
        jnp.array([2.0, 0.0]),
        [20.0],
        "root_finder",
        True,
    ),
    "jacobian": (
        sx.Simulate(sx.Guarded(_van_der_pol, jacobian=_wrong_jacobian), max_steps=500),
        jnp.array([2.0, 0.0]),
        [20.0],
        "wrong_jacobian",
        True,
    ),
    "scale": (
        sx.Simulate(lambda t, y, a: jnp.stack([-y[0], 1e-12 * y[0] - y[1]])),
        jnp.array([1.0, 0.0]),
        [5.0],
        "badly_scaled_components",
        True,
    ),
    "dtmax": (
        sx.Simulate(lambda t, y, a: -y, controller=sx.StiffPID.preset(dtmax=1e-3), max_steps=500),
        ONE,
        [2.0],
        "dtmax_holds_the_steps",
        True,
    ),
    # https://github.com/jax-ml/jax/issues/10922
    "pulse": (
        sx.Simulate(lambda t, y, a: _pulse(t, y, a) * jnp.ones_like(y)),
        0 * ONE,
        [100.0],
        "stepped_over",
        True,
    ),
    # https://github.com/patrick-kidger/diffrax/issues/507
    "event that comes and goes": (
        sx.Simulate(
            lambda t, y, a: jnp.stack([y[1], -y[0]]),
            event=diffrax.Event(lambda t, y, args, **kwargs: y[0] - 0.99999),
        ),
        jnp.array([0.0, 1.0]),
        [6.0],
        "event_stepped_over",
        True,
    ),
    # https://github.com/patrick-kidger/diffrax/issues/363
    "jump at a declared time": (
        sx.Simulate(
            lambda t, y, a: jnp.where(t < 2.0, 0.0, 0.7 * y),
            controller=sx.StiffPID.preset(jump_ts=[2.0]),
        ),
        ONE,
        [5.0],
        "field_jumps_in_time",
        False,
    ),
    "global error": (
        sx.Simulate(crauste.Response(crauste.LOG10_RATES)),
        crauste.Y0,
        crauste.TS,
        "global_error",
        True,
    ),
    "singular steady state": (
        sx.SteadyThenSimulate(
            lambda t, y, a: (2 * y[0] - 3 * y[1]) * jnp.array([-1.0, 1.0]),
            method=sx.PseudoTransient(),
        ),
        jnp.array([1.0, 0.0]),
        [2.0],
        "conserved_quantities_not_declared",
        True,
    ),
    "no steady state": (
        sx.SteadyThenSimulate(lambda t, y, a: jnp.ones_like(y), method=sx.PseudoTransient()),
        ONE,
        [2.0],
        "no_steady_state",
        False,
    ),
}


RIGHT = {
    "pulse": lambda s: s.ys[-1, 0] == pytest.approx(1.25331414, rel=1e-5),
    "event that comes and goes": lambda s: s.stats["t"] < np.arcsin(0.99999) + 0.01,
    "global error": lambda s: crauste.log_likelihood(s.ys) == pytest.approx(crauste.LIKELIHOOD),
}


@functools.cache
def diagnosed(planted: str) -> sx.Diagnosis:
    model, y0, ts, *_ = PLANTED[planted]
    return sx.diagnose(model, y0, ts)


@pytest.mark.parametrize("planted", by_day(PLANTED, *set(PLANTED) - {"clips, in a guard"}))
def test_a_planted_cause_is_found_and_cured(planted):
    model, y0, ts, cause, cures = PLANTED[planted]
    report = diagnosed(planted)
    assert report.causes[0] == cause, report
    what = "Successful."
    if not report.successful:
        what, *_ = sx.explain(model(y0, ts, throw=False)).split(" The solve stopped")
    assert report.text.startswith(what)
    assert json.loads(json.dumps(report.to_dict()))["suggestions"][0]["cause"] == cause
    first = report.suggestions[0]
    text = str(report)
    assert first.code in text  # not wrapped, so that it can be pasted
    names: dict = dict(sx=sx, np=np, jnp=jnp, jax=jax, model=model, y0=y0, ts=ts)
    for suggestion in report.suggestions:
        compile(suggestion.code, "<suggestion>", "exec")
    exec(first.code, names)
    if cures:
        after = names.get("simulation") or names["model"](names["y0"], names["ts"], throw=False)
        assert sx.is_successful(after), sx.explain(after)
        assert planted not in RIGHT or RIGHT[planted](after)
        if cause in ("root_finder", "field_jumps_in_time"):
            assert int(after.stats["num_rejected_steps"]) < sum(report.steps.rejected.values()) / 2


def test_what_a_diagnosis_holds():
    model, y0, ts, *_ = PLANTED["root finder"]
    report = diagnosed("root finder")
    simulation = model(y0, ts)
    assert report.steps.accepted == int(simulation.stats["num_accepted_steps"])
    assert sum(report.steps.rejected.values()) == int(simulation.stats["num_rejected_steps"])
    assert report.steps.rejected["stages_unsolved"] > 100
    assert report.steps.trouble["stages_unsolved"][1] in ("y[0]", "y[1]")
    assert 0 < report.steps.smallest < report.steps.typical
    assert report.stiffness.largest_ratio == pytest.approx(np.max(report.stiffness.ratio))
    assert {c.name for c in report.components} == {"y[0]", "y[1]"}
    assert report.precision.rtol == 1e-6 and report.precision.dtype == "float64"
    assert report.steady is None and report.result == "successful" and report.successful


def test_two_tolerances_tell_the_global_error():
    report = diagnosed("global error")
    finer = report.finer
    assert report.successful and finer.successful and finer.rtol == pytest.approx(1e-7)
    assert 1e3 < finer.factor < 1e5 and 0.1 < finer.derivative < 1
    assert finer.components[0].value / finer.components[0].size == finer.factor * 1e-6
    assert "At a tenth of the tolerances" in str(report)
    json.dumps(report.to_dict())


def test_what_a_phase_has_of_its_own_is_a_tenth_too():
    model = sx.SimulatePhases(lambda t, y, k: -k * y**2)
    loose = sx.Phase(1.0, args=2.0, controller=sx.StiffPID(1e-3, 1e-6), max_steps=50)
    report = sx.diagnose(model, jnp.ones(2), [0.5, 1.0], [loose])
    assert report.finer.successful and report.finer.factor > 1  # not 0


def test_a_switch_that_is_a_parameter_is_told_apart():
    [suggestion] = diagnosed("jump at a declared time").suggestions
    assert "t = 2, as `jump_ts` says" in suggestion.why and "Phase(t1=...)" in suggestion.why
    # What is sound is solved once more, and does not move.
    finer = diagnosed("jump at a declared time").finer
    assert finer.factor < 10 and np.isnan(finer.derivative)


def test_the_knots_of_an_input_are_known():
    """Wherever it is: the model ends a step there."""
    drive = sx.Input([0.0, 0.4, 1.1], [1.0, -2.0, 3.0], "previous")
    for field, args in (
        (lambda t, y, args: drive(t) - y, None),
        (lambda t, y, args: args["u"](t) - y, {"u": drive}),
    ):
        report = sx.diagnose(sx.Simulate(field), ONE, [2.0], args=args)
        assert not report.suggestions, report


def test_nothing_is_found_in_a_solve_that_is_sound():
    """Stiff, and driven by an input with kinks, which is no pulse and no jump."""
    knots, values = jnp.array([0.0, 1.0, 2.0, 3.0, 3.5, 5.0]), jnp.array([0, 1, 0.2, 0.2, 2, 0])

    def field(t, y, args):
        return jnp.stack([-1e4 * (y[0] - jnp.interp(t, knots, values)), y[0] - y[1]])

    report = sx.diagnose(sx.Simulate(field), jnp.zeros(2), [1.0, 5.0])
    assert report.causes == ("many_rejections",)  # at the kinks, which are not declared
    assert report.finer.factor < 100


def test_the_steady_state_is_looked_at():
    rows = np.array([[1.0, 1.0, 0.0]])

    def field(t, y, args):
        flux = 2 * y[0] - 3 * y[1]
        return jnp.stack([-flux, flux, 1e-3 * (y[0] - y[2])])

    model = sx.SteadyThenSimulate(field, method=sx.PseudoTransient())
    report = sx.diagnose(model, jnp.array([1.0, 0.0, 0.0]), [2.0], conserved=rows)
    assert report.successful
    assert report.steady.stable and report.steady.conserved == 1
    assert report.steady.residual < 1e-6
    # The non-zero singular values of the 3 x 3 Jacobian.
    matrix = np.array([[-2.0, 3.0, 0.0], [2.0, -3.0, 0.0], [1e-3, 0.0, -1e-3]])
    values = np.linalg.svd(matrix, compute_uv=False)[:2]
    assert report.steady.condition == pytest.approx(values[0] / values[1], rel=1e-6)
    assert "condition number" in str(report)


def test_walls_of_a_tree_state_are_found_on_their_side():
    y0 = {"a": jnp.array(1.0), "b": jnp.array([1.5])}
    report = sx.diagnose(sx.Simulate(_logarithm), y0, [1.0])
    [suggestion] = [s for s in report.suggestions if s.cause == "field_not_finite"]
    assert "['b'][0] is above 2" in suggestion.why
    names: dict = dict(sx=sx, np=np, model=sx.Simulate(_logarithm))
    exec(suggestion.code, names)
    upper = names["model"].field.guard.upper
    assert 1.9 < float(upper["b"][0]) <= 2.0


def test_each_phase_is_looked_at_under_its_own_condition():
    """The second of three phases is stiff, and the third ends at a wall."""

    def field(t, y, args):
        return jnp.where(y < args["wall"], args["rate"] * (1.0 - y) + args["flow"], jnp.nan)

    def phase(t1, rate, flow, wall):
        names = ("rate", "flow", "wall")
        args = dict(zip(names, map(jnp.asarray, (rate, flow, wall)), strict=True))
        return sx.Phase(t1, args=args)

    phases = [phase(1.0, 1.0, 0.0, 9.0), phase(2.0, 1e4, 0.0, 9.0), phase(5.0, 0.0, 1.0, 2.5)]
    report = sx.diagnose(sx.SimulatePhases(field), ONE * 0.5, [5.0], phases)
    assert report.result == "not_finite" and report.causes[0] == "field_not_finite"
    assert "y[0] is above 2.5" in report.suggestions[0].why
    times, fastest = report.stiffness.times, report.stiffness.fastest
    np.testing.assert_allclose(fastest[times < 1], 1.0)
    np.testing.assert_allclose(fastest[(times >= 1) & (times < 2)], 1e4)
    np.testing.assert_allclose(fastest[times >= 2], 0.0)


def test_the_guard_is_looked_at():
    field = sx.Guarded(lambda t, y, a: jnp.stack([y[1], -y[0]]), sx.Guard(-0.5, reject=False))
    report = sx.diagnose(sx.Simulate(field), jnp.array([1.0, 0.0]), [6.0])
    assert report.successful
    assert all(c.clipped > 0 for c in report.components)


def test_a_report_prints_with_and_without_rich(monkeypatch):
    report = diagnosed("budget")
    with_rich = str(report)
    rich = pytest.importorskip("rich")
    rich.print(report)
    monkeypatch.setattr(_report.importlib.util, "find_spec", lambda name: None)
    plain = str(report)
    for text in (with_rich, plain):
        assert "1. budget too small" in text and "Stiffness along the trajectory" in text
        assert all(len(line) < 160 for line in text.splitlines())


def test_wrong_inputs_raise_what_the_model_raises():
    model, y0, ts, *_ = PLANTED["budget"]
    with pytest.raises(TypeError):
        sx.diagnose(model, y0)
    with pytest.raises(TypeError, match="outside `jit`"):
        jax.jit(lambda y: sx.diagnose(model, y, ts).steps.smallest)(y0)
