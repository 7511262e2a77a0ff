"""Fields that are driven by an `Input`: values and derivatives against closed forms."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import by_day, slow

import stablax as sx

TS = jnp.array([0.5, 1.0, 2.5, 3.1])
VALUES = jnp.array([1.0, -2.0, 3.0, 0.5])
END = 5.0
SOLVERS = {
    "Rodas5P": None,
    "Tsit5": diffrax.Tsit5(),
    "kvaerno5": sx.kvaerno5(),
    "Rosenbrock23": sx.Rosenbrock23(),
}
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)


def exact(ts, values, kind, t0=0.0, end=END, y0=0.3, rate=1.0):
    """y' = u(t) - rate y, by quadrature between the knots."""
    path = diffrax.LinearInterpolation(ts, values)
    if kind == "cubic":
        path = diffrax.CubicInterpolation(ts, diffrax.backward_hermite_coefficients(ts, values))
    borders = [jnp.asarray(t0), *ts, jnp.asarray(end)]
    total = y0 * jnp.exp(-rate * (end - t0))
    for k, (a, b) in enumerate(zip(borders[:-1], borders[1:], strict=True)):
        t = a + (b - a) * (_NODES + 1) / 2
        if 0 < k < len(ts) and kind != "previous":
            u = jax.vmap(path.evaluate)(t)
        else:
            u = values[max(k - 1, 0)]
        total += jnp.sum(_WEIGHTS * jnp.exp(rate * (t - end)) * u) * (b - a) / 2
    return total


def model_of(solver=None, adjoint=None, rtol=1e-9, field=None, **options):
    """y' = u(t) - y."""
    field = (lambda t, y, drive: drive(t) - y) if field is None else field
    preset = sx.StiffPID.preset(solver=solver or sx.Rodas5P(), rtol=rtol, atol=rtol / 100)
    return sx.Simulate(field, solver=solver, adjoint=adjoint, controller=preset, **options)


def last_of(model, kind):
    y0, times = jnp.array(0.3), jnp.array([END])
    return lambda ts, values: model(y0, times, args=sx.Input(ts, values, kind)).ys[0]


CASES = [(kind, name) for kind in ("previous", "linear", "cubic") for name in SOLVERS]


@pytest.mark.parametrize(
    ("kind", "name"),
    by_day(CASES, ("previous", "Rodas5P"), ("cubic", "Tsit5")),
)
def test_values_and_derivatives_in_values_and_knots(kind, name):
    """In both modes; no step is lost at a knot."""
    coarse = name == "Rosenbrock23"
    rtol = 1e-6 if coarse else 1e-9
    f = last_of(model_of(SOLVERS[name], rtol=rtol), kind)
    value, gradient = jax.value_and_grad(f, argnums=(0, 1))(TS, VALUES)
    expected, slope = jax.value_and_grad(exact, argnums=(0, 1))(TS, VALUES, kind)
    np.testing.assert_allclose(value, expected, atol=1e-4 if coarse else 1e-8)
    near = 1e-3 if coarse else 1e-7
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=near), gradient, slope)
    forward = jax.jacfwd(f, argnums=(0, 1))(TS, VALUES)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), gradient, forward)


@pytest.mark.slow
def test_second_derivatives():
    f = last_of(model_of(), "previous")
    np.testing.assert_allclose(
        jax.hessian(f)(TS, VALUES), jax.hessian(exact)(TS, VALUES, "previous"), atol=1e-6
    )


@pytest.mark.slow
def test_forward_mode():
    g = last_of(model_of(adjoint=diffrax.ForwardMode()), "previous")
    expected = jax.grad(exact)(TS, VALUES, "previous")
    np.testing.assert_allclose(jax.jacfwd(g)(TS, VALUES), expected, atol=1e-7)


class Driven(eqx.Module):
    rate: jax.Array
    drive: sx.Input

    @jax.jit
    def slope(self, t, y):
        return self.drive(t) - self.rate * y

    def __call__(self, t, y, args):
        return self.slope(t, y)


