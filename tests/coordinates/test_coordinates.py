"""Fields in other coordinates: the same dynamics, derivatives, bounds and steady states."""

from types import SimpleNamespace
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SquareRoot

import stablax as sx

COORDINATES: dict[str, Any] = {
    "LogField": sx.LogField,
    "LogField, offset": lambda field: sx.LogField(field, offset=1e-3),
    "SoftplusField": lambda field: sx.SoftplusField(field, scale=2.0),
    "ScaledField": lambda field: sx.ScaledField(field, 50.0),
}
SPANNING = np.geomspace(1e-12, 1e6, 19)


def nothing(t, y, args):
    return jax.tree.map(jnp.zeros_like, y)


@pytest.fixture(params=COORDINATES)
def make(request):
    return COORDINATES[request.param]


# --- the maps


def test_there_and_back(make):
    """To rounding, relative to each component, for states and trajectories; and the slopes are
    each other's inverse."""
    field = make(nothing)
    u = field.to(SPANNING)
    # A relative error of eps in u is one of eps |du| dy/du in y.
    rtol = 1e-15 * (2 + np.abs(u))
    assert (np.abs(np.asarray(field.from_(u)) / SPANNING - 1) <= rtol).all()
    down = jax.jit(jax.vmap(jax.grad(field.from_)))(u)
    up = jax.jit(jax.vmap(jax.grad(field.to)))(jnp.asarray(SPANNING))
    np.testing.assert_allclose(down * up, 1.0, rtol=1e-12)
    tree = {"a": jnp.ones((5, 2)), "b": jnp.ones(5)}
    back = field.from_(field.to(tree))
    assert jax.tree.map(jnp.shape, back) == {"a": (5, 2), "b": (5,)}


def test_the_truth_of_the_maps():
    y = np.array([1e-12, 0.3, 700.0])
    close = lambda ours, truth: np.testing.assert_allclose(ours, truth, rtol=1e-14)
    close(sx.LogField(nothing).to(y), np.log(y))
    close(sx.LogField(nothing, offset=0.1).to(np.append(0.0, y)), np.log1p(np.append(0.0, y) / 0.1))
    soft = sx.SoftplusField(nothing, scale=2.0).to(y)
    close(soft[:2], np.log(np.expm1(y[:2] / 2)))
    close(soft[2], 350.0)
    close(sx.ScaledField(nothing, np.array([1.0, 2.0, 3.0])).to(y), y / [1, 2, 3])


def test_sizes_for_parts_of_a_state():
    y = {"q": jnp.array([2.0, 6.0]), "p": jnp.array(8.0)}
    field = sx.ScaledField(nothing, {"q": np.array([1.0, 2.0]), "p": 4.0})
    np.testing.assert_array_equal(field.to(y)["q"], [2.0, 3.0])
    trajectory = jax.tree.map(lambda x: jnp.stack([x] * 3), field.to(y))
    np.testing.assert_array_equal(field.from_(trajectory)["q"], [[2.0, 6.0]] * 3)


# --- the chain rule


def test_the_chain_rule(make):
    """du/dt = du/dy f(y), with y over 18 decades; its derivative by the product rule."""
    rate = jnp.linspace(0.5, 2.0, SPANNING.size)
    inner = lambda t, y, args: -rate * y + args * jnp.roll(y, 1)
    field = make(inner)
    u = field.to(SPANNING)
    slope = jax.vmap(jax.grad(field.to))(jnp.asarray(SPANNING))
    y = field.from_(u)
    np.testing.assert_allclose(field(0.0, u, 0.3), slope * inner(0.0, y, 0.3), rtol=1e-12)
    ours = jax.jit(jax.jacfwd(lambda u: field(0.0, u, 0.3)))(u)
    by_product = lambda u: (
        jax.vmap(jax.grad(field.to))(field.from_(u)) * inner(0.0, field.from_(u), 0.3)
    )
    scale = np.abs(ours).max(axis=1, keepdims=True)
    theirs = jax.jit(jax.jacfwd(by_product))(u)
    np.testing.assert_allclose(ours / scale, theirs / scale, atol=1e-9)


