"""`check_gradient` confirms what is right and finds what is wrong."""

import json

import crauste
import diffrax
import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
from helpers import slow

import stablax as sx

jax.config.update("jax_enable_x64", True)


class Stiff(eqx.Module):
    """In plain diffrax: y(1) = 2 exp(-p), behind a fast relaxation."""

    p: jax.Array
    adjoint: diffrax.AbstractAdjoint

    def __call__(self):
        def field(t, y, p):
            return jnp.stack([-1e3 * (y[0] - y[1]), -p * y[1]])

        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Tsit5(),
            0.0,
            1.0,
            None,
            jnp.array([2.0, 2.0]),
            self.p,
            stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-6),
            adjoint=self.adjoint,
            max_steps=100_000,
            throw=False,
        )
        return solution.ys[0, 0]


def call(model, *inputs):
    return model(*inputs)


def test_backsolve_is_wrong_on_a_stiff_system():
    model = Stiff(jnp.array(1.0), diffrax.BacksolveAdjoint())
    check = sx.check_gradient(
        call, model, adjoints=("RecursiveCheckpointAdjoint", "BacksolveAdjoint")
    )
    assert check.verdict == "wrong" and not check.ok
    first = check.directions[0]
    scale = first.difference / (-2 * np.exp(-1.0))  # the direction moves p by less than its size
    assert abs(scale) <= 1 and first.uncertainty < 1e-6
    assert first.reverse / scale == pytest.approx(-0.53, abs=0.05)  # for -0.736
    assert first.forward == pytest.approx(first.difference, rel=1e-3)  # by ForwardMode
    assert {a.name: a.verdict for a in check.adjoints} == {
        "RecursiveCheckpointAdjoint": "right",
        "BacksolveAdjoint": "wrong",
    }
    assert "RecursiveCheckpointAdjoint would be right" in str(check)
    data = json.loads(json.dumps(check.to_dict()))
    assert data["verdict"] == "wrong" and data["result"] == "successful"


def test_an_implicit_adjoint_with_a_conserved_quantity():
    def loss(k):
        def field(t, y, k):
            flux = k[0] * y[0] - k[1] * y[1]
            return jnp.stack([-flux, flux])

        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Tsit5(),
            0.0,
            jnp.inf,
            None,
            jnp.array([1.0, 0.0]),
            k,
            stepsize_controller=diffrax.PIDController(rtol=1e-8, atol=1e-8),
            adjoint=diffrax.ImplicitAdjoint(),
            event=diffrax.Event(diffrax.steady_state_event()),
        )
        return solution.ys[0, 0]

    with jax.numpy_dtype_promotion("standard"):  # diffrax's adjoint needs it
        check = sx.check_gradient(loss, jnp.array([2.0, 3.0]), adjoints=())
    assert check.verdict in ("not finite", "wrong")
    if check.verdict == "not finite":
        assert check.result == "gradient_not_finite"


def test_the_time_of_an_event_that_is_not_solved_for():
    def falls(g, root_finder=None):
        event = diffrax.Event(lambda t, y, args, **kwargs: y[0], root_finder)
        if root_finder is None:
            event = diffrax.Event(lambda t, y, args, **kwargs: y[0] < 0)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, g: jnp.stack([y[1], -g])),
            diffrax.Tsit5(),
            0.0,
            10.0,
            0.01,
            jnp.array([1.0, 0.0]),
            g,
            event=event,
        )
        return solution.ts[0]

    check = sx.check_gradient(falls, jnp.array(9.8), adjoints=())
    assert check.verdict == "discontinuous"
    assert check.directions[0].jump == pytest.approx(0.01)
    assert "root_finder" in str(check)


def test_a_gradient_that_is_stopped_by_mistake():
    def loss(p):
        return jnp.sum(lax.stop_gradient(p["a"]) * p["b"]) ** 2

    p = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([3.0, 4.0])}
    check = sx.check_gradient(loss, p)
    verdicts = {d.name: d.verdict for d in check.directions}
    assert verdicts["['a']"] == "wrong" and verdicts["['b']"] == "right"
    assert check.text == "The gradient is wrong in ['a']."
    assert "in ['a'] it is exactly 0" in str(check) and "Phase(t1=tau)" in str(check)
    assert all(a.verdict == "not available" for a in check.adjoints)


