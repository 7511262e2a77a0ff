"""The methods behind `find_steady_state`: as root finders elsewhere, in chains, in batches."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

import stablax as sx
from stablax.problems import ROBERTSON, SWITCH

FINDERS = {"Newton": sx.Newton, "PseudoTransient": sx.PseudoTransient}


def switch(t, y, args):
    """Bistable, with stable states 0.18350342 and 1.81649658 and a ridge at 1/3."""
    return SWITCH.field(t, y, SWITCH.args)


def words(found, stage=0):
    return sx.STATUS[found.statuses[stage]]


@pytest.mark.parametrize("finder", FINDERS)
def test_in_optimistix(finder):
    fn = lambda y, a: {"x": y["x"] ** 2 - a, "z": y["z"] - y["x"][0]}
    y0, a = {"x": jnp.array([1.0, 2.0]), "z": jnp.array(0.0)}, jnp.array([2.0, 9.0])
    solve = lambda a: optx.root_find(fn, FINDERS[finder](), y0, a).value
    np.testing.assert_allclose(solve(a)["x"], [np.sqrt(2), 3.0], rtol=1e-9)
    slope = jax.jit(jax.jacrev(lambda a: solve(a)["x"]))(a)
    np.testing.assert_allclose(slope, np.diag(0.5 / np.sqrt([2.0, 9.0])), rtol=1e-8, atol=1e-12)


def test_bounds_in_optimistix():
    """Roots -2 and 1; the bounds leave the first one only."""
    fn = lambda y, _: (y + 2.0) * (1.0 - y)
    bounds = dict(lower=jnp.array(-3.0), upper=jnp.array(0.0))
    found = optx.root_find(fn, sx.Newton(), jnp.array(-0.8), options=bounds)
    np.testing.assert_allclose(found.value, -2.0, rtol=1e-9)
    bounds = dict(lower=jnp.array(2.0), upper=jnp.array(5.0))
    found = optx.root_find(fn, sx.Newton(), jnp.array(3.0), options=bounds, throw=False)
    assert found.result == optx.RESULTS.nonlinear_divergence


# https://github.com/patrick-kidger/optimistix/blob/main/optimistix/_solver/newton_chord.py
@pytest.mark.parametrize("finder", [sx.Newton, sx.PseudoTransient, sx.PatientChord, optx.Chord])
def test_bounds_keep_the_iterates_inside(finder):
    """The first step from 3 is to -1.4, where there is nothing."""

    def fn(y, _):
        return jnp.where(y < 0, jnp.nan, y - 1 + 1.3 * (1 + jnp.tanh(3 * (y - 2))))

    def find(lower):
        bounds = dict(lower=lower, upper=jnp.array(10.0))
        return optx.root_find(
            fn, finder(1e-9, 1e-9), jnp.array(3.0), options=bounds, max_steps=50, throw=False
        )

    found = find(jnp.array(0.0))
    assert found.result == optx.RESULTS.successful
    np.testing.assert_allclose(fn(found.value, None), 0.0, atol=1e-8)
    # No root is inside: to rest on the bound is no success.
    assert find(jnp.array(1.5)).result != optx.RESULTS.successful


@pytest.mark.parametrize("finder", FINDERS)
def test_in_an_implicit_solver(finder):
    """Robertson's problem at t = 40; the reference is that of Hairer and Wanner, section IV.1."""

    def robertson(t, y, args):
        return ROBERTSON.field(t, y, ROBERTSON.args)

    root_finder = diffrax.with_stepsize_controller_tols(FINDERS[finder])()
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(robertson),
        diffrax.Kvaerno5(root_finder=root_finder),
        0.0,
        40.0,
        None,
        jnp.array([1.0, 0.0, 0.0]),
        stepsize_controller=diffrax.PIDController(rtol=1e-7, atol=1e-11),
    )
    reference = [0.7158270687, 9.185534765e-6, 0.2841637457]
    np.testing.assert_allclose(solution.ys[0], reference, rtol=1e-5)