@pytest.mark.parametrize("field", [sx.LogField, sx.SoftplusField])
def test_further_down_than_numbers_go(field):
    """A decay stays a decay where y itself is zero."""
    decay = field(lambda t, y, args: -3.0 * y)
    u = jnp.array([-700.0, -1e3, -1e6])
    np.testing.assert_allclose(decay(0.0, u, None), -3.0, rtol=1e-12)
    simulation = sx.Simulate(decay)(jnp.array([0.0]), [1000.0])
    np.testing.assert_allclose(simulation.ys[0, 0], -3000.0, rtol=1e-3)


# --- trajectories and their gradients


class Logistic(sx.GuardedField):
    """y' = r y (1 - y / K): from 1e-12 to 1e6; and a decay, the other way."""

    log_k: jax.Array

    def vector_field(self, t, y, args):
        r, k, d = jnp.exp(self.log_k)
        return jnp.stack([r * y[0] * (1 - y[0] / k), -d * y[1]])


LOG_K, TS = jnp.log(jnp.array([3.0, 1e6, 3.0])), jnp.linspace(0.5, 14.0, 9)
START = jnp.array([1e-12, 1e6])


def exact(log_k, y0):
    r, k, d = jnp.exp(log_k)
    grown = y0[0] * jnp.exp(r * TS)
    return jnp.stack([grown / (1 + (grown - y0[0]) / k), y0[1] * jnp.exp(-d * TS)], axis=1)


RESOLVING = {
    "LogField": (sx.LogField, 0.0),
    # Below its offset times `atol` a coordinate is not resolved.
    "LogField, offset": (lambda field: sx.LogField(field, offset=1e-9), 1e-9),
    "SoftplusField": (sx.SoftplusField, 0.0),
}


