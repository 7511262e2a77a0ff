"""Many solves, a few at a time: the same as one `vmap`, in the same order."""

import re

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Counted, slow

import stablax as sx
from stablax._models import _batch

TS = jnp.array([0.5, 1.0])
RATES = jnp.array([3.0, 0.1, 40.0, 1.0, 7.0, 0.5, 12.0])
START = jnp.array([1.0, 0.5])
SHARED = dict(y0=START, ts=TS)


def _field(t, y, k):
    flow = k * (y[0] ** 2 - y[1])
    return jnp.stack([-flow, flow])


MODEL = sx.Simulate(_field)
WIDE = jax.jit(jax.vmap(lambda k: MODEL(START, TS, args=k, throw=False)))


@pytest.mark.parametrize(
    ("batch_size", "order_by"), [(3, None), (3, "array"), (1, "function"), (100, "array")]
)
def test_the_batch_is_that_of_vmap_in_the_order_of_the_inputs(batch_size, order_by):
    order_by = {
        None: None,
        "array": -RATES,
        "function": lambda sample: sample["args"] * sample["y0"][0],
    }[order_by]
    ours = sx.simulate_batch(
        MODEL, dict(args=RATES), shared=SHARED, batch_size=batch_size, order_by=order_by
    )
    theirs = WIDE(RATES)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    leaves = zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True)
    for (path, a), b in leaves:
        assert a.shape == b.shape and a.dtype == b.dtype
        # The size of a step comes from an error estimate, a small difference of large numbers.
        rtol = 1e-6 if jax.tree_util.keystr(path).endswith("['dt']") else 1e-9
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=1e-12)
    assert len(set(np.asarray(ours.stats["num_steps"]).tolist())) > 2  # they do differ


def test_another_device_than_a_cpu_takes_many_lanes_at_once(monkeypatch):
    assert _batch._usual_lanes(None) == 64
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert _batch._usual_lanes(None) == 32_768


def test_every_argument_can_differ():
    y0 = {"a": jnp.linspace(1.0, 2.0, 5)}
    model = sx.Simulate(lambda t, y, k: {"a": -k["rate"] * y["a"] + k["source"]})
    starts = np.linspace(0.0, 0.4, 5)
    times = np.stack([starts + 0.5, starts + 1.0], axis=1)
    rates = np.linspace(1.0, 2.0, 5)
    inputs = dict(y0=y0, ts=times, t0=starts, args={"rate": rates, "source": np.zeros(5)})
    sims = sx.simulate_batch(model, inputs, batch_size=2)
    exact = np.linspace(1.0, 2.0, 5)[:, None] * np.exp(-rates[:, None] * np.array([0.5, 1.0]))
    np.testing.assert_allclose(sims.ys["a"], exact, rtol=1e-4)
    np.testing.assert_allclose(sims.ts, times)


WEIGHTS = jnp.arange(28.0).reshape(7, 2, 2)


def test_gradients_are_those_of_vmap():
    class Scaled(eqx.Module):
        scale: jax.Array

        def __call__(self, t, y, k):
            return self.scale * _field(t, y, k)

    model = sx.Simulate(Scaled(jnp.array(1.5)))

    def few(model, rates):
        sims = sx.simulate_batch(
            model, dict(args=rates), shared=SHARED, batch_size=3, order_by=rates
        )
        return jnp.sum(sims.ys * WEIGHTS)

    def wide(model, rates):
        ys = jax.vmap(lambda k: model(START, TS, args=k).ys)(rates)
        return jnp.sum(ys * WEIGHTS)

    gradients = [
        eqx.filter_jit(eqx.filter_grad(lambda given, f=f: f(*given)))((model, RATES))
        for f in (few, wide)
    ]
    np.testing.assert_allclose(*(model.field.scale for model, _ in gradients), rtol=1e-8)
    slopes = [slopes for _, slopes in gradients]
    np.testing.assert_allclose(*slopes, rtol=1e-8, atol=1e-12)
    assert np.abs(slopes[0]).max() > 1e-3


