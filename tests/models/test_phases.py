"""`SimulatePhases`: schedules, doses, their derivatives, and failures in the middle."""

import functools
import importlib
import itertools
import json
import sys
from types import SimpleNamespace

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ADJOINTS, ROOT, Counted, all_finite, by_day, data_file, richardson

import stablax as sx

# --- the truth: y' = -k y, with a dose at the start of each phase --------------------------------


def decay(t, y, k):
    """Not finite beyond the wall at 10."""
    return jnp.where(y < 10.0, -k * y, jnp.nan)


def closed_form(y, ts, ends, doses, rates, *, at, before=False):
    """The solution at `ts`, differentiable, for ends near `at`: a row that is on an end there stays
    on its side of it."""
    rows, start = {}, 0.0
    for i, (a, b) in enumerate(itertools.pairwise([0.0, *at])):
        if i == 0 and before:
            rows.update({j: y for j, t in enumerate(ts) if t == a})
        y = y + doses[i]
        last = i == len(at) - 1
        for j, t in enumerate(ts):
            if (a < t <= b) if before else (a <= t < b or (last and a <= t <= b)):
                rows[j] = y * jnp.exp(-rates[i] * (t - start))
        y = y * jnp.exp(-rates[i] * (ends[i] - start))
        start = ends[i]
    return jnp.stack([rows[j] for j in range(len(ts))])


TS = np.array([0.0, 0.4, 1.0, 1.7, 2.0, 2.1, 2.9, 3.6])
WEIGHTS = np.cos(np.arange(TS.size))
RATES = np.array([0.3, 0.9, 0.5, 1.4])
SCHEDULES = {
    "four phases": ([1.0, 2.0, 2.5, 4.0], [0.5, 1.0, 0.3, 2.0]),
    "padded": ([1.5, 4.0, 4.0, 4.0], [0.5, 1.0, 0.0, 0.0]),
    "empty in the middle": ([1.2, 1.2, 2.6, 4.0], [0.5, 0.7, 0.2, 0.1]),
    "across the wall at 2": ([1.0, 2.0, 2.5, 4.0], [0.5, 1.0, 20.0, 2.0]),
    "below the box at 1": ([1.0, 2.0, 2.5, 4.0], [0.5, -3.0, 0.3, 2.0]),
}
ENDS, DOSES = (jnp.array(x) for x in zip(*SCHEDULES.values(), strict=True))
GOOD = np.array([True, True, True, False, False])


# `DirectAdjoint` differentiates the loop that `RecursiveCheckpointAdjoint` does.
REPLAYED = [name for name in ADJOINTS if name != "DirectAdjoint"]


@pytest.mark.parametrize("adjoint", by_day(REPLAYED, "DiscreteAdjoint", "ForwardMode"))
def test_values_and_derivatives_of_a_batch_of_schedules(adjoint):
    """Under `vmap`, padded; a lane that fails in the middle changes nothing in the others."""
    model = sx.SimulatePhases(
        sx.Guarded(decay, sx.Guard(lower=0.0)),
        solver=sx.Rosenbrock23(),
        controller=sx.StiffPID(1e-8, 1e-10),
        adjoint=ADJOINTS[adjoint](),
        max_steps=1024,
    )

    def loss(y0, ends, doses, rates):
        phases = sx.Phase(ends, rates, doses)
        simulation = model(y0, TS, phases, throw=False)
        return jnp.sum(WEIGHTS * simulation.ys), simulation

    derivative = jax.jacfwd if adjoint == "ForwardMode" else jax.grad
    run = derivative(loss, argnums=(0, 1, 2, 3), has_aux=True)
    lanes = (jnp.ones(5), ENDS, DOSES, jnp.tile(RATES, (5, 1)))
    gradients, simulations = jax.jit(jax.vmap(run))(*lanes)

    if adjoint == "RecursiveCheckpointAdjoint":
        # It has no derivative in the time of a step that is not finite (a documented limit).
        gradients = (gradients[0], gradients[1].at[3, 1:3].set(0.0), *gradients[2:])
    assert all_finite((gradients, simulations.ys))
    assert np.asarray(sx.is_successful(simulations)).tolist() == GOOD.tolist()
    for lane in np.flatnonzero(GOOD):
        own = [x[lane] for x in lanes]
        exact = functools.partial(closed_form, ts=TS, at=np.asarray(ENDS[lane]))
        rest = dict(zip(("y", "ends", "doses", "rates"), own, strict=True))
        np.testing.assert_allclose(simulations.ys[lane], exact(**rest), rtol=1e-5)
        truth = jax.grad(lambda x, exact=exact: jnp.sum(WEIGHTS * exact(**x)))(rest)
        for ours, name in zip(gradients, rest, strict=True):
            np.testing.assert_allclose(ours[lane], truth[name], rtol=1e-3, atol=1e-5)
        assert simulations.reached[lane].all()
    for lane, reached in ((3, TS < 2.0), (4, TS < 1.0)):
        assert not any(np.any(g[lane]) for g in gradients)
        np.testing.assert_array_equal(simulations.reached[lane], reached)
        # Rows not reached are the last accepted state, which is that before the dose.
        end, own = float(ENDS[lane, 1 if lane == 3 else 0]), [x[lane] for x in lanes]
        last = closed_form(own[0], [end], *own[1:], at=np.asarray(ENDS[lane]), before=True)
        ys = np.asarray(simulations.ys[lane])
        np.testing.assert_allclose(ys[~reached], np.broadcast_to(last, (~reached).sum()), rtol=1e-5)
    assert simulations.stats["phase"].tolist() == [3, 3, 3, 2, 1]
    words = sx.explain(simulations)
    assert "not finite" in words and "in phase 2 (the first is 0)" in words
    assert "leaves the guard's box" in words and "in phase 1" in words


