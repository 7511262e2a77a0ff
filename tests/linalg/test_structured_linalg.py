"""The contract of every structure of a Jacobian: the same numbers as with the full matrix."""

from functools import partial

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


# One of each way to solve: one-sided bands, a pivot search unrolled or not, and the full matrix
# behind a structure.
STRUCTURES = {
    "banded-0-0": (Banded(0, 0), band(30, 0, 0)),
    "banded-1-1": (Banded(1, 1), band(83, 1, 1)),
    "banded-2-2": (Banded(2, 2), band(80, 2, 2)),
    "banded-1-3": (Banded(1, 3), band(70, 1, 3)),
    "banded-3-0": (Banded(3, 0), band(61, 3, 0)),
    "banded-5-6": (Banded(5, 6), band(203, 5, 6)),
    "banded-9-1": (Banded(9, 1), band(300, 9, 1)),
    "banded-small": (Banded(2, 1), band(7, 2, 1)),
    "banded-wide": (Banded(9, 9), band(31, 9, 9)),
    "sparse-chain": (Sparse(shuffled_chain(60)), shuffled_chain(60)),
    "sparse-grid": (Sparse(grid(7)), grid(7)),
    "sparse-arrow": (Sparse(arrow(30)), arrow(30)),
    "matrix-free": (MatrixFree(lx.GMRES(rtol=1e-14, atol=1e-14, restart=25)), band(25, 2, 2)),
    "dense": (Dense(), band(14, 13, 13)),
}
FEW = pytest.mark.parametrize("name", ["banded-2-2", "sparse-chain", "matrix-free"])


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


@pytest.mark.parametrize(
    "name, dtype",
    [(name, jnp.float64) for name in STRUCTURES]
    + [(name, jnp.float32) for name in ("banded-2-2", "banded-5-6", "sparse-grid", "matrix-free")],
)
def test_agrees_with_the_full_matrix(name, dtype):
    structure, rates, y = problem(name, dtype)
    if name == "matrix-free" and dtype == jnp.float32:
        structure = MatrixFree()
    structure.check(y.size)

    @jax.jit
    def run(shift, rates, y):
        value, stored = structure.linearise(field(rates), y)
        lu = structure.factorisation
        factors = lu.factorise(structure, shift, stored)
        return (
            value,
            structure.as_matrix(stored),
            structure.multiply(stored, y),
            lu.apply(factors, y, transpose=False),
            lu.apply(factors, y, transpose=True),
            lu.is_singular(factors),
        )

    shift = jnp.asarray(4, dtype)
    value, matrix, product, x, x_transposed, is_singular = run(shift, rates, y)
    exact = np.asarray(jax.jit(jax.jacfwd(field(rates)))(y), np.float64)
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
    return factored.solve(value) + factored.solve_transposed(value)


@jax.jit
def solve_in_full(rates, y, shift):
    w = shift * jnp.eye(y.size) - jax.jacfwd(field(rates))(y)
    return jnp.linalg.solve(w, field(rates)(y)) + jnp.linalg.solve(w.T, field(rates)(y))


@FEW
def test_derivatives_are_exact(name):
    """Reverse mode, forward mode, and second derivatives, which go through `linearise`."""
    structure, rates, y = problem(name)
    pattern = jnp.asarray(STRUCTURES[name][1])
    shift = jnp.array(5.0)
    weights = jnp.cos(jnp.arange(y.size))

    @partial(jax.jit, static_argnums=0)
    def derivatives(solve, rates, y, shift):
        # The full matrix also sees what is outside the pattern.
        scalar = lambda rates, y, s: jnp.vdot(weights, solve(jnp.where(pattern, rates, 0), y, s))
        gradient = jax.grad(scalar, (0, 1, 2))
        return jax.jvp(gradient, (rates, y, shift), (rates, jnp.sin(y), shift))

    found = derivatives(partial(solve_with, structure), rates, y, shift)
    wanted = derivatives(solve_in_full, rates, y, shift)
    jax.tree.map(lambda a, b: close(a, b, 1e-8), found, wanted)


@FEW
def test_lanes_of_a_batch_are_independent(name):
    structure, rates, y = problem(name)
    shifts = jnp.array([3.0, jnp.nan, 50.0])
    solve = lambda shift: solve_with(structure, rates, y, shift)
    batch, slope = jax.jit(
        jax.vmap(lambda shift: jax.jvp(solve, (shift,), (jnp.ones_like(shift),)))
    )(shifts)
    assert not np.isfinite(batch[1]).any()
    for i in (0, 2):
        close(batch[i], solve_in_full(rates, y, shifts[i]))
        assert np.isfinite(slope[i]).all()


