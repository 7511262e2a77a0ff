"""Null spaces, as few and simple rows as there are."""

import math
from fractions import Fraction

import numpy as np

# Relative to the largest singular value: below it given rows are redundant.
_REDUNDANT = 1e-10
# What is left of an entry that elimination has made zero, of orthonormal rows.
_ELIMINATED = 1e-11
_LARGEST = 2**1000  # well below the largest float, about 2**1024


def row_projector(rows: np.ndarray) -> np.ndarray:
    """The orthogonal projector onto the span of `rows`, which may be redundant."""
    scaled = rows / np.maximum(
        np.abs(rows).max(axis=1, keepdims=True, initial=0), np.finfo(float).tiny
    )
    _, sizes, basis = np.linalg.svd(scaled, full_matrices=False)
    basis = basis[sizes > _REDUNDANT * sizes.max(initial=0)]
    return basis.T @ basis


def left_null_space(matrix: np.ndarray) -> np.ndarray:
    """Rows L with L N = 0 for a stoichiometric matrix N, shape `(species, reactions)`.

    Exact, with integer rows, where the entries of N are integers or simple fractions; otherwise
    from singular values.
    """
    exact = [[_simple(x) for x in row] for row in matrix.tolist()]
    if any(x is None for row in exact for x in row):
        scaled, scale = _equilibrated(matrix)
        left, sizes, _ = np.linalg.svd(scaled, full_matrices=True)
        rank = int(np.sum(sizes > max(matrix.shape) * np.finfo(float).eps * sizes.max(initial=0)))
        # What is noise shows before the units of the species come in.
        rows = echelon(left[:, rank:].T, _ELIMINATED) / scale.T
        return rows / rows[np.arange(len(rows)), (rows != 0).argmax(axis=1), None]
    return _exact_null_space([[x or Fraction(0) for x in row] for row in exact])


def _equilibrated(matrix: np.ndarray, passes: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """The matrix with rows and columns scaled to a largest entry near 1, and what its rows were
    divided by. Ruiz (2001): each pass takes the square root of what is too much, so that 12 leave
    less than 1 % of 17 decades."""
    scale = np.ones((len(matrix), 1))
    for _ in range(passes):
        row, column = (np.abs(matrix).max(axis=i, keepdims=True, initial=0) for i in (1, 0))
        row, column = (np.sqrt(np.where(x > 0, x, 1)) for x in (row, column))
        matrix, scale = matrix / row / column, scale * row
    return matrix, scale


def _simple(x: float, most: int = 10**4) -> Fraction | None:
    """The simple fraction that `x` is the floating-point number of, if it is one."""
    fraction = Fraction(x).limit_denominator(most)
    return fraction if float(fraction) == x else None


def _exact_null_space(rows: list[list[Fraction]]) -> np.ndarray:
    """By elimination on [N | I]: what stands beside a row of zeros is in the null space."""
    species = len(rows)
    reactions = len(rows[0]) if rows else 0
    work = [row + [Fraction(int(i == j)) for j in range(species)] for i, row in enumerate(rows)]
    done = 0
    for column in range(reactions):
        pivot = next((i for i in range(done, species) if work[i][column]), None)
        if pivot is None:
            continue
        work[done], work[pivot] = work[pivot], work[done]
        for i in range(done + 1, species):
            if work[i][column]:
                factor = work[i][column] / work[done][column]
                work[i] = [a - factor * b for a, b in zip(work[i], work[done], strict=True)]
        done += 1
    left = [row[reactions:] for row in work[done:]]
    return _integers(_reduced(left)) if left else np.zeros((0, species))


def _reduced(rows: list[list[Fraction]]) -> list[list[Fraction]]:
    """Reduced row echelon form."""
    rows = [list(row) for row in rows]
    done = 0
    for column in range(len(rows[0])):
        pivot = next((i for i in range(done, len(rows)) if rows[i][column]), None)
        if pivot is None:
            continue
        rows[done], rows[pivot] = rows[pivot], rows[done]
        rows[done] = [x / rows[done][column] for x in rows[done]]
        for i in range(len(rows)):
            if i != done and rows[i][column]:
                factor = rows[i][column]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[done], strict=True)]
        done += 1
    return rows


def _integers(rows: list[list[Fraction]]) -> np.ndarray:
    scaled = []
    for row in rows:
        factor = Fraction(math.lcm(*(entry.denominator for entry in row)))
        # What no float can hold is taken relative to the largest.
        largest = max(abs(x) for x in row) * factor
        factor = factor if largest < _LARGEST else factor / largest
        scaled.append([float(x * factor) for x in row])
    return np.array(scaled)


def echelon(rows: np.ndarray, tolerance: float = 1e-9) -> np.ndarray:
    """Reduced row echelon form, with entries that are simple fractions to within `tolerance`
    made exactly so."""
    rows = rows.astype(float).copy()
    done = 0
    for column in range(rows.shape[1]):
        if done == len(rows):
            break
        pivot = done + int(np.argmax(np.abs(rows[done:, column])))
        if abs(rows[pivot, column]) <= tolerance * np.abs(rows[done:]).max():
            rows[done:, column] = 0
            continue
        rows[[done, pivot]] = rows[[pivot, done]]
        rows[done] /= rows[done, column]
        others = np.arange(len(rows)) != done
        rows[others] -= rows[others][:, [column]] * rows[[done]]
        done += 1
    rows[np.abs(rows) <= tolerance * np.abs(rows).max(axis=1, keepdims=True, initial=0)] = 0
    return rows


def combination(row: np.ndarray, names: tuple[str, ...]) -> str:
    """A row in words: `A + 2 B - C`."""
    text = ""
    for weight, name in zip(row, names, strict=True):
        if weight == 0:
            continue
        factor = "" if abs(weight) == 1 else f"{abs(weight):.6g} "
        sign = ("-" if weight < 0 else "") if not text else (" - " if weight < 0 else " + ")
        text += f"{sign}{factor}{name}"
    return text
