"""A published fit on the edge of a blow-up: the CD8 T-cell response of Crauste et al. 2017 (Cell
Systems 4, 306) at the optimum of the PEtab benchmark collection (Hass et al. 2019, Bioinformatics
35, 3073; BSD-3). Naive, early and late effector, and memory cells, and the pathogen."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

Y0 = jnp.array([8090.0, 0.0, 0.0, 0.0, 1.0])
# delta_EL, delta_LM, delta_NE, mu_EE, mu_LE, mu_LL, mu_N, mu_P, mu_PE, mu_PL, rho_E, rho_P
LOG10_RATES = jnp.array(
    [-0.28571556902578127, -1.6462638119095538, -1.9233308736879506, -4.407424157293231]
    + [-9.99999999999997, -5.090700702632191, -0.13082268528194607, -4.999999984703741]
    + [-9.85001546652046, -4.43961138871735, -0.29463614300453467, -0.8983137706244001]
)
# The log-likelihood and its gradient: forward sensitivities by LSODA at rtol 1e-12.
LIKELIHOOD = -190.963977576
GRADIENT = np.array(
    [-2.4554819830334327, -0.34341461844529325, 10.405058908735523, -17.534696657704266]
    + [-0.00017391615199847168, -2.8711022540546476, -9.459292786635682, 0.0015413320353859267]
    + [0.0005498296703433143, 30.992974803161893, 97.69512055892149, -106.42611881512211]
)
# time [days], state, measurement, its standard deviation
_DATA = np.array(
    [(4, 0, 459, 290), (6, 0, 74, 64), (4, 1, 386, 266), (6, 1, 1172, 526)]
    + [(7, 1, 47470, 23855), (8, 1, 175825, 19722), (13, 1, 4911, 3048), (15, 1, 7417, 2924)]
    + [(22, 1, 3359, 1540), (6, 2, 888, 182), (7, 2, 4577, 1976), (8, 2, 32860, 4105)]
    + [(13, 2, 46727, 23601), (15, 2, 27586, 6841), (22, 2, 13650, 7266), (28, 2, 3936, 2705)]
    + [(8, 3, 289, 80), (13, 3, 9564, 4206), (15, 3, 15631, 5745), (22, 3, 41744, 15987)]
    + [(28, 3, 32705, 7909)],
    float,
)
TS, _ROW = np.unique(_DATA[:, 0], return_inverse=True)


class Response(eqx.Module):
    log10_rates: jax.Array

    def __call__(self, t, y, args):
        to_late, to_memory, to_early, *rates = 10.0**self.log10_rates
        ee, le, ll, n, p, pe, pl, rho_e, rho_p = rates
        naive, early, late, _, pathogen = y
        activation, growth = to_early * naive * pathogen, rho_e * early * pathogen
        return jnp.stack(
            [
                -n * naive - activation,
                activation + growth - ee * early**2 - to_late * early,
                to_late * early - ll * late**2 - le * early * late - to_memory * late,
                to_memory * late,
                rho_p * pathogen**2 - pathogen * (pe * early + pl * late + p),
            ]
        )


def log_likelihood(ys):
    _, state, measured, deviation = _DATA.T
    residuals = (ys[_ROW, state.astype(int)] - measured) / deviation
    return -0.5 * jnp.sum(residuals**2 + jnp.log(2 * jnp.pi * deviation**2))