def test_where_an_input_can_be():
    """In `args`, as an attribute, behind a function that is compiled by itself, closed over, as an
    input of reactions, by name or as their function: the same steps, and a good gradient."""
    drive, rate = sx.Input(TS, VALUES + 3, "previous"), jnp.array(1.0)
    names = dict(species=["y"], inputs=("u",))
    flows = [sx.MassAction("u"), sx.MassAction(1.0)]
    reacting = sx.ReactionField(["0 -> y", "y -> 0"], flows, **names)
    owned = sx.ReactionField(["0 -> y", "y -> 0"], flows, **(names | dict(inputs={"u": drive})))

    @jax.jit
    def compiled(t, y, args):
        return drive(t) - y

    fields = {
        "args": (lambda t, y, args: args["u"](t) - y, {"u": drive}),
        "attribute": (Driven(rate, drive), None),
        "closed over": (lambda t, y, args: drive(t) - y, None),
        "compiled": (compiled, None),
        "by name": (reacting, {"u": drive}),
        "function": (owned, None),
    }
    steps = set()
    for name, (field, args) in fields.items():
        simulation = model_of(field=field)(jnp.array([0.3]), [END], args=args)
        expected = exact(TS, VALUES + 3, "previous")
        np.testing.assert_allclose(simulation.ys[0, 0], expected, atol=1e-8, err_msg=name)
        assert int(simulation.stats["num_rejected_steps"]) < 10, name
        steps.add(int(simulation.stats["num_steps"]))
    assert max(steps) - min(steps) <= 8, steps

    # What is closed over is traced outside of the solve.
    def closed(ts):
        shifted = sx.Input(ts, VALUES, "previous")
        field = jax.jit(lambda t, y, args: shifted(t) - y)
        return model_of(field=field)(jnp.array(0.3), [END]).ys[0]

    expected = jax.grad(exact)(TS, VALUES, "previous")
    np.testing.assert_allclose(jax.grad(closed)(TS), expected, atol=1e-7)


def test_an_attribute_is_trained_or_constant():
    model = model_of(field=Driven(jnp.array(1.0), sx.Input(TS, VALUES, "previous")))
    loss = lambda model: model(jnp.array(0.3), [END]).ys[0]
    found = eqx.filter_grad(loss)(model).field
    expected = jax.grad(exact)(TS, VALUES, "previous")
    np.testing.assert_allclose(found.drive.ts, expected, atol=1e-7)
    rate = jax.grad(lambda rate: exact(TS, VALUES, "previous", rate=rate))(1.0)
    np.testing.assert_allclose(found.rate, rate, atol=1e-7)
    frozen = sx.Input(sx.Frozen(TS), sx.Frozen(VALUES), "previous")
    model = model_of(field=Driven(jnp.array(1.0), frozen))
    assert len(jax.tree.leaves(sx.partition(model)[0])) == 1


@pytest.mark.parametrize("kind", ["previous", slow("linear")])
def test_lanes_have_knots_of_their_own(kind):
    """Of different number, padded; under `vmap`, and in a batch in which lanes take turns."""
    pad = lambda x, n, fill: jnp.concatenate([x[:n], jnp.full(4 - n, fill)])
    shifts = [0.0, 0.2, 0.4, -0.3, 0.1]
    counts = [4, 3, 2, 4, 3]
    ts = jnp.stack([pad(TS + s, n, jnp.inf) for s, n in zip(shifts, counts, strict=True)])
    values = jnp.stack([pad(VALUES, n, jnp.nan) for n in counts])
    model = model_of()

    def total(ts, values, batched):
        drives = jax.vmap(lambda ts, values: sx.Input(ts, values, kind))(ts, values)
        common = dict(y0=jnp.array(0.3), ts=jnp.array([END]))
        if batched:
            return sx.simulate_batch(model, dict(args=drives), shared=common, batch_size=2).ys[:, 0]
        return jax.vmap(lambda drive: model(args=drive, **common).ys[0])(drives)

    both = [exact(t[:n], v[:n], kind) for t, v, n in zip(ts, values, counts, strict=True)]
    of_one = jax.grad(exact, argnums=(0, 1))
    slopes = [of_one(t[:n], v[:n], kind) for t, v, n in zip(ts, values, counts, strict=True)]
    for batched in (False, True):
        found, pull = jax.vjp(lambda ts, values, b=batched: total(ts, values, b), ts, values)
        np.testing.assert_allclose(found, jnp.stack(both), atol=1e-8)
        d_ts, d_values = pull(jnp.ones(5))
        for k, (n, (of_ts, of_values)) in enumerate(zip(counts, slopes, strict=True)):
            np.testing.assert_allclose(d_ts[k], pad(of_ts, n, 0.0), atol=1e-7)
            np.testing.assert_allclose(d_values[k], pad(of_values, n, 0.0), atol=1e-7)


