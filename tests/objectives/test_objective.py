"""Likelihoods: against closed forms, their derivatives, and what fails."""

import json
import math
import operator
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import by_day, data_file

import stablax as sx
from stablax.fitting import (
    AbstractNoise,
    LaplaceNoise,
    LogNormalNoise,
    NormalNoise,
    NormalPrior,
    Solved,
)

TIGHT = sx.StiffPID.preset(rtol=1e-10, atol=1e-12)


class Decay(sx.GuardedField):
    """y' = -k y (with a rate that is not finite below 0)."""

    k: Any

    def vector_field(self, t, y, args):
        return -self.k * y


K = sx.Parameter("k", 0.7, scale="log10", bounds=(1e-2, 1e2), prior=NormalPrior(1.0, 0.5))
START = sx.Parameter("start", 2.0)
SD = sx.Parameter("sd", 0.2, scale="log")
# Three conditions with rows of different length, a hole and a repeated measurement.
TS = [[0.0, 1.0, 1.0, 3.0], [0.5, 2.0], [1.5]]
A = [[2.1, 0.9, 1.1, 0.2], [np.nan, 0.6], [0.8]]
B = [[4.2, np.nan, np.nan, 0.6], [3.1, 1.4], [1.3]]
SERIES = sx.Series.from_ragged(TS, [{"a": a, "b": b} for a, b in zip(A, B, strict=True)])
FACTOR = np.array([1.0, 1.5, 0.5])  # of the start, a condition


def objective(**changed):
    a = sx.Observable("y", noise=NormalNoise(0.3))
    b = sx.Observable(lambda t, y, args, p: 2 * y["y"] + p["shift"] * t, noise=NormalNoise(SD))
    given = dict(a=a, b=b) | changed
    model = sx.Simulate(Tree(Decay(K)), controller=TIGHT)
    y0 = lambda p: {"y": p["start"] * FACTOR}
    known = [START, SD, sx.Parameter("shift", 0.1)]
    return sx.Objective(model, SERIES, given, inputs=dict(y0=y0), parameters=known)


class Tree(eqx.Module):
    field: Decay

    def __call__(self, t, y, args):
        return {"y": self.field(t, y["y"], args)}


def valued(own):
    """Evaluation and gradient at its parameters, in one program."""

    def value(known):
        out = own.evaluate(known)
        return out.value, out

    (_, out), gradient = jax.value_and_grad(value, has_aux=True)(own.parameters)
    return out, gradient


def predicted(p):
    """Of `a` and `b` at all measurements, in closed form: the rows of `SERIES`."""
    ts = jnp.where(jnp.isfinite(SERIES.ts), SERIES.ts, 0)
    y = p["start"] * FACTOR[:, None] * jnp.exp(-p["k"] * ts)
    return y, 2 * y + p["shift"] * ts


MEASURED = np.asarray(SERIES.values[..., 0]), np.asarray(SERIES.values[..., 1])


def by_hand(noise_a, noise_b):
    """Minus the logarithm of likelihood and prior; a noise is `(measured, predicted, p) -> log
    density`."""

    def value(known):
        p = known.values
        total = -known.log_prior()
        for noise, measured, out in zip((noise_a, noise_b), MEASURED, predicted(p), strict=True):
            is_there = np.isfinite(measured)
            density = noise(np.where(is_there, measured, 1.0), out, p)
            total -= jnp.sum(jnp.where(is_there, density, 0))
        return total

    return value


def normal(sigma):
    return lambda m, out, p: jax.scipy.stats.norm.logpdf(m, out, sigma(p))


