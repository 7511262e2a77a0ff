"""A loop whose lanes are exchanged: what it leaves is what each lane alone would. Issue 13."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablax._lane_loop import lane_loop

LIMITS = np.array([3, 0, 11, 1, 7, 2, 5, 19, 4, 1, 2, 6])
FACTORS = np.linspace(0.5, 1.5, 12)
TABLE = np.arange(40.0) / 40


def loop(limit, factor, table, width, keeps=False, calls=None):
    """Sums `factor * table[i]` for i below `limit`, and writes down each sum."""

    def body(consts, carry, reads, writes):
        if calls is not None:
            jax.debug.callback(lambda: calls.append(None))
        limit, factor = consts
        i, total = carry
        more = total + factor * reads["table"].take(i)
        live = i < limit
        place = jnp.where(live, i, 20) if keeps else i
        new = (i + 1, more)
        if keeps:
            new = jax.tree.map(lambda a, b: jnp.where(live, a, b), new, carry)
        return new, writes.put(place, more)

    goes_on = lambda consts, carry: carry[0] < consts[0]
    start = (jnp.array(0), jnp.array(0.0))
    reads, writes = dict(table=jnp.asarray(table)), jnp.full(20, -1.0)
    (count, total), sums = lane_loop(
        goes_on, body, start, (limit, factor), reads, writes, width, keeps
    )
    return count, total, sums


def alone(limit, factor, table):
    total, sums = 0.0, np.full(20, -1.0)
    for i in range(limit):
        total += factor * table[i]
        sums[i] = total
    return limit, total, sums


def agree(found, lanes):
    for found_, right in zip(found, zip(*lanes, strict=True), strict=True):
        np.testing.assert_allclose(np.reshape(found_, np.shape(right)), right, rtol=1e-12)


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("width", [None, 1, 5, 12, 100])
def test_lanes_are_those_of_one_loop_each(width, keeps):
    found = jax.jit(jax.vmap(lambda n, f: loop(n, f, TABLE, width, keeps)))(LIMITS, FACTORS)
    agree(found, [alone(n, f, TABLE) for n, f in zip(LIMITS, FACTORS, strict=True)])


@pytest.mark.parametrize("inner", ["limit", "factor", "both", "table"])
def test_lanes_of_lanes_are_lanes(inner):
    """What differs inside, outside, or in both, and what in neither."""
    tables = np.stack([TABLE, TABLE + 1.0, TABLE * 2])
    axes = {"limit": (0, None, None), "factor": (None, 0, None), "both": (0, 0, None)}
    each = axes.get(inner, (0, None, None))
    given = [LIMITS if each[0] == 0 else np.array(7), FACTORS if each[1] == 0 else np.array(0.5)]
    over = jax.vmap(lambda n, f, t: loop(n, f, t, 4), in_axes=each)
    outer = (None, None, 0) if inner == "table" else (0, 0, None)
    stacked = [np.stack([x, x[::-1], x + 1]) if x.ndim else x + np.arange(3) for x in given]
    inputs = (*given, tables) if inner == "table" else (*stacked, TABLE)
    found = jax.jit(jax.vmap(over, in_axes=outer))(*inputs)
    lanes = []
    for j in range(3):
        n, f = (given if inner == "table" else [x[j] for x in stacked])[:2]
        n, f = np.broadcast_to(n, 12), np.broadcast_to(f, 12)
        table = tables[j] if inner == "table" else TABLE
        lanes += [alone(a, b, table) for a, b in zip(n, f, strict=True)]
    agree(found, lanes)


def test_few_steps_are_lost():
    calls = []
    limits = np.random.default_rng(0).exponential(5.0, 400).astype(int).clip(0, 20)
    found = jax.jit(jax.vmap(lambda n: loop(n, 1.0, TABLE, 16, calls=calls)[0]))(limits)
    jax.effects_barrier()
    np.testing.assert_array_equal(found, limits)
    assert limits.max() == 20 > 3 * limits.mean()
    assert limits.sum() <= 16 * len(calls) < 1.25 * limits.sum()


def test_the_loop_itself_has_forward_mode():
    def total(factor, n):
        return loop(n, factor, TABLE, 5)[1:]

    along = jax.vmap(lambda f, n: jax.jvp(lambda f: total(f, n), (f,), (2.0,))[1])
    slopes = jax.jit(along)(FACTORS, LIMITS)
    right = [alone(n, 2.0, TABLE)[1:] for n in LIMITS]
    right = [(total, np.where(sums < 0, 0, sums)) for total, sums in right]
    agree(slopes, right)