def test_phases_meet_the_knots_and_end_at_them():
    """A switch in the middle of a phase, one where it ends, and one behind all: the derivative is
    that of one solve."""
    model = sx.SimulatePhases(lambda t, y, drive: drive(t) - y, controller=_fine())

    def last(ts, values):
        drive = sx.Input(ts, values, "previous")
        phases = [sx.Phase(2.5, args=drive), sx.Phase(END, args=drive)]
        return model(jnp.array(0.3), [END], phases).ys[0]

    found = jax.value_and_grad(last, argnums=(0, 1))(TS, VALUES)
    expected = jax.value_and_grad(exact, argnums=(0, 1))(TS, VALUES, "previous")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), found, expected)


def _fine():
    return sx.StiffPID.preset(rtol=1e-9, atol=1e-11)


def test_a_jump_at_the_end_of_a_solve_is_not_seen():
    """Neither that of an input nor one that the controller is told: 163 steps where 40 do."""
    model = model_of(rtol=1e-8)
    tall = sx.Input([0.0, 4.0], [1.0, -50.0], "previous")
    told = model_of(
        rtol=1e-8, field=lambda t, y, drive: jnp.where(t < 4, drive(0.0), drive(4.0)) - y
    )
    for run in (model, told):
        stepping = sx.Stepping(jump_ts=[4.0]) if run is told else None
        simulation = run(0.0, [4.0], args=tall, stepping=stepping)
        np.testing.assert_allclose(simulation.ys[0], 1 - jnp.exp(-4.0), atol=1e-9)
        assert int(simulation.stats["num_steps"]) < 50


def test_a_jump_at_the_start_is_behind():
    """Where a pulse ends, and backwards from a switch, the first step sees what comes."""
    pulse = sx.Input([0.0, 2.0], [50.0, 50.0], outside="zero")
    after = model_of()(1.0, [5.0], t0=2.0, args=pulse)
    np.testing.assert_allclose(after.ys[0], jnp.exp(-3.0), atol=1e-9)
    switch = sx.Input([0.0, 2.0], [50.0, -3.0], "previous")
    back = model_of(field=lambda t, y, drive: drive(t) + y)(1.0, [1.0], t0=2.0, args=switch)
    np.testing.assert_allclose(back.ys[0], jnp.exp(-1.0) - 50 * (1 - jnp.exp(-1.0)), atol=1e-7)
    assert not int(after.stats["num_rejected_steps"]) + int(back.stats["num_rejected_steps"])


def test_knots_that_rounding_tells_apart_are_one():
    steps = np.arange(31) * 0.1
    summed = np.append(0.0, np.cumsum(np.full(30, 0.1)))
    assert np.any((steps != summed) & (abs(steps - summed) < 1e-14))
    model = model_of(field=lambda t, y, drives: drives[0](t) + drives[1](t) - y, rtol=1e-6)
    rows = []
    for other in (summed, steps):
        drives = (sx.Input(steps, np.sin(steps)), sx.Input(other, np.cos(steps), "previous"))
        simulation = model(0.3, [4.0], args=drives)
        rows.append((simulation.ys[0], simulation.stats["num_steps"]))
    np.testing.assert_allclose(*rows, rtol=1e-12)


def test_traced_knots_that_do_not_rise_fail():
    run = lambda ts: model_of()(0.3, [3.0], args=sx.Input(ts, jnp.ones(3)), throw=False).result
    assert jax.jit(run)(jnp.array([0.0, 2.0, 1.0])) == sx.RESULTS.bad_knots
    assert "must rise strictly" in sx.explain(jax.jit(run)(jnp.array([0.0, 1.0, 1.0])))
    assert sx.is_successful(jax.jit(run)(jnp.array([0.0, 1.0, jnp.inf])))


