"""Derivatives at zero, next to it, and at huge values: those of rate laws and coordinates against
closed forms, and what a guard does where there is none."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import stablax as sx
from stablax._fields import Aside

ONE = sx.Frozen(1.0)
SIZES = (0.0, 1e-300, 1e-30, 1e-12, 0.3, 0.71, 20.0, 1e30, 1e150, 1e300)
wide = np.longdouble  # numbers from 1e-4932 to 1e4932, of 19 digits

if np.finfo(wide).maxexp < 16384:
    pytest.skip("the truth needs 80-bit numbers", allow_module_level=True)


# --- rate laws: value, gradient and Hessian in all that they read, as (0, 1, 2)-tensors --------


def _product(*factors):
    """Of functions of different variables."""
    value, slope, bend = factors[0]
    for value_2, slope_2, bend_2 in factors[1:]:
        cross = np.outer(slope, slope_2)
        bend = np.block([[bend * value_2, cross], [cross.T, value * bend_2]])
        slope = np.concatenate([slope * value_2, value * slope_2])
        value = value * value_2
    return value, slope, bend


def _linear(x):
    return wide(x), np.ones(1, wide), np.zeros((1, 1), wide)


def _hill(s, k, n, represses=False):
    """S^n / (k^n + S^n) in (S, k, n), and inf where a derivative does not exist."""
    s, k, n = wide(s), wide(k), wide(n)
    sign = -1 if represses else 1
    if s == 0:
        inf, two = wide(np.inf), 2 / k**2
        by_s = inf if n < 1 else 1 / k if n == 1 else 0
        by_ss = -two if n == 1 else two if n == 2 else inf if n < 2 else 0
        by_sk = inf if n < 1 else -1 / k**2 if n == 1 else 0
        by_sn = inf if n <= 1 else 0
        slope = np.array([by_s, 0, 0], wide)
        bend = np.array([[by_ss, by_sk, by_sn], [by_sk, 0, 0], [by_sn, 0, 0]], wide)
        return wide(represses), sign * slope, sign * bend
    log = np.log(s / k)
    power = np.exp(-n * abs(log))
    most, least = 1 / (1 + power), power / (1 + power)
    share, rest = (most, least) if s > k else (least, most)
    x = np.array([n / s, -n / k, log])
    # (rest - share) x x^T + the second derivatives of x, without cancellation on the diagonal
    tilt = -2 * n**2 * share if s < k else 2 * n**2 * rest
    ss = (n * (n - 1) if s < k else -n * (n + 1)) + tilt
    kk = (n * (n + 1) if s < k else n * (1 - n)) + tilt
    bend = (rest - share) * np.outer(x, x)
    bend += np.array([[0, 0, 1 / s], [0, 0, -1 / k], [1 / s, -1 / k, 0]])
    bend[0, 0], bend[1, 1] = ss / s**2, kk / k**2
    value = rest if represses else share
    return value, sign * share * rest * x, sign * share * rest * bend


def _mass_action(k, a, b):
    k, a, b = map(wide, (k, a, b))
    return (
        k * a * b**2,
        np.array([a * b**2, k * b**2, 2 * k * a * b]),
        np.array([[0, b**2, 2 * a * b], [b**2, 0, 2 * k * b], [2 * a * b, 2 * k * b, 2 * k * a]]),
    )


def _saturated(s, km):
    value, slope, bend = _hill(s, km, 1.0)
    return value, slope[:2], bend[:2, :2]


NEURAL = jax.tree.map(
    lambda x: 0.01 * jr.normal(jr.key(4), x.shape),  # far from where tanh saturates
    sx.NeuralRate(("s",), key=jr.key(3), size=0.5, width=4),
)


def _neural(s):
    """In (s, )."""
    (w, b), (v, c) = [
        (np.asarray(x.weight, wide), np.asarray(x.bias, wide)) for x in NEURAL.network.tree.layers
    ]
    z = wide(s) / NEURAL.size
    root = np.hypot(1, z)
    feature = np.log(z + root) if z > 1e-9 else z
    to_feature = 1 / root / NEURAL.size
    bend_feature = -z / root**3 / NEURAL.size**2
    t = np.tanh(w[:, 0] * feature + b)
    by = np.sum(v[0] * (1 - t**2) * w[:, 0])
    bend = np.sum(v[0] * -2 * t * (1 - t**2) * w[:, 0] ** 2)
    out = np.sum(v[0] * t) + c.item()
    sigmoid = 1 / (1 + np.exp(-out))
    second = (sigmoid * (1 - sigmoid) * by**2 + sigmoid * bend) * to_feature**2
    second += sigmoid * by * bend_feature
    return np.log1p(np.exp(out)), np.array([sigmoid * by * to_feature]), np.array([[second]])


HILL = [(s, 0.7, n) for n in (0.3, 0.5, 1.0, 1.5, 2.0, 7.3) for s in SIZES]
LAWS = {
    "MassAction": (
        "A + 2 B -> P",
        sx.MassAction("k"),
        "kAB",
        _mass_action,
        [(2.0, a, b) for a, b in [(0, 0), (0, 3), (3, 0), (3, 1e-300), (1e150, 3), (1e30, 1e60)]],
    ),
    "MichaelisMenten": (
        "0 -> P",
        sx.MichaelisMenten("v", "k", of="s", enzyme="e"),
        ("v", "e", "s", "k"),
        lambda v, e, s, k: _product(_linear(v), _linear(e), _saturated(s, k)),
        [(2.0, 0.3, s, k) for s in SIZES for k in (0.7, 1e-20, 1e20)],
    ),
    "Hill": (
        "0 -> P",
        sx.Hill("v", "k", "n", of="s"),
        "vskn",
        lambda v, *rest: _product(_linear(v), _hill(*rest)),
        [(1.3, *rest) for rest in HILL],
    ),
    "Hill, represses, times MassAction": (
        "A -> P",
        sx.MassAction("a") * sx.Hill(ONE, "k", "n", of="s", represses=True),
        "aAskn",
        lambda a, A, *rest: _product(_linear(a), _linear(A), _hill(*rest, represses=True)),
        [(1.7, A, *rest) for rest in HILL for A in (0.0, 2.0)],
    ),
    "NeuralRate": ("0 -> P", NEURAL, "s", _neural, [(s,) for s in SIZES]),
}


@pytest.mark.parametrize("name", LAWS)
def test_a_law_and_its_first_and_second_derivatives(name):
    text, law, names, truth, points = LAWS[name]
    reacting = [x for x in names if x.isupper()]
    inputs = [x for x in names if not x.isupper()]
    field = sx.ReactionField([text], [law], inputs=inputs, species=[*reacting, "P"])

    def rate(z):
        by_name = dict(zip(names, z, strict=True))
        y = jnp.stack([by_name[x] for x in reacting] + [jnp.zeros_like(z[0])])
        return field.rates(0.0, y, {x: by_name[x] for x in inputs})[0]

    every = jax.jit(jax.vmap(lambda z: (rate(z), jax.grad(rate)(z), jax.hessian(rate)(z))))
    points = np.array(points)
    with np.errstate(invalid="ignore"):  # 0 times a derivative that does not exist
        expected = [np.stack(parts) for parts in zip(*(truth(*z) for z in points), strict=True)]
    for ours, exact in zip(every(points), expected, strict=True):
        ours = np.asarray(ours)
        assert np.isfinite(ours).all()
        # Beyond the root of the largest number it has to be finite only.
        known = np.abs(exact) < 1e150
        np.testing.assert_allclose(ours[known], exact[known].astype(float), rtol=2e-11, atol=1e-290)


@pytest.mark.parametrize("represses", [False, True])
def test_in_single_precision_a_hill_law_has_finite_derivatives(represses):
    law = sx.Hill("v", "k", "n", of="s", represses=represses)
    field = sx.ReactionField(["0 -> P"], [law], inputs=tuple("vskn"))

    def rate(z):
        return field.rates(0.0, jnp.zeros(1, z.dtype), dict(zip("vskn", z, strict=True)))[0]

    sizes = (0.0, 2e-38, 1e-30, 1e-12, 0.3, 20.0, 1e15, 1e30)
    z = np.array([(1.3, s, 0.7, n) for n in (0.3, 0.5, 1, 1.5, 2, 7.3) for s in sizes], np.float32)
    slope, bend = jax.jit(jax.vmap(lambda z: (jax.grad(rate)(z), jax.hessian(rate)(z))))(z)
    assert np.isfinite(slope).all() and np.isfinite(bend).all()
    truth = [_product(_linear(v), _hill(*rest, represses)) for v, *rest in z]
    for ours, exact in zip((slope, bend), list(zip(*truth, strict=True))[1:], strict=True):
        known = np.abs(np.stack(exact)) < 1e15
        np.testing.assert_allclose(
            np.asarray(ours)[known], np.stack(exact)[known].astype(float), rtol=1e-3, atol=1e-30
        )


def test_a_hill_coefficient_of_two_that_is_trained_is_two():
    """exp(log 2) is 2 to rounding, and the second derivative of S^n at 0 is 0 for any n above."""
    law = sx.Hill(1.0, 0.5, 2.0)
    nudge = lambda ulp: eqx.tree_at(lambda law: law.n.log, law, law.n.log + ulp * 1.2e-16)
    reactions = ["A -> B", "A -> C", "A -> D"]
    field = sx.ReactionField(reactions, [nudge(ulp) for ulp in (-1, 0, 1)])
    rates = lambda a: field.rates(0.0, jnp.array([a, 0.0, 0.0, 0.0]), None)
    bend = jax.jit(jax.jacfwd(jax.jacfwd(rates)))(0.0)
    np.testing.assert_allclose(bend, 8.0, rtol=1e-13)


def test_a_drug_that_is_absent():
    """A Rosenbrock method differentiates the Jacobian, which is 0 * inf for a power below 1."""
    law = sx.MassAction(1.0) * sx.Hill(ONE, 0.3, ONE, of="drug", represses=True)
    field = sx.ReactionField(["A -> 0"], [law], inputs=("drug",))
    assert [leaf.shape for leaf in jax.tree.leaves(field)] == [(1,), (1,)]

    @eqx.filter_jit
    @eqx.filter_grad
    def slope(field):
        return sx.Simulate(field)(jnp.array([1.0]), [1.0], args={"drug": 0.0}).ys[0, 0]

    for log_n in np.log([0.3, 0.5, 1.0, 2.0]):
        by_k, by_n = jax.tree.leaves(
            slope(eqx.tree_at(lambda f: jax.tree.leaves(f)[1], field, jnp.array([log_n])))
        )
        np.testing.assert_allclose(by_k, -np.exp(-1), rtol=1e-4)
        assert by_n == 0


# --- coordinates -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["log", "offset", "softplus", "scaled"])
def test_coordinates_next_to_zero_and_far_out(name):
    """f = a - k y, in u; the second derivative too."""
    a, k, s = 0.3, 0.7, 2.0
    inside = lambda t, y, args: a - k * y
    field = {
        "log": lambda: sx.LogField(inside),
        "offset": lambda: sx.LogField(inside, offset=s),
        "softplus": lambda: sx.SoftplusField(inside, scale=s),
        "scaled": lambda: sx.ScaledField(inside, s),
    }[name]()
    y = np.array(SIZES if name in ("offset", "scaled") else SIZES[1:])[:, None]
    u = jax.vmap(field.to)(jnp.asarray(y))
    u = u[:, 0]
    g = lambda u: field(0.0, u[None], None)[0]
    ours = jax.jit(jax.vmap(lambda u: (g(u), jax.grad(g)(u), jax.grad(jax.grad(g))(u))))(u)
    u, y = np.asarray(u, wide), np.asarray(y[:, 0], wide)
    decay = np.exp(-u)
    sigma = 1 / (1 + decay)
    exact = {
        "log": (a * decay - k, -a * decay, a * decay),
        "offset": ((a / s + k) * decay - k, -(a / s + k) * decay, (a / s + k) * decay),
        "softplus": (
            (a / s - k * y / s) / sigma,
            -(a / s - k * y / s) * decay - k,
            (a / s - k * y / s) * decay + k * sigma * decay,
        ),
        "scaled": (a / s - k * y / s, np.full(y.shape, -k), np.zeros(y.shape)),
    }[name]
    for got, truth in zip(ours, exact, strict=True):
        np.testing.assert_allclose(got, truth.astype(float), rtol=1e-12, atol=1e-14)


# --- neural fields -----------------------------------------------------------------------------


def test_a_lyapunov_field_next_to_its_equilibrium():
    """There it is positively homogeneous: the Jacobian depends on the direction only."""
    field = sx.LyapunovField(2, 4, 1, key=jr.key(5), equilibrium=np.zeros(2), dtype=jnp.float32)
    biases = lambda f: [layer.bias for layer in f.network.layers]
    field = eqx.tree_at(biases, field, [jnp.zeros_like(bias) for bias in biases(field)])
    jacobian = jax.jacfwd(lambda y: field(0.0, y, None))
    points = jnp.asarray(np.outer([1e-12, 1e-15, 1e-20, 1e-30], [0.6, -0.8]), jnp.float32)
    # Computed operation by operation: XLA rounds the same expression in as many ways as it occurs.
    right = np.broadcast_to(jacobian(points[0]), (4, 2, 2))
    np.testing.assert_allclose(jax.jit(jax.vmap(jacobian))(points), right, rtol=1e-4)
    np.testing.assert_allclose(jax.jit(jacobian)(points[1]), right[1], rtol=1e-4)
    assert np.abs(right).max() > 1e-2


def test_a_convex_network_far_out():
    convex = sx.LyapunovField(2, 4, 1, key=jr.key(5)).convex
    slopes = [convex.value_and_slope(r * jnp.array([1.0, -2.0]))[1] for r in (1e8, 1e200)]
    np.testing.assert_allclose(slopes[1], slopes[0], rtol=1e-7)


# --- guards: only what is at fault steps aside -------------------------------------------------


class Units(eqx.Module):
    """y0 is at fault at 0, y1 is of any size."""

    k: jax.Array

    def __call__(self, t, y, args):
        return jnp.stack([jnp.exp(-1.873 / y[0]) - y[0], -self.k * y[1] ** 2, jnp.sqrt(y[2])])


def test_a_derivative_that_exists_is_right_beside_one_that_does_not():
    def field(k, y):
        return sx.Guarded(Units(k), sx.Guard(0.0))(0.0, y, None)

    slopes = jax.jit(jax.vmap(jax.jacfwd(field, argnums=(0, 1)), in_axes=(None, 0)))
    # At fault are y0; y0 and y2.
    y1, y2 = np.array([(y1, y2) for y1 in (0.0, 1e-20, 1e-12, 1.0) for y2 in (1.0, 0.0)]).T
    zero = np.zeros_like(y1)
    by_k, by_y = slopes(jnp.array(1e12), np.stack([zero, y1, y2], axis=1))
    np.testing.assert_allclose(by_k, np.stack([zero, -(y1**2), zero], axis=1), rtol=1e-14)
    steep = by_y[:, 2, 2]
    expected = np.stack([zero - 1, -2e12 * y1, steep], axis=1)[:, None] * np.eye(3)
    np.testing.assert_allclose(by_y, expected, rtol=1e-14)
    np.testing.assert_allclose(steep[::2], 0.5, rtol=1e-14)
    assert ((steep[1::2] > 1) & (steep[1::2] < 1e5)).all()


def test_a_gradient_beside_a_component_without_a_derivative():
    def last(k):
        field = sx.Guarded(lambda t, y, k: Units(k)(t, y, None), sx.Guard(0.0))
        controller = sx.StiffPID.preset("precise")
        simulation = sx.Simulate(field, controller=controller)(
            jnp.array([0.0, 1.0, 1.0]), [1.0], args=k
        )
        return simulation.ys[0, 1]

    slope = jax.jit(jax.grad(last))
    for k in (1e3, 1e6, 1e9):
        np.testing.assert_allclose(slope(k), -1 / (1 + k) ** 2, rtol=1e-3)


def test_the_search_moves_what_is_at_fault_and_nothing_else():
    size, lower, upper = 21, np.zeros(21), np.full(21, np.inf)

    def search(aside, fault, y):
        def body(aside):
            return aside.after(jnp.all((aside.shift(y, lower, upper) != 0) | ~fault))

        return jax.lax.while_loop(lambda aside: ~aside.done, body, aside)

    @jax.jit
    @jax.vmap
    def twice(fault, y):
        first = search(Aside.start(y), fault, y)
        second = search(first.again(), fault, y)
        told = lambda aside: (aside.shift(y, lower, upper), aside.helps, aside.tries)
        return told(first), told(second)

    rng = np.random.default_rng(0)
    count = np.array([0, 1, 2, 3] * 20)
    fault = rng.random((80, size)).argsort(axis=1) < count[:, None]
    y = np.where(rng.random((80, size)) < 0.5, 0.0, 10.0 ** rng.uniform(-20, 3, (80, size)))
    first, second = twice(fault, y)
    for shift, helps, _ in (first, second):
        np.testing.assert_array_equal(shift != 0, fault)
        assert helps.all()
        assert (shift <= 2e-8 * np.where(y == 0, 1, y)).all()
    assert first[2].max() < 64
    np.testing.assert_array_equal(second[2], np.where(count == 0, 1, 2))
