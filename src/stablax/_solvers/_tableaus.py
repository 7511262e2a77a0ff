"""The coefficients of the Rosenbrock methods."""

import dataclasses
from collections.abc import Iterable
from typing import SupportsFloat, final

import numpy as np

from .._types import NumbersLike
from .._words import short

Rows = tuple[tuple[float, ...], ...]

_TRUE = 1e-8  # to what the conditions have to hold: some coefficients are published to 12 digits


@final
@dataclasses.dataclass(frozen=True)
class RosenbrockTableau:
    """The coefficients of a Rosenbrock method, in the form without products of the Jacobian (Hairer
    and Wanner 1996, Solving ODEs II, IV.7), scaled by the step size h:

        (I / gamma - h J) u_i = h f(t0 + c_i h, y0 + sum_j A_ij u_j) + sum_j C_ij u_j
                                + d_i h^2 df/dt
        y1 = y0 + sum_i b_i u_i,   error = sum_i e_i u_i
        y(theta) = (1 - theta) y0 + theta (y1 + (1 - theta) (q_1 + theta (q_2 + theta q_3)))
        q_m = sum_i H_mi u_i

    Most papers have another form, which `RosenbrockTableau.published` takes.

    **Arguments:**

    - `order`: that of the solution.
    - `error_order`: the error estimate is O(h^error_order): one above the lower of the two orders.
    - `gamma`: the diagonal coefficient, one for all stages.
    - `A`, `C`: strictly lower triangular, as tuples of rows without the zeros: `((), (a21,), ...)`.
    - `c`, `d`, `b`, `e`: one number for each stage.
    - `H`: rows of the dense output, one number for each stage.
    """

    order: int
    error_order: int
    gamma: float
    A: Rows
    C: Rows
    c: tuple[float, ...]
    d: tuple[float, ...]
    b: tuple[float, ...]
    e: tuple[float, ...]
    H: Rows

    @classmethod
    def published(
        cls,
        *,
        order: int,
        error_order: int,
        alpha: NumbersLike,
        gamma: NumbersLike,
        b: NumbersLike,
        embedded: NumbersLike,
        dense: NumbersLike | None = None,
    ) -> "RosenbrockTableau":
        """From coefficients as papers have them:

            k_i = h f(t0 + alpha_i h, y0 + sum_j alpha_ij k_j) + h J sum_j gamma_ij k_j
                  + gamma_i h^2 df/dt,   y1 = y0 + sum_i b_i k_i

        **Arguments:**

        - `order`, `error_order`: as of the class.
        - `alpha`: the coefficients alpha_ij, a matrix that is zero on and above the diagonal.
        - `gamma`: the coefficients gamma_ij, a matrix that is zero above the diagonal and has one
            number on it.
        - `b`, `embedded`: the weights of the solution and of the one that it is compared with.
        - `dense`: rows of weights q_m of a dense output, as in the form above, of the k_i. By
            default that of the highest order up to 4 for which there is one, with the smallest
            weights.

        **Raises:** `ValueError` for matrices of another shape, and for coefficients that do not
        fulfil the conditions of their order (those up to 4 are looked at), with the first that they
        do not.
        """
        alpha, gamma, b, embedded = (np.asarray(x, float) for x in (alpha, gamma, b, embedded))
        _check_shapes(alpha, gamma, b, embedded)
        conditions = _conditions(alpha, alpha + gamma)
        _check_order(conditions, b, order, "b")
        _check_order(conditions, embedded, error_order - 1, "embedded")
        to_k = np.linalg.inv(gamma)  # k = to_k @ u
        rows = _dense_output(conditions, order) if dense is None else np.atleast_2d(dense)

        def below_diagonal(matrix):
            return tuple(_floats(row[:i]) for i, row in enumerate(matrix))

        return cls(
            order=order,
            error_order=error_order,
            gamma=float(gamma[0, 0]),
            A=below_diagonal(alpha @ to_k),
            C=below_diagonal(np.diag(1 / np.diag(gamma)) - to_k),
            c=_floats(alpha.sum(axis=1)),
            d=_floats(gamma.sum(axis=1)),
            b=_floats(b @ to_k),
            e=_floats((b - embedded) @ to_k),
            H=tuple(_floats(row @ to_k) for row in rows),
        )

    @property
    def stages(self) -> int:
        """How many."""
        return len(self.b)

    @property
    def is_stiffly_accurate(self) -> bool:
        """Whether the last stage ends at the new state: what it solves for, holds there."""
        return np.allclose(self.b, (*self.A[-1], 1)) and bool(np.isclose(self.c[-1], 1))

    @property
    def end_slope(self) -> tuple[float, ...]:
        """h y' of the dense output at the end of the step is the sum of these times u_i."""
        return _floats(np.asarray(self.b) - np.sum(self.H, axis=0))