@pytest.mark.parametrize("lower, upper, size", [(1, 1, 60), (9, 2, 300), (2, 1, 7)])
def test_singular_matrices_are_noticed(lower, upper, size):
    structure = Banded(lower, upper)
    full = band(size, lower, upper) * np.random.default_rng(0).normal(size=(size, size))
    full -= np.diag(full.sum(axis=1))  # constants are in its kernel
    _, stored = structure.linearise(lambda y: jnp.asarray(full) @ y, jnp.ones(size))
    zero = jnp.zeros_like(stored)

    @jax.jit
    def singular(shift, stored):
        lu = structure.factorisation
        factors = lu.factorise(structure, shift, stored)
        return lu.is_singular(factors), [
            lu.apply(factors, jnp.ones(size), transpose=transpose) for transpose in (False, True)
        ]

    if not structure.factorisation.is_dense(size):  # an LU only sees pivots that are exactly 0
        assert singular(jnp.array(0.0), stored)[0]
    for args in ((jnp.array(0.0), zero), (jnp.array(1.0), stored.at[1, size - 1].set(jnp.nan))):
        is_singular, solutions = singular(*args)
        assert is_singular
        assert not any(np.isfinite(x).all() for x in solutions)
    assert not singular(jnp.array(1e-3), zero)[0]
    assert not singular(jnp.array(30.0), stored)[0]


def test_diffusion_without_ends_is_noticed():
    """Neumann ends: singular, and no entry is far from the others."""
    size = 200
    neumann = lambda y: (
        jnp.concatenate([y[1:] - y[:-1], jnp.zeros(1)])
        - jnp.concatenate([jnp.zeros(1), y[1:] - y[:-1]])
    )
    structure = Banded(1, 1)
    _, stored = structure.linearise(neumann, jnp.ones(size))
    singular = jax.jit(lambda shift: Factored(structure, shift, stored).is_singular())
    assert singular(jnp.array(0.0))
    assert not singular(jnp.array(1e-9))


@pytest.mark.parametrize("bands, size", [((1, 1), 400), ((2, 2), 401)])
@pytest.mark.parametrize("seed", range(2))
def test_solves_are_accurate_without_dominance(bands, size, seed):
    """Random entries, in units that span six orders of magnitude: rows must be exchanged, and not
    for the sake of the units."""
    structure = Banded(*bands)
    rng = np.random.default_rng(seed)
    full = band(size, *bands) * rng.normal(size=(size, size))
    units = 10 ** rng.uniform(-3, 3, size)
    full = units[:, None] * full / units
    _, stored = structure.linearise(lambda y: jnp.asarray(full) @ y, jnp.ones(size))
    w = 0.1 * np.eye(size) - full
    b = units * rng.normal(size=size)

    @jax.jit
    def run(stored, b):
        lu = structure.factorisation
        factors = lu.factorise(structure, jnp.array(0.1), stored)
        return lu.is_singular(factors), [
            lu.apply(factors, b, transpose=transpose) for transpose in (False, True)
        ]

    is_singular, solutions = run(stored, b)
    assert not is_singular
    for a, x in zip((w, w.T), map(np.asarray, solutions), strict=True):
        backward = np.abs(a @ x - b) / (np.abs(a) @ np.abs(x) + np.abs(b))
        assert backward.max() < 1e-11


def test_stiff_diffusion_keeps_its_digits():
    """Condition number 1e10: the error is that of LU."""
    size = 400
    structure = Banded(1, 1)
    laplacian = 1e10 * (np.eye(size, k=1) + np.eye(size, k=-1) - 2 * np.eye(size))
    _, stored = structure.linearise(lambda y: jnp.asarray(laplacian) @ y, jnp.ones(size))
    b = np.random.default_rng(0).normal(size=size)
    solve = jax.jit(lambda stored, b: Factored(structure, jnp.array(1.0), stored).solve_frozen(b))
    x = solve(stored, jnp.asarray(b))
    close(x, np.linalg.solve(np.eye(size) - laplacian, b), 1e-10)


def test_a_solve_that_does_not_converge_gives_nan():
    structure = MatrixFree(lx.GMRES(rtol=1e-12, atol=1e-12, max_steps=5, restart=2))
    _, rates, y = problem("matrix-free")
    solve = jax.jit(jax.vmap(lambda shift: solve_with(structure, rates, y, shift)))
    x = solve(jnp.array([3.0, 1e14]))
    assert np.isnan(x[0]).all() and np.isfinite(x[1]).all()


def test_the_units_of_a_right_hand_side_do_not_matter_to_an_iteration():
    """An absolute tolerance of 1e-8 on a right-hand side of 1e-20 would give 0; and 0 gives 0."""
    _, rates, y = problem("matrix-free")
    structure = MatrixFree()
    _, stored = structure.linearise(field(rates), y)
    factored = Factored(structure, jnp.array(20.0), stored)
    solve = jax.jit(lambda b: factored.solve_frozen(b))
    close(1e20 * solve(1e-20 * y), solve(y), 1e-7)
    assert (solve(0 * y) == 0).all()


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
        lambda: Dense(),
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
    assert a.factorisation == b.factorisation and hash(a.factorisation) == hash(b.factorisation)
    assert jax.tree.leaves(a.factorisation) == []
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
    x = Factored(zeros, jnp.array(2.0), stored).solve_frozen(jnp.ones(4))
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
