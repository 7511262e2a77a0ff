"""What a third party brings, from public names only: coordinates, structures of the Jacobian,
Rosenbrock methods and models, in models and against closed forms. (`docs/extending.md` has one of
each kind.)"""

import pickle
from typing import ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stablax as sx

# --- coordinates


class ArcsinhField(sx.AbstractCoordinates):
    """u = arcsinh(y / s): logarithmic on both sides of zero."""

    def to_leaf(self, y, size, xp):
        return xp.arcsinh(y / size)

    def from_leaf(self, u, size):
        return size * jnp.sinh(u)

    def slope_leaf(self, u, size):
        return 1 / (size * jnp.cosh(u))

    def representable(self, u):
        return jnp.clip(u, -700, 700)


class PowerField(sx.AbstractCoordinates):
    """u = (y / s)^p, with a field of its own."""

    power: float = eqx.field(static=True)

    def __init__(self, field, power, size=1.0, *, guard=None, jacobian=None):
        self.power = power
        super().__init__(field, size, guard=guard, jacobian=jacobian)

    def to_leaf(self, y, size, xp):
        return (y / size) ** self.power

    def from_leaf(self, u, size):
        return size * u ** (1 / self.power)

    def slope_leaf(self, u, size):
        return self.power * u ** (1 - 1 / self.power) / size

    def representable(self, u):
        return jnp.maximum(u, 0)


def exchange(t, y, k):
    flux = k[0] * y[0] - k[1] * y[1]
    return jnp.stack([-flux, flux])


COORDINATES = {
    "arcsinh": lambda field: ArcsinhField(field, np.array([0.1, 2.0])),
    "power": lambda field: PowerField(field, 2.0, size=0.5),
}


@pytest.mark.parametrize("name", COORDINATES)
def test_coordinates_in_a_model(name):
    """Value and gradient (in the initial state and in parameters) against the closed form of a
    relaxation to k1 / (k0 + k1), and a steady state that keeps the total."""
    field = COORDINATES[name](exchange)
    model = sx.Simulate(field, controller=sx.StiffPID.preset("precise"))
    t1 = 0.7

    def first(y0, k):
        return field.from_(model(field.to(y0), [t1], args=k).ys)[0, 0]

    def truth(y0, k):
        rest = jnp.sum(y0) * k[1] / jnp.sum(k)
        return rest + (y0[0] - rest) * jnp.exp(-jnp.sum(k) * t1)

    y0, k = jnp.array([0.8, 0.4]), jnp.array([2.0, 3.0])
    both = lambda f: jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(y0, k)
    (value, slopes), (expected, exact) = both(first), both(truth)
    np.testing.assert_allclose(value, expected, rtol=1e-7)
    np.testing.assert_allclose(jnp.stack(slopes), jnp.stack(exact), rtol=1e-5, atol=1e-8)

    steady = sx.find_steady_state(field, field.to(y0), k, conserved=[1.0, 1.0])
    np.testing.assert_allclose(field.from_(steady.y), [0.72, 0.48], rtol=1e-8)


def test_the_guard_goes_with_third_party_coordinates():
    inside = sx.Guarded(exchange, sx.Guard(-1.0, np.array([1.0, np.inf])))
    guard = COORDINATES["arcsinh"](inside).guard
    np.testing.assert_allclose(guard.lower, np.arcsinh([-10.0, -0.5]))
    np.testing.assert_allclose(guard.upper, [np.arcsinh(10.0), np.inf])
    with pytest.raises(ValueError, match="`size` must be positive and finite, got -1"):
        ArcsinhField(exchange, -1.0)


def test_third_party_coordinates_are_values():
    field = COORDINATES["power"](exchange)
    assert field.size == 0.5 and field.field is exchange
    assert jax.tree.leaves(field) == []
    again = pickle.loads(pickle.dumps(ArcsinhField(sx.MLPField(2, 4, 1, key=jax.random.key(0)))))
    assert len(jax.tree.leaves(again)) == 4


# --- structures of the Jacobian


class RankOne(sx.AbstractFactorisation):
    """The formula of Sherman and Morrison."""

    def factorise(self, jacobian, shift, stored):
        inverse = 1 / (shift - stored["d"])
        return inverse, stored["u"], 1 - jnp.mean(inverse * stored["u"])

    def apply(self, factors, b, *, transpose):
        inverse, u, rest = factors
        x = inverse * b
        if transpose:
            return x + inverse * jnp.mean(u * x) / rest
        return x + inverse * u * jnp.mean(x) / rest

    def is_singular(self, factors):
        inverse, _, rest = factors
        return ~(jnp.all(jnp.isfinite(inverse)) & (jnp.abs(rest) > 1e-14))