A_NORMAL, B_NORMAL = normal(lambda p: 0.3), normal(operator.itemgetter("sd"))
PROPORTIONAL = NormalNoise(lambda t, y, args, p: 0.1 + p["sd"] * y["y"])
CASES = {
    "normal": ({}, (A_NORMAL, B_NORMAL)),
    "a formula": (
        dict(
            b=sx.Observable(lambda t, y, args, p: 2 * y["y"] + p["shift"] * t, noise=PROPORTIONAL)
        ),
        (
            A_NORMAL,
            lambda m, out, p: jax.scipy.stats.norm.logpdf(m, out, 0.1 + p["sd"] * predicted(p)[0]),
        ),
    ),
    "Laplace's": (
        dict(a=sx.Observable(0, noise=LaplaceNoise(SD))),
        (lambda m, out, p: jax.scipy.stats.laplace.logpdf(m, out, p["sd"]), B_NORMAL),
    ),
    "log-normal": (
        dict(a=sx.Observable("y", noise=LogNormalNoise(SD))),
        (
            lambda m, out, p: (
                jax.scipy.stats.norm.logpdf(jnp.log(m / out), 0, p["sd"]) - jnp.log(m)
            ),
            B_NORMAL,
        ),
    ),
    "scale and offset": (
        dict(
            a=sx.Observable(
                "y",
                scale=sx.Parameter("scale", 1.2),
                offset=sx.Parameter("offset", -0.1),
                noise=NormalNoise(0.3),
            ),
        ),
        (
            lambda m, out, p: jax.scipy.stats.norm.logpdf(m, p["offset"] + p["scale"] * out, 0.3),
            B_NORMAL,
        ),
    ),
}


@pytest.mark.parametrize("name", by_day(CASES, "a formula"))
def test_likelihoods_and_their_derivatives(name):
    changed, noises = CASES[name]
    own = objective(**changed)
    known, truth = own.parameters, by_hand(*noises)
    evaluation, gradient = valued(own)
    value = evaluation.value
    true_value, true_gradient = jax.value_and_grad(truth)(known)
    np.testing.assert_allclose(value, true_value, rtol=1e-8)
    for one, x in true_gradient.coordinates.items():
        np.testing.assert_allclose(gradient.coordinates[one], x, rtol=1e-6, atol=1e-8, err_msg=one)
    np.testing.assert_allclose(
        -jnp.sum(evaluation.log_likelihoods) - evaluation.log_prior, value, rtol=1e-12
    )
    assert bool(evaluation.successful.all()) and evaluation.explain() == "Successful."
    assert not evaluation.residuals[~np.asarray(SERIES.measured)].any()


def searched(solved: dict, numbers: dict, **changed):
    """An objective in which some numbers are solved for, and one in which they are parameters at
    what was found."""
    first = valued(objective(**{name: make(solved) for name, make in changed.items()}))
    found = first[0].solved
    named = {key: sx.Parameter(name, found[where]) for key, (name, where) in numbers.items()}
    second = valued(objective(**{name: make(named) for name, make in changed.items()}))
    return first, second


OBSERVED = lambda t, y, args, p: y["y"]
HIERARCHICAL = {
    "a scale": (
        dict(scale=Solved()),
        dict(scale=("s", "scale of a")),
        lambda n: sx.Observable(OBSERVED, scale=n["scale"], noise=NormalNoise(0.3)),
    ),
    "an offset": (
        dict(offset=Solved()),
        dict(offset=("o", "offset of a")),
        lambda n: sx.Observable(OBSERVED, offset=n["offset"], noise=NormalNoise(0.3)),
    ),
    "all": (
        dict(scale=Solved(), offset=Solved(), sigma=Solved()),
        dict(scale=("s", "scale of a"), offset=("o", "offset of a"), sigma=("q", "sigma of a")),
        lambda n: sx.Observable(
            OBSERVED, scale=n["scale"], offset=n["offset"], noise=NormalNoise(n["sigma"])
        ),
    ),
    "of logarithms": (
        dict(scale=Solved(), sigma=Solved()),
        dict(scale=("s", "scale of a"), sigma=("q", "sigma of a")),
        lambda n: sx.Observable(OBSERVED, scale=n["scale"], noise=LogNormalNoise(n["sigma"])),
    ),
    "Laplace's": (
        dict(sigma=Solved()),
        dict(sigma=("q", "sigma of a")),
        lambda n: sx.Observable(OBSERVED, noise=LaplaceNoise(n["sigma"])),
    ),
}


