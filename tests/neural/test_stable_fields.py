"""The guarantees of the fields that are stable by construction, over random weights and states."""

import functools

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from helpers import NETWORK_FIELDS, all_finite, slow, updated

import stablax as sx

PAIRS = 10_000
DTYPES = {"float64": jnp.float64, "float32": jnp.float32}


def rise(potential, velocity, y):
    """How fast `potential` rises along the field, and the size of the terms it is the sum of."""
    slope = jax.grad(potential)(y)
    return slope @ velocity, jnp.abs(slope) @ jnp.abs(velocity)


# For each field and state: a number that the guarantee says is never above 0, and the size of what
# it is the difference of (what rounding is measured by).


def damped(field, y):
    """The absorbing set is entered."""
    y = 20 * y
    rises, size = rise(field.lyapunov, field(0.0, y, None), y)
    return jnp.where(field.lyapunov(y) > field.radius**2 / 2, rises, -1.0), size


def contracting(field, y):
    """The symmetric part of the Jacobian, in coordinates in which the metric is Euclidean."""
    to_metric = jax.jacfwd(field.to_metric)(y)
    jacobian = jax.jacfwd(lambda y: field(0.0, y, None))(y)
    jacobian = to_metric @ jacobian @ jnp.linalg.inv(to_metric)
    largest = jnp.linalg.eigvalsh((jacobian + jacobian.T) / 2)[-1]
    rounding = jnp.linalg.cond(to_metric) * jnp.linalg.norm(jacobian)
    return largest + field.rate, rounding


def gradient_flow(field, y):
    rises, size = rise(field.potential, field(0.0, y, None), y)
    return rises + field.rate * jnp.sum(jax.grad(field.potential)(y) ** 2), size


def lyapunov(field, y):
    velocity = field(0.0, y, None)
    rises, size = rise(field.lyapunov, velocity, y)
    return rises + field.rate * field.lyapunov(y), size + jnp.abs(field.convex(y))


def port_hamiltonian(field, y):
    rises, size = rise(field.hamiltonian, field(0.0, y, None), y)
    return rises, size


def antisymmetric(field, y):
    return rise(field.lyapunov, field(0.0, y, None), y)


def quasi_positive(field, y):
    y = jnp.abs(y)
    on_walls = jnp.where(jnp.eye(3, dtype=bool), 0, y[None])
    rates = jax.vmap(lambda y: field(0.0, y, None))(on_walls)
    return -jnp.min(jnp.diag(rates)), jnp.zeros((), y.dtype)


GUARANTEES = {
    "DampedField": damped,
    "ContractingField": contracting,
    "GradientFlowField": gradient_flow,
    "LyapunovField": lyapunov,
    "PortHamiltonianField": port_hamiltonian,
    "AntisymmetricField": antisymmetric,
    "QuasiPositiveField": quasi_positive,
}


def random_field(make, key, dtype):
    """Weights of all sizes: each array is multiplied by a factor between about 1/10 and 10."""
    first, second = jr.split(key)
    field = make(first, dtype=dtype)
    leaves, treedef = jtu.tree_flatten(field)
    keys = jr.split(second, 2 * len(leaves))
    leaves = [
        jnp.exp(jr.normal(k, dtype=dtype)) * (x + 0.1 * jr.normal(n, x.shape, dtype))
        for x, k, n in zip(leaves, keys[::2], keys[1::2], strict=True)
    ]
    return jtu.tree_unflatten(treedef, leaves)


def random_state(key, dtype):
    """Near the origin and far from it."""
    first, second = jr.split(key)
    return 10 ** jr.uniform(first, (), dtype, -3, 1) * jr.normal(second, (3,), dtype)


@functools.cache
def violations(name):
    """Compiled once for both a fresh and a trained field; of a batch of fields and states."""
    return jax.jit(jax.vmap(GUARANTEES[name]))


def states(seed, dtype):
    return jax.vmap(lambda k: random_state(k, dtype))(jr.split(jr.key(seed), PAIRS))


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        slow(name, precision) if (i + j) % 2 else (name, precision)
        for i, name in enumerate(GUARANTEES)
        for j, precision in enumerate(DTYPES)
    ],
)
def test_guarantees_hold_for_random_weights_and_states(name, precision):
    dtype = DTYPES[precision]
    make = functools.partial(random_field, NETWORK_FIELDS[name], dtype=dtype)
    fields = jax.jit(jax.vmap(make))(jr.split(jr.key(0), PAIRS))
    excess, size = violations(name)(fields, states(1, dtype))
    assert excess.shape == (PAIRS,) and excess.dtype == dtype
    assert jnp.isfinite(excess).all()
    allowed = 0.0 if precision == "float64" else 30 * jnp.finfo(dtype).eps * size
    assert jnp.all(excess <= allowed), float(jnp.max(excess - allowed))
    assert 2 * jnp.sum(excess < 0) > PAIRS


