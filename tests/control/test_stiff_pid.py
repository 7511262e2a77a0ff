"""`StiffPID`: presets, tolerances, and the acceptance of steps, in plain `diffeqsolve`."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

import stablax as sx


def _solve(field, solver, controller, y0, t1=1.0, **kwargs):
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver,
        0.0,
        t1,
        None,
        y0,
        stepsize_controller=controller,
        throw=False,
        **kwargs,
    )


def test_presets_are_named_and_described():
    presets = sx.StiffPID.presets()
    assert list(presets) == ["balanced", "robust", "precise", "fast"]
    assert all(presets.values())
    for name in presets:
        controller = sx.StiffPID.preset(name)
        assert jax.tree.leaves(controller) == []
        assert isinstance(controller, diffrax.AbstractAdaptiveStepSizeController)
        assert controller == sx.StiffPID.preset(name)
        assert hash(controller) == hash(sx.StiffPID.preset(name))
    robust = sx.StiffPID.preset("robust")
    assert (robust.pcoeff, robust.icoeff, robust.dcoeff) == (0.1, 0.8, 0.0)
    assert robust.factormax_after_rejection == 1
    assert (robust.rtol, robust.atol) == (1e-6, 1e-8)
    with pytest.raises(ValueError, match='"balanced", "robust", "precise", "fast"'):
        sx.StiffPID.preset("blanced")


def test_an_explicit_solver_gets_pi_control():
    assert sx.StiffPID.preset(solver=diffrax.Tsit5()).pcoeff == 0.4
    assert sx.StiffPID.preset(solver=sx.kvaerno5()).pcoeff == 0.25
    assert sx.StiffPID.preset(solver=sx.Rodas4()).pcoeff == 0.0
    assert sx.StiffPID.preset(solver=diffrax.Tsit5(), pcoeff=0.1).pcoeff == 0.1


def test_every_option_of_the_pid_controller_is_there():
    import inspect

    ours = inspect.signature(sx.StiffPID.__init__).parameters
    theirs = inspect.signature(diffrax.PIDController.__init__).parameters
    clip = inspect.signature(diffrax.ClipStepSizeController.__init__).parameters
    assert set(theirs) <= set(ours)
    assert {"step_ts", "jump_ts"} <= set(clip) & set(ours)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (dict(rtol=-1.0), ValueError, "`rtol` must be a number above 0"),
        (dict(rtol=1e-15), ValueError, "below what float64 can resolve"),
        (dict(dtmin=1.0, dtmax=0.1), ValueError, "`dtmin=1.0` must not be above `dtmax=0.1`"),
        (dict(force_dtmin=True), ValueError, "needs `dtmin`"),
        (dict(factormin=1.5), ValueError, "has to shrink"),
        (dict(factormax=0.5), ValueError, "`factormax` must be a number above 1"),
        (dict(jump_ts=[np.nan]), ValueError, "`jump_ts` must be a sequence of finite times"),
        (dict(frobnicate=1), TypeError, "frobnicate"),
    ],
)
def test_bad_options_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        sx.StiffPID.preset(**options)


def test_a_traced_tolerance_is_refused():
    with pytest.raises(TypeError, match="`rtol` is a traced array"):
        jax.jit(lambda r: jnp.asarray(sx.StiffPID.preset(rtol=r).rtol))(1e-3)


@pytest.mark.parametrize("name", sx.StiffPID.presets())
def test_tolerances_follow_the_dtype(name):
    controller = sx.StiffPID.preset(name).for_dtype(np.dtype(np.float32))
    assert controller.rtol >= 1e-4 and controller.least_atol >= 1e-7
    given = sx.StiffPID.preset(name, rtol=2e-6).for_dtype(np.dtype(np.float32))
    assert given.rtol == 2e-6
    with pytest.raises(ValueError, match=r"float32 can resolve.*y0.astype"):
        sx.StiffPID.preset(name, rtol=1e-7).for_dtype(np.dtype(np.float32))


def test_without_x64_the_tolerance_is_judged_at_construction():
    jax.config.update("jax_enable_x64", False)
    try:
        assert sx.StiffPID.preset().rtol == 1e-4
        with pytest.raises(ValueError, match='jax.config.update\\("jax_enable_x64", True\\)'):
            sx.StiffPID.preset(rtol=1e-8)
    finally:
        jax.config.update("jax_enable_x64", True)


@pytest.mark.parametrize("solver", [diffrax.Dopri5(), diffrax.Heun()])
@pytest.mark.parametrize("y0", [12.0, 20.0, 30.0])
def test_a_candidate_of_inf_cannot_lock_the_controller(solver, y0):
    solution = _solve(
        lambda t, y, args: -jnp.sinh(y),
        solver,
        sx.StiffPID.preset("fast"),
        jnp.array(y0),
        max_steps=20_000,
    )
    assert solution.result == diffrax.RESULTS.successful
    # tanh(y/2) = tanh(y0/2) exp(-t)
    exact = 2 * np.arctanh(np.tanh(y0 / 2) * np.exp(-1.0))
    np.testing.assert_allclose(solution.ys, exact, rtol=1e-2)


def test_a_step_that_leaves_the_box_is_retried_and_the_state_is_not_clipped():
    """Inside the box the solution is smooth; only the first, far too long step leaves it."""
    guard = sx.Guard(0.0, 1.0 + 1e-9)
    field = sx.Guarded(lambda t, y, args: -50.0 * y, guard)
    controller = sx.StiffPID.preset(guard=guard)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Tsit5(),
        0.0,
        1.0,
        0.5,
        1.0,
        stepsize_controller=controller,
    )
    np.testing.assert_allclose(solution.ys[-1], np.exp(-50.0), atol=1e-8)
    assert solution.stats["num_rejected_steps"] > 0


def test_a_solution_that_leaves_the_box_ends_the_solve():
    guard = sx.Guard(upper=100.0)
    controller = sx.StiffPID.preset(guard=guard)
    field = sx.Guarded(lambda t, y, args: y**2, guard)
    solution = _solve(field, diffrax.Tsit5(), controller, jnp.array(1.0), t1=2.0)
    assert solution.result == diffrax.RESULTS.dt_min_reached
    assert solution.stats["num_steps"] < 500


def test_a_start_outside_the_box_ends_the_solve_at_once():
    controller = sx.StiffPID.preset(guard=sx.Guard(0.0, 1.0))
    solution = _solve(lambda t, y, args: -y, diffrax.Tsit5(), controller, jnp.array(2.0))
    assert solution.result == diffrax.RESULTS.dt_min_reached
    assert solution.stats["num_steps"] == 1


@pytest.mark.parametrize("field", [lambda t, y, a: jnp.log(-y), lambda t, y, a: y**2])
def test_underflow_of_the_step_ends_the_solve(field):
    """A field that is nan from the start, and a blow-up at t = 1."""
    solution = _solve(field, diffrax.Tsit5(), sx.StiffPID.preset(), jnp.array(1.0), t1=2.0)
    assert solution.result == diffrax.RESULTS.dt_min_reached
    assert solution.stats["num_steps"] < 1000


def test_jump_and_step_times():
    """A forcing that jumps at 0.3: to step on it saves rejected steps, and changes no digit."""

    def field(t, y, args):
        return jnp.where(t < 0.3, 1.0, -5.0) - y

    plain = _solve(field, diffrax.Tsit5(), sx.StiffPID.preset(), jnp.array(0.0))
    controller = sx.StiffPID.preset(jump_ts=[0.3, 0.3], step_ts=np.array([0.7]))
    assert controller.jump_ts == (0.3,)
    stepped = _solve(field, diffrax.Tsit5(), controller, jnp.array(0.0))
    exact = -5 + (1 - np.exp(-0.3) + 5) * np.exp(-0.7)
    np.testing.assert_allclose(stepped.ys[-1], exact, rtol=1e-6)
    assert stepped.stats["num_rejected_steps"] < plain.stats["num_rejected_steps"]


def test_forced_smallest_steps_do_not_accept_what_is_not_finite():
    controller = sx.StiffPID.preset(dtmin=1e-3, force_dtmin=True)
    wall = lambda t, y, args: jnp.where(y < 1, 1.0, jnp.nan)
    solution = _solve(wall, diffrax.Tsit5(), controller, jnp.array(0.0), t1=2.0)
    assert solution.result == diffrax.RESULTS.dt_min_reached
    assert jnp.isfinite(solution.ys).all()


def test_the_first_step_survives_a_field_that_is_not_finite_at_the_probe():
    """The heuristic for the first step moves the state by 1 %, past the edge of this field."""
    field = lambda t, y, args: jnp.where(y < 0.995, jnp.nan, 0.9951 - y)
    solution = _solve(field, diffrax.Dopri5(), sx.StiffPID.preset(), jnp.array(1.0))
    np.testing.assert_allclose(solution.ys, 0.9951 + 0.0049 * np.exp(-1.0), rtol=1e-6)


def test_the_step_after_a_rejected_one_does_not_grow():
    """The controller alone: a rejection, then a step without any error."""
    for limit, factor in ((1.0, 1.0), (2.0, 2.0), (None, 10.0)):
        made = sx.StiffPID(1e-3, 1e-6, factormax_after_rejection=limit).wrap(1)
        y, none = jnp.ones(1), jnp.zeros(1)
        term = diffrax.ODETerm(lambda t, y, args: -y)
        t1, state = made.init(term, 0.0, 10.0, y, 0.1, None, term.vf, 5)
        keep, t0, t1, _, state, _ = made.adapt_step_size(0.0, t1, y, y, None, y, 5, state)
        assert not keep
        size = t1 - t0
        keep, t0, t1, _, state, _ = made.adapt_step_size(t0, t1, y, y, None, none, 5, state)
        assert keep
        np.testing.assert_allclose(t1 - t0, factor * size, rtol=1e-6)
    with pytest.raises(ValueError, match="factormax_after_rejection"):
        sx.StiffPID(1e-3, 1e-6, factormax_after_rejection=0.5)


def test_an_event_ends_an_endless_solve():
    event = diffrax.Event(lambda t, y, args, **_: y - 0.5, optx.Newton(1e-9, 1e-9))
    solution = _solve(
        lambda t, y, args: -y,
        diffrax.Tsit5(),
        sx.StiffPID.preset(),
        jnp.array(1.0),
        t1=jnp.inf,
        event=event,
    )
    assert solution.result == diffrax.RESULTS.event_occurred
    np.testing.assert_allclose(solution.ts, np.log(2.0), rtol=1e-5)


# https://github.com/patrick-kidger/diffrax/issues/713
def test_given_times_may_be_an_ulp_apart_and_at_the_start():
    """A step that ends at a given time is no underflow, however short. The field jumps at 0.7."""
    ulp = float(np.spacing(0.7))
    controller = sx.StiffPID.preset(step_ts=[0.7, 0.7 + 2 * ulp], jump_ts=[0.7 + ulp])

    @jax.jit
    def solve(t0, after):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, after: jnp.where(t < 0.7, 1.0, after) - y),
            diffrax.Tsit5(),
            t0,
            1.0,
            None,
            jnp.array(0.5),
            after,
            stepsize_controller=controller,
            throw=False,
        )

    for t0 in (0.0, 0.7 - ulp, 0.7, 0.7 + ulp, 0.7 + 2 * ulp):
        solution = solve(t0, -5.0)
        before = 1 - 0.5 * np.exp(min(t0 - 0.7, 0))
        exact = -5 + (before + 5) * np.exp(max(t0, 0.7) - 1)
        assert solution.result == diffrax.RESULTS.successful, t0
        np.testing.assert_allclose(solution.ys[-1], exact, rtol=1e-5)
    # A true underflow there is still one.
    assert solve(0.0, jnp.nan).result == diffrax.RESULTS.dt_min_reached


def test_the_first_step_does_not_pass_a_given_time():
    """Nor where the heuristic fails, and for which the step is a part of the whole."""
    made = sx.StiffPID.preset(step_ts=[1e-8]).wrap(1)
    term = diffrax.ODETerm(lambda t, y, args: y * jnp.nan)
    t0, t1 = jnp.array([0.0, 10.0])
    t1, _ = made.init(term, t0, t1, jnp.ones(1), None, None, diffrax.Tsit5().func, 5)
    assert t1 == 1e-8


def test_the_first_step_follows_the_unit_of_time():
    """diffrax's heuristic sees no `ODETerm` inside `diffeqsolve`, and begins with 0.01 in any unit:
    longer than all of the solve, or so long that what grows (a rate of 1e10) is damped to 0."""

    @jax.jit
    @jax.vmap
    def solve(rate, t1):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, rate: rate * y),
            sx.Rodas5P(),
            0.0,
            t1,
            None,
            jnp.array([1.0]),
            args=rate,
            stepsize_controller=sx.StiffPID.preset(),
            saveat=diffrax.SaveAt(t1=True),
            throw=False,
        )

    rates = jnp.array([-1e-6, -1.0, -1e9, 1e10])
    solution = solve(rates, jnp.array([1e6, 1.0, 1e-9, 1.0]))
    np.testing.assert_allclose(solution.ys[:3, 0, 0], np.exp(-1), rtol=1e-6)
    assert max(solution.stats["num_steps"][:3]) < 12
    assert (solution.result == diffrax.RESULTS.successful).tolist() == [True, True, True, False]


def test_every_component_has_a_tolerance_of_its_own():
    """A small component that moves fast needs many steps only if it is asked for, whatever the
    structure of the state; so with the guard's box, and what `diagnose` says."""

    def field(t, y, args):
        return {"a": -y["a"], "b": -1e3 * (y["b"] - 1e-8 * jnp.cos(50 * t))}

    y0, ts = {"a": 1.0, "b": 0.0}, [1.0]

    def simulate(atol):
        guard = sx.Guard({"a": None, "b": -1e-7}, None)
        controller = sx.StiffPID.preset(rtol=1e-4, atol=atol)
        model = sx.Simulate(sx.Guarded(field, guard), controller=controller)
        return model, model(y0, ts)

    loose, tight = simulate(1e-6)[1], simulate(1e-12)[1]
    model, own = simulate({"a": 1e-6, "b": np.array(1e-12)})
    other = simulate({"a": 1e-12, "b": 1e-6})[1]
    most = max(loose.stats["num_steps"], other.stats["num_steps"])
    assert own.stats["num_steps"] == tight.stats["num_steps"] > 5 * most
    exact = 1e-8 * (np.cos(50) + 0.05 * np.sin(50)) / (1 + 0.05**2)
    np.testing.assert_allclose(own.ys["b"][0], exact, rtol=1e-3)
    assert model == simulate({"a": 1e-6, "b": np.array(1e-12)})[0]
    assert "atol={'a': array(1.e-06), 'b': array(1.e-12)}" in repr(model.options.controller)

    found = sx.diagnose(model, y0, ts)
    assert not any(s.cause == "badly_scaled_components" for s in found.suggestions)
    assert any(
        s.cause == "badly_scaled_components"
        for s in sx.diagnose(simulate(1e-6)[0], y0, ts).suggestions
    )


@pytest.mark.parametrize("atol", [{}, (), None])
def test_an_absolute_tolerance_holds_a_number(atol):
    with pytest.raises(ValueError, match="`atol` holds no number, got"):
        sx.StiffPID(1e-3, atol)