def test_backwards_in_time():
    """The knots move the other way round."""
    model = model_of(field=lambda t, y, drive: drive(t) + y)  # stable backwards
    f = lambda ts, values: model(
        jnp.array(0.3), [-END], t0=0.0, args=sx.Input(ts, values, "previous")
    ).ys[0]

    def reversed_exact(ts, values):
        # In s = -t: y' = -u(-s) - y, and u is what was behind the knot.
        after = jnp.concatenate([values[::-1], values[:1]])
        return exact(-ts[::-1], -after[1:], "previous") + _first(ts, values)

    def _first(ts, values):
        # Up to the first knot that is met it is the last value.
        first = -ts[-1]
        weight = jnp.exp(-END) * (jnp.exp(first) - 1)
        return weight * (-values[-1] + values[-2])

    ts, values = TS - END, VALUES
    found = jax.value_and_grad(f, argnums=(0, 1))(ts, values)
    expected = jax.value_and_grad(reversed_exact, argnums=(0, 1))(ts, values)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), found, expected)


@pytest.mark.parametrize("kind", ["linear", slow("previous")])
def test_a_pulse_that_begins_and_ends_in_zero(kind):
    """`outside="zero"` jumps at both ends, of every kind; the pulse after rest is seen."""
    model = model_of()

    def area(ts, height, kind):
        pulse = sx.Input(ts, jnp.stack([height, height]), kind, outside="zero")
        return model(jnp.array(0.0), [60.0], args=pulse).ys[0]

    def closed(ts, height):
        return height * (jnp.exp(ts[1] - 60) - jnp.exp(ts[0] - 60))

    ts, height = jnp.array([50.0, 50.25]), jnp.array(2.0)
    found = jax.value_and_grad(area, argnums=(0, 1))(ts, height, kind)
    expected = jax.value_and_grad(closed, argnums=(0, 1))(ts, height)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


@pytest.mark.slow
def test_knots_and_events_in_one_solve():
    """What rises at one rate and then at another comes to a level, and is halved: each moves the
    other."""
    ts, values = jnp.array([1.0]), jnp.array([2.0])

    def field(t, y, drive):
        return drive(t) * jnp.ones_like(y)

    event = sx.Event(lambda t, y, args: y[0] - 2.5, change=lambda t, y, args: 0.5 * y)
    model = sx.Simulate(field, event=event, controller=_fine())

    def run(knot, before, after):
        drive = sx.Input(jnp.stack([0 * knot, knot]), jnp.stack([before, after]), "previous")
        simulation = model(jnp.array([0.0]), [2.2], args=drive)
        return simulation.events.t[0], simulation.ys[0, 0]

    def closed(knot, before, after):
        t = knot + (2.5 - before * knot) / after
        return t, 1.25 + after * (2.2 - t)

    point = (ts[0], jnp.array(1.0), values[0])
    for one, other in zip(run(*point), closed(*point), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)
    found, expected = (jax.jacrev(f, argnums=(0, 1, 2))(*point) for f in (run, closed))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-8), found, expected)


def test_single_precision():
    drive = lambda ts: sx.Input(ts, VALUES.astype(jnp.float32), "previous")
    model = model_of(rtol=1e-5)

    def last(ts):
        return model(jnp.array(0.3, jnp.float32), [END], args=drive(ts)).ys[0]

    value, slope = jax.value_and_grad(last)(TS.astype(jnp.float32))
    assert value.dtype == slope.dtype == jnp.float32
    np.testing.assert_allclose(value, exact(TS, VALUES, "previous"), atol=1e-4)
    np.testing.assert_allclose(slope, jax.grad(exact)(TS, VALUES, "previous"), atol=1e-3)
    late = sx.Input([1.7e9, 1.7e9 + 1, 1.7e9 + 30], [0.0, 1.0, 0.0])
    with pytest.raises(ValueError, match=r"pass 1, but 0 in float32"):
        model(jnp.array(0.3, jnp.float32), [1.7e9 + 1024], t0=1.7e9, args=late)


