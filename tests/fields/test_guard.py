"""`Guard`, `GuardedField`, `Guarded`: construction, structure, and what they refuse."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stablax as sx


class Decay(sx.GuardedField):
    rate: jax.Array

    def vector_field(self, t, y, args):
        return -self.rate * jnp.sqrt(y)


class WithOwnInit(sx.GuardedField):
    rate: jax.Array

    def __init__(self, rate, *, guard=sx.Guard()):
        self.rate = jnp.asarray(rate)
        self.guard = guard

    def vector_field(self, t, y, args):
        return -self.rate * y


class WithOwnDefault(sx.GuardedField):
    rate: jax.Array
    guard: sx.Guard = eqx.field(default=sx.Guard(lower=0.0), kw_only=True)

    def vector_field(self, t, y, args):
        return -self.rate * y


def test_guards_are_values_without_leaves():
    a = sx.Guard(np.array([0.0, -1.0]), 5, pull=2)
    b = sx.Guard(jnp.array([0.0, -1.0]), 5.0, pull=2.0)
    assert a == b and hash(a) == hash(b)
    assert a != sx.Guard(np.array([0.0, -1.0]), 6.0, pull=2.0)
    assert a != sx.Guard(np.array([0.0, -1.0]), 5.0)
    assert jax.tree.leaves(a) == []
    assert repr(sx.Guard()) == "Guard()"
    assert repr(sx.Guard(0.0, reject=False)) == "Guard(lower=0.0, reject=False)"
    assert eval(repr(a), {"Guard": sx.Guard, "np": np, "array": np.array}) == a


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (dict(lower=1.0, upper=1.0), ValueError, "`lower` must be below `upper`"),
        (dict(lower=np.zeros(3), upper=np.array([1, 1, -1])), ValueError, r"lower\[2\] = 0"),
        (dict(lower=np.array([0.0, np.nan])), ValueError, "holds nan"),
        (dict(lower={"a": 0.0}, upper={"b": 1.0}), ValueError, "cannot belong to one state"),
        (dict(lower=np.zeros(2), upper=np.ones(3)), ValueError, r"\(2,\) in `lower` and \(3,\)"),
        (dict(lower="zero"), TypeError, "`lower` must be a number"),
        (dict(lower=True), TypeError, "must be a number"),
        (dict(fill=np.inf), ValueError, "`fill` must be finite"),
        (dict(pull=-1.0), ValueError, "`pull` must be"),
        (dict(fill="zero"), TypeError, "`fill` must be a number"),
        (dict(pull=None), TypeError, "`pull` must be a number"),
        (dict(reject=1), TypeError, "`reject` must be"),
    ],
)
def test_bad_guards_are_refused_at_construction(arguments, error, words):
    with pytest.raises(error, match=words):
        sx.Guard(**arguments)


def test_a_guard_is_needed_and_not_a_tuple():
    for make in (lambda g: sx.Guarded(abs, g), lambda g: Decay(jnp.array(1.0), guard=g)):
        with pytest.raises(TypeError, match="`guard` must be a `Guard"):
            make((0.0, 1.0))


def test_a_traced_bound_is_refused():
    with pytest.raises(TypeError, match="`lower` is a traced array.*np.array"):
        jax.jit(lambda x: sx.Guard(x).fill)(1.0)


@pytest.mark.parametrize(
    ("guard", "y", "words"),
    [
        (sx.Guard([0.0, 0.0]), jnp.ones(2), "A list or tuple is tree structure"),
        (sx.Guard(np.zeros(3)), jnp.ones(2), r"shape \(3,\), but the state has shape \(2,\)"),
        (sx.Guard({"a": 0.0}), {"b": jnp.ones(2)}, "structure"),
    ],
)
def test_a_guard_that_does_not_fit_the_state_is_refused_at_the_first_call(guard, y, words):
    with pytest.raises(ValueError, match=words):
        sx.Guarded(lambda t, y, args: y, guard)(0.0, y, None)


def test_bounds_can_be_partial_and_one_sided():
    lower, upper = {"a": None, "b": np.array([0.0, -np.inf])}, {"a": 1.0, "b": np.inf}
    guard = sx.Guard(lower, upper, outside="constant")
    y = {"a": jnp.array([3.0]), "b": jnp.array([-1.0, -1.0])}
    seen = sx.Guarded(lambda t, y, args: y, guard)(0.0, y, None)
    assert seen["a"].tolist() == [1.0] and seen["b"].tolist() == [0.0, -1.0]
    activity = sx.Guarded(lambda t, y, args: y, guard).activity(0.0, y)
    assert activity.above["a"].tolist() == [True]
    assert activity.below["b"].tolist() == [True, False]
    assert bool(activity.any)


def test_a_prefix_of_the_state_is_enough():
    guard = sx.Guard((0.0, None), outside="constant")
    y = ({"a": jnp.array(-1.0), "b": jnp.array(-2.0)}, jnp.array(-3.0))
    seen = sx.Guarded(lambda t, y, args: y, guard)(0.0, y, None)
    assert jax.tree.leaves(jax.tree.map(float, seen)) == [0.0, 0.0, -3.0]


@pytest.mark.parametrize("cls", [Decay, WithOwnInit, WithOwnDefault])
def test_subclasses_take_a_guard(cls):
    guard = sx.Guard(1.0, 2.0)
    assert cls(jnp.array(1.0), guard=guard).guard == guard
    default = sx.Guard(0.0) if cls is WithOwnDefault else sx.Guard()
    assert cls(jnp.array(1.0)).guard == default
    assert len(jax.tree.leaves(cls(jnp.array(1.0), guard=guard))) == 1


def test_the_call_is_sealed():
    with pytest.raises(TypeError, match="gets `__call__` from `Loose`.*remove"):

        class Loose(sx.GuardedField):
            def vector_field(self, t, y, args):
                return y

            def __call__(self, t, y, args):  # pyright: ignore[reportIncompatibleMethodOverride]
                return y

    class Mixin(eqx.Module):
        def __call__(self, t, y, args):
            return y

    with pytest.raises(TypeError, match="gets `__call__` from `Mixin`"):

        class Mixed(Mixin, Decay):
            pass


def test_an_abstract_field_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        sx.GuardedField()  # pyright: ignore[reportAbstractUsage]


@pytest.mark.parametrize(
    ("fn", "error", "words"),
    [
        (lambda t, y, args: y[:1], ValueError, r"returned shape \(1,\).*state has shape \(2,\)"),
        (lambda t, y, args: (y, y), ValueError, "returned the structure"),
        (lambda t, y, args: y.astype(jnp.float32), TypeError, "dtype float32.*dtype float64"),
        (lambda t, y, args: jnp.ones(2, int), TypeError, "dtype int64"),
    ],
)
def test_a_field_that_returns_something_else_is_refused(fn, error, words):
    with pytest.raises(error, match=words):
        sx.Guarded(fn)(0.0, jnp.ones(2), None)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (1, "Write it as `1.`"),
        (jnp.arange(3), r"Write it as `\[0., 1., 2.\]`"),
        (np.array([True]), "real and floating-point"),
        ({"a": 1.0, "b": jnp.ones(2, jnp.float32)}, "mixes dtypes"),
        ("one", "`y0` must be an array"),
    ],
)
def test_a_state_that_is_not_floating_point_is_refused(y, words):
    with pytest.raises(TypeError, match=words):
        sx.Simulate(lambda t, y, args: y)(y, jnp.array([1.0]))


def test_where_only_the_derivative_is_infinite_it_is_taken_next_door():
    """sqrt(0) = 0 with an infinite slope: finite derivative, nothing lost for the parameters."""
    field = Decay(jnp.array(2.0), guard=sx.Guard(0.0))
    y = jnp.array([0.0, 4.0])
    assert field(0.0, y, None).tolist() == [0.0, -4.0]
    jacobian = jax.jacfwd(lambda y: field(0.0, y, None))(y)
    assert jnp.isfinite(jacobian).all() and jacobian[0, 0] < -1e3
    np.testing.assert_allclose(jacobian[1, 1], -0.5, rtol=1e-6)
    slope = jax.grad(lambda r: Decay(r, guard=sx.Guard(0.0))(0.0, y, None)[1])(jnp.array(2.0))
    np.testing.assert_allclose(slope, -2.0, rtol=1e-6)
    assert bool(field.activity(0.0, y).derivative)
    assert not bool(field.activity(0.0, jnp.array([1.0, 4.0])).derivative)


def test_the_regularised_derivative_is_finite_where_it_is_taken_next_door():
    """Implicit solvers in a model: the size of a row is not that of a derivative not used."""
    from stablax._fields import evaluate

    for fn, y in ((jnp.sqrt, 0.0), (jnp.sinh, np.inf), (jnp.log, 0.0)):
        field = sx.Guarded(lambda t, y, args, fn=fn: fn(y), sx.Guard(0.0))
        _, slope = jax.jvp(
            lambda y, field=field: evaluate(field, 0.0, y, None, 1e-15), (y,), (1.0,)
        )
        assert jnp.isfinite(slope)


def test_what_a_function_closes_over_cannot_bypass_the_guard():
    def value(p, y):
        return sx.Guarded(lambda t, y, args: jnp.log(p - y))(0.0, y, None)

    y = jnp.array(2.0)
    assert jnp.isnan(value(1.0, y))
    for transform in (lambda f: f, jax.jit):
        assert transform(jax.grad(value))(1.0, y) == 0.0
        np.testing.assert_allclose(transform(jax.grad(value))(3.0, y), 1.0)
    assert jax.grad(jax.grad(value))(1.0, y) == 0.0
    np.testing.assert_allclose(jax.grad(jax.grad(value))(3.0, y), -1.0)


def test_mlp_field():
    field = sx.MLPField(3, 8, 2, key=jax.random.key(0), guard=sx.Guard(-1.0, 1.0))
    assert field(0.0, jnp.ones(3), None).shape == (3,)
    assert len(jax.tree.leaves(field)) == 6
    single = sx.MLPField(3, 8, 0, key=jax.random.key(0), dtype=jnp.float32)
    assert single(0.0, jnp.ones(3, jnp.float32), None).dtype == jnp.float32
    with pytest.raises(ValueError, match="`width` must be at least 1, got 0"):
        sx.MLPField(3, 0, 1, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"state of shape \(3,\), got \(2,\)"):
        field(0.0, jnp.ones(2), None)
    with pytest.raises(Exception, match="size"):
        sx.MLPField("3", 8, 1, key=jax.random.key(0))


def test_activity_is_that_of_the_clipped_state():
    """What a field would be outside of its box is not asked."""
    field = sx.Guarded(lambda t, y, args: jnp.log(y), sx.Guard(lower=1e-3))
    activity = field.activity(0.0, jnp.array([-1.0, 2.0]))
    assert activity.below.tolist() == [True, False]
    assert not activity.masked.any() and not bool(activity.derivative)
