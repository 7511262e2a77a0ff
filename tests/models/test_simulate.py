"""`Simulate` and `SteadyThenSimulate`: inputs, outputs, transformations, failures in words."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Counted, all_finite

import stablax as sx


def _wall(t, y, args):
    return jnp.where(y < 1, 1.0, jnp.nan) * jnp.ones_like(y)


def _linear(t, y, k):
    return -k * y


MODEL = sx.Simulate(_linear)
TS = jnp.array([0.5, 1.0])


# --- never an invented trajectory


@pytest.mark.parametrize("solver", [diffrax.Tsit5(), sx.kvaerno5()], ids=["Tsit5", "kvaerno5"])
def test_a_wall_is_not_walked_into(solver):
    """With a mask of 0, Tsit5 reports y = 1.00002 and success."""
    sim = sx.Simulate(_wall, solver=solver)(0.0, [0.5, 2.0], throw=False)
    assert not sx.is_successful(sim)
    assert sim.reached.tolist() == [True, False]
    assert "not finite" in sx.explain(sim) and "t = 1 of 2" in sx.explain(sim)
    assert float(sim.ys[1]) <= 1.0

    filled = sx.Simulate(sx.Guarded(_wall, sx.Guard(fill=0.0)), solver=solver)
    sim = filled(0.0, [0.5, 2.0], throw=False)
    assert not sx.is_successful(sim) and "rests on" in sx.explain(sim)
    assert int(sim.guard.masked_accepted) > 0 and int(sim.guard.masked) >= int(
        sim.guard.masked_accepted
    )
    allowed = sx.Simulate(sx.Guarded(_wall, sx.Guard(fill=0.0, reject=False)), solver=solver)
    assert sx.is_successful(allowed(0.0, [0.5, 2.0], throw=False))


@pytest.mark.parametrize("guard", [sx.Guard(-100.0, 100.0), sx.Guard()])
def test_a_blow_up_is_not_passed(guard):
    model = sx.Simulate(sx.Guarded(lambda t, y, args: y**2, guard))
    sim = model(1.0, [0.5, 2.0], throw=False)
    assert not sx.is_successful(sim)
    assert sim.reached.tolist() == [True, False]
    words = "leaves the guard's box" if guard.is_bounded else "finite-time blow-up"
    assert words in sx.explain(sim)
    np.testing.assert_allclose(sim.ys[0], 2.0, rtol=1e-4)


def test_a_fill_that_is_not_used_changes_nothing():
    model = sx.Simulate(sx.Guarded(_linear, sx.Guard(-9.0, 9.0, fill=0.0)))
    sim = model(1.0, TS, args=2.0)
    np.testing.assert_allclose(sim.ys, np.exp(-2.0 * TS), rtol=1e-4)
    assert int(sim.guard.masked) == 0


@pytest.mark.parametrize("telemetry", [False, True])
def test_a_fill_has_a_gradient(telemetry):
    field = sx.Guarded(_linear, sx.Guard(-9.0, 9.0, fill=0.0))
    model = sx.Simulate(field, solver=diffrax.Tsit5(), telemetry=telemetry)
    slope = jax.jit(jax.grad(lambda k: model(1.0, TS, args=k).ys[-1]))(2.0)
    np.testing.assert_allclose(slope, -TS[-1] * np.exp(-2.0 * TS[-1]), rtol=1e-4)


# --- inputs


def test_inputs_are_converted():
    for y0 in (1.0, np.float64(1.0), np.array(1.0), jnp.array(1.0)):
        for ts in ([0.5, 1.0], np.array([0.5, 1.0]), TS):
            np.testing.assert_allclose(MODEL(y0, ts, args=2.0).ys, np.exp(-2.0 * TS), rtol=1e-4)


def test_float32_stays_float32():
    sim = MODEL(jnp.ones(2, jnp.float32), np.array([0.5, 1.0]), args=jnp.float32(2.0))
    assert sim.ys.dtype == jnp.float32 and sim.ts.dtype == jnp.float32
    np.testing.assert_allclose(sim.ys[:, 0], np.exp(-2.0 * TS), rtol=1e-3)
    strict = sx.Simulate(_linear, controller=sx.StiffPID.preset(rtol=1e-8))
    with pytest.raises(ValueError, match="float32"):
        strict(jnp.ones(2, jnp.float32), TS, args=jnp.float32(2.0))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (dict(ts=1.0), "vector of one or more times"),
        (dict(ts=[]), "vector of one or more times"),
        (dict(ts=[1.0, 0.5]), "in one direction"),
        (dict(ts=[1.0, 2.0], t0=1.5), "in one direction"),
        (dict(ts=[np.inf]), "must be finite"),
        (dict(y0=jnp.zeros(0)), "no component"),
        (dict(y0=jnp.array([1.0, np.nan])), "not finite"),
        (dict(y0={}), "holds no array"),
    ],
)
def test_bad_inputs_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        MODEL(**{"y0": 1.0, "ts": TS, "args": 2.0, **call})


def test_a_start_outside_the_box():
    model = sx.Simulate(sx.Guarded(_linear, sx.Guard(0.0, 1.0)))
    with pytest.raises(ValueError, match="`y0` = 3.0 is outside the guard's box"):
        model(3.0, TS, args=1.0)
    sims = jax.vmap(lambda y: model(y, TS, args=1.0, throw=False))(jnp.array([0.5, 3.0]))
    assert sx.is_successful(sims).tolist() == [True, False]
    assert "starts outside" in sx.explain(sims)
    assert not sims.reached[1].any() and sims.ys[1].tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (dict(solver="Tsit5"), TypeError, "`solver` must be a diffrax solver"),
        (dict(solver=diffrax.SemiImplicitEuler()), TypeError, "`solver=SemiImplicitEuler` is ref"),
        (dict(solver=diffrax.ItoMilstein()), TypeError, "`solver=ItoMilstein` is refused"),
        (dict(adjoint=diffrax.BacksolveAdjoint()), TypeError, "BacksolveAdjoint.*wrong on stiff"),
        (dict(adjoint=diffrax.ImplicitAdjoint()), TypeError, "`adjoint=ImplicitAdjoint` is ref"),
        (dict(controller=1e-3), TypeError, "step size controller"),
        (dict(controller=diffrax.ConstantStepSize()), ValueError, "as `dt0`"),
        (dict(controller=sx.StiffPID.preset(guard=sx.Guard(0.0))), ValueError, "Guard the field"),
        (dict(max_steps=0), ValueError, "`max_steps` must be at least 1"),
        (dict(dt0=0.0), ValueError, "`dt0` must be a finite step size"),
        (dict(controller=diffrax.StepTo(ts=[0.0, 1.0])), TypeError, "`controller=StepTo"),
    ],
)
def test_what_cannot_work_is_refused_at_construction(options, error, words):
    for model in (sx.Simulate, sx.SteadyThenSimulate):
        with pytest.raises(error, match=words):
            model(_linear, **options)


# --- outputs


def test_a_pytree_state_backwards_and_at_its_start():
    def field(t, y, args):
        return {"a": -y["a"], "b": y["a"][0] * jnp.ones(())}

    y0 = {"a": jnp.array([1.0, 2.0]), "b": 0.0}
    sim = sx.Simulate(field)(y0, [-0.5, -1.0])
    np.testing.assert_allclose(sim.ys["a"][:, 1], 2 * np.exp([0.5, 1.0]), rtol=1e-4)
    np.testing.assert_allclose(sim.ys["b"], 1 - np.exp([0.5, 1.0]), rtol=1e-4)
    sim = sx.Simulate(field)(y0, [0.0, 0.0, 1.0])
    np.testing.assert_allclose(sim.ys["a"][:2], [[1.0, 2.0]] * 2)
    sim = sx.Simulate(field)(y0, [0.0])
    assert sx.is_successful(sim) and sim.reached.all() and int(sim.stats["num_steps"]) == 0


@pytest.mark.parametrize("solver", [diffrax.KenCarp4(), diffrax.Kvaerno3(), diffrax.Dopri8()])
def test_other_solvers_of_diffrax(solver):
    sim = sx.Simulate(_linear, solver=solver, controller=sx.StiffPID.preset("fast"))(
        1.0, TS, args=2.0, throw=False
    )
    if sx.is_successful(sim):
        np.testing.assert_allclose(sim.ys, np.exp(-2.0 * TS), rtol=1e-2)
    else:
        # With diffrax's root finder, and the failure says so.
        assert isinstance(solver, diffrax.AbstractImplicitSolver)
        assert "`kencarp4()`" in sx.explain(sim)


def test_a_progress_meter_can_be_used():
    model = sx.Simulate(_linear, progress_meter=diffrax.TextProgressMeter(minimum_increase=0.5))
    assert sx.is_successful(model(1.0, TS, args=2.0))


class Expired(diffrax.AbstractProgressMeter):
    """Time is up after the first step."""

    def init(self):
        return jnp.array(0)

    def step(self, state, progress):
        def stop(count):
            updates.append(int(count))
            raise TimeoutError("time is up")

        jax.debug.callback(stop, state)
        return state + 1

    def close(self, state):
        pass


updates: list[int] = []


def test_a_progress_meter_that_raises_stops_the_solve():
    model = sx.Simulate(_linear, solver=diffrax.Tsit5(), progress_meter=Expired())
    with pytest.raises(jax.errors.JaxRuntimeError, match="TimeoutError: time is up"):
        jax.block_until_ready(model(1.0, TS, args=2.0, throw=False))
    assert updates == [0]


# --- transformations


def test_a_new_value_is_not_a_new_program():
    field = Counted(_linear)
    model = sx.Simulate(field)
    model(1.0, TS, args=2.0)
    traced = field.calls
    assert traced >= 1
    model(2.0, TS, args=3.0)
    model(jnp.array(3.0), np.array([0.1, 0.2]), args=np.array(3.0))
    sx.Simulate(field)(2.0, TS, args=3.0)
    model(np.float64(3.0), TS, args=np.float64(4.0))
    assert field.calls == traced
    model(1.0, TS, args=1)
    traced = field.calls
    model(1.0, TS, args=2)
    assert field.calls == traced


def test_jit_vmap_and_derivatives_agree():
    rates = jnp.array([0.5, 1.0, 2.0])

    def last(k):
        return MODEL(1.0, TS, args=k).ys[-1]

    np.testing.assert_allclose(jax.vmap(last)(rates), np.exp(-rates), rtol=1e-4)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(last)))(rates), -np.exp(-rates), rtol=1e-3)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(last))(1.0), -np.exp(-1.0), rtol=1e-3)
    forward = sx.Simulate(_linear, solver=diffrax.Bosh3(), adjoint=diffrax.ForwardMode())
    slope = jax.jit(jax.jacfwd(lambda k: forward(1.0, TS, args=k).ys[-1]))(1.0)
    np.testing.assert_allclose(slope, -np.exp(-1.0), rtol=1e-3)


def test_traced_times_that_make_no_sense_are_a_result():
    times = jnp.array([[0.5, 1.0], [1.0, 0.5], [jnp.nan, 0.5], [-0.5, -1.0]])
    sims = jax.jit(jax.vmap(lambda ts: MODEL(1.0, ts, args=2.0, throw=False)))(times)
    assert sx.is_successful(sims).tolist() == [True, False, False, True]
    assert "one direction" in sx.explain(sims) and not sims.reached[1:3].any()
    np.testing.assert_allclose(sims.ys[0], np.exp(-2.0 * TS), rtol=1e-4)


def test_the_first_step_has_the_sign_of_the_direction():
    model = sx.Simulate(_linear, dt0=0.01)
    np.testing.assert_allclose(model(1.0, [-1.0], args=1.0).ys, np.exp(1.0), rtol=1e-4)


def test_an_empty_leaf_and_a_large_fixed_step():
    sim = sx.Simulate(lambda t, y, args: y)({"a": jnp.zeros(0), "b": jnp.ones(1)}, [1.0])
    np.testing.assert_allclose(sim.ys["b"], np.exp(1.0), rtol=1e-4)
    fixed = dict(solver=diffrax.Euler(), controller=diffrax.ConstantStepSize(), dt0=1.0)
    sim = sx.Simulate(lambda t, y, args: 1e9 * jnp.ones_like(y), **fixed)(0.0, [1.0])
    np.testing.assert_allclose(sim.ys, 1e9)


def test_the_end_of_one_solve_can_start_the_next():
    """A state just below its bound, by less than the tolerance, is inside."""
    model = sx.Simulate(sx.Guarded(_linear, sx.Guard(0.0)), controller=sx.StiffPID.preset("fast"))
    assert sx.is_successful(model(-5e-7, TS, args=1.0))
    with pytest.raises(ValueError, match="outside the guard's box"):
        model(-5e-6, TS, args=1.0)


def test_times_are_differentiable():
    slope = jax.jit(jax.grad(lambda t: MODEL(1.0, jnp.stack([t]), args=2.0).ys[0]))(1.0)
    np.testing.assert_allclose(slope, -2 * np.exp(-2.0), rtol=1e-3)


# --- failures in words


def test_throw_names_cause_time_component_and_cure():
    def field(t, y, args):
        return {"A": _wall(t, y["A"], args), "B": -y["B"]}

    model = sx.Simulate(field, solver=diffrax.Tsit5())
    y0 = {"A": jnp.array([-5.0, 0.0]), "B": jnp.array(1.0)}
    words = r"(?s)not finite.*stablax\.Guard.*stopped at t = 1 of 2.*\['A'\]\[1\]"
    with pytest.raises(RuntimeError, match=words):
        model(y0, [0.5, 2.0])
    with pytest.raises(RuntimeError, match=words):
        eqx.filter_jit(lambda y0: model(y0, jnp.array([0.5, 2.0])).ys)(y0)
    with pytest.raises(RuntimeError, match=words):
        eqx.filter_jit(jax.vmap(lambda y0: model(y0, jnp.array([0.5, 2.0])).ys))(
            jax.tree.map(lambda x: jnp.stack([x - 9.0, x]), y0)
        )
    loss = lambda y0: jnp.sum(model(y0, jnp.array([0.5, 2.0])).ys["A"] ** 2)
    with pytest.raises(RuntimeError, match=words):
        eqx.filter_jit(jax.value_and_grad(loss))(y0)


@pytest.mark.filterwarnings("ignore")
def test_throw_under_jax_jit_names_the_cause():
    model = sx.Simulate(_wall, solver=diffrax.Tsit5())
    with pytest.raises(Exception, match="not finite"):
        jax.block_until_ready(jax.jit(lambda y: model(y, jnp.array([2.0])).ys)(0.0))


def test_explain():
    assert sx.explain(MODEL(1.0, TS, args=1.0)) == "Successful."
    short = sx.Simulate(_linear, solver=diffrax.Tsit5(), max_steps=20)
    sims = jax.vmap(lambda k: short(1.0, TS, args=k, throw=False))(jnp.array([1.0, 1e4, 1.0, 2e4]))
    text = sx.explain(sims)
    assert text.startswith("2 of 4 lanes (1, 3): The budget of 20 steps (`max_steps`) is spent")
    assert "Rodas5P()" in text and len(text) < 1500
    everything_fine = jax.tree.map(lambda x: x[::2], sims)
    assert sx.explain(everything_fine) == "Successful in all 2 lanes."
    assert sx.explain(sx.RESULTS.left_bounds).startswith("The solution leaves")
    assert sx.explain(diffrax.RESULTS.successful) == "Successful."
    assert bool(sx.is_successful(diffrax.RESULTS.event_occurred))
    with pytest.raises(TypeError, match="outside `jit`"):
        jax.jit(lambda k: len(sx.explain(MODEL(1.0, TS, args=k, throw=False))))(1.0)
    with pytest.raises(TypeError, match="got int"):
        sx.explain(3)


def test_results_chain_those_of_diffrax():
    assert issubclass(sx.RESULTS, diffrax.RESULTS)
    promoted = sx.RESULTS.promote(diffrax.RESULTS.max_steps_reached)
    assert promoted == sx.RESULTS.max_steps_reached
    for name in (
        "no_steady_state",
        "not_conserved",
        "singular_steady_state",
        "unstable_steady_state",
        "not_finite",
        "left_bounds",
        "masked",
        "step_underflow",
        "stages_unsolved",
    ):
        text = sx.explain(getattr(sx.RESULTS, name))
        assert 50 < len(text) < 1500


# --- the two-phase model


def _exchange(t, y, k):
    flux = k[0] * y[0] - k[1] * y[1]
    return jnp.stack([-flux, flux])


BEFORE, AFTER = jnp.array([2.0, 3.0]), jnp.array([1.0, 1.0])


def test_steady_then_simulate():
    model = sx.SteadyThenSimulate(_exchange)

    def ys(k, y0):
        return model(y0, TS, steady_args=k, args=AFTER, conserved=np.ones((1, 2))).ys

    y0 = jnp.array([1.0, 0.0])
    sim = model(y0, TS, steady_args=BEFORE, args=AFTER, conserved=np.ones((1, 2)))
    exact = 0.5 + 0.1 * np.exp(-2 * TS)
    np.testing.assert_allclose(sim.ys[:, 0], exact, rtol=1e-5)
    np.testing.assert_allclose(sim.steady.y, [0.6, 0.4], rtol=1e-9)
    assert sim.steady.method_name == "PseudoTransient" and bool(sim.steady.stable)
    dk, dy0 = jax.jit(jax.jacrev(lambda k, y0: ys(k, y0)[:, 0], argnums=(0, 1)))(BEFORE, y0)
    decay = np.exp(-2 * TS)
    np.testing.assert_allclose(dk, np.outer(decay, [-0.12, 0.08]), atol=5e-6)
    np.testing.assert_allclose(dy0, np.outer(0.5 + 0.1 * decay, [1.0, 1.0]), atol=1e-5)


@pytest.mark.parametrize(
    ("field", "y0", "words"),
    [
        (lambda t, y, args: jnp.ones_like(y), jnp.zeros(2), "No steady state was found"),
        (_exchange, jnp.array([1.0, 0.0]), "Jacobian is singular"),
    ],
)
def test_without_a_steady_state_nothing_is_simulated(field, y0, words):
    model = sx.SteadyThenSimulate(field)

    def loss(y0, k):
        sim = model(y0, TS, steady_args=k, args=k, throw=False)
        return jnp.sum(sim.ys**2), sim

    gradient, sim = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(y0, BEFORE)
    assert not sx.is_successful(sim) and words in sx.explain(sim)
    assert "not started" in sx.explain(sim)
    assert not sim.reached.any() and int(sim.stats["num_steps"]) == 0
    assert all_finite((sim.ys, gradient)) and not any(np.any(g) for g in gradient)
    with pytest.raises(RuntimeError, match=words):
        model(y0, TS, steady_args=BEFORE, args=BEFORE)


def test_one_lane_without_a_steady_state_changes_nothing_in_the_others():
    """dy/dt = k - y + d y^3: without a steady state near y0 for d > 4/27."""
    model = sx.SteadyThenSimulate(lambda t, y, args: 1.0 - y + args * y**3)

    def loss(d):
        sim = model(0.5, TS, steady_args=d, args=0.0, throw=False)
        return jnp.sum(sim.ys), sim

    d = jnp.array([0.05, 0.5, 0.1])
    run = jax.jit(jax.vmap(jax.grad(loss, has_aux=True)))
    gradient, sims = run(d)
    assert sx.is_successful(sims).tolist() == [True, False, True]
    alone, _ = run(d[jnp.array([0, 0, 2])])
    np.testing.assert_allclose(gradient[jnp.array([0, 2])], alone[jnp.array([0, 2])], rtol=1e-10)
    assert gradient[1] == 0.0


def test_rates_beyond_the_digits_of_the_dtype_neither_raise_nor_lie():
    """A <-> B at 1e25: I - h J is singular to the last bit, on which diffrax's root finder raises
    in the backward pass; and its forward pass calls a state of 1e25 a success."""
    model = sx.Simulate(_exchange)

    def loss(k):
        sim = model(jnp.array([1.0, 0.0]), TS, args=k, throw=False)
        return jnp.sum(sim.ys**2), sim

    k = jnp.outer(10.0 ** jnp.array([1.0, 5, 16, 25, 50, 100, 300]), BEFORE)
    gradient, sims = jax.jit(jax.vmap(jax.grad(loss, has_aux=True)))(k)
    ok = np.asarray(sx.is_successful(sims))
    assert ok[:2].all() and all_finite((gradient, sims.ys))
    np.testing.assert_allclose(np.asarray(sims.ys)[ok, -1], [[0.6, 0.4]] * ok.sum(), rtol=3e-5)
    assert not ok[3:].any()  # no digit of I is left in I - h J
    assert not np.asarray(gradient)[~ok].any()