@pytest.mark.slow
def test_the_adjoints_of_diffrax_have_the_derivative_in_values():
    adjoint = diffrax.RecursiveCheckpointAdjoint()
    model = sx.Simulate(lambda t, y, drive: drive(t) - y, adjoint=adjoint)
    values = lambda v: model(0.3, [END], args=sx.Input(sx.Frozen(TS), v, "previous")).ys[0]
    expected = jax.grad(exact, argnums=1)(TS, VALUES, "previous")
    np.testing.assert_allclose(jax.grad(values)(VALUES), expected, atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        dict(adjoint=diffrax.RecursiveCheckpointAdjoint()),
        dict(controller=diffrax.ConstantStepSize(), dt0=0.01),
    ],
    ids=["recursive", "fixed steps"],
)
def test_a_derivative_in_knots_that_cannot_be_had_is_an_error(options):
    model = sx.Simulate(lambda t, y, drive: drive(t) - y, **options)
    knots = lambda ts: model(0.3, [END], args=sx.Input(ts, VALUES, "previous")).ys[0]
    with pytest.raises(TypeError, match=r"an `Input` that jumps.*sx.Frozen\(ts\)"):
        jax.grad(knots)(TS)


def test_an_input_made_inside_a_field_has_its_knots():
    """They may depend on anything but the time and the state."""

    def field(t, y, tau):
        switched = sx.Input(jnp.stack([0 * tau, tau]), jnp.array([1.0, -2.0]), "previous")
        return switched(t) - y

    last = lambda tau: model_of(field=field)(jnp.array(0.3), [END], args=tau).ys[0]
    expected = lambda tau: exact(jnp.stack([0 * tau, tau]), jnp.array([1.0, -2.0]), "previous")
    found = jax.value_and_grad(last)(2.0)
    np.testing.assert_allclose(found, jax.value_and_grad(expected)(2.0), atol=1e-7)
    moving = lambda t, y, args: sx.Input(jnp.stack([y, y + 1]), jnp.ones(2))(t) - y
    with pytest.raises(ValueError, match=r"depend on the time or the state, or change in a loop"):
        model_of(field=moving)(jnp.array(0.3), [END])


@pytest.mark.parametrize("wrap", [eqx.filter_jit, slow(jax.jit), slow(jax.checkpoint)])
def test_a_field_that_is_traced_once_keeps_its_knots(wrap):
    """The second solve finds what the first has traced; the pulse is seen in both."""
    pulse = sx.Input([50.0, 50.25], [2.0, 2.0], outside="zero")
    model = model_of(field=wrap(lambda t, y, args: pulse(t) - y))
    for ts in ([60.0], [55.0, 60.0]):
        np.testing.assert_allclose(model(0.0, ts).ys[-1], 2.579e-5, rtol=1e-3)


def test_inputs_in_the_control_flow_of_a_field_have_their_knots():
    """Many at once that are closed over, and one in a branch and in a scan."""
    late = jnp.array([[50.0, 50.25], [51.0, 51.25]])
    many = jax.vmap(lambda ts: sx.Input(ts, jnp.full(2, 2.0), outside="zero"))(late)
    each = eqx.filter_vmap(lambda one, t: one(t), in_axes=(0, None))
    left = 2.0 * (jnp.exp(late[:, 1] - 60.0) - jnp.exp(late[:, 0] - 60.0))
    found = model_of(field=lambda t, y, args: each(many, t) - y)(jnp.zeros(2), [60.0])
    np.testing.assert_allclose(found.ys[0], left, rtol=1e-6)

    def nested(t, y, drive):
        def add(total, part):
            return total + part * jax.lax.cond(t > 0, lambda t: drive(t), jnp.zeros_like, t), None

        return jax.lax.scan(add, -y, jnp.array([0.25, 0.75]))[0]

    pulse = sx.Input(late[0], jnp.full(2, 2.0), outside="zero")
    alone = model_of(field=nested)(0.0, [60.0], args=pulse)
    np.testing.assert_allclose(alone.ys[0], left[0], rtol=1e-6)
    moving = lambda t, y, args: jax.lax.map(lambda one: one(t), many) - y
    with pytest.raises(ValueError, match=r"or change in a loop within the field"):
        model_of(field=moving)(jnp.zeros(2), [60.0])


def test_given_steps_see_the_side_to_which_they_go():
    """With a start where a pulse ends."""
    pulse = sx.Input([0.0, 2.0], [50.0, 50.0], outside="zero")
    fixed = dict(solver=diffrax.Tsit5(), controller=diffrax.ConstantStepSize(), dt0=0.1)
    model = sx.Simulate(lambda t, y, args: pulse(t) - y, **fixed)
    np.testing.assert_allclose(model(1.0, [3.0], t0=2.0).ys[0], jnp.exp(-1.0), rtol=1e-6)