@pytest.mark.parametrize("make, resolved", RESOLVING.values(), ids=RESOLVING)
def test_trajectories_and_gradients_over_18_decades(make, resolved):
    """Relative to each value."""

    @jax.jit
    def run(log_k, y0):
        def logs(log_k, y0):
            field = make(Logistic(log_k))
            model = sx.Simulate(field, controller=sx.StiffPID.preset("precise"))
            ys = field.from_(model(field.to(y0), TS).ys)
            return jnp.sum(jnp.log(ys + resolved)), ys

        return jax.value_and_grad(logs, argnums=(0, 1), has_aux=True)(log_k, y0)

    (_, ys), gradient = run(LOG_K, START)
    truth = exact(LOG_K, START)
    np.testing.assert_allclose(ys, truth, rtol=1e-6, atol=1e-8 * resolved)
    expected = jax.grad(
        lambda log_k, y0: jnp.sum(jnp.log(exact(log_k, y0) + resolved)), argnums=(0, 1)
    )(LOG_K, START)
    np.testing.assert_allclose(gradient[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(gradient[1] * START, expected[1] * START, rtol=1e-5)


# --- guards


def test_the_guard_of_the_field_inside():
    inner = SquareRoot(jnp.ones(2), guard=sx.Guard(0.0, np.array([2.0, np.inf]), pull=3.0))
    assert sx.LogField(inner).guard == sx.Guard(-np.inf, np.log([2.0, np.inf]), pull=3.0)
    shifted = sx.LogField(inner, offset=0.5).guard
    assert shifted == sx.Guard(0.0, np.log1p([4.0, np.inf]), pull=3.0)
    assert sx.ScaledField(inner, 4.0).guard == sx.Guard(0.0, np.array([0.5, np.inf]), pull=3.0)
    soft = sx.SoftplusField(inner).guard
    np.testing.assert_allclose(soft.upper, [np.log(np.expm1(2.0)), np.inf])
    assert np.isneginf(soft.lower) and soft.pull == 3.0

    # Bounds for the whole state, sizes for its parts; and the other way round.
    parts = sx.ScaledField(sx.Guarded(nothing, sx.Guard(-2.0, 6.0)), {"q": 2.0, "p": 3.0}).guard
    assert parts == sx.Guard({"q": -1.0, "p": -2 / 3}, {"q": 3.0, "p": 2.0})
    box = sx.Guard({"q": 1.0, "p": None}, {"q": 2.0, "p": 5.0}, reject=False)
    parts = sx.LogField(sx.Guarded(nothing, box)).guard
    assert parts.lower["q"] == 0.0 and np.isneginf(parts.lower["p"]) and not parts.reject
    own = sx.Guard(-1.0, 1.0)
    assert sx.LogField(inner, guard=own).guard == own


def test_on_a_bound_the_field_inside_is_inside():
    """Rounding of a coordinate does not take it across, and costs no derivative."""
    bounds = np.exp(np.random.default_rng(0).normal(size=200))
    walled = lambda t, y, args: jnp.where(y <= bounds, y**2, jnp.nan)
    for make in COORDINATES.values():
        field = make(sx.Guarded(walled, sx.Guard(0.0, bounds)))
        u = jnp.asarray(field.guard.upper)
        assert np.isfinite(field(0.0, u, None)).all()
        slope = jax.jvp(lambda u, f=field: f(0.0, u, None), (u,), (jnp.ones_like(u),))[1]
        free = make(lambda t, y, args: y**2)
        expected = jax.jvp(lambda u, f=free: f(0.0, u, None), (u,), (jnp.ones_like(u),))[1]
        np.testing.assert_allclose(slope, expected, rtol=1e-12, atol=1e-15)


# --- steady states and conserved quantities

LIGAND = {"L": 0.3}


class Network:
    """Binding and a slow modification, with two totals: steady states over six decades."""

    def __init__(self):
        self.texts = ["R + L <-> C", "C <-> P", "X + P -> Y + P", "Y -> X"]
        self.species = ["R", "C", "P", "X", "Y"]

    def __call__(self, k):
        law = sx.MassAction
        rates = [(law(k[0]), law(k[1])), (law(k[2]), law(k[3])), law(k[4]), law(k[5])]
        return sx.ReactionField(self.texts, rates, species=self.species, inputs=["L"])


@pytest.fixture(scope="module")
def binding():
    """In all coordinates: steady state, trajectory and their sensitivities."""
    network = Network()
    k = jnp.array([2.0, 0.5, 1e-4, 3.0, 0.4, 5.0])
    y0, ts = jnp.array([9.0, 1.0, 1e-6, 4.0, 1e-6]), jnp.array([0.1, 3.0])

    def made(make):
        @jax.jit
        def run(log_k, y0):
            def logs(log_k, y0):
                field = make(network(k * jnp.exp(log_k)))
                model = sx.SteadyThenSimulate(
                    field,
                    method=sx.PseudoTransient(),
                    controller=sx.StiffPID.preset("precise"),
                    adjoint=diffrax.ForwardMode(),  # a third of the compilation
                )
                start = field.to(y0) if hasattr(field, "to") else y0
                back = getattr(field, "from_", lambda u: u)
                simulation = model(start, ts, steady_args=LIGAND, args={"L": 3.0}, throw=False)
                ys = jnp.log(back(jnp.vstack([simulation.steady.y[None], simulation.ys])))
                return ys, (ys, sx.is_successful(simulation))

            return jax.jacfwd(logs, argnums=(0, 1), has_aux=True)(log_k, y0)

        return run(jnp.zeros(6), y0)

    return SimpleNamespace(
        network=network, k=k, y0=y0, plain=made(lambda field: field), logarithmic=made(sx.LogField)
    )


def test_steady_then_simulate(binding):
    """The same steady state, trajectory and sensitivities, and the totals of the field inside."""
    slopes, (logs, good) = binding.logarithmic
    plain_slopes, (plain_logs, plain_good) = binding.plain
    assert good and plain_good
    np.testing.assert_allclose(logs[0], plain_logs[0], atol=1e-9)
    np.testing.assert_allclose(logs[1:], plain_logs[1:], atol=1e-6)
    for ours, theirs in zip(slopes, plain_slopes, strict=True):
        np.testing.assert_allclose(ours[0], theirs[0], atol=1e-8)
        np.testing.assert_allclose(ours[1:], theirs[1:], atol=1e-5)
    start, found = np.asarray(binding.y0), np.exp(logs[0])
    np.testing.assert_allclose(found[:3].sum(), start[:3].sum(), rtol=1e-10)
    np.testing.assert_allclose(found[3:].sum(), start[3:].sum(), rtol=1e-10)


def test_rows_are_those_of_the_state_inside(binding):
    inner = binding.network(binding.k)
    field = sx.ScaledField(inner, np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    u0 = field.to(binding.y0)
    find = lambda **options: sx.find_steady_state(
        field, u0, LIGAND, method=sx.PseudoTransient(), **options
    )
    declared = find(guess=u0)
    given = find(conserved=inner.conserved, guess=declared.y)
    assert given.warm
    np.testing.assert_allclose(given.y, declared.y, rtol=1e-9)
    quantities = sx.conserved_quantities(field, u0, LIGAND)
    np.testing.assert_allclose(quantities.rows.value @ inner.stoichiometry.value, 0.0, atol=1e-12)
    with pytest.raises(ValueError, match=r"`conserved\[0\]`.*is not conserved"):
        find(conserved=[[1.0, 1.0, 0.0, 0.0, 0.0]])
    assert field.species == inner.species


def test_a_steady_state_without_finite_coordinates_is_none():
    field = sx.LogField(sx.Guarded(lambda t, y, args: -args * y, sx.Guard(0.0)))

    def found(rate):
        steady = sx.find_steady_state(
            field, jnp.array([0.0]), rate, method=sx.PseudoTransient(), throw=False
        )
        return steady.y[0], steady

    slope, steady = jax.jit(jax.grad(found, has_aux=True))(2.0)
    assert not sx.is_successful(steady) and "not finite" in sx.explain(steady)
    assert np.isfinite(steady.y).all() and slope == 0
    # With an offset, 0 is a state as any other.
    shifted = sx.LogField(field.field, offset=0.1)
    steady = sx.find_steady_state(shifted, jnp.array([1.0]), 2.0, method=sx.PseudoTransient())
    np.testing.assert_allclose(steady.y, 0.0, atol=1e-10)


def test_a_box_of_its_own_holds_for_the_steady_state_too():
    relax = lambda t, y, args: 1.0 - y
    field = sx.LogField(relax, guard=sx.Guard(lower=0.5))
    steady = sx.find_steady_state(field, jnp.array([1.0]), method=sx.PseudoTransient(), throw=False)
    assert steady.result == sx.RESULTS.left_bounds


def test_coordinates_of_coordinates():
    field = sx.ScaledField(sx.LogField(lambda t, y, args: 3.0 - y), 2.0)
    steady = sx.find_steady_state(field, jnp.array([0.1]), method=sx.PseudoTransient())
    np.testing.assert_allclose(steady.y, np.log(3.0) / 2, rtol=1e-9)


# --- errors


def test_bad_input():
    with pytest.raises(ValueError, match="`y` holds 0, which has no finite coordinate.*offset"):
        sx.LogField(nothing).to([1.0, 0.0][1:][0] * np.ones(2))
    with pytest.raises(ValueError, match=r"`y\['p'\]` holds -1"):
        sx.SoftplusField(nothing).to({"p": jnp.array(-1.0), "q": jnp.array(1.0)})
    for bad in (0.0, -1.0, np.nan, np.array([1.0, 0.0])):
        with pytest.raises(ValueError, match="must be positive and finite"):
            sx.ScaledField(nothing, bad)
    with pytest.raises(TypeError, match="`offset` must be a number"):
        sx.LogField(nothing, offset="small")
    with pytest.raises(TypeError, match="traced array"):
        jax.jit(lambda s: sx.ScaledField(nothing, s)(0.0, jnp.ones(1), None))(1.0)
    with pytest.raises(ValueError, match="fill=1"):
        sx.LogField(sx.Guarded(nothing, sx.Guard(0.0, fill=1.0)))
    with pytest.raises(ValueError, match="An upper bound of the field inside is -1"):
        sx.LogField(sx.Guarded(nothing, sx.Guard(upper=-1.0)))
    with pytest.raises(ValueError, match="cannot belong to one state"):
        sx.ScaledField(sx.Guarded(nothing, sx.Guard({"q": 0.0})), {"p": 1.0})
    with pytest.raises(ValueError, match="have the structure"):
        sx.ScaledField(nothing, {"p": 1.0}).to(jnp.ones(2))
    with pytest.raises(ValueError, match="The field inside `LogField` returned shape"):
        sx.LogField(lambda t, y, args: y[:1])(0.0, jnp.ones(2), None)
