"""Conserved quantities: from a stoichiometric field, found once, and detected in every call."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stablax as sx

# A + B <-> C, C -> 2 D -> C
STOICHIOMETRY = np.array([[-1, 1, 0, 0], [-1, 1, 0, 0], [1, -1, -1, 1], [0, 0, 2, -2]], dtype=float)


class Network(eqx.Module):
    """A field that declares its stoichiometry."""

    k: jax.Array
    stoichiometry: sx.Frozen

    def __call__(self, t, y, args):
        rates = self.k * jnp.stack([y[0] * y[1], y[2], y[2], y[3]])
        return self.stoichiometry @ rates


@pytest.fixture(scope="module")
def network():
    return Network(jnp.array([2.0, 0.5, 0.3, 0.7]), sx.Frozen(STOICHIOMETRY))


Y0 = jnp.array([1.0, 0.4, 0.1, 0.0])


def _totals(y):
    return np.asarray([2 * y[0] + 2 * y[2] + y[3], y[0] - y[1]])


def test_a_field_that_declares_its_stoichiometry(network):
    find = lambda field, y0: sx.find_steady_state(field, y0, method=sx.PseudoTransient())
    for field in (network, sx.Guarded(network, sx.Guard(0.0))):
        found = find(field, Y0)
        np.testing.assert_allclose(_totals(found.y), _totals(Y0), rtol=1e-12)
        assert float(jnp.abs(network(0.0, found.y, None)).max()) < 1e-12
    rows = sx.find_steady_state(
        lambda t, y, args: network(t, y, args),
        Y0,
        conserved=[[2.0, 0, 2, 1], [1, -1, 0, 0]],
        method=sx.PseudoTransient(),
    )
    np.testing.assert_allclose(rows.y, found.y, rtol=1e-10)
    # A total has a sensitivity of one to itself.
    slope = jax.jit(jax.jacfwd(lambda y0: find(network, y0).y))(Y0)
    np.testing.assert_allclose(
        np.array([[2.0, 0, 2, 1], [1, -1, 0, 0]]) @ slope,
        [[2, 0, 2, 1], [1, -1, 0, 0]],
        atol=1e-10,
    )


def test_in_a_model(network):
    model = sx.SteadyThenSimulate(network, method=sx.PseudoTransient())
    simulation = model(Y0, [1.0])
    np.testing.assert_allclose(simulation.ys[0], simulation.steady.y, rtol=1e-6)


def test_what_a_field_declares_can_be_left_aside(network):
    found = sx.find_steady_state(
        network, Y0, conserved=(), method=sx.PseudoTransient(), throw=False
    )
    assert "conserved=" in sx.explain(found)


def test_a_traced_stoichiometry_is_refused(network):
    traced = eqx.tree_at(lambda n: n.stoichiometry, network, jnp.asarray(STOICHIOMETRY))
    with pytest.raises(TypeError, match=r"`Network.stoichiometry` is a traced array"):
        eqx.filter_jit(lambda field: sx.find_steady_state(field, Y0).y)(traced)


def test_found_once(network):
    quantities = sx.conserved_quantities(lambda t, y, args: network(t, y, args), Y0)
    assert len(quantities) == 2 and quantities.gap > 1e6
    assert not (np.asarray(quantities) @ STOICHIOMETRY).any()
    assert "y[0] + y[2] + 0.5 y[3]" in repr(quantities)
    assert quantities == sx.conserved_quantities(network, Y0)
    assert not jax.tree.leaves(quantities)
    found = sx.find_steady_state(
        lambda t, y, args: network(t, y, args),
        Y0,
        conserved=quantities,
        method=sx.PseudoTransient(),
    )
    np.testing.assert_allclose(_totals(found.y), _totals(Y0), rtol=1e-12)
    assert "No conserved" in repr(sx.conserved_quantities(lambda t, y, args: -y, Y0))


def test_found_in_any_units():
    """Two exchanges, with species between 1e-9 and 1e6 in size."""
    units = np.array([1e-9, 1e6, 1e6, 1e-9])

    def field(t, y, k):
        z = y / units
        v, w = k * (2 * z[0] - 3 * z[1]), k * (z[2] - 2 * z[3])
        return units * jnp.stack([-v, v, -w, w])

    y0 = jnp.asarray(units * [1.0, 0.0, 1.0, 0.0])
    rows = np.asarray(sx.conserved_quantities(field, y0, 1.0)) * units
    np.testing.assert_allclose(rows[0] / rows[0, 0], [1, 1, 0, 0], atol=1e-9)
    np.testing.assert_allclose(rows[1] / rows[1, 2], [0, 0, 1, 1], atol=1e-9)
    for conserved in ("detect", sx.conserved_quantities(field, y0, 1.0)):
        found = sx.find_steady_state(
            field, y0, 1.0, conserved=conserved, atol=1e-21, method=sx.PseudoTransient()
        )
        np.testing.assert_allclose(found.y / units, [0.6, 0.4, 2 / 3, 1 / 3], rtol=1e-8)


def test_detection_does_not_take_rounding_for_a_leak():
    """HIRES: one total among eight species, the others with large fluxes."""

    def field(t, y, k):
        v = k * y[0]
        fast = 280.0 * y[2] * y[3] - 1.81 * y[4]
        return jnp.stack(
            [7e-4 - v + 0.4 * y[1], v - 1.4 * y[1], 1.81 * y[4] - 280 * y[2] * y[3]] + [-fast, fast]
        )

    y0 = jnp.array([1.0, 0.0, 0.5, 0.0057, 0.0])
    found = sx.find_steady_state(field, y0, 1.71, conserved="detect", method=sx.PseudoTransient())
    np.testing.assert_allclose(found.y[2] + found.y[4], 0.5, rtol=1e-9)


def test_only_concrete_inputs():
    with pytest.raises(TypeError, match="call it outside `jit`"):
        jax.jit(lambda y: jnp.asarray(np.asarray(sx.conserved_quantities(lambda t, y, a: -y, y))))(
            Y0
        )
    with pytest.raises(ValueError, match="finite at none|not finite at `y0`"):
        sx.conserved_quantities(lambda t, y, a: y * jnp.nan, Y0)
