"""How a call steps, as data: what `Stepping` says instead of the model, and rows that are padded.
Another value compiles nothing, and is what the options of a model would do (issue 13)."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
from helpers import Counted, slow

import stablax as sx
from stablax._diagnostics._observe import settled as observed

TS = jnp.array([0.5, 1.0, 2.0])
Y0 = jnp.array([1.0, 0.0])


def switched(t, y, k):
    """Stiff, with a source that is switched on at t = 0.7."""
    source = jnp.where(t < 0.7, 0.0, 1.0)
    return jnp.stack([-k * y[0] + y[1] + source, 100.0 * (y[0] - y[1])])


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


STEPPINGS = {
    "rtol": dict(rtol=1e-9),
    "atol": dict(atol=1e-12),
    "atol of each component": dict(atol=np.array([1e-12, 1e-5])),
    "dtmax": dict(dtmax=0.01),
    "step_ts": dict(step_ts=[0.3, 0.1]),
    "jump_ts": dict(jump_ts=[0.7]),
    "all": dict(rtol=1e-5, atol=1e-8, dtmax=0.1, step_ts=[0.2], jump_ts=[0.7]),
}


@pytest.mark.parametrize("case", STEPPINGS)
def test_it_is_what_the_options_of_a_model_do(case):
    """To the bit, forth and back in time."""
    given = STEPPINGS[case]
    controller = sx.StiffPID.preset(**given)
    made = sx.Simulate(switched, controller=controller)
    model = sx.Simulate(switched, controller=sx.StiffPID.preset(dtmax=5.0))
    if "dtmax" not in given:
        model = sx.Simulate(switched)
    for ts, t0 in ((TS, 0.0), (1 - TS, 1.0)):
        args = dict(args=2.0 if t0 == 0 else -2.0, t0=t0, throw=False)
        ours = model(Y0, ts, stepping=sx.Stepping(**given), **args)
        theirs = made(Y0, ts, **args)
        same(ours, theirs)
        if t0 == 0:
            assert ours.stats["num_steps"] != model(Y0, ts, **args).stats["num_steps"]


@pytest.mark.parametrize("name", ["step_ts", "jump_ts"])
def test_no_times_instead_of_those_of_the_model(name):
    """Also in lanes, which have none each."""
    plain = sx.Simulate(switched, solver=diffrax.Bosh3(), controller=sx.StiffPID(1e-3, 1e-6))
    timed = sx.with_options(
        plain, controller=sx.StiffPID(1e-3, 1e-6, **{name: np.linspace(0.01, 0.7, 9)})
    )
    wanted = plain(Y0, TS, args=2.0)
    assert timed(Y0, TS, args=2.0).stats["num_steps"] != wanted.stats["num_steps"]
    for none in ([], np.zeros(0), jnp.zeros(0)):
        ours = timed(Y0, TS, args=2.0, stepping=sx.Stepping(**{name: none}))
        assert ours.stats["num_steps"] == wanted.stats["num_steps"]
        np.testing.assert_allclose(ours.ys, wanted.ys, rtol=1e-9)
    assert getattr(sx.Stepping(**{name: np.zeros((2, 0))}), name).shape == (2, 1)


def test_the_tolerance_of_a_call_is_looked_at_and_not_that_of_the_model():
    """The model's is out of reach in single precision; traced, too."""
    model = sx.Simulate(
        lambda t, y, k: -k * y, solver=diffrax.Bosh3(), controller=sx.StiffPID(1e-8, 1e-6)
    )
    phases = sx.SimulatePhases(model.field, **model.arguments())
    y0, ts = jnp.float32(1.0), np.array([0.25, 1.0])  # in float64: they are told apart
    solve = lambda rtol: model(y0, ts, args=1.0, stepping=sx.Stepping(rtol=rtol), throw=False)
    for simulation in (solve(1e-5), jax.jit(solve)(1e-5)):
        np.testing.assert_allclose(simulation.ys, np.exp(-ts), rtol=1e-4)
    phases(y0, ts, sx.Phase(1.0, 1.0), stepping=sx.Stepping(rtol=1e-5))
    for stepping in (None, sx.Stepping(atol=1e-5)):
        with pytest.raises(ValueError, match="`rtol=1e-08` is below what float32 can resolve"):
            model(y0, ts, args=1.0, stepping=stepping)