def test_every_stage_leaves_its_status():
    newton, follows, box = sx.Newton(), sx.PseudoTransient(), sx.Guard(0.0)
    searches = {
        "converged": (lambda t, y, _: 1.0 - y, 0.0, newton),
        "diverged": (lambda t, y, _: y**2 + 1.0, 1.0, newton),
        "singular": (lambda t, y, _: y**2 + 1.0, 0.0, newton),
        "not_finite": (lambda t, y, _: y * jnp.nan, 0.0, newton),
        "out_of_steps": (switch, 3.0, follows),
        "left_bounds": (sx.Guarded(lambda t, y, _: -(y + 1.0), box), 1.0, newton),
        "unstable": (switch, 0.34, newton),
        "ambiguous": (switch, 0.36, follows),
        "not_needed": (lambda t, y, _: 1.0 - y, 0.0, sx.Chain((newton, newton))),
    }
    assert len(searches) == len(sx.STATUS)
    for name, (field, y0, method) in searches.items():
        steps = 2 if name == "out_of_steps" else 256
        options = dict(method=method, max_steps=steps, throw=False)
        found = sx.find_steady_state(field, jnp.array([y0]), **options)
        assert found.statuses[-1] == getattr(sx.STATUS, name), name


def test_a_chain_goes_on_and_says_so():
    """Newton finds the ridge, which is unstable."""
    chain = sx.Chain((sx.Newton(), sx.PseudoTransient(), sx.Integrate()))
    found = sx.find_steady_state(switch, jnp.array([0.35]), method=chain)
    np.testing.assert_allclose(found.y, 1.81649658, rtol=1e-7)
    said = sx.explain(found)
    assert said.startswith("Successful: Newton ended at an unstable steady state, PseudoTransient")
    assert found.method_name == "Integrate" and "Integrate converged" in said
    # One stage of a batch each: not needed, and needed.
    batch = jax.vmap(lambda y: sx.find_steady_state(switch, y, method=chain))(
        jnp.array([[0.1], [0.35]])
    )
    assert (batch.statuses[1] == sx.STATUS.not_needed).tolist() == [True, False]
    alone = sx.find_steady_state(switch, jnp.array([0.1]), method=chain)
    np.testing.assert_allclose(batch.y[0], alone.y, rtol=1e-12)
    assert batch.num_steps.tolist() == [int(alone.num_steps), int(found.num_steps)]


def test_a_lane_pays_for_no_stage_that_it_does_not_need():
    """A stage whose lanes are all done evaluates nothing."""
    evaluations = []

    def counted(t, y, args):
        jax.debug.callback(lambda _: evaluations.append(1), y[0])
        return 1.0 - y

    counts = []
    for chain in (sx.Chain((sx.Newton(),)), sx.Chain((sx.Newton(), sx.PseudoTransient()))):
        evaluations.clear()
        steps = jax.jit(
            jax.vmap(
                lambda y, c=chain: sx.find_steady_state(counted, y, method=c, throw=False).num_steps
            )
        )(jnp.zeros((3, 1)))
        jax.effects_barrier()
        assert steps.tolist() == [2, 2, 2]
        counts.append(len(evaluations))
    assert counts[0] == counts[1]


def test_nobody_else_can_be_a_stage():
    with pytest.raises(ValueError, match="one or more methods"):
        sx.Chain(("newton",))
    with pytest.raises(TypeError, match="`method` must be a search"):
        sx.find_steady_state(switch, jnp.array([0.1]), method=3)
    with pytest.raises(ValueError, match="`nonlinearity` must be between 0 and 1"):
        sx.PseudoTransient(nonlinearity=2.0)
    with pytest.raises(ValueError, match="`rtol` must be between 0 and 1, got -1"):
        sx.Integrate(rtol=-1.0)
    with pytest.raises(TypeError, match="`solver` must be a diffrax solver"):
        sx.Integrate(solver="Kvaerno5")
    with pytest.raises(TypeError, match="KenCarp4"):
        sx.Integrate(solver=diffrax.KenCarp4())


# --- hard parts


def test_scales_and_rates_far_apart():
    """1e-9 beside 1e6, and rates over 11 orders of magnitude."""
    units = jnp.array([1e-9, 1e6, 1.0])
    rates = jnp.array([1e-6, 1e5, 1.0])
    target = jnp.array([2.0, 3.0, 0.5])

    def field(t, y, args):
        z = y / units
        return units * rates * (target * jnp.array([1.0, z[2] / 0.5, 1.0]) - z)

    found = sx.find_steady_state(field, units, atol=1e-22)
    np.testing.assert_allclose(found.y / units, target, rtol=1e-9)


