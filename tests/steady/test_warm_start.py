"""Starting from a state found before."""

import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import updated

import stablax as sx

METHOD = sx.PseudoTransient()
Y0 = jnp.array([1.0, 0.0])


def exchange(t, y, k):
    """A <-> B, and nan where a rate is above 100."""
    flux = k[0] * y[0] ** 2 - k[1] * y[1]
    return jnp.stack([-flux, flux]) * jnp.where(k[0] > 100, jnp.nan, 1.0)


def find(y0, k, guess=None):
    return sx.find_steady_state(
        exchange, y0, k, guess=guess, conserved=[1.0, 1.0], method=METHOD, throw=False
    )


@pytest.fixture(scope="module")
def warm():
    return jax.jit(find)


K = jnp.array([2.0, 3.0])


def test_a_good_guess_is_fast(warm):
    cold = find(Y0, K)
    found = warm(Y0, 1.05 * K, cold.y)
    assert bool(found.warm) and not bool(cold.warm)
    assert int(found.num_steps) <= 4 < int(cold.num_steps)
    # The totals are those of y0, whatever those of the guess.
    found = warm(2 * Y0, K, cold.y)
    np.testing.assert_allclose(found.y, find(2 * Y0, K).y, rtol=1e-9)


@pytest.mark.parametrize("guess", [[np.nan, 0.0], [np.inf, 1.0], [1e9, -1e9], [-5.0, 3.0]])
def test_a_bad_guess_does_no_harm(warm, guess):
    found = warm(Y0, K, jnp.array(guess))
    assert sx.is_successful(found)
    np.testing.assert_allclose(found.y, find(Y0, K).y, rtol=1e-9)


def test_a_guess_must_fit():
    with pytest.raises(ValueError, match="`guess` must have the structure"):
        find(Y0, K, jnp.ones(3))
    with pytest.raises(TypeError, match="`update` takes a `SteadyState`"):
        sx.WarmStart(Y0).update(Y0)


def test_a_failed_search_is_not_remembered(warm):
    memory = sx.WarmStart(Y0)
    assert not memory.known
    memory = memory.update(find(Y0, K))
    assert memory.known
    good = memory.y
    failed = warm(Y0, jnp.array([200.0, 1.0]), good)
    assert not sx.is_successful(failed)
    memory = memory.update(failed)
    np.testing.assert_array_equal(memory.y, good)


def test_through_training():
    """A scan with optax over a batch, one lane of which always fails."""
    scales = jnp.array([1.0, 1.5, 1e4])
    target = jnp.array([0.5, 0.42, 0.0])
    y0s = jnp.broadcast_to(Y0, (3, 2))
    optimiser = optax.adam(0.05)

    def run(memory, remember):
        def step(carry, _):
            k, state, memory = carry

            def loss(k):
                one = lambda y0, s, m: find(y0, jnp.stack([s * k, 3.0]), m)
                steady = jax.vmap(one)(y0s, scales, memory)
                return sx.masked_mean((steady.y[:, 0] - target) ** 2, steady), steady

            gradient, steady = jax.grad(loss, has_aux=True)(k)
            update, state = updated(optimiser, gradient, state)
            memory = memory.update(steady) if remember else memory
            return (k + update, state, memory), steady.num_steps

        k = jnp.array(2.0)
        return lax.scan(step, (k, optimiser.init(k), memory), None, length=10)

    memory = jax.vmap(sx.WarmStart)(y0s)
    (k, _, memory), steps = jax.jit(run, static_argnums=1)(memory, True)
    assert memory.known.tolist() == [True, True, False]
    (k_cold, _, _), steps_cold = jax.jit(run, static_argnums=1)(jax.vmap(sx.WarmStart)(y0s), False)
    np.testing.assert_allclose(k, k_cold, rtol=1e-8)
    assert (steps[0] == steps_cold[0]).all()
    assert steps[1:, :2].max() <= 4 < steps_cold[1:, :2].min()


def test_in_a_model():
    model = sx.SteadyThenSimulate(exchange, method=METHOD)
    call = lambda guess: model(
        Y0, [0.5], steady_args=K, args=2 * K, conserved=[1.0, 1.0], guess=guess
    )
    first = call(sx.WarmStart(Y0))
    again = call(sx.WarmStart(Y0).update(first))
    assert not first.steady.warm and again.steady.warm
    assert int(again.steady.num_steps) < int(first.steady.num_steps)
    np.testing.assert_allclose(again.ys, first.ys, rtol=1e-8)