@pytest.mark.parametrize("off", [0.0, slow(1e-9)])
def test_a_gradient_at_a_minimum_is_right(off):
    """It is zero, and the differences are what the solve rounds off. (So is one next to it.)"""
    model = sx.Simulate(lambda t, y, k: -k * y)
    best = model(1.0, [1.0], args=jnp.array(2.0)).ys
    loss = lambda k: jnp.sum((model(1.0, [1.0], args=k).ys - best) ** 2)
    check = sx.check_gradient(loss, jnp.array(2.0 + off))
    assert check.verdict == "right"
    stopped = lambda k: loss(2.0 + jax.lax.stop_gradient(k - 2.0))
    assert sx.check_gradient(stopped, jnp.array(2.3)).verdict == "wrong"


def test_an_infinite_derivative():
    check = sx.check_gradient(lambda p: jnp.sum(jnp.sqrt(p * 0.0)), jnp.ones(2), adjoints=())
    assert check.verdict == "not finite" and check.result == "gradient_not_finite"


class Fades(eqx.Module):
    k: jax.Array

    def __call__(self, t, y, args):
        return -self.k * y * (1 + 0.1 * jnp.sin(t))


# https://github.com/patrick-kidger/diffrax/issues/716
def test_an_error_beyond_the_tolerance_of_the_solve_is_one():
    """Half a permille, where the model is good for more, was once called right."""

    def loss(model, bias):
        y = model(1.0, [1.0], throw=False).ys[-1]
        return y + bias * (y - lax.stop_gradient(y))

    model = sx.Simulate(Fades(jnp.array(1.5)), solver=diffrax.Tsit5())
    verdicts = [
        sx.check_gradient(loss, model, bias, adjoints=()).verdict
        for bias in (jnp.array(5e-4), jnp.array(0.0))
    ]
    assert verdicts == ["wrong", "right"]


def test_noise_is_not_taken_for_an_error():
    """A right gradient under noise that leaves no digit of the differences."""

    def noisy(p):
        return 1.0 + 1e-9 * p + 1e-5 * lax.stop_gradient(jnp.sin(1e9 * p))

    check = sx.check_gradient(noisy, jnp.array(1.0), adjoints=())
    assert check.verdict == "undecided"
    assert 1e-6 < check.directions[0].noise < 1e-4
    assert "hides its derivative" in check.text


class Exponential(eqx.Module):
    """exp(p), with an error in its gradient; what is solved in it has a tolerance."""

    p: jax.Array
    error: float = eqx.field(static=True)
    controller: sx.StiffPID

    def __call__(self):
        @jax.custom_jvp
        def fn(p):
            return jnp.exp(p)

        fn.defjvp(lambda p, t: (jnp.exp(p[0]), (1 + self.error) * jnp.exp(p[0]) * t[0]))
        return fn(self.p)


@pytest.mark.parametrize(
    ("error", "preset", "verdict"),
    [
        (1e-5, "balanced", "right"),
        (5e-4, "balanced", "wrong"),
        (5e-4, "fast", "right"),
        (5e-6, "precise", "wrong"),
    ],
)
def test_a_gradient_may_be_off_by_what_the_tolerance_explains(error, preset, verdict):
    model = Exponential(jnp.array(1.0), error, sx.StiffPID.preset(preset))
    check = sx.check_gradient(call, model, adjoints=(), directions=1)
    assert check.verdict == verdict


def test_evaluations_that_fail_are_told():
    def blow_up(p):
        return jnp.where(p < 1 + 1e-9, p**3, jnp.nan)

    check = sx.check_gradient(blow_up, jnp.array(1.0), adjoints=(), directions=1)
    assert check.verdict == "undecided" and check.directions[0].failed > 10
    assert "no difference to compare" in check.text
    assert f"{check.directions[0].failed} evaluations at moved parameters failed" in check.text


def test_a_pulse_that_is_stepped_over_is_not_right():
    # https://github.com/jax-ml/jax/issues/10922
    def field(t, y, args):
        return args * jnp.exp(-0.5 * ((t - 50) / 0.5) ** 2)

    def loss(model_and_size):
        model, size = model_and_size
        return model(0.0, [100.0], args=size).ys[-1]

    model = sx.Simulate(field, adjoint=diffrax.ForwardMode())
    check = sx.check_gradient(loss, (model, jnp.array(1.0)), adjoints=(), directions=1)
    assert check.verdict == "unresolved" and not check.ok
    assert check.value < 1e-50  # and its derivative is right, to 1e-54
    assert check.directions[0].verdict == "right"
    assert check.finer.value == pytest.approx(1.25331414, rel=1e-5)
    assert "1.25331 instead of" in check.text and "diagnose" in str(check)