def test_exact_zeros_with_fractional_powers():
    """y' = 1 - sqrt(y) from y = 0, where the derivative is infinite; and a Hill function of 0."""

    def field(t, y, args):
        hill = y[1] ** 1.5 / (0.3 + y[1] ** 1.5)
        return jnp.stack([args - jnp.sqrt(y[0]), 0.2 + hill - 2.0 * y[1]])

    root = lambda args: sx.find_steady_state(
        sx.Guarded(field, sx.Guard(0.0)), jnp.zeros(2), args, method=sx.PseudoTransient()
    )
    found = root(2.0)
    np.testing.assert_allclose(found.y[0], 4.0, rtol=1e-9)
    assert float(jnp.abs(field(0.0, found.y, 2.0)).max()) < 1e-12
    np.testing.assert_allclose(jax.jit(jax.grad(lambda a: root(a).y[0]))(2.0), 4.0, rtol=1e-8)


def test_a_dead_component_keeps_its_value():
    """Without being told: dy[1]/dt = 0."""

    def field(t, y, args):
        return jnp.stack([args * (y[1] - y[0]), jnp.zeros_like(y[1])])

    root = lambda y0: sx.find_steady_state(field, y0, 2.0, method=sx.PseudoTransient()).y
    y0 = jnp.array([0.3, 5.0])
    np.testing.assert_allclose(root(y0), [5.0, 5.0], rtol=1e-9)
    np.testing.assert_allclose(jax.jit(jax.jacrev(root))(y0), [[0.0, 1.0], [0.0, 1.0]], atol=1e-9)


def test_the_random_systems_of_issue_368():
    # https://github.com/patrick-kidger/diffrax/issues/368
    rng = np.random.default_rng(368)
    p = jnp.asarray(rng.uniform([-10, 5, -5], [20, 20, 5], (200, 3)))
    y0, k = jnp.asarray(rng.uniform(-5, 5, (200, 2))), -2.2910986

    def field(t, y, p):
        first = jnp.expm1(p[2] - y[0] - y[1]) * jnp.exp(p[0])
        return jnp.stack([first, jnp.expm1(k - y[1]) * jnp.exp(p[1])])

    found = jax.jit(jax.vmap(lambda y, p: sx.find_steady_state(field, y, p, throw=False)))(y0, p)
    truth = np.stack([p[:, 2] - k, np.full(200, k)], axis=1)
    right = np.abs(np.asarray(found.y) - truth).max(axis=1) < 1e-6
    ok = np.asarray(sx.is_successful(found))
    assert (ok & right).sum() >= 195 and not (ok & ~right).any()


@pytest.mark.parametrize("solver", [sx.Rodas5P(), diffrax.Kvaerno3()], ids=repr)
def test_integration_ends_where_it_has_arrived(solver):
    """At the start, or at the end of a step; in a batch each lane for itself."""
    field = lambda t, y, k: k - y
    rest = jnp.full(2, 3.0)
    method = sx.Integrate(solver=solver)

    def find(y0, method=method):
        return sx.find_steady_state(field, y0, args=3.0, method=method, throw=False)

    starts = jnp.stack([rest, jnp.ones(2), rest + 1e3])
    alone = [find(y0) for y0 in starts]
    assert int(alone[0].num_steps) == 0
    assert 0 < int(alone[1].num_steps) < int(alone[2].num_steps)
    together = jax.vmap(find)(starts)
    assert together.num_steps.tolist() == [int(found.num_steps) for found in alone]
    np.testing.assert_allclose(together.y, jnp.stack([rest] * 3), rtol=1e-9)
    assert not sx.is_successful(find(starts[1], sx.Integrate(solver=solver, horizon=0.1)))


def test_a_field_that_is_infinite_at_the_start_is_no_singular_steady_state():
    field = lambda t, y, args: jnp.exp(1000 * y) - 1
    method = sx.Integrate(solver=diffrax.Tsit5())
    found = sx.find_steady_state(field, jnp.ones(1), method=method, throw=False)
    assert found.result == sx.RESULTS.no_steady_state


class _Blind(sx.AbstractSteadyMethod):
    """Looks nowhere."""

    def search(self, problem, active):
        return sx.Attempt(problem.start, sx.STATUS.converged, jnp.array(0), problem.unseen())


def test_what_nobody_has_looked_at_is_no_steady_state():
    """Of zeros it would be a flat spot: nothing moves, whatever the state."""
    found = sx.find_steady_state(lambda t, y, k: k - y, 1.0, 2.0, method=_Blind(), throw=False)
    assert found.result == sx.RESULTS.no_steady_state
