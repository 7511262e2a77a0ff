"""M dy/dt = f with a singular M: against closed forms, and against what is left when the algebraic
components are eliminated."""

import pickle

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import by_day, slow

import stablax as sx
from stablax.problems import DAES, ROBERTSON, ROBERTSON_DAE

SOLVERS = {"Rodas5P": sx.Rodas5P, "Rodas4": sx.Rodas4}
TIGHT = sx.StiffPID(rtol=1e-10, atol=1e-12)


def implied(y, drive, a):
    """The z with z + z^3 / 3 = drive - a y."""
    return 2 * jnp.sinh(jnp.arcsinh(1.5 * (drive - a * y)) / 3)


def with_algebraic(t, y, args):
    """y' = z - y, 0 = z + z^3 / 3 + a y - u(t)."""
    a, drive = args
    y, z = y
    return jnp.stack([z - y, z + z**3 / 3 + a * y - drive(t)])


def eliminated(t, y, args):
    a, drive = args
    return implied(y, drive(t), a) - y


def both(controller=TIGHT, **options):
    """A model of the system as it is, and one without the algebraic component."""
    solver = sx.Rodas5P(mass=[1.0, 0.0])
    dae = sx.Simulate(with_algebraic, solver=solver, controller=controller, **options)
    return dae, sx.Simulate(eliminated, controller=controller, **options)


def steady_drive(t):
    return 1.0 + 0.1 * t


@pytest.mark.parametrize("solver", by_day(SOLVERS, "Rodas5P"))
@pytest.mark.parametrize("name", DAES)
def test_problems_are_solved_to_the_tolerance(name, solver):
    problem = DAES[name]
    errors = []
    for rtol in (1e-4, 1e-6):
        control = sx.StiffPID(rtol=rtol, atol=rtol * problem.floor)
        model = sx.Simulate(
            problem.field,
            solver=SOLVERS[solver](mass=problem.mass),
            controller=control,
            max_steps=2**13,
        )
        errors.append(problem.error(model(problem.y0, problem.ts, args=problem.args).ys))
    # Of the pendulum the tolerance holds in each step, and what its constraint drifts adds up.
    times = {"Robertson, DAE": 3, "transistor amplifier": 1, "pendulum": 200}[name]
    assert errors[0] < times * 1e-4 and errors[1] < times * 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_the_derivatives_of_robertson_are_those_of_its_ode(mode):
    control = sx.StiffPID(rtol=1e-9, atol=1e-14)
    dae = sx.Simulate(ROBERTSON_DAE.field, solver=sx.Rodas5P(mass=[1, 1, 0]), controller=control)
    ode = sx.Simulate(ROBERTSON.field, controller=control)
    of = jax.jacrev if mode == "reverse" else jax.jacfwd

    def last(model, log_rates, y0, t0, t1):
        # The first two components fix the third.
        y0 = jnp.append(y0, 1 - jnp.sum(y0))
        return model(y0, t1[None], t0=t0, args=jnp.exp(log_rates)).ys[0]

    at = (np.log(ROBERTSON.args), jnp.array([1.0, 0.0]), jnp.array(0.0), jnp.array(40.0))
    found, wanted = (
        of(lambda *at, model=model: last(model, *at), argnums=(0, 1, 2, 3))(*at)
        for model in (dae, ode)
    )
    for x, y in zip(found, wanted, strict=True):
        scale = np.max(np.abs(y), axis=tuple(range(1, y.ndim)), keepdims=True)
        np.testing.assert_allclose(x / scale, y / scale, atol=1e-7)


def test_a_start_is_made_consistent_from_a_guess_and_its_derivative_too():
    dae, _ = both()
    at = lambda y, guess, a: dae(jnp.stack([y, guess]), [0.0], args=(a, steady_drive)).ys[0, 1]
    for guess in (0.0, 50.0, -3.0):
        np.testing.assert_allclose(at(0.3, guess, 0.5), implied(0.3, 1.0, 0.5), rtol=1e-13)
    wanted = jax.grad(lambda y, a: implied(y, 1.0, a), argnums=(0, 1))(0.3, 0.5)
    for of in (jax.grad, jax.jacfwd):
        d_y, d_guess, d_a = of(at, argnums=(0, 1, 2))(0.3, 50.0, 0.5)
        np.testing.assert_allclose((d_y, d_a), wanted, rtol=1e-12)
        assert d_guess == 0