# In turn: every field and either precision by day.
@pytest.mark.parametrize(
    ("name", "precision"),
    [
        (name, precision) if (i + j) % 2 else slow(name, precision)
        for i, name in enumerate(GUARANTEES)
        for j, precision in enumerate(DTYPES)
    ],
)
def test_guarantees_survive_training_against_them(name, precision):
    """100 steps of AdamW with a large learning rate, which drive trajectories outwards."""
    dtype = DTYPES[precision]
    field = NETWORK_FIELDS[name](jr.key(3), dtype=dtype)
    y = states(4, dtype)
    optimiser = optax.adamw(1.0)

    def outwards(field):
        return -jnp.mean(jnp.sum(y[:100] * jax.vmap(lambda y: field(0.0, y, None))(y[:100]), 1))

    def step(carry, _):
        field, state = carry
        gradient = jax.grad(outwards)(field)
        updates, state = updated(optimiser, gradient, state, field)
        return (optax.apply_updates(field, updates), state), None

    run = jax.jit(lambda field: jax.lax.scan(step, (field, optimiser.init(field)), length=100))
    trained = run(field)[0][0]
    moved = jtu.tree_map(lambda a, b: jnp.max(jnp.abs(a - b)), field, trained)
    assert max(jtu.tree_leaves(moved)) > 10
    assert all_finite(trained)
    fields = jtu.tree_map(lambda x: jnp.broadcast_to(x, (PAIRS, *x.shape)), trained)
    excess, size = violations(name)(fields, y)
    assert jnp.isfinite(excess).all()
    assert jnp.all(excess <= 30 * jnp.finfo(dtype).eps * size)


# --- single members


def eigenvalues(matrices):
    return np.linalg.eigvals(np.asarray(matrices))


@pytest.mark.parametrize("precision", DTYPES)
def test_damped_linear_part_is_stable(precision):
    dtype = DTYPES[precision]
    make = functools.partial(random_field, NETWORK_FIELDS["DampedField"], dtype=dtype)
    linear = jax.jit(jax.vmap(lambda key: make(key).linear))(jr.split(jr.key(5), PAIRS))
    real = eigenvalues(linear).real.max(axis=1)
    size = np.linalg.norm(np.asarray(linear), axis=(1, 2))
    assert np.all(real <= -0.5 + (0 if precision == "float64" else 1e-5 * size))
    # Non-normal ones are among them: the symmetric part need not be stable.
    symmetric = np.linalg.eigvalsh(np.asarray(linear + linear.swapaxes(1, 2)) / 2)
    assert np.mean(symmetric[:, -1] > 0) > 0.1


def test_antisymmetric_jacobians_are_stable():
    def jacobian(key):
        first, second = jr.split(key)
        field = random_field(NETWORK_FIELDS["AntisymmetricField"], first, jnp.float64)
        y = 0.1 * jr.normal(second, (3,))
        return jax.jacfwd(lambda y: field(0.0, y, None))(y)

    assert eigenvalues(jax.jit(jax.vmap(jacobian))(jr.split(jr.key(6), PAIRS))).real.max() < 0


def test_contraction_brings_any_two_solutions_together():
    """Under an input that changes with time."""
    field = sx.ContractingField(3, 8, 2, key=jr.key(7), time=True, args_size=1, rate=0.5)
    field = eqx.tree_at(lambda f: (f.shear, f.raw_scale), field, (jnp.ones(3), jnp.arange(3.0)))
    ts = jnp.linspace(0.5, 4.0, 8)
    starts = jnp.array([[3.0, -1.0, 2.0], [-4.0, 0.0, 1.0]])
    precise = sx.StiffPID.preset("precise", solver=diffrax.Tsit5())
    model = sx.Simulate(field, solver=diffrax.Tsit5(), controller=precise)
    ys = jax.vmap(lambda y0: model(y0, ts, args=0.7).ys)(starts)
    z0 = field.to_metric(starts[0]) - field.to_metric(starts[1])
    z = jax.vmap(field.to_metric)(ys[0]) - jax.vmap(field.to_metric)(ys[1])
    distance = jnp.linalg.norm(z, axis=1) / jnp.linalg.norm(z0)
    assert jnp.all(distance <= jnp.exp(-0.5 * ts))
    in_metric = jnp.sqrt((starts[0] - starts[1]) @ field.metric @ (starts[0] - starts[1]))
    np.testing.assert_allclose(jnp.linalg.norm(z0), in_metric, rtol=1e-12)