@pytest.mark.parametrize("other", ["stays", slow("does not jump"), slow("is linear")])
def test_inputs_that_switch_at_one_time(other):
    """Beside one that does not jump, one that is constant, one of another kind with its knots."""
    beside = {
        "does not jump": sx.Input(sx.Frozen([0.0, 2.0, 4.0]), jnp.ones(3), "previous"),
        "stays": sx.Input(sx.Frozen([0.0, 2.0, 4.0]), jnp.array([0.0, 5.0, 1.0]), "previous"),
        "is linear": sx.Input(jnp.array([0.0, 2.0]), jnp.array([0.0, 1.0])),
    }
    model = model_of(field=lambda t, y, args: args[0](t) + args[1](t) - y, rtol=1e-10)

    def last(knot):
        values = jnp.array([1.0, 3.0])
        moving = sx.Input(jnp.stack([0 * knot, knot]), values, "previous")
        return model(jnp.array(0.3), [END], args=(moving, beside[other])).ys[0]

    step = 1e-3
    difference = (last(2.0 + step) - last(2.0 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(last)(2.0), difference, rtol=1e-4)


@pytest.mark.slow
def test_inputs_that_share_their_knots():
    """A jump of the one is not taken for that of the other."""

    def closed(ts):
        a, b = sx.Input(ts, VALUES, "previous"), sx.Input(ts, VALUES)
        return model_of(field=lambda t, y, args: a(t) + b(t) - y)(jnp.array(0.3), [END]).ys[0]

    both = lambda ts: exact(ts, VALUES, "previous", y0=0.0) + exact(ts, VALUES, "linear")
    np.testing.assert_allclose(jax.grad(jax.jit(closed))(TS), jax.grad(both)(TS), atol=1e-7)


def test_a_phase_that_ends_where_an_input_switches():
    """The one moves what follows, the other does not."""
    model = sx.SimulatePhases(lambda t, y, drive: drive(t) - y, controller=_fine())

    def last(knot, end):
        drive = sx.Input(jnp.stack([0 * knot, knot]), jnp.array([1.0, 5.0]), "previous")
        phases = [sx.Phase(end, args=drive), sx.Phase(4.0, args=drive)]
        return model(jnp.array(0.3), [4.0], phases).ys[0]

    slopes = jax.grad(last, argnums=(0, 1))(2.0, 2.0)
    np.testing.assert_allclose(slopes, (-4 * jnp.exp(-2.0), 0.0), atol=1e-7)


@pytest.mark.slow
def test_the_end_of_a_phase_alone_is_no_switch():
    drive = sx.Input([0.0, 2.0], [1.0, 5.0], "previous")
    model = sx.SimulatePhases(lambda t, y, args: drive(t) - y, controller=_fine())
    last = lambda end: model(jnp.array(0.3), [4.0], [sx.Phase(end), sx.Phase(4.0)]).ys[0]
    np.testing.assert_allclose(jax.grad(last)(2.0), 0.0, atol=1e-7)


@pytest.mark.slow
def test_second_derivatives_of_a_nonlinear_field():
    """Forward over reverse is what forward over forward is."""
    field = lambda t, y, drive: drive(t) * y * (1 - y)
    values = jnp.array([0.0, 1.0])

    def last(knot):
        drive = sx.Input(jnp.stack([0 * knot, knot]), values, "previous")
        return model_of(field=field)(jnp.array(0.2), [2.0], args=drive).ys[0]

    grown = lambda knot: 1 / (1 + 4 * jnp.exp(-(2.0 - knot)))
    expected = jax.hessian(grown)(0.5)
    np.testing.assert_allclose(jax.hessian(last)(0.5), expected, atol=1e-6)
    np.testing.assert_allclose(jax.jacfwd(jax.jacfwd(last))(0.5), expected, atol=1e-6)


def test_a_solve_beyond_an_input_that_says_nan_fails():
    drive = sx.Input(TS, VALUES, outside="nan")
    model = sx.Simulate(lambda t, y, drive: drive(t) - y)
    assert sx.is_successful(model(0.3, [3.0], t0=0.5, args=drive).result)
    simulation = model(0.3, [3.0, 4.0], t0=0.5, args=drive, throw=False)
    assert simulation.result == sx.RESULTS.not_finite and simulation.reached.tolist() == [1, 0]
    assert 3.0 < float(simulation.stats["t"]) < 3.2