@pytest.mark.parametrize(
    "field",
    [
        lambda t, y, _: jnp.stack([y[1], y[1] ** 2 + 1 + y[0] ** 2]),  # no such state
        lambda t, y, _: jnp.stack([y[1], y[0] - jnp.sin(t)]),  # index 2
        lambda t, y, _: jnp.stack([y[1], jnp.log(y[1])]),  # not finite at the guess
    ],
)
def test_without_a_consistent_start_the_words_say_so(field):
    model = sx.Simulate(field, solver=sx.Rodas5P(mass=[1, 0]))
    with pytest.raises(RuntimeError, match="at which the algebraic equations hold"):
        model(jnp.array([0.0, -1.0]), [1.0])
    value, slope = jax.value_and_grad(lambda y: model(y, [1.0], throw=False).ys.sum())(
        jnp.array([0.0, -1.0])
    )
    assert np.isfinite(value) and not np.any(slope)


def step_up(t):
    return jnp.where(t < 1, 1.0, 3.0)


KNOTS, VALUES = jnp.array([0.0, 1.0, 2.5]), jnp.array([1.0, 3.0, -2.0])
TIMES = np.array([0.5, 1.7, 3.0, 4.0])


def of_inputs(model):
    def loss(a, knots, values, y, t0):
        drive = sx.Input(knots, values, "previous")
        start = jnp.stack([y, jnp.zeros(())]) if model.options.solver.mass is not None else y
        ys = model(start, TIMES, t0=t0, args=(a, drive)).ys
        return jnp.array([1.0, -1.0, 3.0, 0.5]) @ ys.reshape(4, -1)[:, 0]

    return loss


AT = (0.5, KNOTS, VALUES, 0.3, 0.1)


def test_where_an_input_jumps_the_state_behind_it_is_found_anew():
    dae, _ = both()
    simulation = dae(
        jnp.array([0.3, 0.0]),
        [0.5, 1.0, 1.7, 2.5, 3.0],
        args=(0.5, sx.Input(KNOTS, VALUES, "previous")),
    )
    y, z = simulation.ys.T
    drives = np.array([1.0, 3.0, 3.0, -2.0, -2.0])
    np.testing.assert_allclose(z, implied(y, drives, 0.5), rtol=1e-8)
    given = dae(
        jnp.array([0.3, 0.0]),
        [0.9, 1.1, 2.0],
        args=(0.5, step_up),
        stepping=sx.Stepping(jump_ts=[1.0]),
    )
    y, z = given.ys.T
    np.testing.assert_allclose(z, implied(y, np.array([1.0, 3.0, 3.0]), 0.5), rtol=1e-8)
    # Of a step over the jump there is no estimate, and none is tried.
    assert given.stats["num_rejected_steps"] <= 4


@pytest.mark.parametrize("end", [3.0, 2.0])
def test_a_start_on_a_jump_is_on_the_side_to_which_the_solve_goes(end):
    dae, _ = both()
    args = (0.5, sx.Input(KNOTS, VALUES, "previous"))
    y, z = dae(jnp.array([0.3, 0.0]), [2.5, end], t0=2.5, args=args).ys.T
    drive = VALUES[2] if end > 2.5 else VALUES[1]
    np.testing.assert_allclose(z, implied(y, drive, 0.5), rtol=1e-8)


@pytest.mark.parametrize("of", [jax.grad, slow(jax.jacfwd)])
def test_derivatives_through_jumps(of):
    found, wanted = (of(of_inputs(model), argnums=range(5))(*AT) for model in both())
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-7, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", [diffrax.ForwardMode()])
def test_derivatives_through_jumps_in_the_loop(adjoint):
    found, wanted = (
        jax.jacfwd(of_inputs(model), argnums=range(5))(*AT) for model in both(adjoint=adjoint)
    )
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-7, atol=1e-8)


