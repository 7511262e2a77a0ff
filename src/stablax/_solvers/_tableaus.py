"""The coefficients of the Rosenbrock methods.

In the form without products of the Jacobian (Hairer and Wanner 1996, IV.7), scaled by the step:

    (I / gamma - h J) u_i = h f(t0 + c_i h, y0 + sum_j A_ij u_j) + sum_j C_ij u_j + d_i h^2 df/dt
    y1 = y0 + sum_i b_i u_i,   error = sum_i e_i u_i
    y(theta) = (1 - theta) y0 + theta (y1 + (1 - theta) (q_1 + theta (q_2 + theta q_3)))
    q_m = sum_i H_mi u_i
"""

import dataclasses

import numpy as np

Rows = tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True)
class Tableau:
    """Coefficients; strictly lower triangular rows of `A` and `C` are given without zeros.

    `order` is that of the solution; the error estimate is O(h^error_order).
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

    @property
    def stages(self) -> int:
        return len(self.b)

    @property
    def end_slope(self) -> tuple[float, ...]:
        """h y' of the dense output at the end of the step is the sum of these times u_i."""
        return tuple(float(x) for x in np.asarray(self.b) - np.sum(self.H, axis=0))


# G. Steinebach, Construction of Rosenbrock-Wanner method Rodas5P and numerical benchmarks within
# the Julia Differential Equations package, BIT Numerical Mathematics 63, 27 (2023).
RODAS5P = Tableau(
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
RODAS4 = Tableau(
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


def _rosenbrock23() -> Tableau:
    """L. F. Shampine and M. W. Reichelt, The MATLAB ODE suite, SIAM J. Sci. Comput. 18, 1 (1997),
    ode23s, brought to the form above.

    There W = I - h d J, W k1 = F0 + h d T, W (k2 - k1) = F1 - k1,
    W k3 = F2 - e32 (k2 - F1) - 2 (k1 - F0) + h d T. In the general form of a Rosenbrock method,
    k_i = f(y0 + h sum_j alpha_ij k_j) + h J sum_j beta_ij k_j + ..., with F0 and F1 eliminated.
    """
    d = 1 / (2 + np.sqrt(2))
    e32 = 6 + np.sqrt(2)
    alpha = np.array([[0, 0, 0], [0.5, 0, 0], [0, 1, 0]])
    beta = np.array([[d, 0, 0], [-d, d, 0], [(e32 - 2) * d, -e32 * d, d]])
    to_k = np.linalg.inv(beta)  # h k = to_k @ u

    def below_diagonal(matrix):
        return tuple(tuple(float(x) for x in row[:i]) for i, row in enumerate(matrix))

    def weights(k):
        return tuple(float(x) for x in np.asarray(k) @ to_k)

    return Tableau(
        order=2,
        error_order=3,
        gamma=float(d),
        A=below_diagonal(alpha @ to_k),
        C=below_diagonal(np.diag(1 / np.diag(beta)) - to_k),
        c=tuple(float(x) for x in alpha.sum(axis=1)),
        d=tuple(float(x) for x in beta.sum(axis=1)),
        b=weights([0, 1, 0]),
        e=weights([1 / 6, -1 / 3, 1 / 6]),
        H=(weights(np.array([1, -1, 0]) / (1 - 2 * d)),),
    )


ROSENBROCK23 = _rosenbrock23()