# Issue 13.
def test_no_lane_waits():
    calls = []

    def field(t, y, k):
        jax.debug.callback(lambda: calls.append(None))  # once for all lanes
        return k * jnp.stack([y[1], -y[0]])

    model = sx.Simulate(field)
    rates = jnp.asarray(np.random.default_rng(0).exponential(4.0, 128))

    def few(k):
        return sx.simulate_batch(model, dict(args=k), shared=SHARED, batch_size=8, throw=False)

    def wide(k):
        return jax.vmap(lambda k: model(START, TS, args=k, throw=False))(k)

    def both(solve):
        """Steps and gradient, and how often all lanes evaluated the field."""
        program = jax.grad(lambda k: (lambda s: (s.ys.sum(), s.stats))(solve(k)), has_aux=True)
        calls.clear()
        slope, stats = jax.block_until_ready(jax.jit(program)(rates))
        jax.effects_barrier()
        return slope, np.asarray(stats["num_steps"]), len(calls)

    slope, steps, times = both(few)
    slope_wide, _, times_wide = both(wide)
    np.testing.assert_allclose(slope, slope_wide, rtol=1e-7, atol=1e-12)
    assert steps.max() > 1.8 * steps.mean()
    # Side by side, `times_wide` is the evaluations of the slowest.
    assert 8 * times < 1.25 * 128 * times_wide * steps.mean() / steps.max()


def _phases(rates):
    """From a steady state, with a dose; starts, doses and conditions differ."""
    doses = sx.AddDose(jnp.outer(rates, START))
    phases = [
        sx.Phase(jnp.full(rates.size, 0.7), args=rates),
        sx.Phase(jnp.full(rates.size, 1.0), args=2 * rates, dose=doses),
    ]
    shared = dict(ts=TS, steady_args=1.0, conserved=np.array([[1.0, 1.0]]))
    return dict(phases=phases, y0=jnp.outer(rates, START)), shared


def _events(rates):
    """At times that differ."""
    return dict(args=rates, ts=jnp.outer(rates, TS)), dict(y0=START)


_EVENT = diffrax.Event(lambda t, y, args, **kwargs: y[0] - 0.8)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        slow(sx.SimulatePhases(_field, steady=True, solver=diffrax.Tsit5()), _phases),
        (sx.Simulate(_field, event=_EVENT, solver=diffrax.Tsit5()), _events),
    ],
    ids=["phases from a steady state", "event"],
)
def test_lanes_are_exchanged_in_whatever_is_solved(model, inputs):
    def few(inputs, shared):
        return sx.simulate_batch(model, inputs, shared=shared, batch_size=3, throw=False)

    def wide(inputs, shared):
        return jax.vmap(lambda one: model(**one, **shared, throw=False))(inputs)

    def outputs(rates, solve):
        sims = solve(*inputs(rates))
        steady = 0.0 if sims.steady is None else sims.steady.y
        return jnp.sum(sims.ys * WEIGHTS) + jnp.sum(sims.t1) + jnp.sum(steady), sims.stats

    found, right = (
        jax.jit(jax.value_and_grad(lambda r, solve=solve: outputs(r, solve), has_aux=True))(RATES)
        for solve in (few, wide)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), found, right)
    assert np.abs(found[1]).min() > 1e-6


DECAYS = np.exp(-np.outer(RATES, TS))  # by their rates
TIGHT = dict(solver=diffrax.Tsit5(), controller=sx.StiffPID(1e-9, 1e-12))


@pytest.mark.parametrize("adjoint", [sx.DiscreteAdjoint(), diffrax.ForwardMode()], ids=repr)
def test_forward_mode(adjoint):
    model = sx.Simulate(lambda t, y, k: -k * y, adjoint=adjoint, **TIGHT)

    def few(rates):
        return sx.simulate_batch(model, dict(args=rates), shared=SHARED, batch_size=3).ys

    slopes = jax.jit(lambda r: jax.jvp(few, (r,), (r,))[1])(RATES)
    exact = -np.outer(RATES, TS) * DECAYS
    np.testing.assert_allclose(slopes, exact[:, :, None] * START[None, None], rtol=1e-6, atol=1e-9)


def test_what_is_kept_of_the_steps_is_bounded(monkeypatch):
    """Groups of samples that are solved again where their derivative is taken."""
    monkeypatch.setattr(_batch, "_NUMBERS", 1)
    model = sx.Simulate(lambda t, y, k: -k * y, **TIGHT)

    def few(rates):
        inputs = dict(args=rates)
        return sx.simulate_batch(model, inputs, shared=SHARED, batch_size=1, order_by=-rates).ys

    program = jax.jit(jax.grad(lambda r: jnp.sum(few(r)))).lower(RATES).compile()
    exact = -(DECAYS * np.asarray(TS)).sum(1) * START.sum()
    np.testing.assert_allclose(program(RATES), exact, rtol=1e-7, atol=1e-9)
    # No array of the program holds the steps of all.
    shapes = re.findall(r"f64\[([\d,]+)\]", program.as_text())
    sizes = [int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes]
    assert max(sizes) == 4 * 4096 * 2  # of four samples a lane