def test_a_tree_with_one_number_is_for_that_component():
    model = sx.Simulate(lambda t, y, k: {"a": -k * y["a"]}, solver=diffrax.Bosh3())
    tight = model({"a": 1.0}, TS, args=1.0, stepping=sx.Stepping(atol={"a": 1e-9}))
    np.testing.assert_allclose(tight.ys["a"], np.exp(-TS), rtol=1e-4)
    with pytest.raises(ValueError, match=r"`stepping.atol` has the structure PyTreeDef\(\{'b'"):
        model({"a": 1.0}, TS, args=1.0, stepping=sx.Stepping(atol={"b": 1e-9}))


def test_the_budget_of_steps_is_data():
    model = sx.Simulate(switched)
    short = model(Y0, TS, args=2.0, stepping=sx.Stepping(max_steps=5), throw=False)
    assert sx.is_successful(model(Y0, TS, args=2.0))
    assert int(short.stats["num_steps"]) == int(short.stats["max_steps"]) == 5
    assert "The budget of 5 steps" in sx.explain(short)
    # A traced one is limited to what the model keeps.
    most = jax.jit(lambda n: model(Y0, TS, args=2.0, stepping=sx.Stepping(max_steps=n)).stats)(9999)
    assert int(most["max_steps"]) == 4096


def models(field):
    return {
        "Simulate": (sx.Simulate, lambda m, ts, k, **how: m(Y0, ts, args=k, **how)),
        "SteadyThenSimulate": (
            sx.SteadyThenSimulate,
            lambda m, ts, k, **how: m(Y0, ts, args=k, steady_args=1.0, **how),
        ),
        "SimulatePhases": (
            sx.SimulatePhases,
            lambda m, ts, k, **how: m(Y0, ts, [sx.Phase(1.0, k), sx.Phase(2.0, 2 * k)], **how),
        ),
    }


@pytest.mark.parametrize("name", ["Simulate", "SteadyThenSimulate", "SimulatePhases"])
def test_one_compilation_for_all_numbers(name):
    """Models that differ in them, calls that differ in them, rows that are not asked for, and
    `throw`: the field is traced for the first alone."""
    field = Counted(lambda t, y, k: jnp.stack([-k * y[0] + y[1], 100.0 * (y[0] - y[1]) - y[1]]))
    make, call = models(field)[name]
    preset = sx.StiffPID.preset

    def model(max_steps=4096, jump=0.7, **tolerances):
        controller = preset(jump_ts=(jump, 0.9), **tolerances)
        return make(field, max_steps=max_steps, controller=controller)

    call(model(), TS, 2.0)
    count = field.calls
    assert count > 0
    call(model(max_steps=3000), TS, 2.0)
    call(model(rtol=1e-8), TS, 2.0)
    call(model(atol=1e-7, jump=0.4), TS, 2.0)
    call(model(), TS.at[-1].set(jnp.nan), 2.0)
    call(model(), np.array([0.5, np.inf, np.nan]), 2.0)
    call(model(), TS, 2.0, throw=False)
    call(model(), TS, 2.0, stepping=sx.Stepping(rtol=1e-8, max_steps=2000, jump_ts=[0.1, np.inf]))
    assert field.calls == count

    def loss(k, ts, stepping):
        return jnp.sum(call(model(), ts, k, stepping=stepping, throw=False).ys)

    gradient = jax.jit(jax.grad(loss))
    stepping = lambda rtol, most, jump: sx.Stepping(
        rtol=jnp.asarray(rtol), max_steps=jnp.asarray(most), jump_ts=jnp.asarray(jump)
    )
    gradient(2.0, TS, stepping(1e-6, 1000, [0.3, 0.7]))
    count = field.calls
    gradient(3.0, TS.at[-1].set(jnp.inf), stepping(1e-8, 2000, [0.9, jnp.nan]))
    assert field.calls == count


def test_the_numbers_of_a_search_are_data():
    field = Counted(lambda t, y, k: k - y)
    found = lambda **how: sx.find_steady_state(field, jnp.ones(1), 2.0, **how)
    np.testing.assert_allclose(found().y, 2.0, rtol=1e-9)
    traced = field.calls
    for how in (dict(rtol=1e-6), dict(rtol=1e-4, atol=1e-8), dict(max_steps=100)):
        np.testing.assert_allclose(found(**how).y, 2.0, rtol=1e-4)
    assert found(max_steps=1, throw=False).num_steps == 2  # one of each method
    assert field.calls == traced
    given = dict(args=2.0, steady_args=1.0)
    solved = lambda **how: sx.SteadyThenSimulate(field, **how)(1.0, [1.0], **given)
    solved()
    traced = field.calls
    solved(steady_rtol=1e-6, steady_atol=1e-8, steady_max_steps=100)
    assert field.calls == traced