@pytest.mark.slow
def test_second_derivatives_through_jumps():
    of = lambda model: jax.jacfwd(jax.grad(of_inputs(model), argnums=(0, 1)), argnums=(0, 1))(*AT)
    found, wanted = map(of, both())
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_backward_in_time_through_jumps():
    def loss(model, a, knots, values, y, t0):
        start = jnp.stack([y, jnp.zeros(())]) if model.options.solver.mass is not None else y
        drive = sx.Input(knots, values, "previous")
        ys = model(start, [1.7, 0.5], t0=t0, args=(a, drive)).ys.reshape(2, -1)
        return jnp.array([1.0, 2.0]) @ ys[:, 0]

    at = (0.5, KNOTS, VALUES, 0.3, 3.0)
    found, wanted = (
        jax.grad(lambda *at, model=model: loss(model, *at), argnums=range(5))(*at)
        for model in both()
    )
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-7, atol=1e-7)


@pytest.mark.slow
def test_a_full_matrix_that_is_singular():
    """The same system in other components, and with its equations mixed."""
    rows, columns = np.random.default_rng(0).normal(size=(2, 2, 2))
    mass = rows @ np.diag([1.0, 0.0]) @ columns
    mixed = lambda t, x, args: rows @ with_algebraic(t, columns @ x, args)
    model = sx.Simulate(mixed, solver=sx.Rodas5P(mass=mass), controller=TIGHT)

    def loss(a, knots, values, y, t0):
        start = np.linalg.inv(columns) @ jnp.stack([y, implied(y, values[0], a)])
        args = (a, sx.Input(knots, values, "previous"))
        ys = model(start, TIMES, t0=t0, args=args).ys @ columns.T
        return jnp.array([1.0, -1.0, 3.0, 0.5]) @ ys[:, 0]

    wanted = jax.grad(of_inputs(both()[1]), argnums=range(5))(*AT)
    for of in (jax.grad, jax.jacfwd):
        for x, y in zip(of(loss, argnums=range(5))(*AT), wanted, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-7, atol=1e-8)


@pytest.mark.slow
def test_given_jumps_have_the_derivatives_of_what_they_depend_on():
    def loss(model, a, y):
        start = jnp.stack([y, jnp.zeros(())]) if model.options.solver.mass is not None else y
        stepping = sx.Stepping(jump_ts=[1.0])
        return model(start, [2.0], args=(a, step_up), stepping=stepping).ys.reshape(-1)[0]

    found, wanted = (
        jax.grad(lambda *at, model=model: loss(model, *at), argnums=(0, 1))(0.5, 0.3)
        for model in both()
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-7)


def discharge(count, is_dae):
    """Where y is 0.9, it becomes what it was times a."""

    def condition(t, y, args):
        return (y[0] if is_dae else y) - 0.9

    def change(t, y, args):
        return y.at[0].set(args[0] * y[0]) if is_dae else args[0] * y

    return sx.Event(condition, direction=True, change=change, max_count=count)


@pytest.mark.parametrize("of", [jax.grad, slow(jax.jacfwd)])
def test_after_an_event_the_equations_hold_again(of):
    drive = lambda t: 3.0 + 0.5 * jnp.sin(t)
    options = dict(controller=TIGHT)
    dae = sx.Simulate(
        with_algebraic, solver=sx.Rodas5P(mass=[1, 0]), event=discharge(20, True), **options
    )
    ode = sx.Simulate(eliminated, event=discharge(20, False), **options)

    def times(model, a, y):
        start = jnp.stack([y, jnp.zeros(())]) if model is dae else y
        return model(start, [4.0], args=(a, drive)).events

    log, wanted = times(dae, 0.4, 0.2), times(ode, 0.4, 0.2)
    count = int(jnp.sum(wanted.happened))
    assert count == int(jnp.sum(log.happened)) >= 3
    np.testing.assert_allclose(log.t[:count], wanted.t[:count], rtol=1e-8)
    for states in (log.before[:count], log.after[:count]):
        y, z = states.T
        np.testing.assert_allclose(z, implied(y, drive(log.t[:count]), 0.4), rtol=1e-7)
    found, wanted = (
        of(lambda a, y, model=model: times(model, a, y).t[count - 1], argnums=(0, 1))(0.4, 0.2)
        for model in (dae, ode)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.slow
def test_phases_with_doses_and_inflows():
    solver = sx.Rodas5P(mass=[2.0, 0.0])
    dae = sx.SimulatePhases(
        lambda t, y, args: with_algebraic(t, y, args) * jnp.array([2.0, 1.0]),
        solver=solver,
        controller=TIGHT,
    )
    ode = sx.SimulatePhases(eliminated, controller=TIGHT)

    def last(model, amount, rate, until):
        is_dae = model is dae
        widen = lambda x: jnp.stack([x, jnp.zeros(())]) if is_dae else x
        args = (0.5, steady_drive)
        phases = [
            sx.Phase(1.0, args=args),
            sx.Phase(until, args=args, dose=widen(amount), inflow=widen(rate)),
            sx.Phase(4.0, args=args),
        ]
        return model(widen(jnp.array(0.3)), [4.0], phases).ys.reshape(-1)[0]

    at = (jnp.array(0.7), jnp.array(0.2), jnp.array(2.2))
    found, wanted = (
        jax.value_and_grad(lambda *at, model=model: last(model, *at), argnums=(0, 1, 2))(*at)
        for model in (dae, ode)
    )
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-8)
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-6)