def test_an_ensemble_of_models():
    class Decay(eqx.Module):
        rate: jax.Array

        def __call__(self, t, y, args):
            return -self.rate * y

    models = eqx.filter_vmap(lambda k: sx.Simulate(Decay(k)))(RATES)

    def solve(models, **inputs):
        return sx.simulate_batch(models, inputs, shared=SHARED, batch_size=3, ensemble=True).ys

    def total(models):
        ys = solve(models)
        return ys.sum(), ys

    slope, ys = eqx.filter_jit(eqx.filter_grad(total, has_aux=True))(models)
    np.testing.assert_allclose(ys, DECAYS[:, :, None] * START[None, None], rtol=1e-3, atol=1e-6)
    exact = -(DECAYS * np.asarray(TS)).sum(1) * START.sum()
    np.testing.assert_allclose(slope.field.rate, exact, rtol=1e-3, atol=1e-5)
    with pytest.raises(
        ValueError, match="`args` in `inputs` has a leading axis of 2, but an array"
    ):
        solve(models, args=TS)
    with pytest.raises(ValueError, match="an array of `model` is a single number.*ensemble=True"):
        solve(sx.Simulate(Decay(RATES[0])))


def test_other_values_are_not_another_program():
    field = Counted(_field)
    model = sx.Simulate(field)

    def run(rates, order_by, **shared):
        sx.simulate_batch(model, dict(args=rates), shared=shared, batch_size=3, order_by=order_by)

    run(RATES, RATES, y0=START, ts=TS, t0=0.0)
    traced = field.calls
    run(2 * RATES, RATES[::-1], y0=START + 0.1, ts=[0.2, 0.7], t0=0.1)
    run(np.asarray(RATES), lambda s: 1 / s["args"], y0=np.array([1.0, 2.0]), ts=TS, t0=-0.5)
    sx.simulate_batch(
        sx.Simulate(field), dict(args=RATES), shared=dict(SHARED, t0=0.0), batch_size=3,
        order_by=RATES,
    )  # fmt: skip
    assert traced >= 1 and field.calls == traced


def test_steady_then_simulate():
    def relax(t, y, k):
        return k - y

    model = sx.SteadyThenSimulate(relax)
    before, after = jnp.array([1.0, 2.0, 3.0]), jnp.array([2.0, 2.0, 5.0])
    sims = sx.simulate_batch(
        model,
        dict(steady_args=before, args=after),
        shared=dict(y0=0.0, ts=TS),
        batch_size=2,
        order_by=after,
    )
    np.testing.assert_allclose(sims.steady.y, before, rtol=1e-6)
    exact = after[:, None] + (before - after)[:, None] * np.exp(-TS)[None, :]
    np.testing.assert_allclose(sims.ys, exact, rtol=1e-4)


def _wall(t, y, args):
    return jnp.where(y < args, y, jnp.nan)


WALLS = jnp.array([10.0, 1.5, 10.0, 1.2, 1.3])


def test_failed_samples_are_named_and_spoil_no_gradient():
    model = sx.Simulate(_wall)

    def run(starts, throw):
        return sx.simulate_batch(
            model,
            dict(args=WALLS, y0=starts),
            shared=dict(ts=TS),
            batch_size=2,
            order_by=WALLS,
            throw=throw,
        )

    for call in (run, eqx.filter_jit(run)):
        with pytest.raises(RuntimeError, match=r"3 of 5 lanes \(1, 3, 4\): .*not finite"):
            call(jnp.ones(5), True)
    sims = run(jnp.ones(5), False)
    assert sx.is_successful(sims).tolist() == [True, False, True, False, False]
    slopes = jax.jit(jax.grad(lambda y0: run(y0, False).ys[:, -1].sum()))(jnp.ones(5))
    np.testing.assert_allclose(slopes, np.e * np.array([1, 0, 1, 0, 0]), rtol=1e-4)


