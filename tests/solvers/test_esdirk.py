"""The ESDIRK solvers with our root finder, each against references of independent codes."""

import functools

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
from helpers import by_day, slow
from scipy.integrate import solve_ivp

import stablax as sx
from stablax._solvers import _esdirk, _patient_chord
from stablax.problems import ROBERTSON

SOLVERS = {"kvaerno3": sx.kvaerno3, "kvaerno5": sx.kvaerno5, "kencarp4": sx.kencarp4}


def _terms(solver, field):
    term = diffrax.ODETerm(field)
    if isinstance(solver, diffrax.KenCarp4):
        zero = diffrax.ODETerm(lambda t, y, args: jnp.zeros_like(y))
        return diffrax.MultiTerm(zero, term)
    return term


@eqx.filter_jit
def _solve(field, solver, y0, t1, args, rtol, atol, max_steps=5000):
    """With diffrax alone, without a model."""
    return diffrax.diffeqsolve(
        _terms(solver, field),
        solver,
        jnp.zeros_like(t1),
        t1,
        None,
        y0,
        args,
        stepsize_controller=diffrax.PIDController(rtol, atol),
        max_steps=max_steps,
        throw=False,
    )


def _succeeded(solution):
    return bool(solution.result == diffrax.RESULTS.successful)


_robertson, RATES, START = ROBERTSON.field, ROBERTSON.args, ROBERTSON.y0


def _robertson_reference(k):
    def rhs(t, y):
        a, b, c = k[0] * y[0], k[1] * y[1] * y[2], k[2] * y[1] ** 2
        return [-a + b, a - b - c, c]

    return solve_ivp(rhs, (0, 1e3), START, method="Radau", rtol=1e-10, atol=1e-14).y[:, -1]


@pytest.mark.parametrize(
    ("name", "attempts"),
    [
        ("kvaerno3", {1e-3: 43, 1e-5: 166, 1e-7: 723}),
        ("kvaerno5", {1e-3: 18, 1e-5: 30, 1e-7: 60}),
        ("kencarp4", {1e-3: 17, 1e-5: 34, 1e-7: 79}),
    ],
)
def test_robertson_is_right_at_every_tolerance_and_steps_are_not_wasted(name, attempts):
    """Statistics are snapshots: a solver that got worse inside the tolerances shows here."""
    reference = _robertson_reference(RATES)
    for rtol, expected in attempts.items():
        inputs = map(jnp.asarray, (START, 1e3, RATES, rtol, rtol * 1e-3))
        solution = _solve(_robertson, SOLVERS[name](), *inputs)
        assert _succeeded(solution)
        error = np.max(np.abs(solution.ys[-1] - reference) / np.abs(reference))
        assert error < 20 * rtol
        assert solution.stats["num_steps"] <= 1.2 * expected
        assert solution.stats["num_rejected_steps"] <= 9


def _van_der_pol(t, y, mu):
    return jnp.stack([y[1], mu * ((1 - y[0] ** 2) * y[1] - y[0])])


@pytest.mark.parametrize("name", by_day(SOLVERS, "kvaerno5"))
def test_van_der_pol_at_a_loose_tolerance_does_not_hang(name):
    """With `optimistix.Chord`, Kvaerno5 gets stuck here with about 1e5 rejections."""
    inputs = (jnp.array([2.0, 0.0]), 2.0, 1e3, 1e-3, 1e-5)
    solution = _solve(_van_der_pol, SOLVERS[name](), *map(jnp.asarray, inputs))
    assert _succeeded(solution) and solution.stats["num_steps"] < 1000
    reference = solve_ivp(
        lambda t, y: [y[1], 1e3 * ((1 - y[0] ** 2) * y[1] - y[0])],
        (0, 2.0),
        [2.0, 0.0],
        method="Radau",
        rtol=1e-10,
        atol=1e-12,
    )
    np.testing.assert_allclose(solution.ys[-1, 0], reference.y[0, -1], rtol=2e-2)


def _heat(t, y, args):
    padded = jnp.pad(y, 1)
    return jnp.diff(padded, n=2) * (y.size + 1) ** 2