@pytest.mark.parametrize("of", [jax.grad, slow(jax.jacfwd)])
def test_a_jump_at_the_end_of_a_phase(of):
    """The knot and the end are told apart."""
    dae = sx.SimulatePhases(with_algebraic, solver=sx.Rodas5P(mass=[1, 0]), controller=TIGHT)
    ode = sx.SimulatePhases(eliminated, controller=TIGHT)

    def last(model, knot, until, a):
        args = (a, sx.Input(jnp.stack([jnp.zeros(()), knot]), jnp.array([1.0, 2.0]), "previous"))
        phases = [sx.Phase(until, args=args), sx.Phase(2.0, args=args)]
        y0 = jnp.array([0.3, 0.0]) if model is dae else jnp.array(0.3)
        return model(y0, [2.0], phases).ys.reshape(-1)[0]

    at = (jnp.array(1.3), jnp.array(1.3), jnp.array(0.5))
    found, wanted = (
        of(lambda *at, model=model: last(model, *at), argnums=(0, 1, 2))(*at)
        for model in (dae, ode)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-7, atol=1e-8)
    assert abs(wanted[0]) > 0.1 and abs(wanted[1]) < 1e-8


SIZE = 40


def rod(t, y, args):
    """Heat in a rod whose ends are held: two equations are algebraic."""
    inner = args * (y[2:] - 2 * y[1:-1] + y[:-2])
    return jnp.concatenate([y[:1] - jnp.sin(t), inner, y[-1:]])


STRUCTURES = {
    "banded": sx.Banded(1, 1),
    "sparse": sx.Sparse(np.tri(SIZE, k=1) * np.tri(SIZE, k=1).T),
    "matrix-free": sx.MatrixFree(),
}


@pytest.mark.parametrize("name", by_day(STRUCTURES, "banded"))
def test_structures_of_the_jacobian(name):
    mass = np.ones(SIZE)
    mass[[0, -1]] = 0
    y0, ts = jnp.zeros(SIZE), [0.5, 2.0]

    def solved(jacobian):
        solver = sx.Rodas5P(jacobian=jacobian, mass=mass)
        model = sx.Simulate(rod, solver=solver)

        def loss(rate):
            ys = model(y0.at[0].set(9.0), ts, args=rate).ys
            return jnp.sum(ys**2), ys

        return jax.value_and_grad(loss, has_aux=True)(5.0)

    (_, ys), slope = solved(STRUCTURES[name])
    (_, wanted), wanted_slope = solved(sx.Dense())
    np.testing.assert_allclose(ys, wanted, atol=1e-6 if name == "matrix-free" else 1e-12)
    np.testing.assert_allclose(slope, wanted_slope, rtol=1e-5 if name == "matrix-free" else 1e-9)


MATRIX = np.array([[2.0, 1.0, 0.0], [1.0, 3.0, 0.5], [0.0, 0.5, 1.0]])


