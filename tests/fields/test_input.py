"""`Input`: values at knots as a function of time."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stablax as sx

TS = jnp.array([0.0, 1.0, 2.5, 4.0])
VALUES = jax.random.normal(jax.random.key(0), (4, 3))
# None of them a knot, where a derivative is that of one side.
TIMES = jnp.linspace(-1.01, 5.0, 37)


def of_diffrax(kind, ts, values):
    if kind == "linear":
        return diffrax.LinearInterpolation(ts, values)
    return diffrax.CubicInterpolation(ts, diffrax.backward_hermite_coefficients(ts, values))


@pytest.mark.parametrize("kind", ["linear", "cubic"])
def test_it_is_what_diffrax_makes_of_it(kind):
    """Value, slope, and derivatives in values and knots."""
    one, other = sx.Input(TS, VALUES, kind), of_diffrax(kind, TS, VALUES)
    inside = TIMES[(TIMES > 0) & (TIMES < 4)]
    np.testing.assert_allclose(jax.vmap(one)(inside), jax.vmap(other.evaluate)(inside), atol=1e-14)
    slopes = jax.vmap(jax.jacfwd(one))(inside)
    np.testing.assert_allclose(slopes, jax.vmap(other.derivative)(inside), atol=1e-13)

    def squares(make):
        return lambda ts, values: jnp.sum(jax.vmap(make(ts, values))(TIMES) ** 2)

    def held(ts, values):
        path = of_diffrax(kind, ts, values)
        return lambda t: path.evaluate(jnp.clip(t, ts[0], ts[-1]))

    found, expected = (
        jax.grad(squares(make), argnums=(0, 1))(TS, VALUES)
        for make in (lambda ts, values: sx.Input(ts, values, kind), held)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), found, expected)


@pytest.mark.parametrize("kind", ["linear", "previous", "cubic"])
def test_padding_is_no_knot(kind):
    padded = jnp.concatenate([TS, jnp.array([jnp.inf, jnp.nan])])
    values = jnp.concatenate([VALUES, jnp.full((2, 3), jnp.nan)])
    short, long = sx.Input(TS, VALUES, kind), sx.Input(padded, values, kind)
    np.testing.assert_array_equal(jax.vmap(short)(TIMES), jax.vmap(long)(TIMES))
    total = lambda ts, values: jnp.sum(jax.vmap(sx.Input(ts, values, kind))(TIMES))
    for n, slope in zip((4, 4), jax.grad(total, argnums=(0, 1))(padded, values), strict=True):
        assert jnp.all(jnp.isfinite(slope)) and jnp.all(slope[n:] == 0)
    single = sx.Input(TS[1:2], VALUES[1:2], kind)
    assert jnp.array_equal(single(-3.0), VALUES[1]) and jnp.array_equal(single(7.0), VALUES[1])
    assert jnp.all(jax.jacfwd(single)(1.0) == 0)


def test_outside_and_at_the_knots():
    values = {"a": [1.0, 2.0, 3.0], "b": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]}
    at = lambda t, outside: sx.Input([0, 1, 2], values, "previous", outside=outside)(t)["a"]
    expected = {
        "constant": [1.0, 1.0, 2.0, 3.0, 3.0],
        "zero": [0.0, 1.0, 2.0, 3.0, 0.0],
        "nan": [jnp.nan, 1.0, 2.0, 3.0, jnp.nan],
    }
    for outside, row in expected.items():
        found = [float(at(t, outside)) for t in (-0.1, 0, 1.0, 2.0, 2.1)]
        np.testing.assert_array_equal(found, row)
    assert sx.Input([0, 1, 2], values)(1.5)["b"].tolist() == [4.0, 5.0]


def test_many_times_at_once():
    one = sx.Input([0.0, 1.0, 2.0], [0.0, 1.0, 4.0])
    assert one(jnp.array([0.0, 0.5, 2.0])).tolist() == [0.0, 0.5, 4.0]
    assert sx.Input(TS, {"u": VALUES})(np.ones((2, 5)))["u"].shape == (2, 5, 3)


def test_leaves_and_constants():
    """Knots and values are trained, or constants; and what is called keeps its dtype."""
    one = sx.Input(TS, VALUES)
    assert [x.shape for x in jax.tree.leaves(one)] == [(4,), (4, 3)]
    frozen = sx.Input(sx.Frozen(TS), {"u": sx.Frozen(VALUES)})
    assert jax.tree.leaves(frozen) == [] and jnp.array_equal(frozen(1.7)["u"], one(1.7))
    only_values = sx.Input(sx.Frozen([0, 1, 2.5, 4]), VALUES)
    assert [x.shape for x in jax.tree.leaves(only_values)] == [(4, 3)]
    single = sx.Input(TS, VALUES.astype(jnp.float32))
    assert single(jnp.float32(1.7)).dtype == jnp.float32 == single(1.7).dtype
    assert sx.Input([0, 1], [0, 2])(0.5) == 1.0 and sx.Input([0.0, 1.0], [0.0, 2.0])(1) == 2.0
    many = jax.vmap(sx.Input)(jnp.stack([TS, TS + 1]), jnp.stack([VALUES, VALUES]))
    found = eqx.filter_vmap(lambda one: one(2.0))(many)
    assert jnp.array_equal(found, jnp.stack([one(2.0), one(1.0)]))


@pytest.mark.parametrize(
    ("ts", "values", "text"),
    [
        ([0.0, 2.0, 2.0], [1.0, 2.0, 3.0], r"`ts` must rise strictly, but ts\[1\] = 2 and ts\[2\]"),
        ([0.0, jnp.inf, 2.0], [1.0, 2.0, 3.0], r"`ts` must begin with finite times"),
        ([], [], r"`ts` must be a vector of one or more knots, got shape \(0,\)"),
        (jnp.ones((2, 3)), jnp.ones((2, 3)), r"`jax.vmap\(sx.Input\)\(ts, values\)`"),
        ([0.0, 1.0], [1.0, 2.0, 3.0], r"`values` has shape \(3,\), but must have one row for each"),
        ([0.0, 1.0], {"u": 1.0}, r"`values\['u'\]` has shape \(\), but must have one row"),
        ([0.0, 1.0], {}, r"`values` holds no array"),
        (["a", "b"], [1.0, 2.0], r"`ts` must be real numbers, got \['a', 'b'\]"),
        ([0.0, 1.0], np.array([1j, 2j]), r"`values` must be real numbers"),
        (np.ma.masked_array([0.0, 1.0], [0, 1]), [1.0, 2.0], r"`ts` is a masked array"),
    ],
)
def test_wrong_knots_and_values_have_words(ts, values, text):
    with pytest.raises((ValueError, TypeError), match=text):
        sx.Input(ts, values)


def test_a_wrong_kind_has_words():
    with pytest.raises(TypeError, match=r"`kind` must be .*'quadratic'"):
        sx.Input([0.0, 1.0], [0.0, 1.0], "quadratic")
    many = jax.vmap(sx.Input)(jnp.stack([TS, TS]), jnp.stack([VALUES, VALUES]))
    with pytest.raises(ValueError, match=r"has shape \(2, 4\), with an axis of samples"):
        many(1.0)
