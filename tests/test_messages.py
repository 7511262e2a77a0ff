"""What a wrong input says: the argument, what was given, what would do; in a few lines."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stablax as sx

Y0, TS = jnp.ones(2), jnp.array([0.5, 1.0])


def decay(t, y, args):
    return -y


MODEL = sx.Simulate(decay)


def mlp():
    return eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        # --- names
        (lambda: sx.Simulate(decay, rtol=1e-3), "`rtol`.*StiffPID.preset.rtol=...."),
        (lambda: MODEL(Y0, TS, jump_ts=[1.0]), "`jump_ts`.*stepping=stablax.Stepping.jump_ts=...."),
        (lambda: sx.Simulate(decay, dtmin=1e-3), r"preset\(dtmin=\.\.\.\)`\."),
        (lambda: sx.Simulate(decay, solvr=None), "no argument `solvr`.*`solver`"),
        (lambda: sx.Simulate(decay, saveat=None), "`saveat`.*`ts`"),
        (lambda: MODEL(Y0, TS, arg=3.0), "no argument `arg`.*`args`"),
        (lambda: MODEL(Y0, TS, 0.0, 3.0), "2 arguments by position .`y0`, `ts`., got 4.*`args`"),
        (lambda: sx.Phase(duration=3.0), "`duration`.*`t1`"),
        (lambda: sx.StiffPID.preset(dtmx=1.0), "`dtmx`.*`dtmax`"),
        (lambda: sx.MLPField(2, 4), "`MLPField`.*`?depth"),
        # --- types
        (lambda: sx.Simulate(decay, max_steps=5.0), "`max_steps` must be int, got 5.0"),
        (lambda: sx.Simulate(decay, trace=3), '`trace` must be "record", "print" or None, got 3'),
        (lambda: sx.Simulate(decay, telemetry=1), "`telemetry` must be bool, got 1"),
        (lambda: sx.SteadyThenSimulate(decay, steady_rtol="1"), "`steady_rtol` must be float"),
        (lambda: sx.SteadyThenSimulate(decay, method=3), "`method` must be a search such as"),
        (lambda: sx.SimulatePhases(decay, max_step=3), "no argument `max_step`.*`max_steps`"),
        (lambda: sx.Simulate(decay, dt0="small"), "`dt0` must be float.*got 'small' .str."),
        (lambda: MODEL("y0", TS), "`y0` must be an array, or a PyTree"),
        (lambda: MODEL(Y0, TS, throw="no"), "`throw` must be bool"),
        (lambda: MODEL(jnp.array([1j]), TS), "Split it into real and imaginary parts"),
        (lambda: MODEL(np.ma.array([1.0, 2.0], mask=[0, 1]), TS), "`y0` is a masked array"),
        (
            lambda: MODEL(Y0, TS, args={"k": np.ma.array([1.0], mask=[1])}),
            "`args` is a masked array",
        ),
        (lambda: MODEL(Y0, np.ma.array([1.0, 2.0], mask=[0, 1])), "`ts` is a masked array"),
        (lambda: MODEL(Y0, [True]), "`ts` must be numbers, in the unit of time.*dtype bool"),
        (lambda: MODEL(Y0, np.array([1], "timedelta64[s]")), "`ts` must be numbers"),
        (lambda: MODEL(Y0, ["1.0"]), "`ts` must be numbers"),
        (lambda: sx.Phase(np.array([1], "timedelta64[s]")), "`t1` must be a time"),
        (lambda: sx.Frozen(np.ma.array([1.0], mask=[1])), "`array` is a masked array"),
        (lambda: sx.Guard(lower=1j), "`lower` must be a number"),
        (lambda: sx.Guard(lower="0"), "`lower` must be a number.*'0' .str."),
        (lambda: sx.Guard(pull=True), "`pull` must be a number"),
        (lambda: sx.StiffPID("1e-3", 1e-6), "`rtol` must be a number.*'1e-3'"),
        (lambda: sx.StiffPID(1e-3, "1e-6"), "`atol` must be a number"),
        (lambda: sx.StiffPID(1e-3, 1e-6, pcoeff=1j), "`pcoeff` must be a number"),
        # --- fields
        (lambda: sx.Simulate(mlp()), "f.t, y, args., but `MLP` takes .x, key.*`stablax.MLPField`"),
        (lambda: sx.Simulate(lambda t, y: -y), "f.t, y, args., but `<lambda>` takes .t, y.\\.$"),
        (lambda: sx.find_steady_state(lambda y: -y, Y0), "but `<lambda>` takes .y."),
        (lambda: sx.Simulate(decay, adjoint=diffrax.ForwardMode), "class `ForwardMode`: make one"),
        (lambda: sx.Simulate(decay, solver=sx.Rodas5P), "class `Rodas5P`: make one"),
        (lambda: sx.Simulate(sx.MLPField), "the class `MLPField`: make one"),
        (lambda: sx.Simulate(3.0), "`field` must be a function f.t, y, args., got 3.0"),
    ],
)
def test_a_wrong_name_or_type(wrong, words):
    with pytest.raises(TypeError, match=f"(?s){words}") as error:
        wrong()
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: sx.StiffPID(np.inf, 1e-6), "`rtol` must be a number above 0 and finite, got inf"),
        (lambda: sx.AddDose({"a": jnp.array([1.0, jnp.nan])}), "`amount..a..` is not finite"),
        (lambda: sx.Phase(1.0, dose=jnp.inf), "`amount` is not finite"),
        (lambda: sx.StiffPID(1e-3, np.inf), "`atol` must be finite and above 0, got inf"),
        (lambda: sx.StiffPID(1e-3, np.array([1e-6, 0.0])), "`atol` must be finite and above 0"),
        (
            lambda: sx.StiffPID(1e-3, 1e-6, dtmax=np.nan),
            "`dtmax` must be a number above 0 and finite",
        ),
        (lambda: sx.Simulate(decay, dt0=10**400), "`dt0` is an integer of some 400 digits"),
        (lambda: sx.Simulate(decay, dt0=np.nan), "`dt0` must be a finite step size above 0"),
        (lambda: sx.find_steady_state(decay, Y0, rtol=np.inf), "`rtol` must be a number above 0"),
        (lambda: sx.find_steady_state(decay, Y0, atol=np.nan), "`atol` must be a number above 0"),
        (
            lambda: sx.Simulate(decay, controller=sx.StiffPID(1e-3, np.ones(3)))(Y0, TS),
            r"`atol` has shape \(3,\), but the state has shape \(2,\)",
        ),
    ],
)
def test_a_wrong_value(wrong, words):
    with pytest.raises(ValueError, match=words):
        wrong()


def test_numbers_of_numpy_are_numbers():
    """Where a static number is asked for, for equal models."""
    ours = sx.Simulate(decay, max_steps=np.int64(50), dt0=np.float64(0.1), telemetry=np.bool_(True))
    assert ours == sx.Simulate(decay, max_steps=50, dt0=0.1, telemetry=True)
    assert sx.MLPField(np.int32(2), np.int64(4), 1, key=jax.random.key(0)).size == 2
    assert sx.StiffPID(np.float32(0.125), np.array(0.5)) == sx.StiffPID(0.125, 0.5)


def test_an_error_of_the_users_code_says_what_may_be_behind_it():
    with pytest.raises(TypeError) as error:
        MODEL([1.0, 2.0], TS)
    assert any("`y0=jnp.array([...])`" in note for note in error.value.__notes__)

    keys = jax.random.split(jax.random.key(0), 3)
    ensemble = eqx.filter_vmap(lambda key: sx.Simulate(sx.MLPField(2, 4, 1, key=key)))(keys)
    with pytest.raises(TypeError) as error:
        ensemble(Y0, TS)
    assert any("`eqx.filter_vmap`" in note for note in error.value.__notes__)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda junk: sx.Guard(lower=junk),
        lambda junk: sx.StiffPID(junk, 1e-6),
        lambda junk: sx.Simulate(decay, solver=junk),
        lambda junk: sx.Simulate(decay, controller=junk),
        lambda junk: sx.Simulate(decay, trace=junk),
        lambda junk: sx.Simulate(decay, max_steps=junk),
        lambda junk: sx.Phase(junk),
        lambda junk: sx.SetDose(junk),
        lambda junk: sx.Banded(junk, 1),
        lambda junk: sx.find_steady_state(decay, Y0, method=junk),
        lambda junk: sx.with_options(MODEL, **{junk[:300]: 1}),
    ],
)
def test_no_error_is_longer_than_a_screen(wrong):
    with pytest.raises((TypeError, ValueError)) as error:
        wrong("junk " * 100_000)
    assert len(str(error.value)) < 1500


def test_what_a_model_looks_like():
    """Short, and everything once."""
    field = sx.MLPField(2, 4, 1, key=jax.random.key(0))
    controller = sx.StiffPID.preset("fast", dtmax=0.5)
    assert repr(controller) == "StiffPID(rtol=0.001, atol=1e-06, dtmax=0.5)"
    options = dict(solver=diffrax.Kvaerno5(), controller=controller, max_steps=100)
    for Model in (sx.Simulate, sx.SteadyThenSimulate, sx.SimulatePhases):
        text = repr(Model(field, **options))
        assert text.startswith(f"{Model.__name__}(") and text.count("MLPField(") == 1
        assert text.count("StiffPID(rtol=0.001") == 1 and "max_steps=100" in text
        plain = repr(Model(decay))
        assert plain.count("\n") < 12 and len(plain) < 400 and "decay" in plain


def test_what_a_field_and_a_result_look_like():
    """Issue 14: what they are made of, not every layer; how it ended, for one and for many."""
    field = sx.MLPField(2, 8, 1, key=jax.random.key(0))
    network = (
        "MLPField(network=NeuralNetwork(2 -> 8 -> 2, tanh), output_scale=Frozen([1., 1.]), size=2)"
    )
    assert repr(field) == network
    assert repr(sx.LogField(decay)) == "LogField(<function decay>)"
    assert network in repr(sx.HybridField(decay, field))
    model = sx.Simulate(decay)
    one = lambda y: model(y, [1.0], throw=False)
    seen = []
    assert repr(one(1.0)) == "Simulation(ts=f64[1], ys=f64[1], result=successful)"
    assert "2 of 3 successful" in repr(jax.vmap(one)(jnp.array([1.0, jnp.nan, 2.0])))
    jax.jit(lambda y: seen.append(repr(one(y))))(1.0)
    assert "Simulation(ts=f64[1]" in seen[0] and "Simulation(" in repr(jax.eval_shape(one, 1.0))
    assert repr(sx.find_steady_state(lambda t, y, k: 1 - y, jnp.ones(1))) == (
        "SteadyState(y=f64[1], result=successful)"
    )