@pytest.mark.parametrize("solver", [sx.Rodas5P, slow(sx.Rodas4), slow(sx.Rosenbrock23)])
def test_a_regular_mass_is_its_inverse_times_the_field(solver):
    inverse = np.linalg.inv(MATRIX)
    field = lambda t, y, k: jnp.sin(t) - k * y**3
    divided = lambda t, y, k: inverse @ field(t, y, k)
    control = sx.StiffPID(rtol=1e-7, atol=1e-9)

    def last(field, mass, k, t1):
        model = sx.Simulate(field, solver=solver(mass=mass), controller=control)
        return model(jnp.array([1.0, 2.0, -1.0]), t1[None], args=k).ys[0, 0]

    at = (3.0, jnp.array(2.0))
    found = jax.value_and_grad(lambda *at: last(field, MATRIX, *at), argnums=(0, 1))(*at)
    wanted = jax.value_and_grad(lambda *at: last(divided, None, *at), argnums=(0, 1))(*at)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4)


@pytest.mark.slow
def test_lanes_are_as_each_alone():
    dae, _ = both(sx.StiffPID(rtol=1e-6, atol=1e-8))
    rates = jnp.array([0.1, 0.5, 2.0])
    knots = jnp.array([[0.0, 1.0], [0.0, 1.5], [0.0, 0.7]])
    run = lambda a, ts: dae(
        jnp.array([0.3, 0.0]), [2.0], args=(a, sx.Input(ts, jnp.array([1.0, 3.0]), "previous"))
    )
    batch = jax.vmap(run)(rates, knots)
    for k in range(3):
        alone = run(rates[k], knots[k])
        np.testing.assert_allclose(batch.ys[k], alone.ys, rtol=1e-12)
        assert batch.stats["num_steps"][k] == alone.stats["num_steps"]


@pytest.mark.slow
def test_a_lane_without_a_start_beside_those_with_one():
    field = lambda t, y, a: jnp.stack([y[1] - y[0], y[1] ** 2 - a + 0.1 * y[0]])
    model = sx.Simulate(field, solver=sx.Rodas5P(mass=[1, 0]))
    last = lambda a: model(jnp.array([0.3, 1.0]), [2.0], args=a, throw=False).ys.sum()
    at = jnp.array([1.0, -2.0, 4.0])
    values, slopes = jax.vmap(jax.value_and_grad(last))(at)
    assert np.isfinite(values).all() and slopes[1] == 0
    for k in (0, 2):
        alone = jax.value_and_grad(last)(at[k])
        np.testing.assert_allclose((values[k], slopes[k]), alone, rtol=1e-10)


@pytest.mark.slow
def test_single_precision_and_backwards():
    control = sx.StiffPID(rtol=1e-4, atol=1e-6)
    dae, ode = both(control)
    args = (0.5, steady_drive)
    found = dae(jnp.array([0.3, 0.0], jnp.float32), [2.0], args=args).ys[0]
    wanted = ode(jnp.array(0.3), [2.0], args=args).ys[0]
    np.testing.assert_allclose(found[0], wanted, rtol=1e-3)
    dae, ode = both()
    back = jax.grad(lambda y: dae(jnp.stack([y, 0.0]), [0.0], t0=2.0, args=args).ys[0, 0])(0.3)
    there = jax.grad(lambda y: ode(y, [0.0], t0=2.0, args=args).ys[0])(0.3)
    np.testing.assert_allclose(back, there, rtol=1e-8)


@pytest.mark.slow
def test_in_plain_diffrax():
    problem = ROBERTSON_DAE
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(problem.field),
        sx.Rodas5P(mass=problem.mass),
        0.0,
        problem.t1,
        1e-6,
        problem.y0,
        problem.args,
        saveat=diffrax.SaveAt(ts=problem.ts),
        stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-12),
    )
    assert problem.error(solution.ys) < 1e-5


@pytest.mark.slow
def test_a_guard_keeps_its_steps():
    problem = ROBERTSON_DAE
    guarded = sx.Guarded(problem.field, sx.Guard(lower=0.0, reject=False))
    model = sx.Simulate(guarded, solver=sx.Rodas5P(mass=problem.mass))
    simulation = model(problem.y0, problem.ts, args=problem.args)
    assert problem.error(simulation.ys) < 1e-4