class MeanField(sx.AbstractJacobian):
    """J = diag(d) + u (1, ..., 1) / n, stored as a dict."""

    factorisation: ClassVar = RankOne()

    def check(self, size):
        if size < 2:
            raise ValueError("`MeanField()` is for two components or more.")

    def linearise(self, fn, y):
        value, push = jax.linearize(fn, y)
        seed = jnp.ones_like(y).at[-1].set(1 - y.size)
        d = push(seed) / seed
        return value, {"d": d, "u": push(jnp.ones_like(y)) - d}

    def as_matrix(self, stored):
        return jnp.diag(stored["d"]) + stored["u"][:, None] / stored["d"].size

    def scale(self, stored, factor):
        return {name: factor * x for name, x in stored.items()}

    def multiply(self, stored, x):
        return stored["d"] * x + stored["u"] * jnp.mean(x)


def crowd(t, y, k):
    """Non-linear in each component, and coupled by the mean."""
    return -k["own"] * y**3 + k["shared"] * jnp.mean(y) + jnp.sin(t)


def relaxing(t, y, k):
    """y(t) = m0 exp(-shared t) + (y0 - m0) exp(-own t), for the mean m0 of y0."""
    mean = jnp.mean(y)
    return -k["own"] * (y - mean) - k["shared"] * mean


def test_a_structure_in_a_model():
    """Value and gradient, forth and in forward mode, against the closed form of a stiff system."""
    size, t1 = 31, 2.0  # above what is unrolled
    field = sx.Guarded(relaxing, jacobian=MeanField())
    start = jnp.linspace(1.0, 3.0, size)
    k = {"own": jnp.array(1.5), "shared": jnp.array(300.0)}
    model = sx.Simulate(field, controller=sx.StiffPID.preset("precise"))

    def end(k):
        return model(start, [t1], args=k).ys[0]

    def truth(k):
        mean = jnp.mean(start)
        return mean * jnp.exp(-k["shared"] * t1) + (start - mean) * jnp.exp(-k["own"] * t1)

    weights = jnp.cos(jnp.arange(size))
    both = lambda f: jax.jit(jax.value_and_grad(lambda k: weights @ f(k)))(k)
    (value, slopes), (expected, exact) = both(end), both(truth)
    np.testing.assert_allclose(value, expected, rtol=1e-7)
    np.testing.assert_allclose(slopes["own"], exact["own"], rtol=1e-6)
    assert abs(slopes["shared"]) < 1e-9  # exp(-600) of it is left
    push = lambda f: jax.jit(lambda k: jax.jvp(f, (k,), ({"own": 1.0, "shared": 0.0},))[1])(k)
    np.testing.assert_allclose(push(end), push(truth), rtol=1e-6, atol=1e-12)


def test_a_structure_is_as_good_as_a_dense_one():
    """The same steps, and the same steady state."""
    start = jnp.linspace(0.5, 1.0, 12)
    k = {"own": jnp.array(50.0), "shared": jnp.array(2.0)}
    assert sx.check_jacobian(sx.Guarded(crowd, jacobian=MeanField()), 0.3, start, k) < 1e-12
    ours, dense = (
        sx.Simulate(sx.Guarded(crowd, jacobian=j))(start, [0.1, 1.0], args=k)
        for j in (MeanField(), None)
    )
    np.testing.assert_allclose(ours.ys, dense.ys, rtol=1e-9)
    assert ours.stats["num_steps"] == dense.stats["num_steps"]
    found = sx.find_steady_state(sx.Guarded(crowd, jacobian=MeanField()), start, k)
    np.testing.assert_allclose(found.y, np.full(12, 0.2), rtol=1e-8)  # own y^2 = shared


def test_a_structure_in_plain_diffrax_and_its_refusal():
    solver = sx.Rodas5P(jacobian=MeanField())

    def solve(y0):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(relaxing),
            solver,
            0.0,
            1.0,
            None,
            y0,
            {"own": 2.0, "shared": 1e3},
            stepsize_controller=diffrax.PIDController(rtol=1e-8, atol=1e-10),
        ).ys[0]

    np.testing.assert_allclose(
        solve(jnp.array([1.0, 3.0])), np.exp(-2) * np.array([-1, 1]), rtol=1e-6
    )
    with pytest.raises(ValueError, match="for two components or more"):
        solve(jnp.array([1.0]))
    assert hash(MeanField()) == hash(MeanField()) and MeanField() == MeanField()


# --- Rosenbrock methods