def test_a_solution_that_depends_on_its_tolerance():
    """The gradient of a "successful" fit is 900 times too large."""

    def loss(model):
        ys = model(crauste.Y0, crauste.TS, throw=False).ys
        return crauste.log_likelihood(ys)

    field = crauste.Response(crauste.LOG10_RATES)
    model = sx.Simulate(field, adjoint=diffrax.ForwardMode(), max_steps=500)
    check = sx.check_gradient(loss, model, adjoints=(), directions=1)
    assert check.verdict == "unresolved" and not check.finer.settled
    assert check.value == pytest.approx(crauste.LIKELIHOOD, abs=4e-3)
    assert abs(check.directions[0].forward) > 3 * abs(check.finer.derivative)
    # That they failed shows in their derivatives only.
    assert check.directions[0].failed > 0
    assert "evaluations at moved parameters failed" in check.text
    assert "depends on the tolerance" in check.text


class Decay(sx.GuardedField):
    k: jax.Array

    def vector_field(self, t, y, args):
        return -self.k * jnp.sqrt(y)


class Fall(sx.GuardedField):
    g: jax.Array

    def vector_field(self, t, y, args):
        return jnp.stack([y[1], -self.g])


@pytest.mark.slow
def test_a_model_is_right_by_every_adjoint():
    model = sx.Simulate(Decay(jnp.array(1.5)), solver=diffrax.Tsit5())
    loss = lambda model, y0: model(y0, [0.3]).ys[-1] ** 2
    check = sx.check_gradient(loss, model, 1.0, directions=1)
    assert check.ok, check
    only = check.directions[0]
    exact = -4 * (1 - 0.225) ** 3 * 0.15  # of (1 - k t / 2)^4 in k
    assert 0.5 * 1.5 <= abs(only.difference / exact) <= 1.5
    assert only.reverse == pytest.approx(only.difference, rel=1e-5)
    assert only.forward == pytest.approx(only.difference, rel=1e-5)
    told = {a.name: (a.verdict, a.note) for a in check.adjoints}
    for name in ("RecursiveCheckpointAdjoint", "DirectAdjoint", "ForwardMode"):
        assert told[name] == ("right", "")
    assert told["BacksolveAdjoint"][0] == "not available"
    assert "refused" in told["BacksolveAdjoint"][1]


def test_the_time_of_an_event_that_is_solved_for():
    event = diffrax.Event(lambda t, y, args, **kwargs: y[0], optx.Newton(1e-8, 1e-8))
    model = sx.Simulate(Fall(jnp.array(9.8)), solver=diffrax.Tsit5(), event=event)
    # What is not reached repeats the state at the event: v^2 = 2 g h.
    loss = lambda model: model(jnp.array([1.0, 0.0]), [10.0]).ys[-1, 1] ** 2
    check = sx.check_gradient(loss, model, adjoints=(), directions=1)
    assert check.ok, check
    assert check.value == pytest.approx(2 * 9.8, rel=1e-6)
    assert 0.5 * 2 * 9.8 <= abs(check.directions[0].reverse) <= 2 * 9.8


def test_wrong_inputs():
    with pytest.raises(ValueError, match="no floating-point array"):
        sx.check_gradient(lambda p: 1.0, {"a": 3})
    with pytest.raises(ValueError, match=r"got shape \(2,\)"):
        sx.check_gradient(lambda p: p, jnp.ones(2))
    with pytest.raises(ValueError, match="`fn` itself is nan"):
        sx.check_gradient(lambda p: jnp.log(-p), jnp.array(1.0))
    with pytest.raises(ValueError, match='"Adjoint"; the names are'):
        sx.check_gradient(lambda p: p, jnp.array(1.0), adjoints=("Adjoint",))
    with pytest.raises(ValueError, match="`directions` must be at least 1"):
        sx.check_gradient(lambda p: p, jnp.array(1.0), directions=0)
    with pytest.raises(TypeError, match="outside `jit`"):
        jax.jit(lambda p: sx.check_gradient(lambda q: q, p).value)(1.0)