def test_lyapunov_field_ends_at_its_equilibrium():
    goal = np.array([1.0, -2.0])
    field = sx.LyapunovField(2, 8, 2, key=jr.key(8), equilibrium=goal, rate=0.5)
    assert not any(x.shape == (2,) and jnp.array_equal(x, goal) for x in jax.tree.leaves(field))
    velocity = lambda y: field(0.0, y, None)
    both = jax.jit(lambda y: (velocity(y), jax.jacfwd(velocity)(y)))
    at_rest, slope = both(jnp.asarray(goal))
    np.testing.assert_array_equal(at_rest, 0.0)
    np.testing.assert_allclose(slope, -0.5 * np.eye(2), atol=1e-15)
    # Continuous there, and no solution is slower than the rate.
    near = goal[None] + 1e-9 * jr.normal(jr.key(9), (100, 2))
    assert jnp.max(jnp.abs(jax.jit(jax.vmap(velocity))(near))) < 1e-6
    ts = jnp.array([1.0, 5.0, 20.0])
    starts = 3 * jr.normal(jr.key(10), (20, 2))
    model = sx.Simulate(field, solver=diffrax.Tsit5())
    ys = jax.vmap(lambda y0: model(y0, ts).ys)(starts)
    of = jax.jit(jax.vmap(field.lyapunov))
    start, then = of(starts), jnp.stack([of(y) for y in jnp.moveaxis(ys, 1, 0)], axis=1)
    assert jnp.all(then <= start[:, None] * jnp.exp(-0.5 * ts)[None] + 1e-6)
    assert jnp.all(start > 0) and of(goal[None])[0] == 0


@pytest.mark.parametrize("depth", [1, 3])
def test_the_slope_of_the_convex_network_is_its_gradient(depth):
    convex = sx.LyapunovField(3, 8, depth, key=jr.key(18)).convex
    x = jnp.array([0.4, -2.0, 1.0])
    np.testing.assert_allclose(convex.value_and_slope(x)[1], jax.grad(convex)(x), rtol=1e-12)
    assert jnp.linalg.eigvalsh(jax.hessian(convex)(x))[0] > 0


def test_a_learned_equilibrium_is_a_leaf():
    field = sx.LyapunovField(2, 4, 1, key=jr.key(0))
    moved = eqx.tree_at(lambda f: f.equilibrium, field, jnp.array([3.0, 4.0]))
    np.testing.assert_array_equal(moved(0.0, jnp.array([3.0, 4.0]), None), 0.0)
    gradient = jax.jit(jax.grad(lambda f: jnp.sum(f(0.0, jnp.ones(2), None))))(field)
    assert jnp.any(gradient.equilibrium != 0)


def test_energy_comes_in_through_the_ports_only():
    field = sx.PortHamiltonianField(3, 8, 1, key=jr.key(11), args_size=2)

    def balance(key):
        y, u = jr.normal(key, (3,)), jr.normal(jr.fold_in(key, 1), (2,))
        rises, _ = rise(field.hamiltonian, field(0.0, y, u), y)
        return rises - u @ field.output(y)

    assert jnp.max(jax.vmap(balance)(jr.split(jr.key(12), 1000))) < 0
    assert sx.PortHamiltonianField(3, 8, 1, key=jr.key(0)).output(jnp.ones(3)).shape == (0,)


def test_antisymmetric_field_loses_its_lyapunov_function_at_the_rate_of_its_speed():
    field = sx.AntisymmetricField(3, key=jr.key(13), args_size=1, time=True, damping=0.3)
    y, args = jnp.array([0.3, -2.0, 1.0]), jnp.array(0.8)
    velocity = field(0.5, y, args)
    rises, _ = rise(lambda y: field.lyapunov(y, args, t=0.5), velocity, y)
    np.testing.assert_allclose(rises, -0.3 * velocity @ velocity, rtol=1e-12)


