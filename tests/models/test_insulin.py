"""The main job, `docs/examples/insulin_signalling.py`: its model, its gradient and its command."""

import importlib
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import ROOT, Counted, data_file, richardson, slow

import stablax as sx

EXAMPLES = ROOT / "docs" / "examples"
SCRIPT = EXAMPLES / "insulin_signalling.py"
DATA = "Brannmark_JBC2010.json"


@pytest.fixture(scope="module")
def insulin():
    """The script as a module; it finds its reader of files beside itself."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module("insulin_signalling")
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def precise(insulin):
    """The model at tight tolerance in all conditions, compiled once: `solve(log_k, insulin)` gives
    the gradient of the misfit and `(misfit, simulations)`."""
    problem = insulin.load_problem(data_file(DATA))
    controller = sx.StiffPID.preset("precise", jump_ts=(4.0,))

    def misfit(log_k, doses_and_times):
        model = insulin.build_model(problem, log_k, controller=controller)
        simulations = insulin.simulate(
            model, problem.y0, problem.ts, doses_and_times, problem.steady
        )
        value = insulin.misfit(problem, simulations, np.ones(len(problem.measured)))
        return value, (value, simulations)

    traces = Counted(jax.jacfwd(misfit, has_aux=True))
    solve = jax.jit(traces)
    # Differences need no derivative, which is most of the run.
    value = jax.jit(lambda log_k: misfit(log_k, problem.insulin)[0])
    return SimpleNamespace(
        problem=problem,
        traces=traces,
        value=lambda log_k: value(jnp.asarray(log_k)),
        solve=lambda log_k, given=problem.insulin: solve(jnp.asarray(log_k), given),
    )


def run(*args, cwd):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "TQDM_MININTERVAL": "10"},
    )


# --- the model --------------------------------------------------------------------------------


def test_conserved_rows_and_guard(insulin):
    assert not (insulin.CONSERVED @ insulin.STOICHIOMETRY).any()
    field = insulin.InsulinField(jnp.log10(jnp.array(insulin.PUBLISHED)))
    assert [leaf.shape for leaf in jax.tree.leaves(field)] == [(len(insulin.RATES),)]


def test_published_simulation(insulin, precise):
    problem = precise.problem
    _, (_, simulations) = precise.solve(problem.log_k)
    assert sx.is_successful(simulations).all(), sx.explain(simulations)
    assert sx.is_successful(simulations.steady).all()

    # From the file itself, with the observables written out.
    file = json.loads(data_file(DATA).read_text())
    nominal = {p["parameterId"]: float(p["nominalValue"]) for p in file["parameters"]}
    conditions = list(dict.fromkeys(row["simulationConditionId"] for row in file["simulated"]))
    assert len(conditions) == 8
    worst = {}
    for row in file["simulated"]:
        condition = row["simulationConditionId"]
        time = np.flatnonzero(problem.ts == float(row["time"]))
        state = dict(
            zip(
                insulin.SPECIES,
                np.asarray(simulations.ys)[conditions.index(condition), time[0]],
                strict=True,
            )
        )
        signal = {
            "IR1_P": state["IRp"] + state["IRiP"],
            "IRS1_P": state["IRSiP"],
            "IRS1_P_DosR": state["IRSiP"],
        }[row["observableId"]]
        ours = nominal[row["observableParameters"]] * signal
        error = abs(ours / float(row["simulation"]) - 1)
        worst[condition] = max(error, worst.get(condition, 0.0))
    assert max(worst.values()) < 1e-4, worst


def test_noise_alone_is_left_at_the_published_fit(precise):
    # The published standard deviations are the maximum-likelihood ones: the misfit there is 1.
    _, (misfit, _) = precise.solve(precise.problem.log_k)
    np.testing.assert_allclose(misfit, 1.0, atol=2e-3)


def test_gradient(precise):
    log_k = _wrong(precise.problem, jr.key(1))
    gradient, (misfit, simulations) = precise.solve(log_k)
    assert sx.is_successful(simulations).all()
    assert misfit > 2
    some = np.array([0, 6, 10, 12])  # k1a, k1f, k22, km2

    def value(x):
        return precise.value(_replaced(log_k, some, x))

    # Steps of 0.04 decades: the noise of an adaptive solve at rtol 1e-9 needs no smaller ones.
    differences = richardson(value, log_k[some], step=0.04)
    largest = np.abs(np.asarray(gradient)).max()
    np.testing.assert_allclose(np.asarray(gradient)[some], differences, atol=1e-5 * largest, rtol=0)


def test_one_compilation_for_all(precise):
    doses, times = precise.problem.insulin
    precise.solve(precise.problem.log_k)
    precise.solve(_wrong(precise.problem, jr.key(2)))
    _, (_, simulations) = precise.solve(precise.problem.log_k, (2.0 * doses[::-1], times[::-1]))
    assert sx.is_successful(simulations).all()
    assert simulations.ys.shape == (8, len(precise.problem.ts), 9)
    assert precise.traces.calls == 1


def _wrong(problem, key):
    wrong_by = jr.uniform(key, problem.log_k.shape, minval=-0.5, maxval=0.5)
    return np.clip(problem.log_k + np.asarray(wrong_by), *problem.bounds.T)


def _replaced(x, index, values):
    x = x.copy()
    x[index] = values
    return x


# --- files ------------------------------------------------------------------------------------


def _set(*path_and_value):
    *path, last, value = path_and_value

    def change(file):
        for key in path:
            file = file[key]
        file[last] = value

    return change


def _delete(*path):
    *path, last = path

    def change(file):
        for key in path:
            file = file[key]
        del file[last]

    return change


HUGE = 10**400  # more than a float holds
LONG = "9" * 600_000

MALFORMED = {
    "no section": (_delete("parameters"), "no 'parameters'"),
    "no field of a row": (_delete("measurements", 3, "time"), r"measurements\[3\] has no 'time'"),
    "no rows": (_set("measurements", []), "'measurements' is empty"),
    "rows of another kind": (_set("measurements", [1.0]), r"measurements\[0\]"),
    "no number": (_set("measurements", 3, "measurement", "high"), "'high' is no finite number"),
    "nan": (_set("measurements", 3, "measurement", "nan"), "'nan' is no finite number"),
    "other species": (_set("species", 0, "STAT5A"), "'species' are not those of this model"),
    "another model": (_set("rhs", 6, "-IRSiP*cyt*km2"), "'rhs' of IRSiP is not this model's"),
    "unknown condition": (_set("measurements", 0, "simulationConditionId", "D"), "no 'D'"),
    "unknown observable": (_set("measurements", 0, "observableId", "ERK"), "no 'ERK'"),
    "unknown parameter": (_set("measurements", 0, "observableParameters", "k_0"), "'k_0'"),
    "unknown name": (_set("observables", 0, "formula", "ERK"), "unknown name 'ERK'"),
    "quadratic": (
        _set("observables", 0, "formula", "observableParameter1_IR1_P**2 * IRp"),
        "not linear",
    ),
    "syntax": (_set("observables", 0, "formula", "IRp +"), "cannot read the formula"),
    "a call": (_set("observables", 0, "formula", "__import__('os').getcwd()"), "not allowed"),
    "an attribute": (_set("observables", 0, "formula", "IRp.real"), "not allowed"),
    "a tuple": (_set("observables", 0, "formula", "(IRp, IRiP)"), "no real number"),
    "overflow": (_set("observables", 0, "noise", "9**9**9"), "cannot evaluate"),
    "no noise": (_set("observables", 0, "noise", "0"), "not positive"),
    "infinite noise": (_set("observables", 0, "noise", "1e999"), "not positive and finite"),
    "infinite": (_set("observables", 0, "formula", "IRp + 1e999"), "'IR1_P' is not finite"),
    "a huge constant": (_set("constants", "cyt", HUGE), "'cyt': 10000.* is no finite number"),
    "a huge measurement": (_set("measurements", 3, "measurement", HUGE), "is no finite number"),
    "a huge dose": (_set("conditions", "Dose_10", "insulin_dose_1", HUGE), "is no finite number"),
    "a huge start": (_set("y0", 0, HUGE), "'y0': 1000.* is no finite number"),
    "a truth for a number": (_set("constants", "cyt", True), "'cyt': True is no finite number"),
    "a long number": (_set("measurements", 3, "measurement", LONG), "999.* is no finite number"),
    "a long formula": (_set("observables", 0, "formula", f"IRp + x{LONG}"), "unknown name 'x999"),
    "a long name": (_set("measurements", 0, "observableId", LONG), "has no '999"),
    "long lines": (_set("observables", 0, "formula", "IRp +\n" * 9999), "cannot read the formula"),
    "negative rate": (_set("parameters", 0, "nominalValue", "-1"), "must be positive"),
    "negative dose": (_set("conditions", "Dose_10", "insulin_dose_1", "-1"), ">= 0"),
    "other override": (_set("conditions", "Dose_10", "k1a", "1"), "sets 'k1a'"),
}


@pytest.mark.parametrize("change, message", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed(insulin, tmp_path, change, message):
    file = json.loads(data_file(DATA).read_text())
    change(file)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(file))
    with pytest.raises(insulin.ProblemError, match=message) as error:
        insulin.load_problem(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert len(str(error.value)) <= len(str(path)) + 402


# --- the command ------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, slow("{'species': ")])
def test_one_line_for_a_bad_file(tmp_path, content):
    path = tmp_path / "data.json"
    if content is not None:
        path.write_text(content)
    done = run("--data", str(path), cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "error" in line and str(path) in line
    assert not (tmp_path / "insulin_signalling.png").exists()


@pytest.mark.slow  # `.ci/run` runs it by itself
def test_small_run(tmp_path):
    done = run("--small", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    misfit = {
        line.split(":")[0]: float(line.split(":")[1].split()[0])
        for line in done.stdout.splitlines()
        if line.startswith("misfit")
    }
    assert misfit["misfit after"] < 0.7 * misfit["misfit before"]
    figure = tmp_path / "insulin_signalling.png"
    assert figure.read_bytes()[:4] == b"\x89PNG" and figure.stat().st_size > 20_000


@pytest.mark.slow
def test_equilibrium_of_perturbed_rate_constants(insulin):
    """200 log-normal perturbations (a factor of three): all equilibrate, and keep their totals."""
    problem = insulin.make_problem(jr.key(0))
    y0 = jnp.asarray(problem.y0)
    shifts = np.random.default_rng(0).normal(size=(200, len(problem.log_k)))
    log_k = jnp.asarray(problem.log_k + np.log10(3.0) * shifts)

    def equilibrium(log_k):
        field = insulin.InsulinField(log_k)
        return sx.find_steady_state(
            field, y0, problem.steady, conserved=insulin.CONSERVED, throw=False
        )

    found = jax.jit(jax.vmap(equilibrium))(log_k)
    assert sx.is_successful(found).all(), sx.explain(found)
    totals = np.asarray(found.y) @ insulin.CONSERVED.T
    np.testing.assert_allclose(
        totals, np.tile(insulin.CONSERVED @ np.asarray(y0), (200, 1)), rtol=1e-10
    )

    # In units of the state itself, which spans ten orders of magnitude.
    value = lambda log_k, scale: jnp.sum(jnp.sin(equilibrium(log_k).y / scale))
    both = jax.jit(jax.value_and_grad(value))
    for i in range(5):
        scale = found.y[i]
        exact = richardson(lambda x, scale=scale: both(jnp.asarray(x), scale)[0], log_k[i])
        _, ours = both(log_k[i], scale)
        np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-5 * np.abs(exact).max())