def _floats(row: Iterable[SupportsFloat]) -> tuple[float, ...]:
    return tuple(float(x) for x in row)


def _check_shapes(alpha: np.ndarray, gamma: np.ndarray, b: np.ndarray, embedded: np.ndarray):
    square = (b.size, b.size)
    for name, x, shape in (
        ("b", b, (b.size,)),
        ("embedded", embedded, (b.size,)),
        ("alpha", alpha, square),
        ("gamma", gamma, square),
    ):
        if x.shape != shape:
            raise ValueError(f"`{name}` has shape {x.shape}; with {b.size} stages it is {shape}.")
    for name, x, above in (("alpha", alpha, 0), ("gamma", gamma, 1)):
        if np.triu(x, above).any():
            where = "on and above" if above == 0 else "above"
            raise ValueError(f"`{name}` must be zero {where} the diagonal, got {short(x)}.")
    diagonal = np.diag(gamma)
    if not (diagonal[0] > 0 and (diagonal == diagonal[0]).all()):
        raise ValueError(
            f"`gamma` must have one number above 0 on its diagonal, got {short(diagonal)}."
        )


def _conditions(alpha: np.ndarray, beta: np.ndarray) -> tuple[tuple[int, np.ndarray, int], ...]:
    """Order r, Phi and 1 / s of each condition sum_i b_i Phi_i = 1 / s (Hairer and Wanner 1996,
    IV.7, table 7.1)."""
    one = np.ones(len(alpha))
    a, slope = alpha @ one, beta @ one
    return (
        (1, one, 1),
        (2, slope, 2),
        (3, a**2, 3),
        (3, beta @ slope, 6),
        (4, a**3, 4),
        (4, a * (alpha @ slope), 8),
        (4, beta @ a**2, 12),
        (4, beta @ beta @ slope, 24),
    )


def _check_order(conditions, weights: np.ndarray, order: int, name: str) -> None:
    for r, phi, s in conditions:
        if r <= order and abs(weights @ phi - 1 / s) > _TRUE:
            raise ValueError(
                f"With these coefficients `{name}` is not of order {order}: a sum that is 1/{s} "
                f"for order {r} is {weights @ phi:.10g}. Look at `alpha`, `gamma` and `{name}`."
            )


def _dense_output(conditions, order: int) -> np.ndarray:
    """Rows q_m such that the weights theta b + theta (1 - theta) (q_1 + theta q_2 + ...) fulfil the
    conditions of the order at every theta, where they are theta^r / s. With those of b that is

        q_m . Phi = -1 / s for m < r,   0 for m >= r
    """
    for wanted in range(min(order, 4), 1, -1):
        fulfilled = [(r, phi, s) for r, phi, s in conditions if r <= wanted]
        phis = np.stack([phi for _, phi, _ in fulfilled])
        right = np.array(
            [[-1 / s if m < r else 0 for r, _, s in fulfilled] for m in range(1, wanted)]
        )
        rows = right @ np.linalg.pinv(phis, rcond=_TRUE).T
        if np.max(np.abs(rows @ phis.T - right)) < _TRUE:
            return rows
    return np.zeros((1, conditions[0][1].size))