def test_a_positive_field_stays_positive_when_solved():
    make = functools.partial(random_field, NETWORK_FIELDS["QuasiPositiveField"])
    field = jax.vmap(lambda key: make(key, dtype=jnp.float64))(jr.split(jr.key(14), 5))
    y0 = jnp.array([0.0, 1.0, 1e-3])
    run = eqx.filter_vmap(
        lambda field: sx.Simulate(field)(y0, jnp.array([0.1, 1.0, 3.0]), throw=False)
    )
    simulations = run(field)
    assert sx.is_successful(simulations).all()
    assert simulations.ys.min() >= -1e-5
    production, degradation = eqx.filter_vmap(lambda f: f.rates(0.0, y0, None))(field)
    assert jnp.all(production > 0) and jnp.all(degradation > 0)


def test_a_guarantee_holds_in_scaled_form():
    network = sx.ContractingField(3, 8, 1, key=jr.key(15), rate=0.1)
    yscale, tscale = np.array([1.0, 1e-5, 20.0]), 50.0
    field = sx.ScaledNeuralField(network, sx.Scales(yscale, tscale))

    def largest(y):
        jacobian = jax.jacfwd(lambda y: field(0.0, y, None))(y)
        to_metric = jax.jacfwd(lambda y: network.to_metric(y / yscale))(y)
        jacobian = to_metric @ jacobian @ jnp.linalg.inv(to_metric)
        return jnp.linalg.eigvalsh((jacobian + jacobian.T) / 2)[-1]

    ys = 3 * yscale[None] * jr.normal(jr.key(16), (1000, 3))
    assert jax.jit(jax.vmap(largest))(ys).max() < -0.1 / tscale


@pytest.mark.parametrize("name", GUARANTEES)
def test_a_tree_is_its_components(name):
    field = NETWORK_FIELDS[name](jr.key(17))
    y = jnp.array([0.3, 1.2, 0.7])
    tree = {"a": y[:2].reshape(1, 2), "b": [y[2]]}
    out = eqx.filter_jit(field)(0.0, tree, None)
    assert out["a"].shape == (1, 2) and out["b"][0].shape == ()
    flat = jnp.concatenate([out["a"].ravel(), out["b"][0][None]])
    np.testing.assert_allclose(flat, eqx.filter_jit(field)(0.0, y, None), rtol=1e-14)
    for measure in ("lyapunov", "potential", "hamiltonian", "to_metric"):
        if hasattr(field, measure):
            of = eqx.filter_jit(getattr(field, measure))
            np.testing.assert_allclose(of(tree), of(y), rtol=1e-14)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda key: sx.DampedField(2, 4, 1, key=key, rate=0.0), "`rate` .* > 0, got 0.0"),
        (lambda key: sx.DampedField(2, 4, 1, key=key, bound=[1.0, -1.0]), "`bound` .* > 0"),
        (lambda key: sx.DampedField(2, 4, 1, key=key, bound=np.ones(3)), "`bound` .* 2 components"),
        (lambda key: sx.ContractingField(2, 4, 0, key=key), "`depth` must be at least 1, got 0"),
        (lambda key: sx.ContractingField(2, 4, 1, key=key, rate=np.inf), "`rate`"),
        (lambda key: sx.GradientFlowField(0, 4, 1, key=key), "`size` must be at least 1, got 0"),
        (lambda key: sx.LyapunovField(2, 4, 0, key=key), "`depth` must be at least 1, got 0"),
        (
            lambda key: sx.LyapunovField(2, 4, 1, key=key, equilibrium=np.zeros(3)),
            "`equilibrium` has 3 components, but `size` is 2",
        ),
        (lambda key: sx.LyapunovField(2, 4, 1, key=key, convexity=-1.0), "`convexity`"),
        (lambda key: sx.PortHamiltonianField(2, 4, 1, key=key, args_size=-1), "`args_size`"),
        (lambda key: sx.AntisymmetricField(2, key=key, damping=0.0), "`damping`"),
        (lambda key: sx.QuasiPositiveField(2, 0, 1, key=key), "`width` must be at least 1"),
        (
            lambda key: sx.AntisymmetricField(2, key=key)(0.0, jnp.ones(3), None),
            r"AntisymmetricField\(size=2\)` takes a state of shape \(2,\), got \(3,\)",
        ),
        (
            lambda key: sx.GradientFlowField(2, 4, 1, key=key).potential({"a": jnp.ones(3)}),
            "got a PyTree of 3 in total",
        ),
    ],
)
def test_a_wrong_value_names_its_argument(key, wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong(key)
