"""The contract of every structure of a Jacobian: the same numbers as with the full matrix."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse as sps

from stablax._linalg import AbstractJacobian, Dense, Factored
from stablax._linalg._banded import Banded
from stablax._linalg._matrix_free import MatrixFree
from stablax._linalg._sparse import Sparse


def band(size: int, lower: int, upper: int) -> np.ndarray:
    i, j = np.indices((size, size))
    return (j - i <= upper) & (i - j <= lower)


def grid(side: int) -> np.ndarray:
    """Neighbours in two dimensions, in an order that hides it."""
    line, eye = band(side, 1, 1), np.eye(side)
    order = np.random.default_rng(3).permutation(side * side)
    return ((np.kron(line, eye) + np.kron(eye, line)) > 0)[np.ix_(order, order)]


def arrow(size: int) -> np.ndarray:
    """One component that all depend on, so that no order gives a narrow band."""
    out = np.eye(size, dtype=bool)
    out[:, 0] = out[0, :] = True
    return out


def shuffled_chain(size: int) -> np.ndarray:
    order = np.random.default_rng(4).permutation(size)
    return band(size, 1, 2)[np.ix_(order, order)]


# One of each way to solve: padded or not, each width of the unrolled and LAPACK blocks, one-sided
# bands, and the full matrix behind a structure.
STRUCTURES = {
    "banded-0-0": (Banded(0, 0), band(30, 0, 0)),
    "banded-1-1": (Banded(1, 1), band(83, 1, 1)),
    "banded-2-2": (Banded(2, 2), band(80, 2, 2)),
    "banded-1-3": (Banded(1, 3), band(70, 1, 3)),
    "banded-3-0": (Banded(3, 0), band(61, 3, 0)),
    "banded-5-6": (Banded(5, 6), band(103, 5, 6)),
    "banded-small": (Banded(2, 1), band(7, 2, 1)),
    "banded-wide": (Banded(9, 9), band(31, 9, 9)),
    "sparse-chain": (Sparse(shuffled_chain(60)), shuffled_chain(60)),
    "sparse-grid": (Sparse(grid(7)), grid(7)),
    "sparse-arrow": (Sparse(arrow(30)), arrow(30)),
    "matrix-free": (MatrixFree(lx.GMRES(rtol=1e-14, atol=1e-14, restart=25)), band(25, 2, 2)),
    "dense": (Dense(), band(14, 13, 13)),
}
EVERY = pytest.mark.parametrize("name", STRUCTURES)
FEW = pytest.mark.parametrize("name", ["banded-2-2", "banded-small", "sparse-chain", "matrix-free"])


def problem(name: str, dtype=jnp.float64):
    """A structure, a field of that pattern with its parameters, and a state."""
    structure, pattern = STRUCTURES[name]
    rng = np.random.default_rng(len(name))
    rates = jnp.asarray(pattern * rng.normal(size=pattern.shape), dtype)
    y = jnp.asarray(rng.normal(size=len(pattern)), dtype)
    return structure, rates, y


def field(rates):
    return lambda y: rates @ jnp.sin(y) - 2 * y


def close(a, b, tolerance=1e-9):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.max(np.abs(b)))


@EVERY
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_agrees_with_the_full_matrix(name, dtype):
    structure, rates, y = problem(name, dtype)
    if name == "matrix-free" and dtype == jnp.float32:
        structure = MatrixFree()
    structure.check(y.size)

    @jax.jit
    def run(shift, rates, y):
        value, stored = structure.linearise(field(rates), y)
        factors = structure.factorise(shift, stored)
        return (
            value,
            structure.as_matrix(stored),
            structure.multiply(stored, y),
            structure.apply(factors, y, transpose=False),
            structure.apply(factors, y, transpose=True),
            structure.is_singular(factors),
        )

    shift = jnp.asarray(4, dtype)
    value, matrix, product, x, x_transposed, is_singular = run(shift, rates, y)
    exact = np.asarray(jax.jacfwd(field(rates))(y), np.float64)
    w = 4 * np.eye(y.size) - exact
    tolerance = 1e-10 if dtype == jnp.float64 else 2e-4
    assert {a.dtype for a in (value, matrix, product, x, x_transposed)} == {jnp.dtype(dtype)}
    close(value, field(rates)(y), tolerance)
    close(matrix, exact, tolerance)
    close(product, exact @ np.asarray(y), tolerance)
    close(x, np.linalg.solve(w, y), tolerance)
    close(x_transposed, np.linalg.solve(w.T, y), tolerance)
    assert not is_singular


def solve_with(structure, rates, y, shift):
    value, stored = structure.linearise(field(rates), y)
    factored = Factored(structure, shift, stored)
    return factored.solve(factored.solve(value))


def solve_in_full(rates, y, shift):
    w = shift * jnp.eye(y.size) - jax.jacfwd(field(rates))(y)
    return jnp.linalg.solve(w, jnp.linalg.solve(w, field(rates)(y)))


@FEW
def test_derivatives_are_exact(name):
    structure, rates, y = problem(name)
    pattern = STRUCTURES[name][1]
    shift = jnp.array(5.0)
    weights = jnp.cos(jnp.arange(y.size))
    ours = lambda *args: jnp.vdot(weights, solve_with(structure, *args))
    full = lambda *args: jnp.vdot(weights, solve_in_full(*args))
    # The full matrix also sees what is outside the pattern.
    masked = lambda grads: (grads[0] * pattern, *grads[1:])
    every = (0, 1, 2)
    found = jax.jit(jax.grad(ours, every))(rates, y, shift)
    wanted = jax.jit(jax.grad(full, every))(rates, y, shift)
    jax.tree.map(close, masked(found), masked(wanted))

    direction = (rates, jnp.sin(y), shift)
    push = lambda fn: jax.jit(lambda *a: jax.jvp(fn, a, direction)[1])(rates, y, shift)
    close(push(ours), push(full))
    second = lambda fn: jax.jit(lambda y: jax.jvp(jax.grad(fn, 1), (rates, y, shift), direction)[1])
    close(second(ours)(y), second(full)(y), 1e-7)


@FEW
def test_lanes_of_a_batch_are_independent(name):
    structure, rates, y = problem(name)
    shifts = jnp.array([3.0, jnp.nan, 50.0])
    solve = lambda shift: solve_with(structure, rates, y, shift)
    batch = jax.jit(jax.vmap(solve))(shifts)
    assert not np.isfinite(batch[1]).any()
    for i in (0, 2):
        close(batch[i], solve_in_full(rates, y, shifts[i]))
    gradient = jax.jit(jax.vmap(jax.grad(lambda s: jnp.sum(solve(s)))))(shifts)
    assert np.isfinite(gradient[jnp.array([0, 2])]).all()


@pytest.mark.parametrize("lower, upper, size", [(1, 1, 60), (2, 2, 80), (2, 1, 7), (4, 4, 130)])
def test_singular_matrices_are_noticed(lower, upper, size):
    structure = Banded(lower, upper)
    full = band(size, lower, upper) * np.random.default_rng(0).normal(size=(size, size))
    full -= np.diag(full.sum(axis=1))  # constants are in its kernel
    _, stored = structure.linearise(lambda y: jnp.asarray(full) @ y, jnp.ones(size))
    if not structure.is_dense(size):  # an LU only sees pivots that are exactly 0
        assert structure.is_singular(structure.factorise(jnp.array(0.0), stored))
    zero = jnp.zeros_like(stored)
    factors = structure.factorise(jnp.array(0.0), zero)
    assert structure.is_singular(factors)
    for x in (factors, structure.factorise(jnp.array(1.0), stored.at[1, 5].set(jnp.nan))):
        assert structure.is_singular(x)
        for transpose in (False, True):
            assert not np.isfinite(structure.apply(x, jnp.ones(size), transpose=transpose)).any()
    assert not structure.is_singular(structure.factorise(jnp.array(1e-3), zero))


def test_diffusion_without_ends_is_noticed():
    """Neumann ends: singular, and no entry is far from the others."""
    size = 200
    neumann = lambda y: (
        jnp.concatenate([y[1:] - y[:-1], jnp.zeros(1)])
        - jnp.concatenate([jnp.zeros(1), y[1:] - y[:-1]])
    )
    structure = Banded(1, 1)
    _, stored = structure.linearise(neumann, jnp.ones(size))
    assert structure.is_singular(structure.factorise(jnp.array(0.0), stored))
    assert not structure.is_singular(structure.factorise(jnp.array(1e-9), stored))


@pytest.mark.parametrize("bands, size", [((1, 1), 400), ((2, 2), 401)])
@pytest.mark.parametrize("seed", range(3))
def test_solves_are_accurate_without_dominance(bands, size, seed):
    """Random entries: blocks that are nearly singular where the matrix is not. The error is that
    of a stable solver, or the factorisation is refused."""
    structure = Banded(*bands)
    rng = np.random.default_rng(seed)
    full = band(size, *bands) * rng.normal(size=(size, size))
    # Rows and columns in units that span six orders of magnitude.
    units = 10 ** rng.uniform(-3, 3, size)
    full = units[:, None] * full / units
    _, stored = structure.linearise(lambda y: jnp.asarray(full) @ y, jnp.ones(size))
    factors = structure.factorise(jnp.array(0.1), stored)
    assert not structure.is_singular(factors)
    w = 0.1 * np.eye(size) - full
    b = units * rng.normal(size=size)
    for transpose in (False, True):
        a = w.T if transpose else w
        x = np.asarray(structure.apply(factors, jnp.asarray(b), transpose=transpose))
        backward = np.abs(a @ x - b) / (np.abs(a) @ np.abs(x) + np.abs(b))
        assert backward.max() < 1e-11


def test_stiff_diffusion_keeps_its_digits():
    """Condition number 1e10: the error is that of LU."""
    size = 400
    structure = Banded(1, 1)
    laplacian = 1e10 * (np.eye(size, k=1) + np.eye(size, k=-1) - 2 * np.eye(size))
    _, stored = structure.linearise(lambda y: jnp.asarray(laplacian) @ y, jnp.ones(size))
    b = np.random.default_rng(0).normal(size=size)
    x = structure.apply(
        structure.factorise(jnp.array(1.0), stored), jnp.asarray(b), transpose=False
    )
    close(x, np.linalg.solve(np.eye(size) - laplacian, b), 1e-10)


def test_a_solve_that_does_not_converge_gives_nan():
    structure = MatrixFree(lx.GMRES(rtol=1e-12, atol=1e-12, max_steps=2, restart=2))
    _, rates, y = problem("matrix-free")
    solve = jax.jit(jax.vmap(lambda shift: solve_with(structure, rates, y, shift)))
    x = solve(jnp.array([3.0, 1e14]))
    assert np.isnan(x[0]).all() and np.isfinite(x[1]).all()
    assert np.isfinite(solve_with(MatrixFree(), rates, y, jnp.array(30.0))).all()


def test_columns_that_share_no_row_are_computed_together():
    assert Sparse(band(50, 2, 1)).colours == 4
    assert Sparse(arrow(30)).colours == 30
    assert max(Sparse(shuffled_chain(60)).bands) <= 3
    for pattern in (grid(7), shuffled_chain(60), band(9, 0, 0)):
        structure = Sparse(pattern)
        for colour in range(structure.colours):
            assert pattern[:, structure.pattern.colour == colour].sum(axis=1).max() <= 1
    assert Sparse(grid(7)).colours <= 9

    calls = []

    def counted(y):
        calls.append(y.shape)
        return field(jnp.eye(50))(y)

    jax.make_jaxpr(lambda y: Banded(1, 1).linearise(counted, y))(jnp.ones(50))
    assert calls == [(50,)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Banded(1, 2),
        lambda: Sparse(band(9, 1, 1)),
        lambda: MatrixFree(lx.GMRES(1e-6, 1e-6)),
        lambda: MatrixFree(),
    ],
)
def test_is_a_value(make):
    a, b = make(), make()
    assert isinstance(a, AbstractJacobian)
    assert a == b and hash(a) == hash(b)
    assert jax.tree.leaves(a) == []
    traces = []

    @eqx.filter_jit
    def run(structure, y):
        traces.append(structure)
        return y

    run(a, jnp.ones(3))
    run(b, jnp.ones(3))
    assert len(traces) == 1
    assert "object at" not in repr(a)


def test_ways_to_write_a_pattern():
    full = shuffled_chain(30)
    rows, columns = np.nonzero(full)
    spellings = [
        Sparse(full),
        Sparse(full.astype(float)),
        Sparse(full.tolist()),
        Sparse(sps.csr_matrix(full)),
        Sparse(sps.coo_array(full)),
        Sparse((rows, columns, 30)),
        Sparse((rows[::-1].tolist(), columns[::-1].tolist(), 30)),
        Sparse((np.tile(rows, 2), np.tile(columns, 2), 30)),
    ]
    assert len(set(spellings)) == 1
    assert Sparse(full) != Sparse(full.T)
    zeros = Sparse(np.zeros((4, 4)))
    _, stored = zeros.linearise(lambda y: jnp.ones(4), jnp.ones(4))
    x = zeros.apply(zeros.factorise(jnp.array(2.0), stored), jnp.ones(4), transpose=False)
    close(x, 0.5 * np.ones(4))


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: Banded(-1, 2), ValueError, "`lower` is a number of diagonals.*got -1"),
        (lambda: Banded(1, 2.0), TypeError, "`upper` must be an integer >= 0, got 2.0"),
        (lambda: Banded(True, 2), TypeError, "`lower` must be an integer"),
        (lambda: Banded(1, 5).check(5), ValueError, "at most 4 diagonals.*upper=5.*Dense"),
        (lambda: Sparse(np.ones((3, 4))), ValueError, r"square.*\(3, 4\)"),
        (lambda: Sparse(np.ones(3)), ValueError, r"square.*\(3,\)"),
        (lambda: Sparse(((0, 1), (0,), 3)), ValueError, "2 and 1"),
        (lambda: Sparse(((0, 3), (0, 1), 3)), ValueError, "`rows`.*0 .. 2, got 3"),
        (lambda: Sparse(((0, 1), (0, -1), 3)), ValueError, "`columns`.*0 .. 2, got -1"),
        (lambda: Sparse(((0, 0.5), (0, 1), 3)), TypeError, "`rows`.*integers"),
        (lambda: Sparse(((0,), (0,))), TypeError, r"\(rows, columns, n\)"),
        (lambda: Sparse(((0,), (0,), 0)), ValueError, "`n`.*>= 1, got 0"),
        (lambda: Sparse("banded"), TypeError, "`pattern` must be"),
        (lambda: jax.jit(Sparse)(jnp.ones((3, 3))), TypeError, "traced"),
        (lambda: Sparse(np.eye(3)).check(4), ValueError, "3 x 3.*4 components"),
        (lambda: MatrixFree("gmres"), TypeError, "`solver` must be a Lineax solver"),
    ],
)
def test_errors_say_what_to_do(make, error, words):
    with pytest.raises(error, match=words):
        make()
