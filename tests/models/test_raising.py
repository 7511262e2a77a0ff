"""No silent failure: errors reach the derivative, a derivative that is not finite is an error, and
so are inputs that are nan, and times that a dtype does not tell apart."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import all_finite

import stablax as sx

jax.config.update("jax_enable_x64", True)

# Few kernels, and so little to compile.
CHEAP = dict(solver=diffrax.Euler(), controller=diffrax.ConstantStepSize(), dt0=0.125, max_steps=16)
TS = [0.5, 1.0]


# --- what `throw=True` raises for the value it raises for every derivative


def _wall(t, y, a):
    return jnp.where(y < 1.5, 2 * y * a, jnp.nan)


def _source(t, y, a):
    return a + 0 * y


def _simulate(a, **options):
    return sx.Simulate(_wall, **CHEAP, **options)(1.0, TS, args=a).ys[-1]


def _phases(a, **options):
    model = sx.SimulatePhases(_wall, **CHEAP, **options)
    return model(1.0, TS, sx.Phase(1.0, args=a)).ys[-1]


def _batch(a, **options):
    model = sx.Simulate(_wall, **CHEAP, **options)
    inputs = dict(args=jnp.stack([0.1 * a, a]))
    return sx.simulate_batch(model, inputs, shared=dict(y0=1.0, ts=TS)).ys[1, -1]


def _steady_then(a, **options):
    newton = dict(method=sx.Newton(), steady_max_steps=3)
    model = sx.SteadyThenSimulate(_source, **CHEAP, **newton, **options)
    return model(1.0, TS, args=a, steady_args=a).ys[-1]


def _steady(a, **options):
    return sx.find_steady_state(_source, 1.0, a, method=sx.Newton(), max_steps=3).y


FAILING = dict(
    Simulate=_simulate,
    SimulatePhases=_phases,
    simulate_batch=_batch,
    SteadyThenSimulate=_steady_then,
    find_steady_state=_steady,
)
REVERSE = {
    "jit(grad)": lambda f: jax.jit(jax.grad(f)),
    "filter_jit(filter_grad)": lambda f: eqx.filter_jit(eqx.filter_grad(f)),
    "jit(jacrev)": lambda f: jax.jit(jax.jacrev(f)),
    "jit(vmap(grad))": lambda f: lambda a: jax.jit(jax.vmap(jax.grad(f)))(jnp.array([0.0, a])),
}
FORWARD = {
    "jit(jacfwd)": lambda f: jax.jit(jax.jacfwd(f)),
    "jit(linearize)": lambda f: jax.jit(lambda a: jax.linearize(f, a)[1](1.0)),
}
ANYWHERE = [("Simulate", way) for way in (*REVERSE, *FORWARD)] + [
    ("SimulatePhases", "jit(grad)"),
    ("SteadyThenSimulate", "jit(grad)"),
    ("simulate_batch", "jit(grad)"),
    ("find_steady_state", "jit(grad)"),
    ("find_steady_state", "jit(jacfwd)"),
]


@pytest.mark.parametrize(("name", "way"), ANYWHERE)
def test_an_error_reaches_every_derivative(name, way):
    """The losses are linear, so that no number of the solution is needed for their derivative."""
    options = dict(adjoint=diffrax.ForwardMode()) if way in FORWARD else {}
    fn = lambda a: FAILING[name](a, **options)
    words = "steady state" if "teady" in name else "not finite however small"
    with pytest.raises(Exception, match=words):
        jax.block_until_ready({**REVERSE, **FORWARD}[way](fn)(jnp.array(1.0)))


def test_without_throw_there_is_no_callback():
    model = sx.Simulate(_wall, **CHEAP)
    loss = lambda a, throw: model(1.0, TS, args=a, throw=throw).ys[-1]

    def callbacks(fn):
        return jax.jit(fn).lower(0.1).as_text().count("python_cpu_callback")

    own = callbacks(lambda a: loss(a, False))  # diffrax's, of its checks of `saveat.ts`
    quiet, loud = (callbacks(jax.grad(lambda a, t=t: loss(a, t))) for t in (False, True))
    assert own == quiet < loud


# --- a derivative that is not finite though the value is


def test_a_derivative_that_is_not_finite_is_an_error_that_says_where():
    def loss(a, b, throw):
        root = lambda t, y, args: -y + jnp.sqrt(args["a"])
        simulation = sx.Simulate(root, **CHEAP)(1.0, TS, args=dict(a=a), throw=throw)
        return jnp.sum(jnp.sqrt(b * simulation.ys))

    loud = jax.jit(jax.grad(lambda a, b: loss(a, b, True)))
    assert jnp.isfinite(loud(1.0, 1.0))
    with pytest.raises(Exception, match=r"derivative in `args\['a'\]` is not finite"):
        jax.block_until_ready(loud(0.0, 1.0))
    with pytest.raises(Exception, match="derivative at the output `ys` is not finite"):
        jax.block_until_ready(loud(1.0, 0.0))
    # As data it is what it is.
    quiet = jax.jit(jax.grad(lambda a, b: loss(a, b, False)))
    assert quiet(0.0, 1.0) == np.inf


def test_a_tangent_that_is_not_finite_is_an_error():
    model = sx.Simulate(lambda t, y, a: -a * y, **CHEAP, adjoint=diffrax.ForwardMode())
    push = jax.jit(jax.jacfwd(lambda a: model(1.0, TS, args=jnp.sqrt(a)).ys[-1]))
    assert jnp.isfinite(push(1.0))
    with pytest.raises(Exception, match="derivative in `args` is not finite"):
        jax.block_until_ready(push(0.0))


# --- nan as an input, under `jit`: data, and finite


def _lanes(names):
    """One lane for each of `names`, in which that one is nan, and a last one without."""
    return {
        name: jnp.where(jnp.arange(len(names) + 1) == i, jnp.nan, good)
        for i, (name, good) in enumerate(names.items())
    }


def _decay(t, y, a):
    return -a * y


NAN_INPUTS = {
    "Simulate": (
        lambda x: sx.Simulate(_decay, **CHEAP)(
            x["y0"], x["ts"][None], t0=x["t0"], args=x["args"], throw=False
        ),
        dict(y0=1.0, ts=1.0, t0=0.0, args=1.0),
    ),
    "SimulatePhases": (
        lambda x: sx.SimulatePhases(_decay, **CHEAP)(
            x["y0"],
            jnp.stack([0.5 * x["ts"], x["ts"]]),
            [
                sx.Phase(x["end of phase 0"], args=x["args"]),
                sx.Phase(x["end of phase 1"], args=x["args"], dose=x["dose"]),
            ],
            t0=x["t0"],
            throw=False,
        ),
        {
            **dict(y0=1.0, ts=1.0, t0=0.0, args=1.0, dose=1.0),
            **{"end of phase 0": 0.5, "end of phase 1": 1.0},
        },
    ),
    "SteadyThenSimulate": (
        lambda x: sx.SteadyThenSimulate(
            lambda t, y, a: a - y, method=sx.Newton(), steady_max_steps=9, **CHEAP
        )(
            x["y0"],
            x["ts"][None],
            t0=x["t0"],
            args=x["args"],
            steady_args=x["steady_args"],
            throw=False,
        ),
        dict(y0=1.0, ts=1.0, t0=0.0, args=1.0, steady_args=1.0),
    ),
}


@pytest.mark.parametrize("model", NAN_INPUTS)
def test_an_input_that_is_nan_is_a_failure_with_finite_rows_and_no_gradient(model):
    call, names = NAN_INPUTS[model]
    lanes = _lanes(names)

    def solve(x):
        simulation = call(x)
        return jnp.sum(simulation.ys**2), simulation

    grads, simulations = jax.jit(jax.vmap(jax.grad(solve, has_aux=True)))(lanes)
    okay = sx.is_successful(simulations)
    assert okay.tolist() == [False] * len(names) + [True]
    assert all_finite((simulations.ys, simulations.reached))
    if simulations.steady is not None:
        assert all_finite(simulations.steady.y)
    for name, grad in grads.items():
        assert grad[:-1].tolist() == [0.0] * len(names), name


# --- times that a dtype does not tell apart


F32 = jnp.float32(1.0)
DAY = sx.Simulate(lambda t, y, args: -y, **CHEAP)
DAYS = sx.SimulatePhases(lambda t, y, args: -y, **CHEAP)
BLURRED = {
    "from t0": (lambda: DAY(F32, [19700.001], t0=19700.0), r"19700 to `ts\[0\]` pass 0.001, but"),
    "equal": (lambda: DAY(F32, [1.7e9 + 1], t0=1.7e9), r"`ts\[0\]` pass 1, but 0 in float32"),
    "whole seconds": (lambda: DAY(F32, [1_700_000_001], t0=1_700_000_000), "pass 1, but 0"),
    "nanoseconds": (lambda: DAY(1.0, [10**18 + 1], t0=10**18), "pass 1, but 0 in float64"),
    "backwards": (lambda: DAY(F32, [19700.0], t0=19700.001), "pass -0.001, but -0.00195"),
    "known while y0 is traced": (
        lambda: jax.jit(lambda y: DAY(y, [19700.001], t0=19700.0).ys)(F32),
        "pass 0.001",
    ),
    "as float32 already": (lambda: DAY(F32, jnp.float32([19700.001]), t0=19700.0), "fewer than 16"),
    "float64": (lambda: DAY(1.0, [1e300 * (1 + 3e-16)], t0=1e300), "that float64, the dtype"),
    "a jump": (
        lambda: sx.Simulate(_decay, controller=sx.StiffPID.preset(jump_ts=[19700.001]))(
            F32, [19701.0], t0=19700.0, args=F32
        ),
        r"`jump_ts\[0\]` pass 0.001",
    ),
    "a short phase": (
        lambda: DAYS(F32, [19705.0], [sx.Phase(19700.001), sx.Phase(19710.0)], t0=19700.0),
        "to the end of phase 0 pass 0.001",
    ),
    "repeated phases": (
        lambda: DAYS(F32, [1.7e9 + 2], sx.Phase.repeat(2, 1.0, t0=1.7e9), t0=1.7e9),
        "to the end of phase 0 pass 1, but 0",
    ),
    "after the start of a phase": (
        lambda: DAYS(F32, [19700.0005], [sx.Phase(19700.0), sx.Phase(19710.0)]),
        r"From 19700 to `ts\[0\]` pass 0.0005, but 0",
    ),
    "in a batch": (
        lambda: sx.simulate_batch(
            DAY, dict(ts=np.array([[19701.0], [19700.001]])), shared=dict(y0=F32, t0=19700.0)
        ),
        r"`ts\[1, 0\]` pass 0.001",
    ),
}


@pytest.mark.parametrize("case", BLURRED)
def test_times_that_the_dtype_does_not_tell_apart_are_refused(case):
    call, words = BLURRED[case]
    with pytest.raises(ValueError, match=words) as raised:
        call()
    assert "Count time from the start" in str(raised.value)
    assert ("float64 `y0`" in str(raised.value)) == (case not in ("nanoseconds", "float64"))


def test_without_float64_what_was_given_still_counts():
    """Where float64 is off, no array of jax has the digits of a Python number."""
    with jax.enable_x64(False):
        for case in ("from t0", "equal", "a short phase", "repeated phases", "in a batch"):
            call, words = BLURRED[case]
            with pytest.raises(ValueError, match=words):
                call()


def test_times_that_are_measured_pass():
    """Rounding of float32 that is nothing beside the time that has passed."""
    for t0, ts in (
        (0.0, np.linspace(1e3, 1e4, 2)),
        (0.1, [0.2, 0.30000000000000004]),
        (0.3, [0.1 + 0.2, 1.0]),  # one ulp of float64 after it
        (2000.0, [2000.1, 2010.0]),
        (5e-324, [1e-9, 1.0]),
        (1.0, [0.9, 0.1]),
        (0, [1, 100]),
        (1.7e9, [1.7e9, 1.7e9]),
    ):
        assert DAY(F32, ts, t0=t0, throw=False).result != sx.RESULTS.bad_times
    doses = sx.Phase.repeat(30, 24.0, dose=jnp.float32(1.0))
    for ts in (np.arange(0.0, 720.0, 0.1)[:600], 696 + np.arange(0.1, 24, 0.1)[:239]):
        jax.eval_shape(lambda ts=ts: DAYS(F32, ts, doses))
    jax.eval_shape(lambda: DAYS(F32, np.arange(0, 1, 0.1), [sx.Phase(0.3), sx.Phase(1.0)]))


def test_traced_times_that_the_dtype_does_not_tell_apart_are_data():
    """And a failed sample has no gradient."""
    starts = jnp.array([19700.0, 0.0])

    def solve(y0, t0):
        simulation = DAY(y0, (t0 + 0.001)[None], t0=t0, throw=False)
        return simulation.ys[-1], simulation

    fn = jax.jit(jax.vmap(jax.value_and_grad(solve, has_aux=True), (None, 0)))
    (values, simulations), grads = fn(F32, starts)
    assert sx.is_successful(simulations).tolist() == [False, True]
    assert "must resolve the time" in sx.explain(simulations)
    np.testing.assert_allclose(values, [1.0, np.exp(-0.001)], rtol=1e-5)
    np.testing.assert_allclose(grads, [0.0, np.exp(-0.001)], rtol=1e-5)
