"""Measurements over time: from arrays, from rows of different length, from tables."""

import jax
import numpy as np
import pandas as pd
import pytest

import stablax as sx

NAN, INF = np.nan, np.inf


def test_one_condition_and_several():
    one = sx.Series([0.0, 1.0, 1.0], {"a": [1.0, NAN, 3.0], "b": [4.0, 5.0, 6.0]})
    assert len(one) == 1 and one.names == ("a", "b") and one.values.shape == (1, 3, 2)
    np.testing.assert_array_equal(one.measured[0, :, 0], [True, False, True])
    two = sx.Series([[0.0, 1.0], [2.0, INF]], {"a": [[1.0, 2.0], [3.0, 4.0]]}, conditions="xy")
    np.testing.assert_array_equal(two.values[..., 0], [[1.0, 2.0], [3.0, NAN]])
    assert repr(two) == "Series(3 measurements: 2 conditions, 2 times at most, of `a`)"
    assert two.take([1]).conditions == ("y",) and two.take([1, 1]).ts.shape == (2, 2)
    taken = jax.jit(lambda series, i: series.take(i))(two, np.array([1, 0]))
    assert taken.conditions is None and taken.ts.shape == (2, 2)


def test_rows_of_different_length():
    ts = [[0.0, 2.0, 3.0], [1.0]]
    values = [{"a": [1.0, 2.0, 3.0]}, {"a": [4.0], "b": [5.0]}]
    sigma = [{"a": [0.1, 0.2, 0.3]}, {"a": [0.4], "b": [0.5]}]
    series = sx.Series.from_ragged(ts, values, sigma=sigma, conditions=["x", "y"])
    np.testing.assert_array_equal(series.ts, [[0, 2, 3], [1, INF, INF]])
    np.testing.assert_array_equal(series.values[..., 0], [[1, 2, 3], [4, NAN, NAN]])
    np.testing.assert_array_equal(series.values[..., 1], [[NAN] * 3, [5, NAN, NAN]])
    np.testing.assert_array_equal(series.sigma[1, 0], [0.4, 0.5])


@pytest.mark.parametrize("make", [dict, pd.DataFrame])
def test_a_table(make):
    """In any order, with repeated measurements and holes."""
    rows = [
        ("x", 2.0, "a", 5.0, 0.5),
        ("y", 0.0, "b", 1.0, 0.1),
        ("x", 0.0, "a", 3.0, 0.3),
        ("x", 2.0, "b", 7.0, 0.7),
        ("x", 2.0, "a", 6.0, 0.6),
        ("y", 1.0, "a", NAN, NAN),
    ]
    names = ("experiment", "time", "observable", "measurement", "sd")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    series = sx.Series.from_table(make(columns), condition="experiment", sigma="sd")
    assert series.conditions == ("x", "y") and series.names == ("a", "b")
    np.testing.assert_array_equal(series.ts, [[0, 2, 2], [0, 1, INF]])
    np.testing.assert_array_equal(series.values[0], [[3, NAN], [5, 7], [6, NAN]])
    np.testing.assert_array_equal(series.values[1], [[NAN, 1], [NAN, NAN], [NAN, NAN]])
    np.testing.assert_array_equal(series.sigma[0, :, 0], [0.3, 0.5, 0.6])
    text = {"t": ["0", "1.5"], "conc": ["2.5", ""]}
    series = sx.Series.from_table(text, time="t", value="conc", observable=None)
    np.testing.assert_array_equal(series.values[0, :, 0], [2.5, NAN])
    assert series.names == ("conc",) and series.conditions == (0,)


def test_scales_take_a_series():
    """What was not measured does not count, and has no derivative."""
    series = sx.Series(
        [[0.0, 4.0], [2.0, INF]], {"a": [[1.0, NAN], [-8.0, 0.0]], "b": [[0.5] * 2] * 2}
    )
    scales = sx.Scales.fit(series)
    np.testing.assert_array_equal(scales.yscale, [8.0, 0.5])
    assert scales.tscale == 4.0
    ys = np.array([[[2.0, 0.5], [NAN, 1.5]], [[-8.0, 0.25], [1.0, NAN]]])
    value, gradient = jax.value_and_grad(scales.loss)(ys, series)
    np.testing.assert_allclose(value, (1 / 8 + 0 + 2 + 0 + 0.5) / 5)
    np.testing.assert_array_equal(gradient[1, 1], 0)
    assert np.isfinite(gradient).all()
    with pytest.raises(ValueError, match=r"`ys` has shape \(2, 2\)"):
        scales.loss(ys[0], series)


TWO = {"time": [0.0, 1.0], "observable": ["a", "a"], "measurement": [1.0, "x"]}
WRONG = {
    "no times": (lambda: sx.Series([], {"a": []}), "one or more times"),
    "order": (lambda: sx.Series([1.0, 0.0], {"a": [1.0, 2.0]}), "ascending"),
    "a hole in the times": (lambda: sx.Series([0.0, INF, 1.0], {"a": [1.0] * 3}), "condition 0"),
    "shapes": (lambda: sx.Series([0.0, 1.0], {"a": [1.0]}), r"`values\['a'\]` has shape \(1,\)"),
    "infinite": (lambda: sx.Series([0.0], {"a": [INF]}), "infinite measurement"),
    "no names": (lambda: sx.Series([0.0], [1.0]), "must be a dict"),
    "sigma": (lambda: sx.Series([0.0], {"a": [1.0]}, sigma={"a": [0.0]}), "above 0"),
    "names": (lambda: sx.Series([0.0], {"a": [1.0]}, sigma={"b": [1.0]}), "same observables"),
    "conditions": (lambda: sx.Series([0.0], {"a": [1.0]}, conditions="xy"), "2 names"),
    "lengths": (lambda: sx.Series.from_ragged([[0.0]], []), "1 conditions and `values` 0"),
    "a row": (lambda: sx.Series.from_ragged([[0.0]], [{"a": [1.0, 2.0]}]), r"`ts\[0\]` has shape"),
    "a column": (lambda: sx.Series.from_table(TWO, time="tim"), "Did you mean `time`"),
    "a cell": (lambda: sx.Series.from_table(TWO), "`measurement` of row 1 .* is 'x'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name):
    make, words = WRONG[name]
    with pytest.raises((ValueError, TypeError, KeyError), match=words):
        make()