@pytest.mark.parametrize("name", by_day(HIERARCHICAL, "all"))
def test_what_is_solved_for_is_at_its_best(name):
    """Where it is a parameter with the same value, value and gradient are the same, and the
    derivative in itself is zero."""
    solved, numbers, make = HIERARCHICAL[name]
    (first, gradient), (second, full) = searched(solved, numbers, a=make)
    np.testing.assert_allclose(first.value, second.value, rtol=1e-12)
    for one, x in gradient.coordinates.items():
        np.testing.assert_allclose(full.coordinates[one], x, rtol=1e-9, atol=1e-10, err_msg=one)
    for parameter, _ in numbers.values():
        assert abs(full.coordinates[parameter]) < 1e-9
    assert set(first.solved) == {where for _, where in numbers.values()}


def test_what_is_solved_for_can_be_shared_bounded_and_one_a_condition():
    shared = Solved("gain", lower=0.0)
    both = dict(
        a=sx.Observable(OBSERVED, scale=shared, noise=NormalNoise(0.3)),
        b=sx.Observable(OBSERVED, scale=shared, noise=NormalNoise(0.6)),
    )
    own = objective(**both)
    out = own.evaluate(own.parameters)
    y = np.asarray(predicted(own.parameters.values)[0])
    top = bottom = 0.0
    for measured, sigma in zip(MEASURED, (0.3, 0.6), strict=True):
        top += np.nansum(measured * y / sigma**2)
        bottom += np.sum(np.where(np.isfinite(measured), y**2 / sigma**2, 0))
    np.testing.assert_allclose(out.solved["gain"], top / bottom, rtol=1e-8)

    each = sx.Observable(OBSERVED, scale=Solved(each_condition=True), noise=NormalNoise(0.3))
    own = objective(a=each)
    out = own.evaluate(own.parameters)
    weight = np.isfinite(MEASURED[0])
    best = np.nansum(MEASURED[0] * y, axis=1) / np.sum(y**2 * weight, axis=1)
    np.testing.assert_allclose(out.solved["scale of a"], best, rtol=1e-8)

    bounded = sx.Observable(OBSERVED, scale=Solved(lower=5.0, upper=6.0), noise=NormalNoise(0.3))
    own = objective(a=bounded)
    assert own.evaluate(own.parameters).solved["scale of a"] == 5.0


class Vanishing(sx.GuardedField):
    """Ends at t = 1 / k from 1: nothing goes on behind."""

    k: Any

    def vector_field(self, t, y, args):
        return self.k * args * y**2


def test_a_failed_condition_is_never_an_improvement():
    """One condition blows up: +inf, a gradient of zero, and words; without it all is finite."""
    model = sx.Simulate(Vanishing(K), max_steps=200)
    series = sx.Series([[0.5, 1.0]] * 2, {"y": [[1.0, 1.0]] * 2}, conditions=["slow", "fast"])
    known = dict(inputs=dict(args=np.array([0.1, 100.0])), shared=dict(y0=jnp.ones(1)))
    own = sx.Objective(model, series, {"y": sx.Observable(0, noise=NormalNoise(0.1))}, **known)
    out, gradient = valued(own)
    assert out.value == jnp.inf and not any(jax.tree.leaves(gradient))
    assert int(out.num_failed) == 1 and out.log_likelihoods[1] == -jnp.inf
    assert "1 of 2 conditions failed" in out.explain() and "Condition fast" in out.explain()
    alone = own.take([0])
    value, gradient = jax.value_and_grad(alone)(own.parameters)
    assert np.isfinite(value) and gradient.coordinates["k"] != 0
    # A prediction without a logarithm is a failure, too.
    below = sx.Observable(lambda t, y, args, p: -y[0], noise=LogNormalNoise(0.1))
    own = sx.Objective(model, series.take([0]), {"y": below}, shared=dict(y0=jnp.ones(1), args=0.1))
    out, gradient = valued(own)
    assert out.value == jnp.inf and not any(jax.tree.leaves(gradient))
    assert "`y` are not finite" in out.explain()