@pytest.mark.slow
def test_diagnosis_knows_rates_and_not_residuals():
    model = sx.Simulate(ROBERTSON_DAE.field, solver=sx.Rodas5P(mass=ROBERTSON_DAE.mass))
    found = sx.diagnose(model, ROBERTSON.y0, ROBERTSON.ts, args=ROBERTSON.args)
    wanted = sx.diagnose(
        sx.Simulate(ROBERTSON.field), ROBERTSON.y0, ROBERTSON.ts, args=ROBERTSON.args
    )
    ratios = (found.stiffness.largest_ratio, wanted.stiffness.largest_ratio)
    np.testing.assert_allclose(ratios[0], ratios[1], rtol=0.05)
    assert not found.causes


def test_a_mass_is_no_parameter_and_equal_by_content():
    model = sx.Simulate(with_algebraic, solver=sx.Rodas5P(mass=np.array([1.0, 0.0])))
    assert not jax.tree.leaves(eqx.filter(model, eqx.is_array))
    assert sx.Rodas5P(mass=[1, 0]) == sx.Rodas5P(mass=np.array([1.0, 0.0]))
    assert eval(f"sx.{model.options.solver!r}") == model.options.solver
    assert pickle.loads(pickle.dumps(model)).options.solver == model.options.solver
    assert hash(sx.Rodas5P(mass=[1, 0])) == hash(sx.Rodas5P(mass=[1.0, 0.0]))
    assert sx.Rodas5P(mass=[1, 0]) != sx.Rodas5P(mass=[1, 2])


def test_a_mass_like_the_state():
    field = lambda t, y, a: {"b": y["b"] - a * y["c"], "c": y["b"][::-1] - y["c"]}
    y0 = {"c": jnp.array([1.0, 2.0]), "b": jnp.zeros(2)}
    solver = sx.Rodas5P(mass={"b": np.zeros(2), "c": np.ones(2)})
    ys = sx.Simulate(field, solver=solver)(y0, [1.0], args=1.0).ys
    np.testing.assert_allclose(ys["b"], ys["c"], rtol=1e-9)
    assert solver == sx.Rodas5P(mass={"c": np.ones(2), "b": np.zeros(2)})
    with pytest.raises(ValueError, match="`mass` has the structure"):
        sx.Simulate(lambda t, y, _: -y, solver=solver)(jnp.ones(4), [1.0])


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: sx.Rodas5P(mass=np.ones((2, 3))), ValueError, r"got shape \(2, 3\)"),
        (lambda: sx.Rodas5P(mass=1.0), ValueError, r"got shape \(\)"),
        (lambda: sx.Rodas5P(mass=[1.0, np.nan]), ValueError, "must be finite"),
        (lambda: sx.Rodas5P(mass=["a"]), TypeError, "`mass` must be a number or an array"),
        (lambda: jax.jit(lambda m: sx.Rodas5P(mass=m))(jnp.ones(2)), TypeError, "traced"),
        (lambda: sx.Rosenbrock23(mass=[1.0, 0.0]), ValueError, "Use `Rodas5P"),
        (lambda: sx.Integrate(sx.Rodas5P(mass=[1.0, 0.0])), TypeError, "no `mass`"),
    ],
)
def test_a_mass_that_is_none_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_what_does_not_fit_a_mass_is_refused():
    y0 = jnp.array([0.3, 0.0])
    field = lambda t, y, _: -y
    with pytest.raises(ValueError, match="`mass` is of 3 components, but the state has 2"):
        sx.Simulate(field, solver=sx.Rodas5P(mass=[1.0, 1.0, 0.0]))(y0, [1.0])
    coupled = sx.Rodas5P(jacobian=sx.Banded(0, 0), mass=np.array([[1.0, 1.0], [0.0, 1.0]]))
    with pytest.raises(ValueError, match=r"entry at \(0, 1\)"):
        sx.Simulate(field, solver=coupled)(y0, [1.0])
    model = sx.SteadyThenSimulate(field, solver=sx.Rodas5P(mass=[1.0, 0.0]))
    with pytest.raises(TypeError, match="cannot start from a steady state"):
        model(y0, [1.0])
    jumps, _ = both(adjoint=diffrax.RecursiveCheckpointAdjoint())
    with pytest.raises(TypeError, match="needs the default adjoint"):
        jumps(y0, TIMES, args=(0.5, sx.Input(KNOTS, VALUES, "previous")))