def test_an_optimistix_search_takes_its_steps_statically():
    """Which is no reason for it to take others."""
    field = lambda t, y, k: k - y**3
    chain = sx.Chain((optx.Newton(1e-9, 1e-9), sx.PseudoTransient()))
    for most, least in ((2, 3), (100, 1)):
        found = sx.find_steady_state(
            field, jnp.ones(1), 2.0, method=chain, max_steps=most, throw=False
        )
        assert least <= found.num_steps <= 2 * most


def test_it_differs_from_lane_to_lane():
    """Switch times of the field that are data: the lane that knows its own has no step rejected
    for it."""
    model = sx.Simulate(
        lambda t, y, at: -10 * y + jnp.where(t < at, 0.0, 10.0), controller=sx.StiffPID(1e-8, 1e-10)
    )
    at = jnp.array([0.3, 0.6, 1.1])
    ts = jnp.array([1.0, 2.0])

    def solve(at, known):
        return model(1.0, ts, args=at, stepping=sx.Stepping(jump_ts=known))

    known = jnp.stack([at, jnp.full(3, jnp.nan)], axis=1)  # in any order, and padded
    ours = jax.jit(jax.vmap(solve))(at, known)
    late = np.maximum(np.asarray(ts)[None] - np.asarray(at)[:, None], 0)
    exact = np.exp(-10 * np.asarray(ts))[None] + 1 - np.exp(-10 * late)
    np.testing.assert_allclose(ours.ys, exact, rtol=1e-6, atol=1e-8)
    blind = jax.vmap(solve)(at, jnp.full((3, 2), jnp.nan))
    assert (ours.stats["num_rejected_steps"] < blind.stats["num_rejected_steps"]).all()
    few = sx.simulate_batch(
        model,
        dict(args=at, stepping=sx.Stepping(jump_ts=known)),
        shared=dict(y0=1.0, ts=ts),
        batch_size=2,
    )
    np.testing.assert_allclose(few.ys, ours.ys, rtol=1e-9)


ADJOINTS = {
    "discrete": sx.DiscreteAdjoint(),
    "forward": diffrax.ForwardMode(),
    "direct": diffrax.DirectAdjoint(),
}


@pytest.mark.parametrize(
    ("adjoint", "phases"),
    [("discrete", False), slow("forward", False), ("discrete", True), slow("direct", True)],
)
def test_rows_that_are_not_asked_for(adjoint, phases):
    """Value and derivative are those of the rows that are; the others repeat the last state."""
    how = dict(adjoint=ADJOINTS[adjoint], max_steps=256, solver=diffrax.Bosh3())
    field = lambda t, y, k: -k * y
    if phases:
        model = sx.SimulatePhases(field, **how)
        given = lambda k: dict(phases=[sx.Phase(0.5, k), sx.Phase(1.0, k)])
    else:
        model, given = sx.Simulate(field, **how), lambda k: dict(args=k)
    solve = lambda k, ts: model(1.0, ts, **given(k), throw=False)
    ts = np.array([0.25, 1.0])
    padded = jnp.array([0.25, 1.0, jnp.nan, jnp.inf])
    derivative = jax.jacfwd if adjoint == "forward" else jax.jacrev
    simulation = jax.jit(solve)(2.0, padded)
    assert sx.is_successful(simulation)
    assert simulation.reached.tolist() == [True, True, False, False]
    assert float(simulation.t1) == 1.0
    np.testing.assert_array_equal(simulation.ys[:2], solve(2.0, ts).ys)
    np.testing.assert_allclose(simulation.ys[2:], simulation.ys[1], rtol=1e-14)
    d_k, d_ts = jax.jit(derivative(lambda *at: solve(*at).ys, argnums=(0, 1)))(2.0, padded)
    np.testing.assert_allclose(d_k[:2], -ts * np.exp(-2 * ts), rtol=1e-4)
    last = 0 if phases else -2 * np.exp(-2.0)  # the last phase ends where it ends
    wanted = np.zeros((4, 4))
    wanted[0, 0], wanted[1:, 1] = -2 * np.exp(-0.5), last
    if phases:
        wanted[1, 1] = -2 * np.exp(-2.0)
    np.testing.assert_allclose(d_ts, wanted, rtol=1e-4, atol=1e-12)