def test_what_was_not_measured_has_no_derivative():
    """An observable whose derivative is infinite at a time at which it was not measured."""
    root = lambda t, y, args, p: jnp.sqrt(t) * p["scale"] + jnp.log(y[0] * t)
    scale = sx.Parameter("scale", 1.0)
    series = sx.Series([0.0, 1.0], {"a": [np.nan, 1.0], "y": [1.0, 0.5]})
    observables = {
        "a": sx.Observable(root, noise=NormalNoise(0.1)),
        "y": sx.Observable(0, noise=NormalNoise(0.1)),
    }
    model = sx.Simulate(Decay(K), controller=TIGHT)
    shared = dict(y0=jnp.ones(1))
    own = sx.Objective(model, series, observables, shared=shared, parameters=[scale])
    for mode in (jax.jacrev, jax.jacfwd):
        gradient = mode(own)(own.parameters).coordinates
        np.testing.assert_allclose(gradient["scale"], (1 - 0.7 - 1) / 0.01, rtol=1e-7)
        assert np.isfinite(gradient["k"])


def test_some_of_the_conditions():
    """Their sum is the whole, and another choice is no other program."""
    own = objective()
    known = own.parameters
    traces = 0

    @jax.jit
    def part(known, conditions):
        nonlocal traces
        traces += 1
        return own.take(conditions)(known)

    taken = own.take([2, 0, 1]).take([1])  # of some of them some
    np.testing.assert_allclose(taken(known), part(known, jnp.array([0])), rtol=1e-12)
    prior = known.log_prior()
    total = sum(part(known, jnp.array([i])) + prior for i in range(3)) - prior
    np.testing.assert_allclose(total, own(known), rtol=1e-9)
    assert traces == 1


def test_many_tables_at_once_and_no_callback():
    """As several starts of a fit have them; one that fails does not touch the others. It is a
    program that can be cached and written to a file."""
    own = objective()
    each = [own.parameters.with_values({"k": k}) for k in (0.3, 0.9, 2.0)]
    tables = jax.tree.map(lambda *xs: jnp.stack(xs), *each)
    bad = eqx.tree_at(lambda t: t.named["start"].coordinate, tables, jnp.array([2.0, jnp.nan, 2.0]))
    program = jax.jit(jax.vmap(jax.value_and_grad(own)))
    assert "callback" not in str(jax.make_jaxpr(program)(bad))
    value, gradient = program(bad)
    assert value[1] == jnp.inf and gradient.coordinates["k"][1] == 0
    for i in (0, 2):
        truth, slope = jax.value_and_grad(by_hand(A_NORMAL, B_NORMAL))(each[i])
        np.testing.assert_allclose(value[i], truth, rtol=1e-8)
        np.testing.assert_allclose(gradient.coordinates["k"][i], slope.coordinates["k"], rtol=1e-6)


def test_steady_states():
    """The call of any model: here a steady state under `steady_args`, then a condition each."""
    rate = sx.Parameter("rate", 0.5, scale="log")
    field = Relaxing(rate)
    series = sx.Series([[1.0], [2.0]], {"y": [[0.8], [0.9]]})
    observables = {"y": sx.Observable(0, noise=NormalNoise(0.1))}
    model = sx.SteadyThenSimulate(field, controller=TIGHT)
    given = dict(inputs=dict(args=jnp.array([1.0, 3.0])))
    shared = dict(y0=jnp.ones(1), steady_args=jnp.array(0.2))
    own = sx.Objective(model, series, observables, shared=shared, **given)

    def truth(rate):
        a, t = np.array([1.0, 3.0]), np.array([1.0, 2.0])
        y = a + (0.2 - a) * jnp.exp(-rate * t)
        return -jnp.sum(jax.scipy.stats.norm.logpdf(np.array([0.8, 0.9]), y, 0.1))

    value, gradient = jax.value_and_grad(own)(own.parameters)
    true_value, slope = jax.value_and_grad(truth)(0.5)
    np.testing.assert_allclose(value, true_value, rtol=1e-7)
    np.testing.assert_allclose(gradient.coordinates["rate"], 0.5 * slope, rtol=1e-6)