GAMMA = 0.43586652150845900
ROS34PW2_COEFFICIENTS = dict(
    order=3,
    error_order=3,
    alpha=[
        [0, 0, 0, 0],
        [0.87173304301691801, 0, 0, 0],
        [0.84457060015369423, -0.11299064236484185, 0, 0],
        [0, 0, 1, 0],
    ],
    gamma=[
        [GAMMA, 0, 0, 0],
        [-0.87173304301691801, GAMMA, 0, 0],
        [-0.90338057013044082, 0.054180672388095326, GAMMA, 0],
        [0.24212380706095346, -1.2232505839045147, 0.54526025533510214, GAMMA],
    ],
    b=[0.24212380706095346, -1.2232505839045147, 1.5452602553351020, GAMMA],
    embedded=[0.37810903145819369, -0.096042292212423178, 0.5, 0.21793326075422950],
)


class ROS34PW2(sx.AbstractRosenbrock):
    """Rang and Angermann 2005, BIT Numer. Math. 45, 761."""

    tableau: ClassVar = sx.RosenbrockTableau.published(**ROS34PW2_COEFFICIENTS)


class GRK4T(sx.AbstractRosenbrock):
    """Kaps and Rentrop 1979, Numer. Math. 33, 55."""

    tableau: ClassVar = sx.RosenbrockTableau.published(
        order=4,
        error_order=4,
        alpha=[
            [0, 0, 0, 0],
            [0.462, 0, 0, 0],
            [-0.0815668168327, 0.961775150166, 0, 0],
            [-0.0815668168327, 0.961775150166, 0, 0],
        ],
        gamma=[
            [0.231, 0, 0, 0],
            [-0.270629667752, 0.231, 0, 0],
            [0.311254483294, 0.00852445628482, 0.231, 0],
            [0.282816832044, -0.457959483281, -0.111208333333, 0.231],
        ],
        b=[0.217487371653, 0.486229037990, 0, 0.296283590357],
        embedded=[-0.717088504499, 1.77617912176, -0.0590906172617, 0],
    )


class ROS3P(sx.AbstractRosenbrock):
    """Lang and Verwer 2001, BIT Numer. Math. 41, 731."""

    _gamma: ClassVar = 0.5 + np.sqrt(3) / 6
    tableau: ClassVar = sx.RosenbrockTableau.published(
        order=3,
        error_order=3,
        alpha=[[0, 0, 0], [1, 0, 0], [1, 0, 0]],
        gamma=[[_gamma, 0, 0], [-1, _gamma, 0], [-_gamma, 0.5 - 2 * _gamma, _gamma]],
        b=[2 / 3, 0, 1 / 3],
        embedded=[1 / 3, 1 / 3, 1 / 3],
    )


METHODS = {"ROS34PW2": (ROS34PW2, 3), "GRK4T": (GRK4T, 4), "ROS3P": (ROS3P, 3)}


def driven(t, y, args):
    rate = jnp.array([1.0, 2.0]) * (1 + jnp.cos(3 * t))
    return rate * y * (1 - y)


def driven_solution(t, y0):
    growth = np.exp(np.array([1.0, 2.0]) * (t + np.sin(3 * t) / 3))
    return y0 * growth / (1 - y0 + y0 * growth)


@pytest.mark.parametrize("name", METHODS)
def test_a_published_method_has_its_order_and_its_dense_output_too(name):
    kind, order = METHODS[name]
    y0, inner = np.array([0.2, 0.1]), np.linspace(0, 2, 50)[1:-1]

    def errors(steps):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(driven),
            kind(),
            0.0,
            2.0,
            2.0 / steps,
            jnp.asarray(y0),
            saveat=diffrax.SaveAt(t1=True, dense=True),
            max_steps=steps + 2,
        )
        rows = np.asarray(jax.vmap(solution.evaluate)(jnp.asarray(inner)))
        exact = np.stack([driven_solution(t, y0) for t in inner])
        end = np.max(np.abs(solution.ys[-1] - driven_solution(2.0, y0)))
        return end, np.max(np.abs(rows - exact))

    coarse, fine = np.array(errors(80)), np.array(errors(160))
    observed, observed_dense = np.log2(coarse / fine)
    assert order - 0.3 < observed < order + 0.5
    # Dense output of order 3, and of order 2 with its local error of h^3 (GRK4T, ROS3P).
    assert 2.7 < observed_dense < 3.5


@pytest.mark.parametrize(
    ("name", "at_infinity"), [("ROS34PW2", 0.0), ("GRK4T", 0.454), ("ROS3P", 0.732)]
)
def test_stability_at_infinity(name, at_infinity):
    kind = METHODS[name][0]
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: -1e10 * y), kind(), 0.0, 1.0, 1.0, jnp.array(1.0)
    )
    assert abs(abs(float(solution.ys[0])) - at_infinity) < 1e-3