@pytest.mark.parametrize("name", SOLVERS)
def test_the_heat_equation_in_float32(name):
    x = jnp.arange(1, 61, dtype=jnp.float32) / 61
    y0 = jnp.sin(jnp.pi * x) + jnp.sin(7 * jnp.pi * x)
    inputs = (y0, jnp.float32(0.1), None, jnp.float32(1e-5), jnp.float32(1e-7))
    solution = _solve(_heat, SOLVERS[name](), *inputs)
    assert _succeeded(solution)
    assert solution.ys.dtype == jnp.float32
    rate = lambda k: (2 * 61 * np.sin(k * np.pi / 122)) ** 2
    exact = sum(np.exp(-rate(k) * 0.1) * np.sin(k * np.pi * np.asarray(x)) for k in (1, 7))
    np.testing.assert_allclose(solution.ys[-1], exact, atol=5e-5)
    assert solution.stats["num_rejected_steps"] <= 8


BATCH = RATES * np.exp(np.random.default_rng(0).normal(size=(64, 3)))


@functools.cache
def _robertson_in_the_first_lane():
    of = lambda scale: _robertson_reference(BATCH[0] * np.exp(scale)) @ np.array([1.0, 2.0, 3.0])
    return of(0), (of(1e-2) - of(-1e-2)) / 2e-2


@pytest.mark.parametrize("name", ["kvaerno5", slow("kencarp4")])  # stages in f, and in h f
def test_a_batch_of_64_robertsons_in_reverse_mode(name):
    """With `optimistix.Chord` this raises: an iterate of a rejected step has no derivative."""
    solver = SOLVERS[name]()

    def final(k):
        solution = _solve(_robertson, solver, jnp.asarray(START), 1e3, k, 1e-6, 1e-10)
        ok = solution.result == diffrax.RESULTS.successful
        return solution.ys[-1] @ jnp.array([1.0, 2.0, 3.0]), ok

    rates = jnp.asarray(BATCH)
    (values, ok), slopes = jax.jit(jax.vmap(jax.value_and_grad(final, has_aux=True)))(rates)
    assert ok.all() and jnp.isfinite(slopes).all()
    # Lane 0, and its derivative in the logarithm of all rates together (a scale of time).
    value, slope = _robertson_in_the_first_lane()
    np.testing.assert_allclose(values[0], value, rtol=1e-4)
    np.testing.assert_allclose(slopes[0] @ rates[0], slope, rtol=5e-3)


def _exchange(t, y, k):
    """Three species in a cycle: y sums to a constant, and f is a difference of large fluxes."""
    flux = k * jnp.stack([y[0] - 0.3 * y[1], 2 * y[1] * y[2] - 0.5 * y[2], 1e-3 * y[2]])
    return jnp.stack([flux[2] - flux[0], flux[0] - flux[1], flux[1] - flux[2]])


REST = np.array([0.0765229770, 0.2505, 1.3729770230])


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("rate", [1e10, 1e14])
def test_conserved_quantities_at_extreme_rates(name, rate):
    """Measured in f, the tolerance asks for digits that f does not have."""
    inputs = (jnp.array([1.0, 0.5, 0.2]), 10.0, rate, 1e-6, 1e-9)
    solution = _solve(_exchange, SOLVERS[name](), *map(jnp.asarray, inputs), max_steps=1000)
    # What `kencarp4` says of itself.
    assert _succeeded(solution) == (name != "kencarp4" or rate < 1e11)
    if _succeeded(solution):
        np.testing.assert_allclose(solution.ys[-1], REST, rtol=1e-7)
        assert solution.stats["num_steps"] < 400


@pytest.mark.parametrize("name", SOLVERS)
def test_the_stage_of_diffrax_is_recognised(name, monkeypatch):
    stages = []

    def spy(args, stage_of=_patient_chord._stage_of):
        stages.append(stage_of(args))
        return stages[-1]

    monkeypatch.setattr(_patient_chord, "_stage_of", spy)
    jax.clear_caches()  # what was traced before would not meet the spy
    solver = SOLVERS[name]()
    inputs = map(jnp.asarray, (START, 1.0, RATES, 1e-3, 1e-6))
    jax.eval_shape(lambda *x: _solve(_robertson, solver, *x).ys, *inputs)
    assert stages and all(stage is not None for stage in stages)


# --- the root finder by itself