# --- schedules as a user writes them ------------------------------------------------------------


def compartments(t, y, k):
    """A drug in a central compartment, from which it is eliminated, and in a peripheral one."""
    k_out, k_there, k_back = k
    central, peripheral = y
    flux = k_there * central - k_back * peripheral
    return jnp.stack([-k_out * central - flux, flux])


K = jnp.array([0.4, 0.7, 0.2])
AMOUNT = jnp.array([10.0, 0.0])


def matrix(k):
    return np.array([[-k[0] - k[1], k[2]], [k[1], -k[2]]])


def repeated(ts, n, period, k=K, amount=AMOUNT):
    """The solution with `n` doses in closed form: a sum of decaying doses, by eigenvalues."""
    values, vectors = np.linalg.eig(matrix(k))
    weights = np.linalg.solve(vectors, np.asarray(amount, float))
    since = ts[:, None] - period * np.arange(n)
    decays = np.exp(values * since[..., None]) * (since >= 0)[..., None]
    return np.einsum("ij,tj->ti", vectors * weights, decays.sum(axis=1))


def test_a_hundred_doses_are_one_program():
    """Traced as often as one dose is, and right."""
    traces = []
    for n in (1, 100):
        field = Counted(compartments)
        model = sx.SimulatePhases(
            field, solver=diffrax.Tsit5(), controller=sx.StiffPID(1e-8, 1e-10)
        )
        ts = np.linspace(0.0, 2.0 * n, 41)
        for period in (2.0, 2.5):  # another value is no other program
            simulation = model(jnp.zeros(2), ts, sx.Phase.repeat(n, period, args=K, dose=AMOUNT))
            np.testing.assert_allclose(simulation.ys, repeated(ts, n, period), rtol=1e-6, atol=1e-6)
        traces.append(field.calls)
    # `lax.scan` traces its body once more than a call does.
    assert traces[1] <= 2 * traces[0]


@pytest.fixture(scope="module")
def plain():
    return sx.SimulatePhases(
        compartments, solver=diffrax.Tsit5(), controller=sx.StiffPID(1e-8, 1e-10)
    )


def test_phases_of_equal_structure_are_one_stack(plain):
    ts = np.linspace(0.0, 8.0, 9)
    y0 = jnp.zeros(2)
    repeat = plain(y0, ts, sx.Phase.repeat(4, 2.0, args=K, dose=AMOUNT))
    listed = [sx.Phase(2.0 * (i + 1), args=K, dose=AMOUNT) for i in range(4)]
    mapped = jax.vmap(lambda t1: sx.Phase(t1, args=K, dose=AMOUNT))(2.0 * jnp.arange(1.0, 5.0))
    for phases in (
        listed,
        mapped,
        [*listed[:2], sx.Phase.repeat(2, 2.0, t0=4, args=K, dose=AMOUNT)],
    ):
        assert jax.tree.all(jax.tree.map(np.array_equal, plain(y0, ts, phases).ys, repeat.ys))


