"""Declared Jacobians: by a field, by a solver, by hand, and checked."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Counted, by_day

import stablax as sx

START = jnp.linspace(1.0, 2.0, 30)


def diffusion(t, y, rate):
    padded = jnp.pad(y, 1)
    return rate * (padded[2:] - 2 * y + padded[:-2]) - y**3 + t


def by_hand(t, y, rate):
    n = y.size
    return rate * (jnp.eye(n, k=1) + jnp.eye(n, k=-1) - 2 * jnp.eye(n)) - jnp.diag(3 * y**2)


DECLARED = {
    "banded": sx.Banded(1, 1),
    "sparse": sx.Sparse(np.abs(np.subtract.outer(range(30), range(30))) <= 1),
    "matrix-free": sx.MatrixFree(),
    "by hand": by_hand,
}


@pytest.mark.parametrize("name", by_day(DECLARED, "sparse", "by hand"))
def test_a_field_declares_its_jacobian_to_the_model(name):
    """Same states and same gradients as with a dense one; a row forth and one back in time."""
    times = jnp.array([0.01, 0.1])

    def loss(rate, jacobian):
        model = sx.Simulate(sx.Guarded(diffusion, jacobian=jacobian))
        ys = model(START, times, args=rate).ys
        return jnp.sum(ys**2), ys

    run = lambda jacobian: jax.jit(jax.grad(lambda r: loss(r, jacobian), has_aux=True))(50.0)
    (slope, ys), (expected, dense) = run(DECLARED[name]), run(None)
    np.testing.assert_allclose(ys, dense, rtol=1e-5)
    np.testing.assert_allclose(slope, expected, rtol=1e-4)


def test_a_jacobian_by_hand_is_the_one_that_is_used():
    hand = Counted(by_hand)
    solver = sx.Rodas5P(jacobian=hand)
    for t1 in (0.1, -0.001):  # backward in time it is given the time itself
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(diffusion),
            solver,
            0.0,
            t1,
            None,
            START,
            50.0,
            stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-9),
        )
        assert solution.stats["num_rejected_steps"] < 10
    assert hand.calls > 0


def test_a_jacobian_by_hand_is_never_passed_over():
    """A structure has one way to be asked, which does not fall back on automatic differentiation
    where it cannot evaluate what was written."""
    with pytest.raises(TypeError, match="does not know"):
        sx.Dense(by_hand).linearise(lambda y: -y, START)


def test_the_steady_state_search_uses_what_the_field_declares():
    hand = Counted(by_hand)
    found = [
        sx.find_steady_state(sx.Guarded(diffusion, jacobian=j), START, 50.0, t=1.0)
        for j in (None, sx.Banded(1, 1), hand)
    ]
    assert hand.calls > 0
    for other in found[1:]:
        np.testing.assert_allclose(other.y, found[0].y, rtol=1e-8)


@pytest.mark.parametrize("name", DECLARED)
def test_check_jacobian_accepts_what_is_right(name):
    field = sx.Guarded(diffusion, jacobian=DECLARED[name])
    assert sx.check_jacobian(field, 0.3, START, 50.0) < 1e-12


@pytest.mark.parametrize(
    "jacobian", [sx.Banded(1, 0), sx.Sparse(np.eye(30)), lambda t, y, rate: 2 * by_hand(t, y, rate)]
)
def test_check_jacobian_names_the_entry_that_is_wrong(jacobian):
    with pytest.raises(ValueError, match=r"row \d+, column \d+"):
        sx.check_jacobian(diffusion, 0.3, START, 50.0, jacobian=jacobian)


def test_what_is_no_jacobian_is_refused_by_name():
    with pytest.raises(TypeError, match="`jacobian`.*Banded"):
        sx.Rodas5P(jacobian=3)
    with pytest.raises(ValueError, match="nothing to check"):
        sx.check_jacobian(diffusion, 0.0, START, 50.0)
    wrong = sx.Simulate(sx.Guarded(diffusion, jacobian=lambda t, y, rate: jnp.eye(3)))
    with pytest.raises(ValueError, match=r"\(3, 3\).*\(30, 30\)"):
        wrong(START, [1.0], args=50.0)
    with pytest.raises(ValueError, match="Banded"):
        sx.Simulate(sx.Guarded(diffusion, jacobian=sx.Banded(40, 1)))(START, [1.0], args=50.0)