def test_rows_that_are_not_asked_for_backwards_and_in_lanes():
    model = sx.Simulate(lambda t, y, k: -k * y)
    ts = jnp.array([[-0.5, -1.0, jnp.nan], [0.5, jnp.inf, jnp.inf], [jnp.nan, 1.0, 2.0]])
    lanes = jax.vmap(lambda ts: model(1.0, ts, args=1.0, throw=False))(ts)
    assert lanes.reached.tolist() == [[True, True, False], [True, False, False], [False] * 3]
    np.testing.assert_allclose(lanes.ys[0, :2], np.exp([0.5, 1.0]), rtol=1e-4)
    np.testing.assert_allclose(lanes.ys[1], np.exp(-0.5), rtol=1e-4)
    np.testing.assert_allclose(lanes.t1[:2], [-1.0, 0.5])
    assert "`ts` must be finite and go in one direction" in sx.explain(lanes)


def test_an_event_with_padded_rows():
    model = sx.Simulate(
        lambda t, y, k: -k * y, event=diffrax.Event(lambda t, y, args, **_: y - 0.5)
    )
    simulation = model(1.0, [0.1, 5.0, np.nan], args=1.0)
    np.testing.assert_allclose(simulation.t1, np.log(2.0), rtol=1e-4)
    assert simulation.reached.tolist() == [True, False, False]


