"""Hybrids: what is added, what is gated, and what is kept."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from helpers import Pendulum, updated

import stablax as sx

K = jnp.array([2.0, 0.5, 1.0, 3.0])


def network() -> sx.ReactionField:
    """Two totals among five species."""
    law = [sx.MassAction(k) for k in K]
    return sx.ReactionField(["A + E <-> C", "C -> P + E", "2 P -> 2 A"], [tuple(law[:2]), *law[2:]])


class Learned(eqx.Module):
    """A network from the state to as many numbers as one likes, bounded."""

    layers: eqx.nn.MLP

    def __init__(self, size, out, key):
        self.layers = eqx.nn.MLP(size, out, 8, 1, jnp.tanh, jnp.tanh, key=key)

    def __call__(self, t, y, args):
        return self.layers(y)


def hybrids() -> dict[str, Any]:
    keys = jr.split(jr.key(0), 3)
    known = network()
    return {
        "additive": sx.HybridField(known, Learned(4, 4, keys[0]), conserve=True),
        "additive_rates": sx.HybridField(
            known, Learned(4, 4, keys[1]), mode="additive_rates", gate=0.7
        ),
        "multiplicative_rates": sx.HybridField(
            known, Learned(4, 4, keys[2]), mode="multiplicative_rates", gate=0.7
        ),
    }


HYBRIDS = hybrids()
Y = jnp.array([0.5, 0.25, 0.125, 2.0])


def _draw(field, key):
    """Random weights of all sizes."""
    params, static = sx.partition(field)
    leaves, treedef = jax.tree.flatten(params)
    keys = jr.split(key, len(leaves))
    leaves = [3 * jr.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    return eqx.combine(jax.tree.unflatten(treedef, leaves), static)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@pytest.mark.parametrize("name", HYBRIDS)
def test_conserved_quantities_are_kept(name, dtype):
    """10,000 weights and states: L dy/dt is what rounding leaves of its terms."""
    hybrid = HYBRIDS[name]
    rows = np.asarray(hybrid.conserved)
    np.testing.assert_array_equal(rows @ network().stoichiometry.value, 0)
    assert len(rows) == 2

    @jax.jit
    @jax.vmap
    def look(key):
        cast = lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x
        field = jax.tree.map(cast, _draw(hybrid, key))
        y = jnp.exp(3 * jr.normal(jr.fold_in(key, 1), (4,), dtype))
        dy = field(0.0, y, None)
        # The terms that are summed: reactions, and what is learned of each species.
        rates = jnp.abs(field.known.rates(0.0, y, None)) + jnp.abs(_correction(field, y))
        terms = jnp.abs(jnp.asarray(field.known.stoichiometry.value, dtype)) @ rates
        return dy, terms + jnp.abs(field.learned(0.0, y, None)).sum()

    dy, terms = look(jr.split(jr.key(1), 10_000))
    assert np.isfinite(dy).all()
    leak = np.abs(np.asarray(dy, np.float64) @ rows.T)
    assert (leak <= 16 * float(jnp.finfo(dtype).eps) * (np.asarray(terms) @ np.abs(rows).T)).all()
    assert np.abs(dy).max() > 1e3


def test_training_does_not_move_what_is_kept():
    """100 steps of adamw with a large learning rate and weight decay."""
    hybrid = HYBRIDS["additive"]
    optimiser = optax.adamw(1.0, weight_decay=0.1)
    loss = lambda field: jnp.sum((field(0.0, Y, None) - 1.0) ** 2)

    @jax.jit
    def trained(field):
        def step(_, carry):
            field, state = carry
            updates, state = updated(optimiser, jax.grad(loss)(field), state, field)
            return eqx.apply_updates(field, updates), state

        return jax.lax.fori_loop(0, 100, step, (field, optimiser.init(field)))[0]

    after = trained(hybrid)
    assert after.conserved == hybrid.conserved
    change = after(0.0, Y, None)
    assert float(jnp.abs(change - hybrid(0.0, Y, None)).max()) > 1e-2
    assert np.abs(np.asarray(hybrid.conserved) @ change).max() < 1e-12


def _correction(field, y):
    if field.mode == "additive":
        return jnp.zeros_like(y)
    change = field.gate * field.learned(0.0, y, None)
    if field.mode == "additive_rates":
        return change
    return field.known.rates(0.0, y, None) * jnp.exp(change)


def test_without_a_projection_they_are_not():
    free = sx.HybridField(network(), HYBRIDS["additive"].learned)
    assert free.conserved is None
    assert np.abs(np.asarray(HYBRIDS["additive"].conserved) @ free(0.0, Y, None)).max() > 1e-3


def test_what_is_added():
    known, matrix = network(), network().stoichiometry.value
    dy, rates = known(0.0, Y, None), known.rates(0.0, Y, None)
    close = lambda ours, truth: np.testing.assert_allclose(ours, truth, rtol=1e-12, atol=1e-14)
    for mode, field in HYBRIDS.items():
        learned = field.learned(0.0, Y, None)
        if mode == "additive":
            rows = np.asarray(field.conserved)
            projector = np.eye(4) - rows.T @ np.linalg.solve(rows @ rows.T, rows)
            close(field(0.0, Y, None), dy + projector @ learned)
        elif mode == "additive_rates":
            close(field(0.0, Y, None), matrix @ (rates + 0.7 * learned))
        else:
            close(field(0.0, Y, None), matrix @ (rates * np.exp(0.7 * learned)))


def test_multiplied_rates_keep_concentrations_positive():
    field = HYBRIDS["multiplicative_rates"]

    @jax.jit
    @jax.vmap
    def outward(key):
        drawn = _draw(field, key)
        y = jnp.where(jr.bernoulli(key, 0.5, (4,)), jnp.exp(jr.normal(key, (4,))), 0.0)
        return jnp.where(y == 0, drawn(0.0, y, None), 0.0)

    assert (outward(jr.split(jr.key(3), 10_000)) >= 0).all()


def test_a_closed_gate_is_the_known_field_and_opens():
    known = network()
    weights = lambda field: jax.tree.leaves(eqx.filter(field.learned, eqx.is_array))
    for mode in ("additive", "multiplicative_rates"):
        closed = sx.HybridField(known, HYBRIDS[mode].learned, mode=mode, gate=0.0)
        np.testing.assert_array_equal(closed(0.0, Y, None), known(0.0, Y, None))
        slope = jax.grad(lambda field: jnp.sum(jnp.sin(field(0.0, Y, None)) * Y))(closed)
        assert float(jnp.abs(slope.gate)) > 1e-3
        assert not any(np.any(x) for x in weights(slope))
        updates, _ = updated(optax.adam(0.1), slope, optax.adam(0.1).init(closed))
        opened = eqx.apply_updates(closed, updates)
        slope = jax.grad(lambda field: jnp.sum(jnp.sin(field(0.0, Y, None)) * Y))(opened)
        assert any(np.any(x) for x in weights(slope))


def test_any_state_and_any_rows():
    """A dict, with a total that the caller names: q0 - q1 stays."""
    known = Pendulum(jnp.array([1.0, 2.0]), guard=sx.Guard(-5.0, 5.0))
    learned = lambda t, y, args: {"q": y["q"] ** 2, "p": args * y["p"]}
    rows = [[0.0, 1.0, -1.0]]  # p, q0, q1: the order of `ravel_pytree`
    field = sx.HybridField(known, learned, conserve=rows)
    y = {"q": jnp.array([0.5, 2.0]), "p": jnp.array(0.3)}
    dy, plain = field(0.0, y, 2.0), known(0.0, y, None)
    np.testing.assert_allclose(dy["q"], plain["q"] + (0.25 + 4.0) / 2, rtol=1e-14)
    np.testing.assert_allclose(dy["p"], plain["p"] + 0.6, rtol=1e-14)
    assert field.guard == known.guard and field.conserved == sx.Frozen(rows)
    assert sx.HybridField(known, learned, guard=sx.Guard(0.0)).guard == sx.Guard(0.0)


def test_inside_a_model_and_other_coordinates():
    """The totals go to the steady-state engine, through logarithms too."""
    field = HYBRIDS["multiplicative_rates"]
    y0 = field.known.state({"A": 3.0, "E": 1.0}, default=0.01)
    totals = np.asarray(field.conserved) @ np.asarray(y0)
    model = sx.SteadyThenSimulate(field, method=sx.PseudoTransient())
    steady = model(y0, [1.0]).steady
    np.testing.assert_allclose(np.asarray(field.conserved) @ steady.y, totals, rtol=1e-10)
    logarithmic = sx.LogField(field)
    assert logarithmic.species == field.species == ("A", "E", "C", "P")
    again = sx.find_steady_state(logarithmic, logarithmic.to(y0), method=sx.PseudoTransient())
    np.testing.assert_allclose(logarithmic.from_(again.y), steady.y, rtol=1e-8)


def test_bad_input():
    known, learned = network(), HYBRIDS["additive"].learned
    plain = lambda t, y, args: -y
    with pytest.raises(TypeError, match="changes the rates of a `ReactionField`.*function"):
        sx.HybridField(plain, learned, mode="additive_rates")
    with pytest.raises(ValueError, match="`learned` has a guard of its own"):
        sx.HybridField(known, sx.Guarded(plain, sx.Guard(0.0)))
    with pytest.raises(ValueError, match="declares nothing that it conserves"):
        sx.HybridField(plain, learned, conserve=True)
    with pytest.raises(ValueError, match="Put the `HybridField` inside"):
        sx.HybridField(sx.LogField(known), learned, conserve=True)
    with pytest.raises(ValueError, match="has no use with"):
        sx.HybridField(known, learned, mode="additive_rates", conserve=[[1.0, 0, 0, 0]])
    with pytest.raises(ValueError, match="finite matrix of rows"):
        sx.HybridField(known, learned, conserve=[[np.nan, 0, 0, 0]])
    with pytest.raises(ValueError, match="one column for each of the 4 components"):
        sx.HybridField(known, learned, conserve=[[1.0, 0.0]])(0.0, Y, None)
    with pytest.raises(ValueError, match="`gate` must be None or one number"):
        sx.HybridField(known, learned, gate=jnp.ones(2))
    with pytest.raises(ValueError, match=r"`learned`, which must return rates, returned shape"):
        sx.HybridField(known, lambda t, y, args: y[:2], mode="additive_rates")(0.0, Y, None)
    with pytest.raises(ValueError, match="`learned` returned shape"):
        sx.HybridField(known, lambda t, y, args: y[:2])(0.0, Y, None)