def test_a_phase_has_options_of_its_own():
    """The second takes Euler's steps, the third too few; the fourth is not run."""
    model = sx.SimulatePhases(decay, solver=diffrax.Tsit5())
    fixed = diffrax.ConstantStepSize()
    phases = [
        sx.Phase(1.0, 0.5, 1.0),
        sx.Phase(3.0, 0.5, solver=diffrax.Euler(), controller=fixed, dt0=0.5),
        sx.Phase(4.0, 0.5, dt0=1e-3, max_steps=2),
        sx.Phase(6.0, 0.5, sx.ScaleDose(0.5)),
    ]
    simulation = model(0.0, [1.0, 3.0, 3.5, 6.0], phases, throw=False)
    assert simulation.reached.tolist() == [True, True, False, False]
    first = np.exp(-0.5)
    np.testing.assert_allclose(simulation.ys[:2], [first, first * 0.75**4], rtol=1e-5)
    words = sx.explain(simulation)
    assert "budget of 2 steps" in words and "in phase 2 (the first is 0)" in words
    with pytest.raises(RuntimeError, match="in phase 2"):
        model(0.0, [1.0, 3.0, 3.5, 6.0], phases)


@pytest.mark.parametrize("boundary", ["after", "before"])
def test_a_save_time_on_a_boundary(boundary):
    model = sx.SimulatePhases(decay, solver=diffrax.Tsit5(), boundary=boundary)
    for lane in (0, 1, 2):
        ends, doses = ENDS[lane], DOSES[lane]
        simulation = model(1.0, TS, sx.Phase(ends, RATES, doses))
        exact = closed_form(
            1.0, TS, ends, doses, RATES, at=np.asarray(ends), before=boundary == "before"
        )
        np.testing.assert_allclose(simulation.ys, exact, rtol=1e-4)
        assert simulation.reached.all()


def test_phases_backwards_in_time():
    model = sx.SimulatePhases(decay, solver=diffrax.Tsit5())
    phases = [sx.Phase(3.0, 0.5), sx.Phase(1.0, 0.25, 1.0)]
    simulation = model(1.0, [3.5, 3.0, 2.0], phases, t0=4.0)
    first = np.exp(0.5 * np.array([0.5, 1.0]))
    exact = [first[0], first[1] + 1, (first[1] + 1) * np.exp(0.25)]
    np.testing.assert_allclose(simulation.ys, exact, rtol=1e-5)


def test_steady_then_simulate_is_one_phase():
    """The same program, so equal to the bit; and a dose on a steady state."""

    def exchange(t, y, k):
        flux = k * y[0] - y[1]
        return jnp.stack([-flux, flux])

    ts, y0 = np.array([0.0, 0.3, 1.0]), jnp.array([1.0, 0.0])
    rows = np.ones((1, 2))
    steady = dict(steady_args=1.0, conserved=rows)
    special = sx.SteadyThenSimulate(exchange)(y0, ts, args=3.0, **steady)
    model = sx.SimulatePhases(exchange, steady=True)
    general = model(y0, ts, sx.Phase(1.0, 3.0), **steady)
    assert jax.tree.all(jax.tree.map(np.array_equal, special, general))
    np.testing.assert_allclose(special.ys[0], [0.5, 0.5], atol=1e-9)
    memory = sx.WarmStart(y0).update(general)
    phase = sx.Phase(1.0, 3.0, jnp.array([1.0, 0.0]))
    dosed = model(y0, ts, phase, **steady, guess=memory)
    np.testing.assert_allclose(dosed.ys[:, 0], 0.5 + np.exp(-4.0 * ts), rtol=1e-5)
    assert bool(dosed.steady.warm)


# --- doses ----------------------------------------------------------------------------------------

STATE = {"q": jnp.array([1.0, 2.0]), "p": jnp.array(3.0)}


@pytest.mark.parametrize(
    "dose, after",
    [
        (sx.AddDose({"q": np.array([1, 2]), "p": None}), {"q": [2.0, 4.0], "p": 3.0}),
        (sx.ScaleDose(0.5), {"q": [0.5, 1.0], "p": 1.5}),
        (sx.ScaleDose({"q": jnp.array([0.0, 2.0]), "p": None}), {"q": [0.0, 4.0], "p": 3.0}),
        (sx.SetDose({"q": 5.0, "p": None}), {"q": [5.0, 5.0], "p": 3.0}),
        (
            sx.SetDose(0.0, where={"q": np.array([True, False]), "p": np.array(False)}),
            {"q": [0.0, 2.0], "p": 3.0},
        ),
        (
            sx.DoseFunction(lambda t, y, args: {"q": y["q"][::-1], "p": y["p"] * args + t}),
            {"q": [2.0, 1.0], "p": 6.5},
        ),
    ],
)
def test_doses(dose, after):
    out = dose(jnp.array(0.5), STATE, 2.0)
    jax.tree.map(np.testing.assert_array_equal, out, after)
    assert sx.Phase(1.0, dose=dose).dose is dose