def _stepping(shared=None, **each):
    inputs = dict(args=RATES, **(dict(stepping=sx.Stepping(**each)) if each else {}))
    extra = {} if shared is None else dict(stepping=sx.Stepping(**shared))
    return dict(inputs=inputs, shared=dict(SHARED, **extra))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (dict(inputs=dict(args=RATES, t0=TS)), ValueError, "`t0`.*axis of 2, but `args`.* of 7"),
        (dict(inputs=dict(args=dict(k=RATES, s=1.0))), ValueError, r"`args\['s'\]`.*`shared`"),
        (dict(inputs={}), ValueError, "holds no array"),
        (dict(inputs=dict(args=RATES[:0])), ValueError, "no samples"),
        (dict(inputs=dict(rates=RATES)), TypeError, "'rates', but Simulate is called with `y0`"),
        (dict(inputs=dict(args=RATES, ts=TS)), TypeError, "`ts` is in `inputs` and in `shared`"),
        (dict(shared=dict(ts=TS)), TypeError, "`y0` is missing"),
        (
            dict(model=sx.SteadyThenSimulate(_field), inputs=dict(args=RATES, conserved=TS)),
            TypeError,
            "`conserved` is in `inputs`, but the same for all",
        ),
        (dict(shared=dict(SHARED, throw=False)), TypeError, "argument of `simulate_batch`"),
        (dict(batch_size=0), ValueError, "`batch_size` must be at least 1, got 0"),
        (dict(order_by=RATES[:3]), ValueError, r"`order_by` has shape \(3,\).* 7 samples"),
        (dict(order_by=lambda s: s["y0"]), ValueError, r"`order_by` returned shape \(2,\)"),
        (dict(shared=dict(SHARED, ts=1.0)), ValueError, r"`ts` must be a vector .* shape \(\)"),
        (_stepping(shared=dict(rtol=1e-17)), ValueError, "`stepping.rtol=1e-17` is below"),
        (_stepping(rtol=np.geomspace(1e-3, 1e-17, 7)), ValueError, "`stepping.rtol=1e-17` is bel"),
        (_stepping(max_steps=np.full(7, 5000)), ValueError, "the model keeps 4096 steps"),
        (_stepping(shared=dict(max_steps=5000)), ValueError, "the model keeps 4096 steps"),
        (_stepping(jump_ts=np.zeros((7, 2, 2))), ValueError, r"jump_ts` has shape \(2, 2\)"),
        (_stepping(shared=dict(rtol=np.ones(7))), ValueError, r"rtol` has shape \(7,\)"),
        (_stepping(dtmax=0.1), ValueError, "`stepping.dtmax` in `inputs` is a single number"),
        (dict(shared=dict(SHARED, stepping=1e-3)), TypeError, "must be a `stablax.Stepping`"),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_it(changes, error, words):
    arguments = dict(model=MODEL, inputs=dict(args=RATES), shared=SHARED) | changes
    with pytest.raises(error, match=words):
        sx.simulate_batch(**arguments)


@pytest.mark.parametrize("each", [True, False])
def test_given_times_are_told_apart(each):
    """Those of each sample, or of all: in float32, 1000.00002 is the start."""
    jump_ts = np.array([[1000.25], [1000.5], [1000.00002]])
    stepping = sx.Stepping(jump_ts=jump_ts if each else jump_ts[2])
    inputs, shared = dict(args=RATES[:3]), dict(y0=jnp.float32([1, 0]), ts=[1000.5], t0=1000.0)
    (inputs if each else shared)["stepping"] = stepping
    with pytest.raises(ValueError, match=rf"`jump_ts\[{'2, ' if each else ''}0\]` pass 2e-05"):
        sx.simulate_batch(MODEL, inputs, shared=shared)


def test_a_budget_is_that_of_the_phases():
    """They may have more than their model."""
    model = sx.SimulatePhases(lambda t, y, k: -k * y, solver=diffrax.Bosh3(), max_steps=2)
    phases = sx.Phase(1.0, 1.0, max_steps=200)
    inputs = dict(y0=jnp.ones(3), stepping=sx.Stepping(max_steps=np.array([100, 150, 200])))
    found = sx.simulate_batch(model, inputs, shared=dict(ts=[1.0], phases=phases))
    assert found.stats["max_steps"].tolist() == [100, 150, 200]
    inputs["stepping"] = sx.Stepping(max_steps=np.array([100, 150, 300]))
    with pytest.raises(ValueError, match="the model keeps 256 steps"):
        sx.simulate_batch(model, inputs, shared=dict(ts=[1.0], phases=phases))