@pytest.mark.parametrize("name", ["ROS34PW2", "GRK4T"])
def test_a_published_method_in_a_model(name):
    """Prothero and Robinson's problem, saved between steps: value and gradient are those of the
    closed form, and so is the error to the tolerance."""
    model = sx.Simulate(
        lambda t, y, k: -k[0] * (y - jnp.cos(k[1] * t)) - k[1] * jnp.sin(k[1] * t),
        solver=METHODS[name][0](),
    )
    ts = np.linspace(0.1, 1.0, 5)
    k = jnp.array([1e3, 2.0])

    weights = np.array([1.0, -2.0, 0.5, 1.0, 3.0])

    def weighted(k):
        ys = model(1.0, ts, args=k).ys
        return jnp.sum(weights * ys), ys

    slopes, ys = jax.jit(jax.grad(weighted, has_aux=True))(k)
    np.testing.assert_allclose(ys, np.cos(2.0 * ts), atol=1e-5)
    np.testing.assert_allclose(slopes[1], -np.sum(weights * ts * np.sin(2.0 * ts)), rtol=1e-4)
    assert abs(slopes[0]) < 1e-6  # the solution does not depend on it


def test_two_of_one_tableau_are_equal():
    assert ROS34PW2() == ROS34PW2() and ROS34PW2().interpolation_cls == ROS34PW2().interpolation_cls
    assert hash(ROS34PW2().interpolation_cls) == hash(ROS34PW2().interpolation_cls)
    assert pickle.loads(pickle.dumps(ROS34PW2().interpolation_cls)) == ROS34PW2().interpolation_cls


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            dict(b=[0.24212380706095346, -1.2232505839045147, 1.5452602553351020, 0.4358]),
            "`b` is not of order 3: a sum that is 1/1 for order 1 is 0.9999",
        ),
        (
            dict(embedded=[0.25, 0.25, 0.25, 0.25]),
            "`embedded` is not of order 2: a sum that is 1/2 for order 2",
        ),
        (dict(order=4), "`b` is not of order 4: a sum that is 1/4 for order 4"),
        (dict(b=[0.5, 0.5]), r"`embedded` has shape \(4,\); with 2 stages it is \(2,\)"),
        (dict(alpha=np.eye(4)), "`alpha` must be zero on and above the diagonal"),
        (dict(gamma=np.triu(np.ones((4, 4)))), "`gamma` must be zero above the diagonal"),
        (dict(gamma=np.diag([1.0, 1.0, 1.0, 2.0])), "one number above 0 on its diagonal"),
    ],
)
def test_coefficients_that_are_wrong_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        sx.RosenbrockTableau.published(**{**ROS34PW2_COEFFICIENTS, **change})


# --- models


class AfterBurnIn(sx.AbstractModel):
    burn_in: float = eqx.field(static=True)

    def __init__(self, field, burn_in, **options):
        super().__init__(field, **options)
        self.burn_in = burn_in

    def arguments(self):
        return dict(burn_in=self.burn_in, **self.options.arguments())

    def __call__(self, y0, ts, *, args=None, throw=True):
        model = sx.Simulate(self.field, **self.options.arguments())
        return model(y0, ts, t0=-self.burn_in, args=args, throw=throw)


class Decay(eqx.Module):
    rate: jax.Array

    def __call__(self, t, y, args):
        return -self.rate * y


def test_a_model_is_made_of_a_field_and_options():
    """It is a parameter tree with a gradient, takes part in a batch, and is changed as others."""
    model = AfterBurnIn(Decay(jnp.array(0.5)), 2.0, max_steps=50, solver=diffrax.Tsit5())
    assert len(jax.tree.leaves(model)) == 1 and model.options.max_steps == 50

    def last(model):
        return model(1.0, [1.0]).ys[0]

    slope = jax.jit(jax.grad(last))(model).field.rate
    np.testing.assert_allclose(slope, -3 * np.exp(-1.5), rtol=1e-4)
    changed = sx.with_options(model, max_steps=60)
    assert changed.options.max_steps == 60 and changed.burn_in == 2.0
    starts = np.array([1.0, 2.0])
    batch = sx.simulate_batch(model, dict(y0=starts), shared=dict(ts=[1.0]))
    np.testing.assert_allclose(batch.ys[:, 0], starts * np.exp(-1.5), rtol=1e-5)
    assert "AfterBurnIn(" in repr(model) and "burn_in=2.0" in repr(model)
    with pytest.raises(TypeError, match="takes no argument `solvr`"):
        AfterBurnIn(Decay(jnp.array(0.5)), 2.0, solvr=None)