def test_what_is_given_as_a_dose():
    assert isinstance(sx.Phase(1.0, dose=jnp.ones(2)).dose, sx.AddDose)
    assert isinstance(sx.Phase(1.0, dose={"q": 1, "p": None}).dose, sx.AddDose)
    assert isinstance(sx.Phase(1.0, dose=lambda t, y, args: y).dose, sx.DoseFunction)
    # A value in single precision is one in the state's.
    state = {"q": jnp.ones(2, jnp.float32), "p": jnp.ones((), jnp.float32)}
    out = sx.SetDose(2.0)(0.0, state, None)
    assert {x.dtype for x in jax.tree.leaves(out)} == {jnp.dtype("float32")}


DECAY = sx.SimulatePhases(
    lambda t, y, args: jax.tree.map(jnp.negative, y),
    solver=diffrax.Euler(),
    controller=diffrax.ConstantStepSize(),
    dt0=0.5,
)


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: sx.Phase("a"), TypeError, "`t1` must be a time"),
        (lambda: sx.Phase(np.ones((2, 2))), ValueError, r"`t1` .* shape \(2, 2\)"),
        (lambda: sx.Phase(1.0, dose="high"), TypeError, "`amount` is a str"),
        (lambda: sx.Phase(1.0, dose={}), ValueError, "`amount` holds no number"),
        (lambda: sx.Phase.repeat(0, 1.0), ValueError, "`n` must be at least 1"),
        (lambda: sx.SetDose(0.0, where=[1]), TypeError, r"`where\[0\]` must be booleans"),
        (lambda: sx.SimulatePhases(decay, boundary="left"), Exception, "boundary"),
        (lambda: sx.SimulatePhases(decay, method=sx.Newton()), ValueError, "add `steady=True`"),
        (lambda: DECAY(1.0, [1.0], 3.0), TypeError, "`phases` must be"),
        (lambda: DECAY(1.0, [1.0], [sx.Phase(1.0), 2.0]), TypeError, r"`phases\[1\]` is a float"),
        (
            lambda: DECAY(1.0, [1.0], [sx.Phase(2.0), sx.Phase(1.0), sx.Phase(3.0)]),
            ValueError,
            "Phase 1 .* ends at 1, but starts at 2",
        ),
        (lambda: DECAY(1.0, [1.0], sx.Phase(np.nan)), ValueError, "goes from 0 to nan"),
        (lambda: DECAY(1.0, [3.0], sx.Phase(2.0)), ValueError, "from 0 to 2, `ts` .* from 3 to 3"),
        (lambda: DECAY(1.0, [1.0], sx.Phase(2.0), t0=1.5), ValueError, "one direction"),
        (lambda: DECAY(1.0, [1.0], sx.Phase(2.0), steady_args=1), ValueError, "`steady_args` is"),
        (
            lambda: DECAY(1.0, [1.0], sx.Phase([1.0, 2.0], {"k": np.ones(3)})),
            ValueError,
            r"stack of 2 phases, but its `args\['k'\]` has shape \(3,\)",
        ),
        (
            lambda: DECAY(1.0, [1.0], [sx.Phase(1.0), sx.Phase(2.0, dose=np.ones(2))]),
            ValueError,
            r"dose of phase 1 .*`AddDose\(amount=...\)` has shape \(2,\), but the state .* \(\)",
        ),
        (
            lambda: DECAY(jnp.ones(2), [1.0], sx.Phase(1.0, dose=[1.0, 0.0])),
            ValueError,
            "tree structure: for the components",
        ),
        (
            lambda: DECAY(1.0, [1.0], sx.Phase(1.0, dose=lambda t, y, args: y[None])),
            ValueError,
            "The dose `<lambda>` returned shape",
        ),
        (
            lambda: DECAY(1.0, [1.0], sx.Phase(1.0, max_steps=0)),
            ValueError,
            "Phase 0 .* `max_steps` must be at least 1",
        ),
    ],
)
def test_what_does_not_fit_is_named(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_phases_out_of_order_under_jit_are_a_result():
    run = jax.jit(lambda t1: DECAY(1.0, [0.5], [sx.Phase(t1), sx.Phase(2.0)], throw=False))
    assert sx.is_successful(run(1.0))
    failed = run(3.0)
    assert not failed.reached.any() and "end one after the other" in sx.explain(failed)
    assert all_finite(failed.ys)


# --- a published experiment -------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_steps():
    """Insulin as a tenth state, which the doses add to: misfit-like sum, its gradient in the time
    and the amount of the second, and the states."""
    examples = str(ROOT / "docs" / "examples")
    sys.path.insert(0, examples)
    try:
        insulin = importlib.import_module("insulin_signalling")
    finally:
        sys.path.remove(examples)
    problem = insulin.load_problem(data_file("Brannmark_JBC2010.json"))
    core = insulin.InsulinField(jnp.asarray(problem.log_k))

    def field(t, y, args):
        cell = core.vector_field(t, y[:9], (y[9:], jnp.full(1, -jnp.inf)))
        return jnp.append(cell, 0.0)

    model = sx.SimulatePhases(
        sx.Guarded(field, sx.Guard(lower=0.0)),
        controller=sx.StiffPID.preset("precise"),
        adjoint=diffrax.ForwardMode(),
        steady=True,
    )
    rows = np.pad(insulin.CONSERVED, ((0, 0), (0, 1)))
    y0 = np.append(problem.y0, 0.0)
    into = jnp.zeros(10).at[9].set(1.0)

    def value(second):
        time, amount = second
        ends, doses = jnp.stack([time, jnp.array(60.0)]), jnp.stack([jnp.array(1.2), amount])
        phases = jax.vmap(lambda t1, dose: sx.Phase(t1, dose=dose * into))(ends, doses)
        ys = model(y0, problem.ts, phases, conserved=rows, throw=False).ys
        later = ys[problem.ts > 4.2]
        return jnp.mean(later[:, 6] + later[:, 2]), ys

    gradient = jax.jit(jax.jacfwd(lambda x: (value(x)[0], value(x)), has_aux=True))
    return SimpleNamespace(insulin=insulin, problem=problem, solve=gradient)


@pytest.mark.slow
def test_two_doses_are_the_published_experiment(two_steps):
    _, (_, ys) = two_steps.solve(jnp.array([4.0, 8.8]))
    file = json.loads(data_file("Brannmark_JBC2010.json").read_text())
    nominal = {p["parameterId"]: float(p["nominalValue"]) for p in file["parameters"]}
    rows = [r for r in file["simulated"] if r["simulationConditionId"] == "TwoSteps"]
    assert len(rows) > 5
    for row in rows:
        i = np.flatnonzero(two_steps.problem.ts == float(row["time"]))[0]
        assert row["observableId"].startswith("IRS1_P")
        ours = nominal[row["observableParameters"]] * ys[i, 6]
        np.testing.assert_allclose(ours, float(row["simulation"]), rtol=1e-4)


@pytest.mark.slow
def test_gradient_in_time_and_amount_of_the_second_dose(two_steps):
    # Off the save times, at which the solution has a kink in the time of the dose.
    at = np.array([4.07, 8.8])
    gradient, _ = two_steps.solve(jnp.asarray(at))
    value = lambda x: two_steps.solve(jnp.asarray(x))[1][0]
    np.testing.assert_allclose(gradient, richardson(value, at, step=0.04), rtol=1e-4)


def test_a_batch_of_schedules_a_few_at_a_time():
    ends, amounts = jnp.array([[1.0, 2.0], [1.5, 2.0], [2.0, 2.0]]), jnp.array([1.0, 2.0, 0.5])
    make = lambda t1, amount: sx.Phase(t1, dose=jnp.stack([amount, 0 * amount]))
    phases = jax.vmap(make)(ends, amounts)
    inputs, shared = dict(phases=phases), dict(y0=1.0, ts=np.array([0.5, 1.8]))
    batch = sx.simulate_batch(DECAY, inputs, shared=shared, batch_size=2)
    for i in range(3):
        alone = DECAY(1.0, shared["ts"], make(ends[i], amounts[i]))
        np.testing.assert_array_equal(batch.ys[i], alone.ys)