class Relaxing(sx.GuardedField):
    rate: Any

    def vector_field(self, t, y, args):
        return self.rate * (args - y)


class StudentNoise(AbstractNoise):
    """A third party's."""

    logarithmic: ClassVar[bool] = False

    def log_density(self, residual):
        return jax.scipy.stats.t.logpdf(residual, 4.0)


def test_a_noise_of_ones_own():
    own = objective(a=sx.Observable("y", noise=StudentNoise(0.3)))
    density = lambda m, out, p: jax.scipy.stats.t.logpdf((m - out) / 0.3, 4.0) - math.log(0.3)
    truth = by_hand(density, B_NORMAL)(own.parameters)
    np.testing.assert_allclose(own(own.parameters), truth, rtol=1e-8)


def test_boehm():
    """The likelihood of a published model at its published parameters (Boehm et al. 2014)."""
    problem = json.loads(data_file("Boehm_JProteomeRes2014.json").read_text())
    known = {}
    for row in problem["parameters"]:
        estimate = row["estimate"] == "1"
        known[row["parameterId"]] = sx.Parameter(
            row["parameterId"],
            float(row["nominalValue"]),
            scale="log10" if estimate else "linear",
            bounds=(float(row["lowerBound"]), float(row["upperBound"])) if estimate else None,
            estimate=estimate,
        )
    constants, species = problem["constants"], problem["species"]
    rhs = compile(f"[{', '.join(problem['rhs'])}]", "rhs", "eval")
    names = lambda y, p: {**constants, **p, **dict(zip(species, y, strict=True)), "exp": jnp.exp}

    class Boehm(sx.GuardedField):
        p: dict

        def vector_field(self, t, y, args):
            return jnp.stack(eval(rhs, {}, {**names(y, self.p), "t": t}))

    rows = problem["measurements"]
    columns = {new: [row[old] for row in rows] for new, old in (("time", "time"),)}
    columns |= {"observable": [row["observableId"] for row in rows]}
    columns |= {"measurement": [row["measurement"] for row in rows]}
    observables = {
        one["id"]: sx.Observable(
            lambda t, y, args, p, f=compile(one["formula"], "f", "eval"): eval(f, {}, names(y, p)),
            noise=NormalNoise(known[f"sd_{one['id']}"]),
        )
        for one in problem["observables"]
    }
    total = lambda p: jnp.stack([207.6 * p["ratio"], 207.6 * (1 - p["ratio"]), *[0.0] * 6])
    own = sx.Objective(
        sx.Simulate(Boehm(known), controller=TIGHT),
        sx.Series.from_table(columns),
        observables,
        shared=dict(y0=total),
    )
    np.testing.assert_allclose(own(own.parameters), 138.2219969, rtol=1e-7)


MODEL, Y0 = sx.Simulate(Decay(K)), dict(y0=jnp.ones(1))
ONE = sx.Series([1.0], {"y": [0.5]})
NOISY = {"y": sx.Observable(0, noise=NormalNoise(0.1))}


def make(*args, **keywords):
    return lambda: sx.Objective(*args, **keywords)


def called(*args, **keywords):
    return lambda: (own := sx.Objective(*args, **keywords))(own.parameters)