# G. Steinebach, Construction of Rosenbrock-Wanner method Rodas5P and numerical benchmarks within
# the Julia Differential Equations package, BIT Numerical Mathematics 63, 27 (2023).
RODAS5P = RosenbrockTableau(
    order=5,
    error_order=5,
    gamma=0.21193756319429014,
    A=(
        (),
        (3.0,),
        (2.849394379747939, 0.45842242204463923),
        (-6.954028509809101, 2.489845061869568, -10.358996098473584),
        (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
        (
            -7.502846399306121,
            2.561846144803919,
            -11.627539656261098,
            -0.18268767659942256,
            0.030198172008377946,
        ),
        (
            -7.502846399306121,
            2.561846144803919,
            -11.627539656261098,
            -0.18268767659942256,
            0.030198172008377946,
            1.0,
        ),
        (
            -7.502846399306121,
            2.561846144803919,
            -11.627539656261098,
            -0.18268767659942256,
            0.030198172008377946,
            1.0,
            1.0,
        ),
    ),
    C=(
        (),
        (-14.155112264123755,),
        (-17.97296035885952, -2.859693295451294),
        (147.12150275711716, -1.41221402718213, 71.68940251302358),
        (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
        (
            24.854864614690072,
            -3.0009227002832186,
            47.4931110020768,
            5.5814197821558125,
            -0.6610691825249471,
        ),
        (
            30.91273214028599,
            -3.1208243349937974,
            77.79954646070892,
            34.28646028294783,
            -19.097331116725623,
            -28.087943162872662,
        ),
        (
            37.80277123390563,
            -3.2571969029072276,
            112.26918849496327,
            66.9347231244047,
            -40.06618937091002,
            -54.66780262877968,
            -9.48861652309627,
        ),
    ),
    c=(
        0.0,
        0.6358126895828704,
        0.4095798393397535,
        0.9769306725060716,
        0.4288403609558664,
        1.0,
        1.0,
        1.0,
    ),
    d=(
        0.21193756319429014,
        -0.42387512638858027,
        -0.3384627126235924,
        1.8046452872882734,
        2.325825639765069,
        0.0,
        0.0,
        0.0,
    ),
    b=(
        -7.502846399306121,
        2.561846144803919,
        -11.627539656261098,
        -0.18268767659942256,
        0.030198172008377946,
        1.0,
        1.0,
        1.0,
    ),
    e=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
    H=(
        (
            25.948786856663858,
            -2.5579724845846235,
            10.433815404888879,
            -2.3679251022685204,
            0.524948541321073,
            1.1241088310450404,
            0.4272876194431874,
            -0.17202221070155493,
        ),
        (
            -9.91568850695171,
            -0.9689944594115154,
            3.0438037242978453,
            -24.495224566215796,
            20.176138334709044,
            15.98066361424651,
            -6.789040303419874,
            -6.710236069923372,
        ),
        (
            11.419903575922262,
            2.8879645146136994,
            72.92137995996029,
            80.12511834622643,
            -52.072871366152654,
            -59.78993625266729,
            -0.15582684282751913,
            4.883087185713722,
        ),
    ),
)

# E. Hairer and G. Wanner, Solving Ordinary Differential Equations II, 2nd ed., Springer (1996),
# code RODAS.
RODAS4 = RosenbrockTableau(
    order=4,
    error_order=4,
    gamma=0.25,
    A=(
        (),
        (1.544,),
        (0.9466785280815826, 0.2557011698983284),
        (3.314825187068521, 2.896124015972201, 0.9986419139977817),
        (1.221224509226641, 6.019134481288629, 12.53708332932087, -0.687886036105895),
        (1.221224509226641, 6.019134481288629, 12.53708332932087, -0.687886036105895, 1.0),
    ),
    C=(
        (),
        (-5.6688,),
        (-2.430093356833875, -0.2063599157091915),
        (-0.1073529058151375, -9.594562251023355, -20.47028614809616),
        (7.496443313967647, -10.24680431464352, -33.99990352819905, 11.7089089320616),
        (
            8.083246795921522,
            -7.981132988064893,
            -31.52159432874371,
            16.31930543123136,
            -6.058818238834054,
        ),
    ),
    c=(0.0, 0.386, 0.21, 0.63, 1.0, 1.0),
    d=(0.25, -0.1043, 0.1035, -0.0362, 0.0, 0.0),
    b=(1.221224509226641, 6.019134481288629, 12.53708332932087, -0.687886036105895, 1.0, 1.0),
    e=(0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
    H=(
        (
            10.12623508344586,
            -7.487995877610167,
            -34.80091861555747,
            -7.992771707568823,
            1.025137723295662,
            0.0,
        ),
        (
            -0.6762803392801253,
            6.087714651680015,
            16.43084320892478,
            24.76722511418386,
            -6.594389125716872,
            0.0,
        ),
    ),
)


def _rosenbrock23() -> RosenbrockTableau:
    """L. F. Shampine and M. W. Reichelt, The MATLAB ODE suite, SIAM J. Sci. Comput. 18, 1 (1997),
    ode23s, as a Rosenbrock method.

    There W = I - h d J, W k1 = F0 + h d T, W (k2 - k1) = F1 - k1,
    W k3 = F2 - e32 (k2 - F1) - 2 (k1 - F0) + h d T, with F0 and F1 eliminated.
    """
    d = 1 / (2 + np.sqrt(2))
    e32 = 6 + np.sqrt(2)
    b = np.array([0, 1, 0])
    return RosenbrockTableau.published(
        order=2,
        error_order=3,
        alpha=[[0, 0, 0], [0.5, 0, 0], [0, 1, 0]],
        gamma=[[d, 0, 0], [-d, d, 0], [(e32 - 2) * d, -e32 * d, d]],
        b=b,
        embedded=b - np.array([1 / 6, -1 / 3, 1 / 6]),
        dense=np.array([1, -1, 0]) / (1 - 2 * d),
    )


ROSENBROCK23 = _rosenbrock23()