def test_the_root_finder_alone():
    finder = sx.PatientChord(rtol=1e-9, atol=1e-9)

    def equation(y, args):
        return {"a": y["a"] ** 3 - args, "b": y["b"] - jnp.cos(y["b"])}

    start = {"a": jnp.array([1.4, 2.2]), "b": jnp.array(0.7)}
    args = jnp.array([3.0, 10.0])
    found = optx.root_find(equation, finder, start, args)
    np.testing.assert_allclose(found.value["a"], np.cbrt(args), rtol=1e-8)
    np.testing.assert_allclose(found.value["b"], 0.7390851332151607, rtol=1e-8)
    assert 2 < found.stats["num_steps"] < 30

    total = lambda a: optx.root_find(equation, finder, start, a, throw=False).value["a"].sum()
    slope = jax.jit(jax.grad(total))(args)
    np.testing.assert_allclose(slope, np.asarray(args) ** (-2 / 3) / 3, rtol=1e-7)


@pytest.mark.parametrize(
    "equation",
    [
        lambda y, args: y**2 + 1,  # no root
        lambda y, args: jnp.sign(y) * jnp.sqrt(jnp.abs(y)),  # iterates that run away
        lambda y, args: jnp.where(y < 2, y - 3, jnp.nan),  # the root is outside the domain
        lambda y, args: y * 0 + 1,  # singular
    ],
)
def test_a_root_that_is_not_found_is_reported(equation):
    finder = sx.PatientChord(rtol=1e-6, atol=1e-6)
    found = optx.root_find(equation, finder, jnp.array(1.0), throw=False, max_steps=30)
    assert found.result != optx.RESULTS.successful


def test_less_than_rounding_is_not_asked_for():
    finder = sx.PatientChord(rtol=1e-7, atol=0.0, kappa=1e-4)
    found = optx.root_find(
        lambda y, args: jnp.sin(y) * y - 0.5, finder, jnp.full(5, 0.7, jnp.float32)
    )
    assert found.stats["num_steps"] < 10


# --- stepping aside


@pytest.fixture
def asked_again():
    _esdirk.default_is_cured.cache_clear()
    yield
    _esdirk.default_is_cured.cache_clear()


def test_the_question_tells_good_root_finders_from_bad_ones():
    with_tolerances = diffrax.with_stepsize_controller_tols
    assert _esdirk.solves_a_hard_stage(with_tolerances(sx.PatientChord)())
    assert not _esdirk.solves_a_hard_stage(with_tolerances(diffrax.VeryChord)())


def test_a_faulty_release_that_is_newer_is_found_out(monkeypatch, asked_again):
    monkeypatch.setattr(diffrax, "__version__", "0.99.0rc1")
    if _esdirk.solves_a_hard_stage(diffrax.Kvaerno5().root_finder):
        pytest.skip("this diffrax is cured")
    assert isinstance(sx.kvaerno5().root_finder, sx.PatientChord)


def test_a_release_that_changed_its_root_finder_altogether_is_replaced(monkeypatch, asked_again):
    class Other:
        root_finder = None

    monkeypatch.setattr(diffrax, "__version__", "1.0")
    monkeypatch.setattr(_esdirk.diffrax, "Kvaerno5", lambda **kwargs: Other())
    assert not _esdirk.default_is_cured()


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(("version", "cured"), [("0.7.2", False), ("0.8.0", True)])
def test_a_cured_release_is_left_as_it_is(name, version, cured, monkeypatch, asked_again):
    monkeypatch.setattr(diffrax, "__version__", version)
    monkeypatch.setattr(_esdirk, "solves_a_hard_stage", lambda finder: True)
    solver = SOLVERS[name]()
    assert isinstance(solver.root_finder, sx.PatientChord) != cured
    assert (solver == type(solver)()) == cured


@pytest.mark.parametrize("adjoint", [sx.DiscreteAdjoint(), diffrax.ForwardMode()])
def test_in_single_precision_the_dense_output_stays_so(adjoint):
    """diffrax's KenCarp methods interpolate with coefficients of float64."""
    model = sx.Simulate(lambda t, y, k: -k * y, solver=sx.kencarp4(), adjoint=adjoint)
    ts = jnp.array([0.5, 1.0], jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        rows = lambda k: model(jnp.ones(1, jnp.float32), ts, args=k, throw=False).ys[:, 0]
        slope = (jax.jacfwd if isinstance(adjoint, diffrax.ForwardMode) else jax.jacrev)(rows)
        found, by_k = jax.jit(lambda k: (rows(k), slope(k)))(jnp.float32(2.0))
    assert found.dtype == by_k.dtype == jnp.float32
    np.testing.assert_allclose(found, np.exp(-2 * ts), rtol=1e-3)
    np.testing.assert_allclose(by_k, -ts * np.exp(-2 * ts), rtol=2e-3)