WRONG = {
    "no state": (make(MODEL, ONE, NOISY), "`y0` is missing"),
    "times": (make(MODEL, ONE, NOISY, shared=Y0 | dict(ts=[1.0])), "those of the series"),
    "another observable": (make(MODEL, ONE, NOISY | {"z": 0}, shared=Y0), "'z', which the series"),
    "no observable": (make(MODEL, ONE, {}, shared=Y0), "nothing for `y`"),
    "no sigma": (make(MODEL, ONE, {"y": 0}, shared=Y0), "has no `sigma`"),
    "a component": (
        called(MODEL, ONE, {"y": sx.Observable("q", noise=NormalNoise(1.0))}, shared=Y0),
        "`q`, which is no component",
    ),
    "a place": (
        called(MODEL, ONE, {"y": sx.Observable(4, noise=NormalNoise(1.0))}, shared=Y0),
        "component 4",
    ),
    "no number": (
        called(
            MODEL, ONE, {"y": sx.Observable(lambda *_: Y0["y0"], noise=NormalNoise(1.0))}, shared=Y0
        ),
        r"returned shape \(1,\)",
    ),
    "conditions": (
        called(MODEL, ONE, NOISY, inputs=dict(args=jnp.ones(3)), shared=Y0),
        r"has shape \(3,\), but there are 1 conditions",
    ),
    "no table": (lambda: sx.Objective(MODEL, ONE, NOISY, shared=Y0)({"k": 1.0}), "takes a table"),
    "another table": (
        lambda: sx.Objective(MODEL, ONE, NOISY, shared=Y0)(sx.parameters(SD)),
        "start from `objective.parameters`",
    ),
    "a logarithm": (
        make(
            MODEL,
            sx.Series([1.0], {"y": [0.0]}),
            {"y": sx.Observable(0, noise=LogNormalNoise(1.0))},
            shared=Y0,
        ),
        "no logarithm",
    ),
    "no least squares": (
        make(
            MODEL, ONE, {"y": sx.Observable(0, scale=Solved(), noise=LaplaceNoise(1.0))}, shared=Y0
        ),
        "not the largest likelihood",
    ),
    "an offset of a logarithm": (
        make(
            MODEL,
            ONE,
            {"y": sx.Observable(0, offset=Solved(), noise=LogNormalNoise(1.0))},
            shared=Y0,
        ),
        "not linear",
    ),
    "a sigma": (lambda: NormalNoise(-1.0), "one number above 0"),
    "an observable": (lambda: sx.Observable(None), "must be a function"),
    "a scale": (lambda: sx.Observable(0, scale="k"), "finite number"),
    "a noise": (lambda: sx.Observable(0, noise=1.0), "must be a noise"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name):
    wrong, words = WRONG[name]
    with pytest.raises((ValueError, TypeError), match=words):
        wrong()


def test_two_solved_numbers_that_have_no_closed_form():
    shared = Solved("gain")
    own = objective(
        a=sx.Observable(OBSERVED, scale=shared, noise=NormalNoise(Solved())),
        b=sx.Observable(OBSERVED, scale=shared, noise=NormalNoise(0.6)),
    )
    with pytest.raises(ValueError, match="that has no closed form"):
        own(own.parameters)


def test_they_print_as_they_were_given():
    sigma = sx.Parameter("sd", 0.2)
    one = sx.Observable(OBSERVED, scale=Solved("gain"), noise=LaplaceNoise(sigma))
    shown = "Observable(<lambda>, scale=Solved('gain'), noise="
    assert repr(one) == f"{shown}LaplaceNoise(sigma=Parameter('sd', 0.2)))"
    assert "offset=0.5" in repr(sx.Observable(0, offset=0.5))
    assert repr(sx.Observable("B")) == "Observable('B', noise=NormalNoise())"


def test_densities_are_those_of_scipy():
    m, out, sigma = jnp.array(1.3), jnp.array(0.9), jnp.array(0.4)
    log_normal = scipy.stats.lognorm.logpdf(1.3, 0.4, scale=0.9)
    np.testing.assert_allclose(LogNormalNoise().log_likelihood(m, out, sigma), log_normal)
    laplace = scipy.stats.laplace.logpdf(1.3, 0.9, 0.4)
    np.testing.assert_allclose(LaplaceNoise().log_likelihood(m, out, sigma), laplace)