DTMIN = sx.Simulate(switched, controller=sx.StiffPID.preset(dtmin=0.01))
WRONG = {
    "rtol": (dict(rtol=-1e-3), "`rtol` must be finite and above 0, got -0.001"),
    "atol": (dict(atol={"a": 0.0}), r"`atol\['a'\]` must be finite and above 0"),
    "dtmax": (dict(dtmax=np.inf), "`dtmax` must be finite and above 0"),
    "max_steps": (dict(max_steps=2.5), "whole number of at least 1, got 2.5"),
    "infinite": (dict(max_steps=np.inf), "whole number of at least 1, got inf"),
    "none": (dict(max_steps=0), "whole number of at least 1, got 0"),
    "reach": (dict(rtol=1e-17), "`stepping.rtol=1e-17` is below what float64 can resolve"),
    "budget": (dict(max_steps=5000), "the model keeps 4096 steps"),
    "batch": (dict(rtol=np.array([1e-3, 1e-4])), r"has shape \(2,\), but must be one number"),
    "components": (dict(atol=np.ones(3)), r"`stepping.atol` has shape \(3,\), but the state has"),
    "structure": (dict(atol={"a": 1e-6}), "`stepping.atol` has the structure"),
    "no atol": (dict(atol={}), r"`atol` holds no number, got \{\}"),
    "table": (dict(jump_ts=np.ones((2, 3))), r"`stepping.jump_ts` has shape \(2, 3\)"),
    "tables": (dict(step_ts=np.ones((2, 0))), r"`stepping.step_ts` has shape \(2, 1\)"),
    "below dtmin": (dict(dtmax=1e-3), "`stepping.dtmax` is 0.001, below the `dtmin` .*, 0.01"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_values_are_named(case):
    given, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        DTMIN(Y0, TS, args=1.0, stepping=sx.Stepping(**given))


def test_what_a_model_has_not_is_named():
    fixed = sx.Simulate(switched, controller=diffrax.ConstantStepSize(), dt0=0.01)
    for given in (dict(rtol=1e-3), dict(jump_ts=[0.7])):
        with pytest.raises(ValueError, match="the model has a ConstantStepSize"):
            fixed(Y0, TS, args=1.0, stepping=sx.Stepping(**given))
    checkpoints = sx.Simulate(switched, adjoint=diffrax.RecursiveCheckpointAdjoint())
    with pytest.raises(ValueError, match="needs the default adjoint or `ForwardMode`"):
        checkpoints(Y0, TS, args=1.0, stepping=sx.Stepping(max_steps=10))
    with pytest.raises(TypeError, match="must be a `stablax.Stepping`, got 0.001"):
        sx.Simulate(switched)(Y0, TS, args=1.0, stepping=1e-3)


def test_diagnose_takes_it():
    given = dict(rtol=1e-4, jump_ts=[0.7], max_steps=500)
    report = sx.diagnose(
        sx.Simulate(switched), Y0, [*TS, np.nan], args=2.0, stepping=sx.Stepping(**given)
    )
    made = sx.Simulate(
        switched, controller=sx.StiffPID.preset(rtol=1e-4, jump_ts=[0.7]), max_steps=500
    )
    assert report.steps == sx.diagnose(made, Y0, TS, args=2.0).steps


def test_diagnose_puts_it_before_what_a_phase_has():
    """A controller, the preset for a solver, and a budget of its own."""
    model = sx.SimulatePhases(lambda t, y, k: -k * y, solver=diffrax.Bosh3())
    phases = [
        sx.Phase(1.0, 1.0, controller=sx.StiffPID(1e-7, 1e-7), max_steps=10),
        sx.Phase(2.0, 1.0, solver=diffrax.Tsit5()),
    ]
    stepping = sx.Stepping(rtol=1e-3, dtmax=0.1, max_steps=500)
    with pytest.raises(ValueError, match="`stepping.max_steps` is 500, but the model keeps 16"):
        sx.diagnose(model, 1.0, TS, phases, stepping=stepping)
    phases[0] = phases[0].overridden(max_steps=300)
    named = dict(y0=jnp.array(1.0), ts=TS, phases=phases, stepping=stepping)
    settled, inputs = observed(model, named)
    ours = settled(**inputs)
    theirs = model(**named)
    assert ours.stats["num_steps"] == theirs.stats["num_steps"]
    np.testing.assert_array_equal(ours.ys, theirs.ys)


# --- phases that are one program


def test_phases_that_differ_in_numbers_are_one_program():
    """In values, tolerances, budgets, and in who gets a dose."""
    field = Counted(lambda t, y, k: -k * y)
    model = sx.SimulatePhases(field)
    one = [sx.Phase(1.0, 0.5), sx.Phase(2.0, 1.0)]
    model(1.0, [2.0], one)
    count = field.calls
    tight = dict(controller=sx.StiffPID.preset(rtol=1e-9))
    many = [
        sx.Phase(1.0, 0.5),
        sx.Phase(2.0, 1.0, dose=jnp.array(2.0)),
        sx.Phase(3.0, 2.0, max_steps=100),
        sx.Phase(4.0, 0.1, dose=jnp.array(1.0), **tight),
    ]
    simulation = model(1.0, [4.0], many)
    # `lax.scan` traces its body at most twice: as often as for two equal phases.
    assert field.calls <= 2 * count
    y = (np.exp(-0.5) + 2) * np.exp(-1.0) * np.exp(-2.0)
    np.testing.assert_allclose(simulation.ys, (y + 1) * np.exp(-0.1), rtol=1e-5)
    single = np.sum([model(1.0, [4.0], many).stats["num_steps"]])
    assert single == simulation.stats["num_steps"]


@pytest.mark.parametrize("dose", [sx.AddDose(1.5), sx.ScaleDose(0.25)])
def test_no_dose_beside_one_is_nothing_and_has_no_derivative(dose):
    """By closed form; in the order none, dose, none."""
    model = sx.SimulatePhases(lambda t, y, k: -k * y)
    given = lambda at: [sx.Phase(1.0, 1.0), sx.Phase(2.0, 1.0, at), sx.Phase(3.0, 1.0)]
    ts = np.array([0.5, 2.5, 3.0])
    solve = lambda y0, at: 2 * (model(y0, ts, given(at), throw=False).ys,)
    slopes, ys = jax.jit(jax.jacfwd(solve, argnums=(0, 1), has_aux=True))(2.0, dose)
    (amount,) = jax.tree.leaves(dose)
    later = np.array([0.0, 1.0, 1.0])
    if isinstance(dose, sx.AddDose):
        wanted = 2 * np.exp(-ts) + later * amount * np.exp(1 - ts)
        of_y0, of_dose = np.exp(-ts), later * np.exp(1 - ts)
    else:
        of_y0, of_dose = np.exp(-ts) * np.where(later, amount, 1.0), later * 2 * np.exp(-ts)
        wanted = 2 * of_y0
    np.testing.assert_allclose(ys, wanted, rtol=1e-4)
    np.testing.assert_allclose(slopes[0], of_y0, rtol=1e-4)
    np.testing.assert_allclose(jax.tree.leaves(slopes[1])[0], of_dose, rtol=1e-4, atol=1e-12)
